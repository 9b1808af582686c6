// Knows the uncovered hours: they hold calls, and nobody rolls them up.

import { endOf, type Hour, hourOf, startOf } from '../time/hour.ts';
import { type Db, instant, type Now, type Pool, Sql } from './db.ts';
import { partitions } from './partitions.ts';
import { isCovered, rangeBefore } from './ranges.ts';
import { bucket, callHour } from './scope.ts';
import type { Finding } from './warnings.ts';

/** Whoever changes `StatGap` takes this lock first. See `lockGaps`. */
const GAPS_LOCK = 72_707_392;

/**
 * Let nobody else change `StatGap` until the transaction ends. It must come before the statement that looks for
 * calls, as a statement of its own: then that statement sees what all former holders wrote. Without it, a walk with
 * an old snapshot could delete the hour whose first call a sweep has just found. It comes before all other locks of
 * the transaction.
 */
export async function lockGaps(db: Db): Promise<void> {
  await db.$executeRaw`select pg_advisory_xact_lock(${GAPS_LOCK}::bigint)`;
}

/**
 * Whether an hour has ended, lies in no covered range, and is not closed. It is uncovered if it holds a call as well.
 */
const isOutside = (hour: Sql.Sql, now?: Now) => Sql.sql`(
  ${hour} < date_trunc('hour', ${instant(now)}, 'UTC') and not ${isCovered(hour)}
  and not exists (select from "StatHour" known where known.hour = ${hour} and known.state = 'closed' offset 0))`;

/**
 * The condition on the calls of an hour that a statement finds: by the index, and only in the partitions that may
 * hold some.
 */
const calledAt = (hour: Sql.Sql) => Sql.sql`
  ${callHour} = ${hour} at time zone 'UTC' and "inPartitionsOf"("callTime", ${hour}, ${hour} + interval '1 hour')`;

/**
 * Whether an hour holds a call. In the index's own order, so that one entry is read: the planner would gather all of
 * the hour's.
 */
const holdsCall = (hour: Sql.Sql) => Sql.sql`
  (select true from "ModelCall" where ${calledAt(hour)} order by ${callHour}, ${bucket} limit 1) is not null`;

/**
 * Marks that stand for nothing are swept into `StatGap`: which CTEs of the sweep's statement do so, from
 * `swept(hour)`.
 */
export const sweptIntoGaps = (now?: Now): Sql.Sql => Sql.sql`
  marked as materialized (
    select hour, count(*) as marks from swept group by hour
  ), outside as materialized (
    select hour, marks, ${holdsCall(Sql.sql`marked.hour`)} as held from marked
     where ${isOutside(Sql.sql`marked.hour`, now)}
  ), gaps as (
    insert into "StatGap" (hour) select hour from outside where held order by hour
    on conflict do nothing
    returning hour
  ), emptied as (
    delete from "StatGap" g using outside o where g.hour = o.hour and not o.held
  )`;

/** Note whether one hour is uncovered, before its marks are taken: the sweep does not see them any more. */
export async function noteGap(pool: Pool, hour: Hour, now?: Now): Promise<void> {
  const start = Sql.sql`${startOf(hour)}::timestamptz`;
  const [{ outside }] = await pool.$queryRaw<[{ outside: boolean }]>`select ${isOutside(start, now)} as outside`;
  if (!outside) return;
  await pool.$transaction(async (db) => {
    await lockGaps(db);
    await db.$executeRaw`
      with swept as (select ${start} as hour), ${sweptIntoGaps(now)}
      select 1`;
  });
}

/**
 * Note those hours of a cancelled backfill that are uncovered again, in its own transaction, which holds the lock.
 */
export async function noteGivenBack(db: Db, backfill: number, now?: Now): Promise<void> {
  await db.$executeRaw`
    with swept as (select hour from "BackfillHour" where "backfillId" = ${backfill}::bigint and not covered),
    ${sweptIntoGaps(now)}
    select 1`;
}

/**
 * Forget the hours that are covered or closed by now, so that reading does not meet them. Cheap if there are none.
 */
export async function forgetCovered(pool: Pool): Promise<void> {
  const isKnown = Sql.sql`(${isCovered(Sql.sql`g.hour`)}
    or exists (select from "StatHour" l where l.hour = g.hour and l.state = 'closed' offset 0))`;
  const [{ some }] = await pool.$queryRaw<[{ some: boolean }]>`
    select exists (select from "StatGap" g where ${isKnown}) as some`;
  if (!some) return;
  await pool.$transaction(async (db) => {
    await lockGaps(db);
    await db.$executeRaw`delete from "StatGap" g where ${isKnown}`;
  });
}

/**
 * `uncovered(hour)`: the candidates that are uncovered now, and the hours of marks that wait to be swept: an import
 * is seen before any worker has looked. The marks' hours are found one after the other: an hour may have many.
 */
const uncovered = (now: Now) => Sql.sql`
  recursive marked(hour) as (
    (select hour from "StatMark" order by hour limit 1)
    union all
    select (select m.hour from "StatMark" m where m.hour > marked.hour order by m.hour limit 1)
      from marked where marked.hour is not null
  ), candidate(hour) as (
    select g.hour from "StatGap" g where ${isOutside(Sql.sql`g.hour`, now)}
    union
    select hour
      from (select hour from marked
             where hour is not null and ${isOutside(Sql.sql`marked.hour`, now)} offset 0) as unswept
     where ${holdsCall(Sql.sql`unswept.hour`)}
  )`;

/** The uncovered hours as a number, and where they lie. */
export interface UncoveredSpan {
  readonly hours: number;
  readonly first: Hour | null;
  readonly last: Hour | null;
}

/** How many hours are uncovered, without a look at their calls. */
export async function uncoveredSpan(db: Db, now?: Now): Promise<UncoveredSpan> {
  const [row] = await db.$queryRaw<[{ hours: number; first: Date | null; last: Date | null }]>`
    with ${uncovered(now)}
    select count(*)::int as hours, min(hour) as first, max(hour) as last from candidate`;
  return { hours: row.hours, first: row.first && hourOf(row.first), last: row.last && hourOf(row.last) };
}

/** The uncovered hours, oldest first. */
export async function uncoveredHours(db: Db, now?: Now): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    with ${uncovered(now)}
    select hour from candidate order by hour`;
  return rows.map((row) => hourOf(row.hour));
}

/** Calls of uncovered hours are counted so far. */
const MOST_CALLS = 1_000_000;

/** The calls of the uncovered hours, counted up to a million; `more`: there are more. */
async function uncoveredCalls(db: Db, now?: Now): Promise<{ calls: number; more: boolean }> {
  const [{ calls }] = await db.$queryRaw<[{ calls: number }]>`
    with ${uncovered(now)}
    select count(*)::int as calls
      from (select from candidate,
                   lateral (select from "ModelCall" where ${calledAt(Sql.sql`candidate.hour`)} offset 0) as call
             limit ${MOST_CALLS + 1}::int) as counted`;
  return { calls: Math.min(calls, MOST_CALLS), more: calls > MOST_CALLS };
}

/** The uncovered hours with their calls, which are counted up to a million. */
export interface Uncovered extends UncoveredSpan {
  readonly calls: number;
  readonly moreCalls: boolean;
}

/** Calls were counted at this moment, for these hours. */
interface Counted {
  readonly at: number;
  readonly key: string;
  readonly found: { calls: number; more: boolean };
}

const counted = new WeakMap<Db, Counted>();
const COUNT_MS = 60_000;

/**
 * What is uncovered now. The calls of the same hours are counted once a minute for each pool: it may take a second.
 */
export async function uncoveredNow(pool: Pool, now?: Now): Promise<Uncovered> {
  const span = await uncoveredSpan(pool, now);
  if (span.hours === 0) return { ...span, calls: 0, moreCalls: false };
  const key = `${span.hours} ${span.first} ${span.last}`;
  const known = counted.get(pool);
  const fresh = known?.key === key && Date.now() - known.at < COUNT_MS;
  const found = fresh ? known.found : await pool.$transaction((db) => uncoveredCalls(db, now)); // it may be long
  if (!fresh) counted.set(pool, { at: Date.now(), key, found });
  return { ...span, calls: found.calls, moreCalls: found.more };
}

const whole = (n: number) => n.toLocaleString('en');

/** The warning of uncovered hours, in words; without their calls if these were not counted. */
export function uncoveredFinding({
  hours,
  first,
  last,
  calls,
  moreCalls,
}: UncoveredSpan & Partial<Uncovered>): Finding | undefined {
  if (hours === 0 || !first || !last) return undefined;
  const many = calls === undefined ? '' : ` with ${moreCalls ? 'more than ' : ''}${whole(calls)} calls`;
  const [noun, are] = hours === 1 ? ['hour', 'is'] : ['hours', 'are'];
  return {
    subject: '',
    detail: `${whole(hours)} ${noun}${many} ${are} in no figure, from ${first} to ${hourOf(endOf(last))}`,
    remedy: 'type hourhand backfill --uncovered',
  };
}

/** How far the walk is. */
export interface Walk {
  /** The first walk has not ended: hours before this one are still to be looked at. Null once a walk has ended. */
  readonly lookingBefore: Date | null;
}

/** How far the walk is; before its first step, it still has to look at everything that has ended. */
export async function walkOf(db: Db, now?: Now): Promise<Walk> {
  const [row] = await db.$queryRaw<[{ lookingBefore: Date | null }]>`
    select case when (select "walkEndedAt" from "StatLook") is null
                then coalesce((select "walkBefore" from "StatLook"), date_trunc('hour', ${instant(now)}, 'UTC'))
           end as "lookingBefore"`;
  return row;
}

/** Remember what the log says of the state of things. @returns whether it said something else before */
export async function rememberState(db: Db, key: string): Promise<boolean> {
  const changed = await db.$executeRaw`
    insert into "StatLook" as l ("stateKey") values (${key}::text)
    on conflict (id) do update set "stateKey" = excluded."stateKey"
     where l."stateKey" is distinct from excluded."stateKey"`;
  return changed > 0;
}

/**
 * Begin a walk at the hour that runs, unless one is under way.
 *
 * @param again also if a walk has ended before
 */
export async function beginWalk(db: Db, { again }: { again: boolean }, now?: Now): Promise<void> {
  await db.$executeRaw`
    insert into "StatLook" as l ("walkBefore") values (date_trunc('hour', ${instant(now)}, 'UTC'))
    on conflict (id) do update set "walkBefore" = excluded."walkBefore"
     where l."walkBefore" is null and (${again} or l."walkEndedAt" is null)`;
}

/** One look of the walk visits so many hours, and so many partitions, at most. */
const HOURS_A_LOOK = 2_000;
const WINDOWS_A_LOOK = 200;

/**
 * Walk on, backwards in time, from hour to hour in which a call is: by the index, over each covered range at a bound,
 * and partition by partition. Uncovered hours are noted; noted hours without a call are forgotten. Each step is one
 * transaction with its position, so that whoever dies loses nothing, and any process goes on.
 *
 * @returns whether no walk is under way any more
 */
export async function walkOn(
  pool: Pool,
  { now, hours = HOURS_A_LOOK }: { now?: Now; hours?: number } = {},
): Promise<boolean> {
  let left = hours;
  for (let window = 0; window < WINDOWS_A_LOOK && left > 0; window++) {
    const visited = await pool.$transaction((db) => step(db, left, now));
    if (visited === undefined) return true;
    left -= visited;
  }
  return false;
}

/** @returns how many hours were visited; `undefined` if no walk is under way */
async function step(db: Db, limit: number, now?: Now): Promise<number | undefined> {
  await lockGaps(db);
  const [position] = await db.$queryRaw<{ before: Date; floor: Date | null }[]>`
    with partition as materialized (${partitions}),
    position as (select ${belowRange(Sql.sql`"walkBefore"`)} as before from "StatLook" where "walkBefore" is not null)
    select before, (select max(date_trunc('hour', start, 'UTC')) from partition where start < before) as floor
      from position`;
  if (!position) return undefined;
  const { before, floor } = position;
  const within = floor
    ? Sql.sql`"callTime" >= ${floor}::timestamptz and "callTime" < ${before}::timestamptz`
    : Sql.sql`"callTime" < ${before}::timestamptz`;
  const newest = (hour: Sql.Sql) => Sql.sql`
    (select ${callHour} at time zone 'UTC' from "ModelCall"
      where ${callHour} < ${belowRange(hour)} at time zone 'UTC' and ${within} order by ${callHour} desc limit 1)`;
  const [{ visited }] = await db.$queryRaw<[{ visited: number }]>`
    with recursive walk(hour, n) as (
      select ${newest(Sql.sql`${before}::timestamptz`)}, 1
      union all
      select ${newest(Sql.sql`walk.hour`)}, n + 1 from walk where hour is not null and n < ${limit}::int
    ), found as materialized (
      select hour from walk where hour is not null
    ), reached as materialized (
      select case when count(*) = ${limit}::int then min(hour) else ${floor}::timestamptz end as hour from found
    ), noted as (
      insert into "StatGap" (hour)
      select hour from found where ${isOutside(Sql.sql`found.hour`, now)} order by hour
      on conflict do nothing
    ), emptied as (
      delete from "StatGap" g using reached
       where g.hour >= coalesce(reached.hour, '-infinity') and g.hour < ${before}::timestamptz
         and g.hour not in (select hour from found)
    ), walked as (
      update "StatLook" set "walkBefore" = reached.hour,
             "walkEndedAt" = case when reached.hour is null then ${instant(now)} else "walkEndedAt" end
        from reached
    )
    select count(*)::int as visited from found`;
  return visited;
}

/** The hour itself, or the start of the covered range that reaches up to it: nothing in between is uncovered. */
const belowRange = (hour: Sql.Sql) => Sql.sql`
  coalesce(
    (select r.start from (${rangeBefore(hour)}) as r where coalesce(r."end", 'infinity') >= ${hour}), ${hour})`;
