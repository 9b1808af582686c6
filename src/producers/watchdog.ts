// Is there work that only seems to be under way?

import type { Job, Queue } from 'bullmq';
import { auditHours } from '../queues/audit.ts';
import { askedTick } from '../queues/define-job.ts';
import { checkModels } from '../queues/models.ts';
import type { Queues } from '../queues/redis.ts';
import { retainCalls } from '../queues/retain.ts';
import { failStaleCalls } from '../queues/stale.ts';
import { rollUpHour, rollUpMarks } from '../queues/stats.ts';
import type { Hour } from '../time/hour.ts';
import { tickQueues } from './schedules.ts';

/**
 * Remove the jobs that stand for owed or marked hours, for the looks at calls, models and closed hours, or for ticks that were asked for, and
 * that no worker will ever find: they are in no list of their queue, and hold their deduplication id for ever; and those that wait for such a child. Then
 * they can be enqueued again.
 *
 * BullMQ moves a job from one list to another inside one script, and tells its state inside another: a job that is being
 * moved is not taken for lost. One that is still worked on has its lock, and is not removed. Should one be freed wrongly
 * all the same, its hour has two jobs, which the ledger bears.
 *
 * @returns the deduplication ids that were held by them
 */
export async function freeLost(
  queues: Queues,
  { enqueued, marked }: { enqueued: readonly Hour[]; marked: readonly Hour[] },
): Promise<string[]> {
  const hourOf = (hour: Hour) => ({ hour, step: 'allot', run: 0, backfilled: false, again: false }) as const;
  const freed = await Promise.all([
    ...enqueued.map((hour, i) =>
      freeIfLost(queues.hours, rollUpHour.deduplicationId?.(hourOf(hour)), i < PARENTS ? queues.users : undefined),
    ),
    ...marked.map((hour) => freeIfLost(queues.marks, rollUpMarks.deduplicationId?.({ hour }))),
    freeIfLost(queues.stale, failStaleCalls.deduplicationId?.({})),
    freeIfLost(queues.audits, auditHours.deduplicationId?.({})),
    freeIfLost(queues.retentions, retainCalls.deduplicationId?.({})),
    freeIfLost(queues.checks, checkModels.deduplicationId?.({ step: 'plan', check: 0 }), queues.probes),
    ...tickQueues(queues).map((queue) => freeIfLost(queue, askedTick.opts.deduplication?.id)),
  ]);
  return freed.filter((id) => id !== undefined);
}

/** Hours whose children are looked for at once: one that waits for ever comes to be among the first that are owed. */
const PARENTS = 20;

/** Commands sent in one go are one round trip: nothing waits for the answer to another id. */
async function freeIfLost(queue: Queue, id = '', children?: Queue): Promise<string | undefined> {
  const job = await queue.getDeduplicationJobId(id);
  if (!job) return undefined;
  const state = await queue.getJobState(job);
  const lost =
    state === 'waiting-children' ? children && (await waitsForLost(queue, job, children)) : state === 'unknown';
  if (!lost) return undefined;
  // Its children go on: what they roll up counts for whichever run is current.
  return (await queue.remove(job, { removeChildren: false })) === 1 ? id : undefined;
}

/** Whether a job waits for a child that nobody will ever find: it would wait for ever. */
async function waitsForLost(queue: Queue, parent: string, children: Queue): Promise<boolean> {
  const job: Job | undefined = await queue.getJob(parent);
  const { unprocessed = [] } = (await job?.getDependencies({ unprocessed: { count: 100 } })) ?? {};
  const states = await Promise.all(
    unprocessed.map((key) => children.getJobState(key.slice(key.lastIndexOf(':') + 1))),
  );
  // Asked again: a child that ended in the meantime, and was removed, is no longer waited for.
  return states.includes('unknown') && (await queue.getJobState(parent)) === 'waiting-children';
}
