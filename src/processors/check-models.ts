// How are the models looked at?

import { type Job, WaitingChildrenError } from 'bullmq';
import { announceTransitions, expireLostChecks } from '../producers/models.ts';
import { addJobs, jobOf, parseData } from '../queues/define-job.ts';
import { type CheckData, checkModels, probeJobId, probeModel } from '../queues/models.ts';
import type { Queues } from '../queues/redis.ts';
import {
  beginCheck,
  type Check,
  checkOf,
  endCheck,
  forgetChecks,
  foundBefore,
  type ProbeBudget,
  probesOf,
  reserveProbes,
  writeOutcome,
} from '../store/checks.ts';
import { readClock, whyHeld } from '../store/clock.ts';
import type { Pool } from '../store/db.ts';
import { callsSeen } from '../store/model-calls.ts';
import {
  askable,
  expireStatuses,
  forgetTransitions,
  type Judgement,
  lockStatuses,
  writeJudgements,
} from '../store/model-status.ts';
import { type ModelCallType, type ModelKey, modelsNamed } from '../store/models.ts';
import type { Context } from './context.ts';
import { type JudgePolicy, judge, sayOf, suspectProviders } from './judge-model.ts';
import { checkLimitSeconds, type ProbePolicy } from './probe-model.ts';

export interface CheckPolicy extends JudgePolicy, ProbeBudget, Pick<ProbePolicy, 'timeoutSeconds'> {
  /** Types of which a probe asks for a real generation, rather than for the model's record. */
  readonly generate: readonly ModelCallType[];
  readonly historyDays: number;
  /** Whether there is a webhook to tell of transitions. */
  readonly announce: boolean;
  /** Seconds between two scheduled checks. */
  readonly interval: () => Promise<number>;
}

export interface CheckDeps {
  readonly pool: Pool;
  readonly queues: Queues;
  readonly policy: CheckPolicy;
}

/**
 * Look at the models: judge those that real calls speak for by them, and probe the silent and the failing ones, a child for each, as far as
 * the budget reaches; then judge all that was seen, in one transaction and once.
 *
 * The step is stored on the job, so that a crash resumes where it died. What was reserved and found stands in Postgres; a
 * check that Redis loses changes no status, and the next one looks again.
 */
export function checkModelsProcessor(deps: CheckDeps) {
  const { pool, queues, policy } = deps;
  return async ({ job, token, signal, log }: Context): Promise<unknown> => {
    let data = parseData(checkModels, job);
    if (data.step === 'plan') {
      const lost = await expireLostChecks(deps, checkLimitSeconds(policy));
      if (lost.length > 0)
        log.warn({ checks: lost }, 'checks of models that no job stood for: ended without a judgement');
      if (data.check === 0) {
        const asked = { models: [], probe: false, interval: await policy.interval() };
        data = await store(job, { step: 'plan', check: await beginCheck(pool, asked) });
      }
      const check = await checkOf(pool, data.check);
      if (!check || check.finishedAt) return { check: data.check, nothing: 'to do' };
      const { reserved, unpaid } = await plan(deps, check);
      await job.log(
        `${reserved} probes reserved${unpaid > 0 ? `, ${unpaid} models are left: the budget is spent` : ''}`,
      );
      data = await store(job, { ...data, step: 'probe' });
    }
    if (data.step === 'probe') {
      await fanOut(deps, job, data);
      data = await store(job, { ...data, step: 'judge' });
    }
    await job.updateProgress(30);
    if (await job.moveToWaitingChildren(token)) throw new WaitingChildrenError();

    signal.throwIfAborted();
    const outcome = await judgeAll(deps, data.check);
    await job.updateProgress(100);
    if (outcome && 'suspect' in outcome) {
      log.warn({ check: data.check, providers: outcome.suspect }, 'every provider failed: is it our own network?');
      await job.log('every provider failed at once: our own network is suspect, and no status was changed');
    }
    if (outcome && Object.keys(outcome.became).length > 0)
      log.info({ check: data.check, ...outcome.became }, 'models changed');
    await announceTransitions(pool, queues);
    return { check: data.check, ...outcome };
  };
}

/** Reserve probes for the models that are silent or fail, failing ones first, then those that nobody has looked at for longest. */
async function plan({ pool, policy }: CheckDeps, check: Check): Promise<{ reserved: number; unpaid: number }> {
  const said = await callsOf(pool, check);
  const wanted = new Set((await modelsNamed(pool, check.models)).map(nameOf));
  const candidates = (await askable(pool))
    .map((model) => ({ model, says: sayOf(said.get(nameOf(model)), policy) }))
    .filter(
      ({ model, says }) => wanted.has(nameOf(model)) && (check.probe || says === 'silent' || says === 'failing'),
    )
    .sort((a, b) => Number(b.says === 'failing') - Number(a.says === 'failing'))
    .map(({ model }) => ({ ...model, free: !isPaid(model.type, policy) }));
  return reserveProbes(pool, check.id, candidates, policy);
}

/** Whether a probe of this type makes the model work, rather than ask for its record. */
function isPaid(type: ModelCallType, { generate }: CheckPolicy): boolean {
  return type === 'chatCompletion' || type === 'embedding' || generate.includes(type);
}

/** Add a child for each probe; those that were added before a crash are not added again. */
async function fanOut({ pool, queues }: CheckDeps, job: Job, { check }: CheckData): Promise<void> {
  const parent = { id: job.id ?? '', queue: job.queueQualifiedName };
  const children = (await probesOf(pool, check)).map(({ id, providerId, model }) => {
    const data = { probe: id, providerId, model };
    return jobOf(probeModel, data, { jobId: probeJobId(data, parent.id), parent });
  });
  await addJobs(queues.probes, children);
}

/**
 * Judge every model by what the check saw of it, once, in one transaction.
 *
 * @returns what is shown of the check; `undefined` where it was judged before
 */
async function judgeAll({ pool, policy }: CheckDeps, id: number) {
  return pool.$transaction(async (db) => {
    const check = await checkOf(db, id);
    const ended = check && (await endCheck(db, id));
    if (!ended) return undefined;
    await expireStatuses(db, check.interval, policy.announce);
    const said = await callsOf(db, check);
    const found = new Map(ended.found.map((result) => [nameOf(result), result]));
    const wanted = new Set((await modelsNamed(db, check.models)).map(nameOf));
    const seen = (await lockStatuses(db))
      .filter((model) => wanted.has(nameOf(model)))
      .map((model) => ({ ...model, evidence: { calls: said.get(nameOf(model)), probe: found.get(nameOf(model)) } }));
    // What the others said of late counts too, though this check may have had no reason, or no budget, to ask them.
    const others = [
      ...[...said.values()].map((calls) => ({ providerId: calls.providerId, evidence: { calls } })),
      ...(await foundBefore(db, check)).map((probe) => ({ providerId: probe.providerId, evidence: { probe } })),
    ];
    const suspect = suspectProviders([...seen, ...others]);
    const judged =
      suspect.length > 0
        ? []
        : seen.flatMap(({ evidence, ...known }): (ModelKey & Judgement)[] => {
            const judgement = judge(known, evidence, policy);
            return judgement
              ? [{ providerId: known.providerId, model: known.model, type: known.type, ...judgement }]
              : [];
          });
    const became = await writeJudgements(db, judged, policy.announce);
    const outcome = {
      models: seen.length,
      judged: judged.length,
      probed: ended.sent,
      unsent: ended.unsent,
      became,
      ...(suspect.length > 0 ? { suspect: suspect.slice(0, 20) } : {}),
    };
    await writeOutcome(db, id, outcome);
    if (!whyHeld(await readClock(db))) {
      await forgetTransitions(db, policy.historyDays);
      await forgetChecks(db, policy.historyDays);
    }
    return outcome;
  });
}

async function callsOf(db: Parameters<typeof callsSeen>[0], { startedAt, interval }: Check) {
  return new Map((await callsSeen(db, startedAt, interval)).map((calls) => [nameOf(calls), calls]));
}

/** A text for each model, and one alone. */
function nameOf({ providerId, model, type }: ModelKey): string {
  return JSON.stringify([providerId, model, type]);
}

async function store(job: Job, data: CheckData): Promise<CheckData> {
  await job.updateData(data);
  return data;
}
