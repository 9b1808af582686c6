// Which looks at the models are asked for, and who is told what came of them?

import { addJobs, jobOf } from '../queues/define-job.ts';
import { announceTransition, checkModels } from '../queues/models.ts';
import type { Queues } from '../queues/redis.ts';
import { beginCheck, type Check, expireCheck, unendedChecks } from '../store/checks.ts';
import type { Db, Pool } from '../store/db.ts';
import { unannounced } from '../store/model-status.ts';
import { type ModelKey, modelsNamed } from '../store/models.ts';
import { scheduleOf } from '../store/schedules.ts';
import { intervalOf, type Pattern } from '../time/pattern.ts';

/** Of a scheduler that is off, or of which no worker has said anything yet. */
const DEFAULT_INTERVAL = 900;

/** Seconds between two scheduled checks, by the pattern that stands, else by this process' own. */
export async function checkInterval(db: Db, own: Pattern): Promise<number> {
  const pattern = (await scheduleOf(db, 'check.model.status'))?.pattern ?? own;
  return pattern === 'off' ? DEFAULT_INTERVAL : Math.ceil(intervalOf(pattern, new Date()));
}

/** A scheduled look at all models; one that is under way stands for it. */
export async function enqueueCheck(queues: Queues): Promise<void> {
  await addJobs(queues.checks, [jobOf(checkModels, { step: 'plan', check: 0 })]);
}

/** Models that nobody knows were asked for. */
export class UnknownModels extends Error {}

/**
 * A look that somebody asks for, at the models of these names (`provider/model` or `model`; none: all): in Postgres first,
 * then as a job.
 *
 * @returns the check, to be looked for in Postgres, and the models that it looks at
 * @throws {UnknownModels} naming those that are not known
 */
export async function requestCheck(
  { pool, queues }: { pool: Pool; queues: Queues },
  { names, ...asked }: Pick<Check, 'probe' | 'interval'> & { names: readonly string[]; requestedBy: string },
): Promise<{ check: number; models: ModelKey[] }> {
  const models = await modelsNamed(pool, names);
  const known = new Set(models.flatMap(({ providerId, model }) => [model, `${providerId}/${model}`]));
  const missing = names.filter((name) => !known.has(name));
  if (missing.length > 0 || models.length === 0) {
    const found = missing.map((name) => `"${name}"`).join(', ') || 'none, for none is known yet';
    throw new UnknownModels(`expected models that are known (hourhand models status lists them), got ${found}`);
  }
  const check = await beginCheck(pool, {
    ...asked,
    models: names.length === 0 ? [] : models.map(({ providerId, model }) => `${providerId}/${model}`),
  });
  await addJobs(queues.checks, [jobOf(checkModels, { step: 'plan', check })]);
  return { check, models };
}

/**
 * End the checks of more than so many seconds ago that have no job any more: Redis lost it, or a worker took it that
 * does not know the check. Otherwise they would stay unfinished for ever.
 *
 * @returns their ids
 */
export async function expireLostChecks(
  { pool, queues }: { pool: Pool; queues: Queues },
  seconds: number,
): Promise<number[]> {
  const old = await unendedChecks(pool, seconds);
  if (old.length === 0) return [];
  const jobs = await queues.checks.getJobs(['active', 'wait', 'prioritized', 'delayed', 'waiting-children']);
  const live = new Set(jobs.map((job) => Object(job?.data).check));
  const expired: number[] = [];
  for (const check of old) {
    if (live.has(check)) continue;
    if (await expireCheck(pool, check, 'its job was gone from Redis')) expired.push(check);
  }
  return expired;
}

/** Whether a check by hand still has its job. To be asked before the check itself: a job ends after its check. */
export async function hasJob(queues: Queues, check: number): Promise<boolean> {
  const id = checkModels.deduplicationId?.({ step: 'plan', check }) ?? '';
  return (await queues.checks.getDeduplicationJobId(id)) !== null;
}

const MOST = 1_000;

/** Have the webhook told of every transition that it has not taken yet. */
export async function announceTransitions(pool: Pool, queues: Queues): Promise<void> {
  const transitions = await unannounced(pool, MOST);
  await addJobs(
    queues.announcements,
    transitions.map((transition) => jobOf(announceTransition, { transition })),
  );
}
