// Which hours are handed to the workers?

import { addJobs, jobOf } from '../queues/define-job.ts';
import type { Queues } from '../queues/redis.ts';
import { BACKFILL_PRIORITY, rollUpHour, rollUpMarks } from '../queues/stats.ts';
import type { Now, Pool } from '../store/db.ts';
import {
  type ClosePolicy,
  closeEmptyHours,
  type OwedHour,
  owedHours,
  type Reason,
  requestHours,
} from '../store/ledger.ts';
import { isMarkedWhole, markedHours, type Swept, sweepMarks, takeWholeMarks, untoldHours } from '../store/marks.ts';
import { allSchedules } from '../store/schedules.ts';
import { reopenSettled } from '../store/seam.ts';
import type { Hour } from '../time/hour.ts';

export interface HoursPolicy extends ClosePolicy {
  readonly maxHoursPerTick: number;
}

/**
 * Ask for every hour that is owed, and for every mark.
 *
 * A tick is only a reason to look: the ledger decides what is owed. A missed tick, a doubled tick and a first start all
 * come to the same thing. Hours without anything in them are closed here, together, and need no job.
 *
 * What an operator paused is left out, whoever looks: of the roll-up, all hours but those that somebody asked for; of the late data, what
 * `enqueueLate` does. See docs/decisions/0014-pauses-and-alarms.md.
 *
 * @param asked a person asked for this very look at the roll-up, paused or not
 */
export async function enqueueOwed(
  { pool, queues, policy }: { pool: Pool; queues: Queues; policy: HoursPolicy },
  now?: Now,
  asked = false,
): Promise<{ enqueued: Hour[]; closedEmpty: Hour[] } & Late> {
  const paused = await pausedSchedulers(pool);
  const late = paused.has('late.model.calls')
    ? ({ marked: [], settled: [] } satisfies Late)
    : await enqueueLate({ pool, queues, policy }, now);
  const only = paused.has('model.call.stats') && !asked ? 'asked for' : 'all';
  const owed = await owedHours(pool, policy.maxHoursPerTick, now, only);
  const closedEmpty = await closeEmptyHours(
    pool,
    owed.map(({ hour }) => hour),
    policy,
    now,
  );
  const empty = new Set(closedEmpty);
  const rest = owed.filter(({ hour }) => !empty.has(hour));
  await enqueueHours(queues, rest);
  return { enqueued: rest.map(({ hour }) => hour), closedEmpty, ...late };
}

/** The schedulers that an operator paused. */
async function pausedSchedulers(pool: Pool): Promise<Set<string>> {
  return new Set((await allSchedules(pool)).filter(({ pausedAt }) => pausedAt).map(({ id }) => id));
}

/**
 * What a look at the late data found; `swept`: only if there was something to sweep away, and nothing if it is
 * paused.
 */
export interface Late {
  readonly marked: Hour[];
  readonly settled: Hour[];
  readonly swept?: Swept;
}

/** Marks that are swept away at once: about half a second of work. */
export const SWEEP = 50_000;

/**
 * Ask for what came late: the marked users of each hour, together, and the hours whose older transactions have ended. Marks that
 * stand for nothing are swept away.
 */
export async function enqueueLate(
  { pool, queues, policy }: { pool: Pool; queues: Queues; policy: HoursPolicy },
  now?: Now,
): Promise<Late> {
  const settled = await reopenSettled(pool, now);
  await enqueueHours(
    queues,
    settled.map((hour) => ({ hour, backfilled: false })),
  );
  const marked = await markedHours(pool, policy.maxHoursPerTick, now);
  await enqueueMarks(queues, marked);
  const swept = await sweepMarks(pool, SWEEP, now);
  return swept.marks > 0 ? { marked, settled, swept } : { marked, settled };
}

/** Have the ledger told of the users whom a lost job rolled up again: a job of their hour finds no mark, and tells it. */
export async function enqueueUntold({
  pool,
  queues,
  policy,
}: {
  pool: Pool;
  queues: Queues;
  policy: HoursPolicy;
}): Promise<Hour[]> {
  const untold = await untoldHours(pool, policy.maxHoursPerTick);
  await enqueueMarks(queues, untold);
  return untold;
}

/** One job an hour; where one is under way already, it stands for this one. */
export async function enqueueHours(queues: Queues, hours: readonly OwedHour[]): Promise<void> {
  const jobs = hours.map(({ hour, backfilled }) =>
    jobOf(
      rollUpHour,
      { hour, step: 'allot', run: 0, backfilled, again: false },
      backfilled ? { priority: BACKFILL_PRIORITY } : {},
    ),
  );
  await addJobs(queues.hours, jobs);
}

export async function enqueueMarks(queues: Queues, hours: readonly Hour[]): Promise<void> {
  await addJobs(
    queues.marks,
    hours.map((hour) => jobOf(rollUpMarks, { hour })),
  );
}

/** Ask for one hour, whatever its state: in the ledger first, then its job. It is no backfill's any more. */
export async function requestHour(
  { pool, queues }: { pool: Pool; queues: Queues },
  hour: Hour,
  asked: { reason: Reason; requestedBy: string },
): Promise<void> {
  await enqueueHours(queues, await requestHours(pool, [hour], asked));
}

/**
 * Where an hour is marked as a whole, ask for a run of it, and take these marks away in the same transaction.
 *
 * @returns whether it was asked for
 */
export async function requestMarkedWhole(
  { pool, queues }: { pool: Pool; queues: Queues },
  hour: Hour,
): Promise<boolean> {
  if (!(await isMarkedWhole(pool, hour))) return false;
  const requested = await pool.$transaction(async (db) => {
    const hours = await requestHours(db, [hour], { reason: 'late', requestedBy: 'marks' });
    if (hours.length > 0) await takeWholeMarks(db, hour); // a sealed hour keeps them, for the sweep to count
    return hours;
  });
  await enqueueHours(queues, requested);
  return requested.length > 0;
}
