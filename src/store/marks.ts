// Which users of which hours are to be rolled up again?

import { type Hour, hourOf, startOf } from '../time/hour.ts';
import type { Range } from '../time/range.ts';
import { type Db, instant, type Now } from './db.ts';
import { bucket, callHour, type Scope, usersIn } from './scope.ts';

/**
 * Mark one user, in a transaction, in those ended hours of the range in which there is a call of theirs, or a row. Sealed
 * hours take no mark. Somebody asks, so the hours' back-off is over.
 *
 * @returns the hours, and the newest mark's `seq` (0 where there is none)
 */
export async function markUser(db: Db, userDid: string, { start, end }: Range, now?: Now) {
  const rows = await db.$queryRaw<{ hour: Date; seq: bigint }[]>`
    insert into "StatMark" (hour, "userDid", reason)
    select hour, ${userDid}::text, 'backfill' from (
      select ${callHour} at time zone 'UTC' as hour from "ModelCall"
       where ${callHour} >= ${start}::timestamptz at time zone 'UTC' and ${callHour} < ${end}::timestamptz at time zone 'UTC'
         and "userDid" = ${userDid}::text
      union
      select "timestamp" from "ModelCallStat"
       where "timeType" = 'hour' and "timestamp" >= ${start}::timestamptz and "timestamp" < ${end}::timestamptz
         and "userDid" = ${userDid}::text
    ) as present
     where hour < date_trunc('hour', ${instant(now)}, 'UTC')
       and not exists (select from "StatHour" l where l.hour = present.hour and l."sealedAt" is not null)
     order by hour
    returning hour, seq`;
  await db.$executeRaw`
    update "StatHour" set "nextAttemptAt" = null where hour = any(${rows.map((row) => row.hour)}::timestamptz[])`;
  return { hours: rows.map((row) => hourOf(row.hour)), seq: rows.at(-1)?.seq ?? 0n };
}

/** Ended, unsealed hours with marks, newest first, but for those in back-off. */
export async function markedHours(db: Db, limit: number, now?: Now): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    select m.hour from "StatMark" m left join "StatHour" l using (hour)
     where m.hour < date_trunc('hour', ${instant(now)}, 'UTC') and l."sealedAt" is null
       and (l."nextAttemptAt" is null or l."nextAttemptAt" <= ${instant(now)})
     group by m.hour order by m.hour desc limit ${limit}::int`;
  return rows.map((row) => hourOf(row.hour));
}

/** The users marked in an unsealed hour, as scopes of one bucket each, ascending. */
export async function markedScopes(db: Db, hour: Hour): Promise<(Scope & { users: string[] })[]> {
  const rows = await db.$queryRaw<{ bucket: number; users: string[] }[]>`
    select ${bucket} as bucket, array_agg(distinct "userDid" order by "userDid") as users from "StatMark"
     where hour = ${startOf(hour)}::timestamptz
       and not exists (select from "StatHour" where hour = ${startOf(hour)}::timestamptz and "sealedAt" is not null)
     group by 1 order by 1`;
  return rows.map((row) => ({ hour, lo: row.bucket, hi: row.bucket, users: row.users }));
}

/**
 * Take the scope's marks away, under its locks and before its figures are read: whoever left one of these has
 * committed, and the next statement sees what they wrote. Rolled back with the figures.
 */
export async function takeMarks(db: Db, scope: Scope): Promise<number> {
  return db.$executeRaw`
    delete from "StatMark" where hour = ${startOf(scope.hour)}::timestamptz and ${usersIn(scope)}`;
}

/** How many of the marks up to `seq` are left, for whoever waits for them. */
export async function marksLeft(db: Db, userDid: string, hours: readonly Hour[], seq: bigint): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    select distinct hour from "StatMark"
     where hour = any(${hours.map(startOf)}::timestamptz[]) and "userDid" = ${userDid}::text and seq <= ${seq}::bigint`;
  return rows.map((row) => hourOf(row.hour));
}
