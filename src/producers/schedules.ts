// Do the schedulers stand as they must?

import type { JobSchedulerJson, Queue } from 'bullmq';
import { tickOptions } from '../queues/define-job.ts';
import type { Queues } from '../queues/redis.ts';
import type { Db } from '../store/db.ts';
import { type Deploy, type Schedule, scheduleOf, settleSchedule } from '../store/schedules.ts';
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

/** Every scheduler that hourhand has: its id, its variable, and its queue, which holds nothing but its ticks. */
const SCHEDULERS = [
  ['model.call.stats', 'MODEL_CALL_STATS_CRON_TIME', 'ticks'],
  ['late.model.calls', 'LATE_DATA_SECONDS', 'lateTicks'],
  ['cleanup.stale.model.calls', 'CLEANUP_STALE_MODEL_CALLS_CRON_TIME', 'staleTicks'],
  ['check.model.status', 'CHECK_MODEL_STATUS_CRON_TIME', 'modelTicks'],
  ['audit.model.call.stats', 'AUDIT_MODEL_CALL_STATS_CRON_TIME', 'auditTicks'],
  ['retain.model.calls', 'RETAIN_MODEL_CALLS_CRON_TIME', 'retainTicks'],
] as const;

/** Every scheduler, with this process' patterns. */
export function wishes(queues: Queues, patterns: Patterns): (Wish & { variable: keyof Patterns })[] {
  return SCHEDULERS.map(([id, variable, queue]) => ({
    id,
    variable,
    queue: queues[queue],
    pattern: patterns[variable],
  }));
}

export type SchedulerState = 'live' | 'missing' | 'changed' | 'broken' | 'off';

export interface Inspected {
  readonly id: string;
  /** What it is to be; `null` before any process has said so. */
  readonly pattern: Pattern | null;
  readonly next: Date | null;
  readonly state: SchedulerState;
}

/** Compare a scheduler in Redis with what the newest deploy says of it. Changes nothing. */
export async function inspectScheduler(db: Db, { id, queue }: Pick<Wish, 'id' | 'queue'>): Promise<Inspected> {
  const schedule = await scheduleOf(db, id);
  const found = await queue.getJobScheduler(id);
  const pattern = schedule?.pattern ?? null;
  const next = found?.next ? new Date(found.next) : null;
  return { id, pattern, next, state: await stateOf(queue, pattern, found) };
}

async function stateOf(
  queue: Queue,
  pattern: Pattern | null,
  found: JobSchedulerJson | undefined,
): Promise<SchedulerState> {
  if (pattern === 'off') return found ? 'changed' : 'off';
  if (!found || pattern === null) return 'missing';
  if (found.pattern !== pattern || found.tz !== 'UTC') return 'changed';
  return (await isBroken(queue, found)) ? 'broken' : 'live';
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
  const { id, queue } = wish;
  const schedule = await settleSchedule(db, id, wish.pattern, deploy);
  // The limit lives in Redis too, and goes with it: without it a slow tick runs beside the next.
  if ((await queue.getGlobalConcurrency()) !== 1) await queue.setGlobalConcurrency(1);
  const state = await stateOf(queue, schedule.pattern, await queue.getJobScheduler(id));
  if (state === 'live' || state === 'off') return 'kept';
  if (schedule.pattern === 'off') return (await queue.removeJobScheduler(id)) ? 'removed' : 'kept';
  await upsert(queue, schedule);
  return ({ missing: 'added', changed: 'changed', broken: 'repaired' } as const)[state];
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
