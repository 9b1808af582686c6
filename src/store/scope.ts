// What does one transaction recompute, and whom does it exclude meanwhile?

import { endOf, type Hour, ordinalOf, startOf } from '../time/hour.ts';
import type { Range } from '../time/range.ts';
import { type Db, Sql } from './db.ts';

/** Users are locked by bucket, `hashtext(userDid) & 63`. The value is Postgres' own business: it is never stored. */
export const BUCKETS = 64;
/** Beside them, so that whoever derives an hour's models waits for nobody who rolls up users. */
export const MODELS_LOCK = BUCKETS;

/** The buckets `lo` to `hi` of one hour, both included; or only the named users in them. */
export interface Scope {
  readonly hour: Hour;
  readonly lo: number;
  readonly hi: number;
  readonly users?: readonly string[];
}

/** So many letters of a user's name are shown to people where it stands among others. */
export const SHOWN_NAME = 200;

/** A user's name in an error or a log: names are of any length. */
export function shownName(userDid: string): string {
  return userDid.length > SHOWN_NAME ? `${userDid.slice(0, SHOWN_NAME)}…` : userDid;
}

/** The two expressions of the index `ModelCall_hour_bucket_idx`, to the letter: else the planner passes it by. */
export const callHour = Sql.sql`date_trunc('hour', "callTime" at time zone 'UTC')`;
export const bucket = Sql.sql`(hashtext("userDid") & 63)`;

/** An hour as `callHour` spells it. */
export function plainHour(hour: Hour): Sql.Sql {
  return Sql.sql`${startOf(hour)}::timestamptz at time zone 'UTC'`;
}

/** The calls of an hour: by the index, and only in the partitions that may hold some. */
export function calledIn(hour: Hour): Sql.Sql {
  return Sql.sql`${callHour} = ${plainHour(hour)} and ${inPartitionsOf({ start: startOf(hour), end: endOf(hour) })}`;
}

/** The calls of a range of hours, likewise. */
export function calledWithin(range: Range): Sql.Sql {
  const { start, end } = range;
  return Sql.sql`${callHour} >= ${start}::timestamptz at time zone 'UTC' and ${callHour} < ${end}::timestamptz at time zone 'UTC'
    and ${inPartitionsOf(range)}`;
}

/**
 * Where `ModelCall` is partitioned, the partitions of these instants; else no condition at all. It must stand beside whatever looks for
 * calls by `callHour`, which says nothing to the planner of partitions: it would visit, and lock, the hundreds of them that there are.
 */
export function inPartitionsOf({ start, end }: Range): Sql.Sql {
  return Sql.sql`"inPartitionsOf"("callTime", ${start}::timestamptz, ${end}::timestamptz)`;
}

/** The users of the scope, in any table that has a `userDid`. */
export function usersIn({ lo, hi, users }: Scope): Sql.Sql {
  const named = users ? Sql.sql`and "userDid" = any(${[...users]}::text[])` : Sql.empty;
  return Sql.sql`${bucket} between ${lo}::int and ${hi}::int ${named}`;
}

/**
 * Shut out everyone else who recomputes one of these users in this hour, until the transaction ends.
 *
 * It must be the transaction's first statement, and a statement of its own: under READ COMMITTED the next one then sees
 * all that the former holders wrote. Taken inside the computing statement, the lock comes after its snapshot, and a stale
 * figure overwrites a newer one. Ascending, so that two scopes cannot wait for each other.
 */
export async function lockScope(db: Db, { hour, lo, hi }: Scope): Promise<void> {
  await db.$executeRaw`
    select pg_advisory_xact_lock(${ordinalOf(hour)}::int, b)
      from generate_series(${lo}::int, ${hi}::int) b`;
}

/** The same where all of it is free; where somebody is at one of the users it is not waited for: false. */
export async function tryToLockScope(db: Db, { hour, lo, hi }: Scope): Promise<boolean> {
  const [row] = await db.$queryRaw<[{ free: boolean }]>`
    select bool_and(pg_try_advisory_xact_lock(${ordinalOf(hour)}::int, b)) as free
      from generate_series(${lo}::int, ${hi}::int) b`;
  return row.free;
}
