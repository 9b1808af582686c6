// How is one hour rolled up?

import { setTimeout as sleep } from 'node:timers/promises';
import { type Job, UnrecoverableError, WaitingChildrenError } from 'bullmq';
import { addJobs, jobOf, parseData } from '../queues/define-job.ts';
import type { Queues } from '../queues/redis.ts';
import {
  BACKFILL_PRIORITY,
  CLOSING_PRIORITY,
  childId,
  type HourData,
  rollUpHour,
  rollUpUsers,
} from '../queues/stats.ts';
import { allotRun, type CutPolicy, fitsAtOnce, sizeOf } from '../store/cut.ts';
import type { Pool } from '../store/db.ts';
import { allot, type ClosePolicy, endRun, shardsOf } from '../store/ledger.ts';
import { waitsForOlder } from '../store/seam.ts';
import { rollUp } from '../store/stats.ts';
import type { Hour } from '../time/hour.ts';
import { closeHourAloud } from './close-hour.ts';
import type { Context } from './context.ts';
import { wholeHour } from './roll-up-scope.ts';

export interface HourDeps {
  readonly pool: Pool;
  readonly queues: Queues;
  readonly policy: ClosePolicy & CutPolicy;
}

/**
 * Roll up one hour: at once where that is less work, else allot a run, fan out its shards, wait for the children, close the hour
 * from the ledger.
 *
 * The step is stored on the job, so that a crash resumes at the step it died in; each may run twice. The job carries no
 * authority: whether anything is owed, and which run counts, is asked of the ledger every time.
 */
export function rollUpHourProcessor(deps: HourDeps) {
  return async (context: Context): Promise<unknown> => {
    const { job, signal } = context;
    let data = parseData(rollUpHour, job);
    const { hour } = data;
    for (;;) {
      signal.throwIfAborted();
      if (data.step === 'allot') {
        if (!data.backfilled) await olderTransactionsEnded(deps, hour, signal);
        const size = await sizeOf(deps.pool, hour, deps.policy);
        const atOnce = fitsAtOnce(size, deps.policy) && (await rollUpAtOnce(deps, context, data));
        if (atOnce) return atOnce;
        const allotted = await allotRun(deps.pool, hour, deps.policy, { size, job: job.id, again: data.again });
        if (!allotted) return { hour, nothing: 'owed' };
        data = { hour, step: 'fan-out', again: false, ...allotted };
        await store(job, data, 10, `run ${data.run} allotted`);
      }
      if (data.step === 'fan-out') {
        const children = await fanOut(deps, job, data);
        data = { ...data, step: 'close' };
        await store(job, data, 30, `${children} children added`);
      }
      await waitForChildren(context, data);

      const closing = await closeHourAloud(context, deps, hour, data.run, 'parent');
      await job.updateProgress(100);
      if (closing.outcome === 'partial') {
        // Its retry, by hand, is a new run.
        await job.updateData(again(data));
        throw new UnrecoverableError(`hour ${hour} is partial: ${closing.error}`);
      }
      if (closing.outcome !== 'open') return { hour, run: data.run, outcome: closing.outcome };
      data = again(data);
      await job.updateData(data);
    }
  };
}

/**
 * Most of the transactions that were open when the hour was first looked at end within moments: a run that begins after them
 * need not be repeated. Those that take longer are not waited for; the hour is published, and runs once more when they have ended.
 */
async function olderTransactionsEnded({ pool }: HourDeps, hour: Hour, signal: AbortSignal): Promise<void> {
  for (let ms = 5; ms < 1_000 && (await waitsForOlder(pool, hour)); ms *= 2) await sleep(ms, undefined, { signal });
}

/**
 * An hour of few calls and more users than have a child each needs no children: allotted, rolled up and closed in one transaction.
 * Where somebody is at one of its users, or one cannot be stored, it is fanned out as others are.
 */
async function rollUpAtOnce({ pool, policy }: HourDeps, { job, log }: Context, { hour, again }: HourData) {
  const done = await wholeHour(pool, hour, async (db, scope) => {
    const allotted = await allot(db, hour, { job: job.id, again });
    if (!allotted) return 'nothing';
    const counted = await rollUp(db, scope);
    await endRun(db, hour, 'closed', policy, { counted });
    return { ...counted, run: allotted.run };
  });
  if (done === undefined) return undefined;
  if (done === 'nothing') return { hour, nothing: 'owed' };
  const { run, users, calls, written, removed } = done;
  log.info({ hour, run, users, calls: Number(calls) }, 'hour closed');
  const line = `run ${run}: closed, ${users} users, ${calls} calls; ${written} rows written, ${removed} removed`;
  await Promise.all([job.updateProgress(100), job.log(line)]);
  return { hour, run, outcome: 'closed' };
}

/** Add a child for each shard of the run that the ledger still has; those that were added before a crash are not added again. */
async function fanOut(
  { pool, queues }: HourDeps,
  job: Job,
  { hour, run, backfilled, together }: HourData,
): Promise<number> {
  const shards = await shardsOf(pool, hour, run);
  const parent = { id: job.id ?? '', queue: job.queueQualifiedName };
  const children = shards.map(({ shard, lo, hi, userDid }) => {
    const data = {
      hour,
      run,
      shard,
      lo,
      hi,
      ...(userDid === null ? {} : { userDid, together }),
    };
    return jobOf(rollUpUsers, data, {
      jobId: childId(data, parent.id),
      parent,
      ...(backfilled ? { priority: BACKFILL_PRIORITY } : {}),
    });
  });
  await addJobs(queues.users, children);
  return children.length;
}

async function waitForChildren({ job, token }: Context, { backfilled }: HourData): Promise<void> {
  if (backfilled) await job.changePriority({ priority: CLOSING_PRIORITY });
  if (await job.moveToWaitingChildren(token)) throw new WaitingChildrenError();
}

/** The step, and what an operator reads of it, in one round trip: a step that is stored is not repeated. */
async function store(job: Job, data: HourData, progress: number, line: string): Promise<void> {
  await Promise.all([job.updateData(data), job.updateProgress(progress), job.log(line)]);
}

const again = (data: HourData): HourData => ({ ...data, step: 'allot', run: 0, again: true });
