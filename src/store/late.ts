// Keeps account of what came for sealed hours: it is in no figure.

import { endOf, type Hour, hourOf, startOf } from '../time/hour.ts';
import type { Range } from '../time/range.ts';
import { type Db, instant, type Now, Sql } from './db.ts';

/**
 * The longest name, in bytes, that a mark can carry: a longer one does not fit into the indexes of marks and figures.
 * The trigger marks the whole hour instead, by an empty name.
 */
const MARKED_NAME = 2_600;

/** A user's name as a mark, or the account of late writes, spells it. */
export const markedName = (userDid: Sql.Sql) =>
  Sql.sql`case when octet_length(${userDid}) > ${MARKED_NAME}::int then '' else ${userDid} end`;

/**
 * Adds the late marks among `swept (hour, "userDid", reason)` to the account, where their hour is sealed. To be part
 * of the very statement that deletes these marks: no write is lost, and none is counted twice.
 */
export const countLate = Sql.sql`
  insert into "StatLate" as known (hour, "userDid", writes, "firstAt", "lastAt")
  select s.hour, s."userDid", count(*), statement_timestamp(), statement_timestamp()
    from swept s join "StatHour" l on l.hour = s.hour and l."sealedAt" is not null
   where s.reason = 'late' group by s.hour, s."userDid" order by s.hour, s."userDid"
  on conflict (hour, "userDid") do update set writes = known.writes + excluded.writes, "lastAt" = excluded."lastAt"`;

/** `(hour, "userDid", reason)` of the marks that stand in the sealed hours of a range. */
const sealedMarks = ({ start, end }: Range) => Sql.sql`
  "StatMark" m where m.hour >= ${start}::timestamptz and m.hour < ${end}::timestamptz
     and exists (select from "StatHour" l where l.hour = m.hour and l."sealedAt" is not null)`;

/** Count the marks of a range's sealed hours as late, and delete them, whatever else is swept. */
export async function sweepSealed(db: Db, range: Range): Promise<void> {
  await db.$executeRaw`
    with swept as (
      delete from "StatMark" where seq = any(array(select seq from ${sealedMarks(range)}))
      returning hour, "userDid", reason
    )
    ${countLate}`;
}

/** Whether a sealed hour of the range has a mark that is not counted as late yet. */
export async function hasSealedMarks(db: Db, range: Range): Promise<boolean> {
  const [row] = await db.$queryRaw<[{ some: boolean }]>`
    select exists (select from ${sealedMarks(range)}) as some`;
  return row.some;
}

/** What came late for one sealed hour. */
export interface LateHour {
  readonly hour: Hour;
  /** Writes that nobody has accepted. */
  readonly writes: number;
  /** Some of the users that they were of; an empty name stands for users whose names are too long for a mark. */
  readonly users: string[];
  /** Writes that an operator has accepted as not applied. */
  readonly accepted: number;
  /** When the first and the last unaccepted write was counted; null if the look has not counted it yet. */
  readonly firstAt: Date | null;
  readonly lastAt: Date | null;
}

const NAMED = 5;

/**
 * `(hour, "userDid", writes, accepted, "firstAt", "lastAt")`: the account, and the marks that the next look will add
 * to it.
 */
const lateWrites = Sql.sql`
  select hour, "userDid", writes, accepted, "firstAt", "lastAt" from "StatLate"
  union all
  select m.hour, m."userDid", 1, 0, null, null from "StatMark" m
   where m.reason = 'late' and exists (select from "StatHour" l where l.hour = m.hour and l."sealedAt" is not null)`;

/**
 * The sealed hours for which something came late, the oldest first.
 *
 * @param range all of its hours, the accepted ones too; without it, the hours that somebody has still to accept
 */
export async function lateHours(db: Db, range?: Range, limit = 1_000): Promise<LateHour[]> {
  const { start, end } = range ?? {};
  const within = range
    ? Sql.sql`hour >= ${start}::timestamptz and hour < ${end}::timestamptz`
    : Sql.sql`writes > accepted`;
  const rows = await db.$queryRaw<(Omit<LateHour, 'hour'> & { hour: Date })[]>`
    select hour, sum(writes - accepted)::float8 as writes, sum(accepted)::float8 as accepted,
           min("firstAt") filter (where writes > accepted) as "firstAt",
             max("lastAt") filter (where writes > accepted) as "lastAt",
           coalesce((array_agg(distinct "userDid"
             order by "userDid") filter (where writes > accepted))[:${NAMED}::int], '{}') as users
      from (${lateWrites}) as late where ${within}
     group by hour order by hour limit ${range ? null : limit}::int`;
  return rows.map((row) => ({ ...row, hour: hourOf(row.hour) }));
}

/** All that is unaccepted, added up, with the oldest hours: what a warning says. */
export async function lateTotals(db: Db): Promise<{ hours: number; writes: number; first: Hour[] }> {
  const [row] = await db.$queryRaw<[{ hours: number; writes: number; first: Date[] }]>`
    select count(*)::int as hours, coalesce(sum(writes), 0)::float8 as writes,
           coalesce((array_agg(hour order by hour))[:${NAMED}::int], '{}') as first
      from (select hour, sum(writes - accepted) as writes from "StatLate" where writes > accepted
        group by hour) as late`;
  return { ...row, first: row.first.map(hourOf) };
}

/** Those of the hours that are not sealed. */
export async function unsealedOf(db: Db, hours: readonly Hour[]): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    select hour from unnest(${hours.map(startOf)}::timestamptz[]) as hour
     where not exists (select from "StatHour" l where l.hour = hour.hour and l."sealedAt" is not null) order by hour`;
  return rows.map((row) => hourOf(row.hour));
}

/**
 * Accept what has been counted for these hours: it stays unapplied, and is no warning any more. What comes later is
 * one again.
 *
 * @returns the writes that were accepted of each hour
 */
export async function acceptCounted(
  db: Db,
  hours: readonly Hour[],
  by: string,
  now?: Now,
): Promise<{ hour: Hour; writes: number; users: number }[]> {
  const rows = await db.$queryRaw<{ hour: Date; writes: number; users: number }[]>`
    with open as materialized (
      select hour, "userDid", writes - accepted as writes from "StatLate"
       where hour = any(${hours.map(startOf)}::timestamptz[]) and writes > accepted order by hour,
         "userDid" for update
    ), accepted as (
      update "StatLate" l set accepted = l.writes, "acceptedAt" = ${instant(now)}, "acceptedBy" = ${by}::text
        from open where l.hour = open.hour and l."userDid" = open."userDid"
    )
    select hour, sum(writes)::float8 as writes, count(*)::int as users from open group by hour order by hour`;
  return rows.map((row) => ({ ...row, hour: hourOf(row.hour) }));
}

/**
 * Forget what came late for an hour that is sealed at this moment: its figures have just been recounted from the
 * calls.
 */
export async function forgetLate(db: Db, hour: Hour): Promise<void> {
  await db.$executeRaw`delete from "StatLate" where hour = ${startOf(hour)}::timestamptz`;
}

/** An hour as a range. */
export const rangeOfHour = (hour: Hour): Range => ({ start: startOf(hour), end: endOf(hour) });
