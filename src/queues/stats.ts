// The jobs of the roll-up: a tick, its hours, their users.

import { z } from 'zod';
import { epochOf, type Hour, isHour } from '../time/hour.ts';
import { type JobDefinition, retried } from './define-job.ts';

const hour = z.custom<Hour>((value) => typeof value === 'string' && isHour(value), {
  error: 'expected a UTC hour such as 2026-08-20T13',
});

/** A live hour has no priority, which BullMQ serves first; a backfill's hours and children come after it. */
export const BACKFILL_PRIORITY = 10;
/** A backfilled hour whose children are done closes before the next hundred fan out. */
export const CLOSING_PRIORITY = 1;

/** The step is stored on the job, so that a crash resumes where it died. The run is the ledger's word. */
const hourData = z.object({
  hour,
  step: z.enum(['allot', 'fan-out', 'close']),
  run: z.int().nonnegative(),
  backfilled: z.boolean(),
  /** Set when the hour was left partial: whoever retries this job by hand does not wait for the back-off. */
  again: z.boolean(),
  /** Few calls, by the cut: one child may do the work of all. Unknown to jobs of an older version. */
  together: z.boolean().optional(),
});
export type HourData = z.infer<typeof hourData>;

export const rollUpHour: JobDefinition<HourData> = {
  queue: 'stats-hour',
  schema: hourData,
  name: (data) => `hour ${data.hour}`,
  deduplicationId: (data) => `hour-${epochOf(data.hour)}`,
  options: retried,
};

/** Buckets `lo` to `hi`, or one user in them. The run only names the job; the ledger is asked for the current one. */
const usersData = z.object({
  hour,
  run: z.int().positive(),
  shard: z.int().nonnegative(),
  lo: z.int().min(0).max(63),
  hi: z.int().min(0).max(63),
  userDid: z.string().optional(),
  /** The hour has few calls: all at once costs no more than this user alone. */
  together: z.boolean().optional(),
});
export type UsersData = z.infer<typeof usersData>;

export const rollUpUsers: JobDefinition<UsersData> = {
  queue: 'stats-users',
  schema: usersData,
  name: ({ hour, lo, hi, userDid }) => (userDid ? `user ${userDid} ${hour}` : `buckets ${lo}–${hi} ${hour}`),
  // The parent runs once all have settled, failed ones too; it then asks the ledger.
  options: { ...retried, ignoreDependencyOnFailure: true },
};

/**
 * Made from the run, so that fanning out again after a crash adds nothing and a new run has ids of its own; and from the
 * parent, so that an hour whose ledger row was deleted, and whose runs begin at 1 again, does not meet the finished
 * children of its earlier life: such a child would never run, and its parent would not wait for it.
 */
export function childId({ hour, run, shard }: UsersData, parentId: string): string {
  return `h${epochOf(hour)}-r${run}-s${shard}-p${parentId}`;
}

const marksData = z.object({ hour });
export type MarksData = z.infer<typeof marksData>;

export const rollUpMarks: JobDefinition<MarksData> = {
  queue: 'stats-marks',
  schema: marksData,
  name: (data) => `marks ${data.hour}`,
  deduplicationId: (data) => `marks-${epochOf(data.hour)}`,
  options: retried,
};
