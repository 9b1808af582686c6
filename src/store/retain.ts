// Which calls and statistics have been kept long enough, and may go?

import { type Hour, hourOf, startOf } from '../time/hour.ts';
import { type Db, inOneSnapshot, instant, type Now, type Pool, Sql, sqlState } from './db.ts';
import { columns, counted, figures, figuresOf } from './figures.ts';
import { acceptCounted, markedName, rangeOfHour, sweepSealed } from './late.ts';
import { BUCKETS, bucket, calledIn, callHour, type Scope, usersIn } from './scope.ts';

/** The hours before it have ended so many hours ago, by Postgres' clock. */
export async function keptSince(db: Db, hours: number, now?: Now): Promise<Date> {
  const [{ since }] = await db.$queryRaw<[{ since: Date }]>`
    select date_trunc('hour', ${instant(now)} - ${hours}::int * interval '1 hour', 'UTC') as since`;
  return since;
}

/**
 * The hours before an instant of which there are calls, and the sealed ones from which retention has still to take them, the oldest
 * first. (From one hour to the next in the index of hours and buckets: as many looks as there are hours, however many calls.)
 */
export async function hoursHeld(db: Db, before: Date): Promise<Hour[]> {
  const older = Sql.sql`${callHour} < ${before}::timestamptz at time zone 'UTC'`;
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    with recursive held as (
      select (select min(${callHour}) from "ModelCall" where ${older}) as hour
      union all
      select (select min(${callHour}) from "ModelCall" where ${older} and ${callHour} > held.hour) from held where hour is not null
    )
    select hour at time zone 'UTC' as hour from held where hour is not null
    union
    select hour from "StatHour" where "sealedAt" is not null and "bucketsGone" < ${BUCKETS}::int and hour < ${before}::timestamptz
     order by hour`;
  return rows.map((row) => hourOf(row.hour));
}

/** Calls of sealed hours that are in no figure, and some of their users. */
export interface LateCalls {
  readonly calls: number;
  readonly users: string[];
}

const NAMED = 5;
const someUsers = (those: Sql.Sql) =>
  Sql.sql`coalesce((array_agg(distinct "userDid" order by "userDid") filter (where ${those}))[:${NAMED}::int], '{}') as users`;

/** The calls in those buckets of a sealed hour from which retention has taken all that were counted: they came late, and stay. */
export async function lateCalls(db: Db, hour: Hour): Promise<LateCalls> {
  const [row] = await db.$queryRaw<[LateCalls]>`
    select count(*)::int as calls, ${someUsers(Sql.sql`true`)}
      from "ModelCall"
     where ${calledIn(hour)}
       and ${bucket} < coalesce((select "bucketsGone" from "StatHour" where hour = ${startOf(hour)}::timestamptz), 0)`;
  return row;
}

/** Calls that are, or would be, deleted; and those that stay because their users' figures say something else. */
export interface Removal {
  readonly calls: number;
  readonly late: LateCalls;
}

const callsOf = (scope: Scope) => Sql.sql`"ModelCall" where ${calledIn(scope.hour)} and ${usersIn(scope)}`;

/**
 * `("userDid", calls, stored, counted)` of the users with calls in a scope: how many calls are here and how many
 * their stored row is of, and whether that row is what these calls add up to.
 */
const compared = (scope: Scope) => Sql.sql`
  select "userDid", c."totalCalls" as calls, coalesce(s."totalCalls", 0) as stored,
         (${columns('s')}) is not distinct from (${Sql.join(figures.map(counted))}) as counted
    from (${figuresOf(Sql.sql`"userDid"`, callsOf(scope), { formerly: true })}) as c
         left join (select * from "ModelCallStat" where "timeType" = 'hour' and "timestamp" = ${startOf(scope.hour)}::timestamptz) as s
              using ("userDid")
         left join "StatHour" l on l.hour = ${startOf(scope.hour)}::timestamptz`;

const removal = Sql.sql`
  coalesce(sum(calls) filter (where counted), 0)::int as calls, coalesce(sum(calls) filter (where not counted), 0)::int as late,
  ${someUsers(Sql.sql`not counted`)}`;

type RemovalRow = { calls: number; late: number; users: string[] };
const asRemoval = ({ calls, late, users }: RemovalRow): Removal => ({ calls, late: { calls: late, users } });

/** What is left to be deleted of an hour, sealed or to be sealed. */
export async function removableCalls(db: Db, hour: Hour): Promise<Removal> {
  const [ledger] = await db.$queryRaw<{ lo: number }[]>`
    select "bucketsGone"::int as lo from "StatHour" where hour = ${startOf(hour)}::timestamptz`;
  const scope = { hour, lo: ledger?.lo ?? 0, hi: BUCKETS - 1 }; // none where all are gone
  const [row] = await db.$queryRaw<[RemovalRow]>`select ${removal} from (${compared(scope)}) as compared`;
  return asRemoval(row);
}

/**
 * Delete the calls of a sealed hour's next buckets, about so many, but for those of users whose figures say something else.
 *
 * They are recounted in the delete's own snapshot, and a call that anybody changes after it makes the transaction begin
 * anew: what is deleted is what was counted, row by row. A call that came after the seal is another figure of its user, and stays.
 * It is also listed before anything is deleted: all marks that this snapshot shows are counted as late in the same
 * transaction.
 * In which buckets that was done is written down with it, so that what comes later can never be taken for what was counted.
 *
 * @returns `undefined` where nothing is left
 */
export async function removeCalls(pool: Pool, hour: Hour, size: number): Promise<Removal | undefined> {
  return serialized(pool, async (db) => {
    const scope = await bucketsLeft(db, hour, size);
    if (!scope) return undefined;
    await sweepSealed(db, rangeOfHour(hour));
    await db.$executeRaw`select set_config('hourhand.archives', 'yes', true)`; // what is deleted does not move
    return deleteCounted(db, scope);
  });
}

/** The buckets that come next, as many as hold about so many calls. The hour is the caller's until the transaction ends. */
async function bucketsLeft(db: Db, hour: Hour, size: number): Promise<Scope | undefined> {
  const [row] = await db.$queryRaw<{ lo: number; hi: number }[]>`
    select "bucketsGone"::int as lo,
           least(${BUCKETS}::int, "bucketsGone" + greatest(1, ${BUCKETS}::int * ${size}::bigint / greatest(calls, 1)))::int - 1 as hi
      from "StatHour"
     where hour = ${startOf(hour)}::timestamptz and "sealedAt" is not null and "bucketsGone" < ${BUCKETS}::int for update`;
  return row && { hour, ...row };
}

/**
 * (NOT IN, because the planner keeps that as it is, a look into a small hash table for each call; the other way round it might look
 * through the hour's calls for each user.)
 */
async function deleteCounted(db: Db, scope: Scope): Promise<Removal> {
  const [row] = await db.$queryRaw<[RemovalRow]>`
    with compared as materialized (${compared(scope)}),
    removed as (
      delete from "ModelCall"
       where ${calledIn(scope.hour)} and ${usersIn(scope)}
         and "userDid" not in (select "userDid" from compared where not counted)
    ), listed as (
      ${list(
        scope.hour,
        Sql.sql`select "userDid", calls, stored from compared where not counted and calls >= stored`,
      )}
    ), gone as (
      update "StatHour" set "bucketsGone" = ${scope.hi}::int + 1 where hour = ${startOf(scope.hour)}::timestamptz
    )
    select ${removal} from compared`;
  return asRemoval(row);
}

/**
 * The users of a sealed hour whose calls are not what its figures count, and of whom nothing is listed as late:
 * `("userDid", calls, stored)`. No mark told of them: they came past the triggers, or while processes of 0.6 swept
 * the marks.
 *
 * In buckets from which retention has taken the calls, each call came late. In others the calls are compared with the
 * figures, while all the hour's calls are there; afterwards nobody can tell a late call from one that is left.
 */
const unlisted = (hour: Hour) => Sql.sql`
  select "userDid", calls, stored
    from (select "bucketsGone" as gone, calls as published from "StatHour"
           where hour = ${startOf(hour)}::timestamptz and "sealedAt" is not null) as l,
         (select c.*, sum(calls) over () as present from (${compared({ hour, lo: 0, hi: BUCKETS - 1 })}) as c) as c
   where (${bucket} < gone or (gone = 0 and not counted and calls >= stored and present >= published))
     and not exists (select from "StatLate" t
                      where t.hour = ${startOf(hour)}::timestamptz
                        and t."userDid" = ${markedName(Sql.sql`c."userDid"`)})
     and not exists (select from "StatMark" m
                      where m.hour = ${startOf(hour)}::timestamptz
                        and m."userDid" = ${markedName(Sql.sql`c."userDid"`)})`;

/**
 * Lists users of a sealed hour, as `unlisted` says them, as late. A user of whom something is listed already stays as
 * he is.
 */
const list = (hour: Hour, users: Sql.Sql) => Sql.sql`
  insert into "StatLate" (hour, "userDid", writes, "firstAt", "lastAt")
  select ${startOf(hour)}::timestamptz, name, sum(greatest(calls - stored, 1)), statement_timestamp(),
    statement_timestamp()
    from (select ${markedName(Sql.sql`"userDid"`)} as name, calls, stored from (${users}) as u) as named
      group by name order by name
  on conflict do nothing`;

/** The calls of a sealed hour that are late, and of which nothing is listed: how many, and some of their users. */
export async function unlistedCalls(db: Db, hour: Hour): Promise<LateCalls> {
  const [row] = await db.$queryRaw<[LateCalls]>`
    select coalesce(sum(greatest(calls - stored, 1)), 0)::int as calls, ${someUsers(Sql.sql`true`)}
      from (${unlisted(hour)}) as u`;
  return row;
}

/** List them. */
export async function listUnlisted(db: Db, hour: Hour): Promise<void> {
  await db.$executeRaw(list(hour, unlisted(hour)));
}

/** Accept what came late for sealed hours, after all of it has been counted and listed; in a transaction. */
export async function acceptLate(db: Db, hours: readonly Hour[], by: string) {
  for (const hour of hours) {
    await sweepSealed(db, rangeOfHour(hour));
    await listUnlisted(db, hour);
  }
  return acceptCounted(db, hours, by);
}

/** In one snapshot; again from its beginning where somebody else changed what it saw. */
async function serialized<T>(pool: Pool, work: (db: Db) => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await inOneSnapshot(pool, work);
    } catch (error) {
      if (sqlState(error) !== '40001' || attempt === 10) throw error;
    }
  }
}

/** An hour of which statistics are stored. */
export interface StoredHour {
  readonly hour: Hour;
  readonly rows: number;
  readonly sealed: boolean;
  /** No call of it is left. */
  readonly gone: boolean;
}

/** The hours before an instant of which statistics are stored, the oldest first. */
export async function hoursStored(db: Db, before: Date): Promise<StoredHour[]> {
  const rows = await db.$queryRaw<(Omit<StoredHour, 'hour'> & { hour: Date })[]>`
    select s.hour, s.rows, exists (select from "StatHour" l where l.hour = s.hour and l."sealedAt" is not null) as sealed,
           not exists (select from "ModelCall" where ${callHour} = s.hour at time zone 'UTC') as gone
      from (select "timestamp" as hour, count(*)::int as rows from "ModelCallStat"
             where "timeType" = 'hour' and "timestamp" < ${before}::timestamptz group by 1) as s
     order by s.hour`;
  return rows.map((row) => ({ ...row, hour: hourOf(row.hour) }));
}

/**
 * Delete the statistics of a sealed hour without calls, and what is known of their changes: all of the hour's or none. The ledger
 * keeps its row, and so the hour stays sealed. What came late and nobody has accepted stays listed.
 *
 * @returns the rows of statistics
 */
export async function forgetStats(db: Db, hour: Hour): Promise<number> {
  const [{ rows }] = await db.$queryRaw<[{ rows: number }]>`
    with sealed as materialized (
      select hour from "StatHour"
       where hour = ${startOf(hour)}::timestamptz and "sealedAt" is not null
         and not exists (select from "ModelCall" where ${calledIn(hour)})
    ), forgotten as (
      delete from "ModelCallStat" where "timeType" = 'hour' and "timestamp" = (select hour from sealed) returning 1
    ), models as (
      delete from "StatModel" where hour = (select hour from sealed)
    ), changes as (
      delete from "StatChange" where hour = (select hour from sealed)
    ), late as (
      delete from "StatLate" where hour = (select hour from sealed) and writes = accepted
    )
    select count(*)::int as rows from forgotten`;
  return rows;
}
