// Which users of which hours are to be rolled up again?

import { type Hour, hourOf, startOf } from '../time/hour.ts';
import type { Range } from '../time/range.ts';
import { type Db, instant, type Now, type Pool, Sql } from './db.ts';
import { lockGaps, sweptIntoGaps } from './gaps.ts';
import { isHeld } from './held.ts';
import { countLate } from './late.ts';
import { isCovered } from './ranges.ts';
import { bucket, calledWithin, callHour, SHOWN_NAME } from './scope.ts';

/**
 * Mark one user, in a transaction, in those ended hours of the range in which there is a call of theirs, or a row. Sealed
 * hours take no mark. Somebody asks, so the hours' back-off is over.
 *
 * @param backfill whose marks they are
 * @returns the hours
 */
export async function markUser(
  db: Db,
  userDid: string,
  range: Range,
  { backfill, now }: { backfill?: bigint; now?: Now } = {},
): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    insert into "StatMark" (hour, "userDid", reason, "backfillId")
    select hour, ${userDid}::text, 'backfill', ${backfill ?? null}::bigint from (${hoursOfUser(userDid, range, now)}) as present
     order by hour
    returning hour`;
  await db.$executeRaw`
    update "StatHour" set "nextAttemptAt" = null
     where hour = any(${rows.map((row) => row.hour)}::timestamptz[]) and "nextAttemptAt" is not null`; // few: others hold rows of many
  return rows.map((row) => hourOf(row.hour));
}

/** `hour`: those ended, unsealed hours of a range in which there is a call of a user, or a row. */
export function hoursOfUser(userDid: string, { start, end }: Range, now: Now): Sql.Sql {
  return Sql.sql`
    select hour from (
      select ${callHour} at time zone 'UTC' as hour from "ModelCall"
       where ${calledWithin({ start, end })}
         and "userDid" = ${userDid}::text
      union
      select "timestamp" from "ModelCallStat"
       where "timeType" = 'hour' and "timestamp" >= ${start}::timestamptz and "timestamp" < ${end}::timestamptz
         and "userDid" = ${userDid}::text
    ) as present
     where hour < date_trunc('hour', ${instant(now)}, 'UTC')
       and not exists (select from "StatHour" l where l.hour = present.hour and l."sealedAt" is not null)`;
}

const covered = isCovered(Sql.sql`m.hour`);

/**
 * Whether a mark `m` stands for something that is, or will be, stored: somebody asked for it, its hour is known or covered, or
 * its user was rolled up alone there. Of all other hours the gateway's late calls are no late data yet. (OFFSET 0 keeps the planner
 * from reading all rows into a hash table for the few that are asked for.)
 */
const useful = Sql.sql`(m.reason <> 'late'
  or exists (select from "StatHour" l where l.hour = m.hour offset 0)
  or ${covered}
  or exists (select from "ModelCallStat" s where s."timeType" = 'hour' and s."timestamp" = m.hour and s."userDid" = m."userDid" offset 0)
  or exists (select from "StatMark" o where o.hour = m.hour and o."userDid" = m."userDid" and o.reason <> 'late' offset 0))`;

/**
 * Ended, unsealed hours with marks, newest first, but for those in back-off, those that are owed (their own run takes the marks
 * with it), and marks of a backfill that is paused.
 */
export async function markedHours(db: Db, limit: number, now?: Now): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    select m.hour from "StatMark" m left join "StatHour" l using (hour)
     where m.hour < date_trunc('hour', ${instant(now)}, 'UTC') and l."sealedAt" is null
       and (l."nextAttemptAt" is null or l."nextAttemptAt" <= ${instant(now)}) and ${useful}
       and not ${isHeld(Sql.sql`m."backfillId"`)} and (l.state in ('closed', 'partial') or not ${covered})
     group by m.hour order by m.hour desc limit ${limit}::int`;
  return rows.map((row) => hourOf(row.hour));
}

/**
 * The closed hours whose users were rolled up again without the ledger being told, newest first: the job that did so
 * is at work, or died. Every roll-up leaves word in a table of its own, which is nearly always empty. Word of an hour
 * that the ledger does not know, or that is sealed, is of no use to anybody, and is deleted.
 */
export async function untoldHours(db: Db, limit: number): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    with useless as (
      delete from "StatUntold" u
       where not exists (select from "StatHour" l where l.hour = u.hour and l."sealedAt" is null)
    )
    select distinct hour from "StatUntold" u join "StatHour" l using (hour)
     where not u.models and l.state = 'closed' and l."sealedAt" is null
     order by hour desc limit ${limit}::int`;
  return rows.map((row) => hourOf(row.hour));
}

/**
 * The users marked in an unsealed hour, as scopes of one bucket each, ascending; and when that was asked. Marks of
 * the whole hour are not among them: no scope of users answers one. While there is one, no moment is known up to which
 * every call is in the figures: `asOf` is null then.
 */
export async function markedScopes(db: Db, hour: Hour) {
  const rows = await db.$queryRaw<{ bucket: number; users: string[]; asOf: Date | null }[]>`
    select ${bucket} as bucket, array_agg(distinct "userDid" order by "userDid") as users,
           case when not exists (select from "StatMark" w where w.hour = ${startOf(hour)}::timestamptz and w."userDid" = '')
                then statement_timestamp() end as "asOf"
      from "StatMark" m
     where hour = ${startOf(hour)}::timestamptz and "userDid" <> '' and ${useful}
       and not ${isHeld(Sql.sql`m."backfillId"`)}
       and not exists (select from "StatHour" where hour = ${startOf(hour)}::timestamptz and "sealedAt" is not null)
     group by 1 order by 1`;
  const scopes = rows.map((row) => ({ hour, lo: row.bucket, hi: row.bucket, users: row.users }));
  return { scopes, asOf: rows[0]?.asOf ?? null };
}

/** Whether an unsealed hour is marked as a whole: by a change of a user whose name is too long for a mark. */
export async function isMarkedWhole(db: Db, hour: Hour): Promise<boolean> {
  const rows = await db.$queryRaw<object[]>`
    select 1 from "StatMark" m
     where hour = ${startOf(hour)}::timestamptz and "userDid" = '' and ${useful}
       and not exists (select from "StatHour" where hour = ${startOf(hour)}::timestamptz
         and "sealedAt" is not null) limit 1`;
  return rows.length > 0;
}

/**
 * Take the marks of the whole hour away, in the transaction that has asked for a run of it. No roll-up takes them:
 * each sees some users alone, and the run that was asked for begins after this transaction, so that it sees every
 * call of these marks.
 */
export async function takeWholeMarks(db: Db, hour: Hour): Promise<void> {
  await db.$executeRaw`delete from "StatMark" where hour = ${startOf(hour)}::timestamptz and "userDid" = ''`;
}

/** What a sweep took away. */
export interface Swept {
  readonly marks: number;
  /**
   * The marks of uncovered hours among them, how many hours these are, and how many of the hours were not known to be
   * uncovered.
   */
  readonly uncovered: number;
  readonly hours: number;
  readonly fresh: number;
  readonly first: Hour | null;
  readonly last: Hour | null;
}

/**
 * Sweep away marks that stand for nothing, at most `limit` of them: of hours that nobody rolls up, or that are
 * sealed. The same statement counts what came late for a sealed hour (src/store/late.ts), and notes which of these
 * hours are uncovered.
 *
 * Nothing that matters is lost if such an hour is covered at this moment: its roll-up begins after the cover is
 * committed, and sees the calls of all marks that were seen here; of later ones the cover is seen as well.
 */
export async function sweepMarks(pool: Pool, limit: number, now?: Now): Promise<Swept> {
  return pool.$transaction(async (db) => {
    await lockGaps(db);
    const [row] = await db.$queryRaw<[Omit<Swept, 'first' | 'last'> & { first: Date | null; last: Date | null }]>`
      with swept as (
        delete from "StatMark" where seq = any(array(
          select seq from "StatMark" m
           where not ${useful}
              or exists (select from "StatHour" l where l.hour = m.hour and l."sealedAt" is not null offset 0)
           limit ${limit}::int))
        returning hour, "userDid", reason
      ), late as (
        ${countLate}
      ), ${sweptIntoGaps(now)}
      select (select count(*)::int from swept) as marks, (select count(*)::int from gaps) as fresh,
             coalesce(sum(marks), 0)::int as uncovered, count(*)::int as hours, min(hour) as first, max(hour) as last
        from outside where held`;
    return { ...row, first: row.first && hourOf(row.first), last: row.last && hourOf(row.last) };
  });
}

/** How many marks wait to be taken. Marks that the next sweep takes away do not count: nobody takes them. */
export async function waitingMarks(db: Db): Promise<number> {
  const [{ marks }] = await db.$queryRaw<[{ marks: number }]>`
    select count(*)::int as marks from "StatMark" m
     where ${useful}
       and not exists (select from "StatHour" l where l.hour = m.hour and l."sealedAt" is not null offset 0)`;
  return marks;
}

/** Let the hours of a user's backfill that failed be tried at once. */
export async function endBackOff(db: Db, id: number): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    update "StatHour" l set "nextAttemptAt" = null
      from "Backfill" b
     where b.id = ${id}::bigint and l.state = 'partial' and strpos(l.error, left(b."userDid", ${SHOWN_NAME}::int)) > 0
       and l.hour = any(array(select hour from "StatMark" where "backfillId" = ${id}::bigint))
    returning hour`;
  return rows.map((row) => hourOf(row.hour)).sort();
}
