// Do the schedulers stand as they must?

import type { JobSchedulerJson, Queue } from 'bullmq';
import { addJobs, askedTick, tickOptions } from '../queues/define-job.ts';
import type { Queues } from '../queues/redis.ts';
import { SCHEDULER_IDS, SCHEDULERS } from '../queues/schedulers.ts';
import type { Db, Pool } from '../store/db.ts';
import {
  type Deploy,
  markPaused,
  markResumed,
  type Schedule,
  scheduleOf,
  settleSchedule,
} from '../store/schedules.ts';
import { nextRun, type Pattern } from '../time/pattern.ts';

/** A scheduler as this process would have it. */
export interface Wish {
  readonly id: string;
  readonly queue: Queue;
  readonly pattern: Pattern;
}

/** The environment's patterns: each scheduler's, by the name of its variable. */
export interface Patterns {
  readonly MODEL_CALL_STATS_CRON_TIME: Pattern;
  readonly LATE_DATA_SECONDS: Pattern;
  readonly CLEANUP_STALE_MODEL_CALLS_CRON_TIME: Pattern;
  readonly CHECK_MODEL_STATUS_CRON_TIME: Pattern;
  readonly AUDIT_MODEL_CALL_STATS_CRON_TIME: Pattern;
  readonly RETAIN_MODEL_CALLS_CRON_TIME: Pattern;
}

/** A scheduler was named that there is none of. */
export class UnknownScheduler extends Error {}

/**
 * The queue of a scheduler's ticks.
 *
 * @throws {UnknownScheduler} naming those that there are
 */
export function ticksOf(queues: Queues, id: string): Queue {
  const found = SCHEDULERS.find(([known]) => known === id);
  if (!found) throw new UnknownScheduler(`expected ${SCHEDULER_IDS.join(', ')}, got "${id}"`);
  return queues[found[2]];
}

/** The queues that hold nothing but ticks. */
export function tickQueues(queues: Queues): Queue[] {
  return SCHEDULERS.map(([, , queue]) => queues[queue]);
}

/** Every scheduler, with this process' patterns. */
export function wishes(queues: Queues, patterns: Patterns): (Wish & { variable: keyof Patterns })[] {
  return SCHEDULERS.map(([id, variable, queue]) => ({
    id,
    variable,
    queue: queues[queue],
    pattern: patterns[variable],
  }));
}

export type SchedulerState = 'live' | 'missing' | 'changed' | 'broken' | 'off' | 'paused';

export interface Inspected {
  readonly id: string;
  /** What it is to be; `null` before any process has said so. */
  readonly pattern: Pattern | null;
  readonly next: Date | null;
  readonly state: SchedulerState;
  /** When its last tick was done. */
  readonly lastAt: Date | null;
  readonly pausedAt: Date | null;
  readonly pausedBy: string | null;
}

/** Compare a scheduler in Redis with what the newest deploy says of it. Changes nothing. */
export async function inspectScheduler(db: Db, wish: Pick<Wish, 'id' | 'queue'>): Promise<Inspected> {
  return compareScheduler(await scheduleOf(db, wish.id), wish);
}

/** The same, of a schedule that was read before: nothing is asked of Postgres. */
export async function compareScheduler(
  schedule: Schedule | undefined,
  { id, queue }: Pick<Wish, 'id' | 'queue'>,
): Promise<Inspected> {
  const found = await queue.getJobScheduler(id);
  const { pattern = null, lastAt = null, pausedAt = null, pausedBy = null } = schedule ?? {};
  const next = found?.next ? new Date(found.next) : null;
  return { id, pattern, next, state: await stateOf(queue, schedule, found), lastAt, pausedAt, pausedBy };
}

async function stateOf(
  queue: Queue,
  schedule: Schedule | undefined,
  found: JobSchedulerJson | undefined,
): Promise<SchedulerState> {
  if (schedule && !fires(schedule)) return found ? 'changed' : schedule.pausedAt ? 'paused' : 'off';
  if (!found || !schedule) return 'missing';
  if (found.pattern !== schedule.pattern || found.tz !== 'UTC') return 'changed';
  return (await isBroken(queue, found)) ? 'broken' : 'live';
}

/** Whether it is to be in Redis at all. */
function fires({ pattern, pausedAt }: Schedule): boolean {
  return pattern !== 'off' && !pausedAt;
}

export type Ensured = 'kept' | 'added' | 'changed' | 'repaired' | 'removed';

/**
 * See to it that a scheduler is what the newest deploy says: read, compare, and write only where it is missing, changed
 * or broken. Never a blind upsert: each one throws away a tick that is due and arms the next slot instead.
 * Any number of processes may do this at once, at any time.
 *
 * @throws what Redis or Postgres threw; nothing is half done that the next call would not mend
 */
export async function ensureScheduler(db: Db, wish: Wish, deploy: Deploy): Promise<Ensured> {
  const { id, queue, pattern } = wish;
  return putRight(queue, await settleSchedule(db, id, pattern, deploy));
}

async function putRight(queue: Queue, schedule: Schedule): Promise<Ensured> {
  const { id } = schedule;
  // The limit lives in Redis too, and goes with it: without it a slow tick runs beside the next.
  if ((await queue.getGlobalConcurrency()) !== 1) await queue.setGlobalConcurrency(1);
  const state = await stateOf(queue, schedule, await queue.getJobScheduler(id));
  if (state === 'live' || state === 'off' || state === 'paused') return 'kept';
  if (!fires(schedule)) return (await queue.removeJobScheduler(id)) ? 'removed' : 'kept';
  await upsert(queue, schedule);
  return ({ missing: 'added', changed: 'changed', broken: 'repaired' } as const)[state];
}

/**
 * Pause a scheduler until somebody resumes it: in Postgres first, where neither a deploy nor a Redis that forgets takes it back, then
 * in Redis. A tick that waits there already ends without doing anything; what earlier ones asked for goes on.
 *
 * @throws {UnknownScheduler}
 */
export async function pauseScheduler(
  { pool, queues }: { pool: Pool; queues: Queues },
  id: string,
  by: string,
): Promise<Inspected> {
  const queue = ticksOf(queues, id);
  await markPaused(pool, id, by);
  await queue.removeJobScheduler(id);
  return inspectScheduler(pool, { id, queue });
}

/**
 * Have a scheduler fire again, at once and with the pattern that stands.
 *
 * @throws {UnknownScheduler}
 */
export async function resumeScheduler(
  { pool, queues }: { pool: Pool; queues: Queues },
  id: string,
  by: string,
): Promise<Inspected & { resumed: boolean }> {
  const queue = ticksOf(queues, id);
  const resumed = await markResumed(pool, id, by);
  const schedule = await scheduleOf(pool, id);
  if (schedule) await putRight(queue, schedule);
  return { ...(await inspectScheduler(pool, { id, queue })), resumed };
}

/**
 * Have one tick run now, also of a scheduler that is paused or off. However often it is asked for before it has run, it is one.
 *
 * @throws {UnknownScheduler}
 */
export async function runNow({ queues }: { queues: Queues }, id: string): Promise<void> {
  await addJobs(ticksOf(queues, id), [askedTick]);
}

/** Where a leftover (a promoted tick, say, or half of a lost one) has the next tick's id already, it makes way. */
async function upsert(queue: Queue, { id, pattern, version, startedAt }: Schedule): Promise<void> {
  const write = () =>
    queue.upsertJobScheduler(
      id,
      { pattern, tz: 'UTC' },
      { name: `tick ${id}`, data: { version, startedAt: startedAt.toISOString() }, opts: tickOptions },
    );
  try {
    await write();
  } catch (error) {
    if (!(error instanceof Error && error.message.includes('job ID already exists'))) throw error;
    await queue.removeJobScheduler(id); // else the leftover counts as its own, and may not be removed
    await queue.remove(tickId(id, nextRun(pattern, new Date()).getTime()));
    await write();
  }
}

/** How BullMQ names the tick of an instant. */
function tickId(id: string, ms: number | undefined): string {
  return `repeat:${id}:${ms}`;
}

/**
 * A scheduler lives through its next job: BullMQ makes that one when the last one starts. None there, while the
 * scheduler has not moved on meanwhile, means that it will never fire again.
 */
async function isBroken(queue: Queue, scheduler: JobSchedulerJson): Promise<boolean> {
  const live = ['delayed', 'waiting', 'active', 'prioritized', 'waiting-children'];
  if (live.includes(await queue.getJobState(tickId(scheduler.key, scheduler.next)))) return false;
  const again = await queue.getJobScheduler(scheduler.key);
  return again?.next === scheduler.next;
}
