// Which hours are to be rolled up?

import type { Range } from '../time/range.ts';
import { type Db, instant, type Now, type Pool, Sql } from './db.ts';

/** Cover a range, in a transaction; ranges that touch or overlap become one. Covering twice leaves what covering once left. */
export async function cover(db: Db, { start, end }: Range): Promise<void> {
  await rewrite(db, Sql.sql`were + tstzmultirange(tstzrange(${start}::timestamptz, ${end}::timestamptz))`);
}

/** Cover the hours that a backfill asks for, and no other of its range. */
export async function coverAsked(db: Db, backfill: bigint): Promise<void> {
  const asked = Sql.sql`select hour from "BackfillHour" where "backfillId" = ${backfill}::bigint`;
  await rewrite(db, Sql.sql`were + ${hoursOf(asked)}`);
}

/** No longer cover some hours, of a statement that says `hour`; what is covered beside them, the live range too, stays so. */
export async function uncover(db: Db, hours: Sql.Sql): Promise<void> {
  await rewrite(db, Sql.sql`were - ${hoursOf(hours)}`);
}

/**
 * Open the live range, from the hour before this first start and without end, unless there is one. A backfill that was first to
 * cover one of its hours is so no longer: cancelled, it leaves the hour to the live range.
 *
 * @returns whether this was the first start
 */
export async function coverFromNowOn(pool: Pool, now?: Now): Promise<boolean> {
  return pool.$transaction(async (db) => {
    const [live] = await db.$queryRaw<[{ start: Date | null }]>`
      select (select start from "StatRange" where "end" is null) as start`;
    if (live.start) return false;
    await coverFrom(db, now);
    return true;
  });
}

/** Cover, in a transaction, from the hour before the present one on. */
async function coverFrom(db: Db, now: Now): Promise<void> {
  const [{ start }] = await db.$queryRaw<[{ start: Date }]>`
    select date_trunc('hour', ${instant(now)}, 'UTC') - interval '1 hour' as start`;
  await rewrite(db, Sql.sql`were + tstzmultirange(tstzrange(${start}::timestamptz, null))`);
  await db.$executeRaw`update "BackfillHour" set covered = true where hour >= ${start}::timestamptz and not covered`;
}

/** A live range that begins at most so far ahead is mended by any clock: a slow one covers few hours in vain. */
const FEW_DAYS = 7;

/**
 * If the live range begins after the present hour, let it begin with the hour before the present one: the clock was
 * fast at the first start. If the range begins far ahead, the present clock must be trusted: one that fell back by
 * years would cover years.
 *
 * @returns where it began, if it was mended
 */
export async function coverPresent(pool: Pool, trusted: boolean): Promise<Date | undefined> {
  const [late] = await pool.$queryRaw<{ start: Date }[]>`
    select start from "StatRange"
     where "end" is null and start > date_trunc('hour', clock_timestamp(), 'UTC')
       and (${trusted} or start < clock_timestamp() + ${FEW_DAYS * 24}::int * interval '1 hour')`;
  if (!late) return undefined;
  await pool.$transaction((db) => coverFrom(db, undefined));
  return late.start;
}

/** Until the transaction ends nobody else changes what is covered: two that did so at once could each miss the other's range. */
export async function lockRanges(db: Db): Promise<void> {
  await db.$executeRaw`lock table "StatRange" in share row exclusive mode`;
}

/** Whether an hour lies in a covered range. Ranges never overlap: only the last one that has begun can hold it. */
export const isCovered = (hour: Sql.Sql) => Sql.sql`
  exists (select from (select "end" from "StatRange" where start <= ${hour} order by start desc limit 1) as r
           where coalesce(r."end", 'infinity') > ${hour})`;

/** `(start, "end")` of the last covered range that begins before an hour. */
export const rangeBefore = (hour: Sql.Sql) => Sql.sql`
  select start, "end" from "StatRange" where start < ${hour} order by start desc limit 1`;

const hoursOf = (hours: Sql.Sql) => Sql.sql`
  coalesce((select range_agg(tstzrange(hour, hour + interval '1 hour')) from (${hours}) as hours), '{}')`;

/** @param becomes what is to be covered, made from what is: the multirange `were` */
async function rewrite(db: Db, becomes: Sql.Sql): Promise<void> {
  await lockRanges(db);
  await db.$executeRaw`
    with gone as (delete from "StatRange" returning start, "end"),
    covered as (select coalesce(range_agg(tstzrange(start, "end")), '{}') as were from gone)
    insert into "StatRange" (start, "end")
    select lower(range), upper(range) from covered, unnest(${becomes}) as range`;
}
