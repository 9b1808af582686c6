// How have calls, tokens and credits gone, and whose were most of them?

import type { Range } from '../time/range.ts';
import { type Db, Sql } from './db.ts';

/** What one bar of a chart stands for. */
export type Step = 'hour' | 'day' | 'week' | 'month';

/** All users' figures together, of what of a step lies in the range; amounts and token counts as text, for no float can hold them. */
export interface Bar extends Range {
  /** Where the step begins, perhaps before the range. */
  readonly at: Date;
  readonly calls: bigint;
  readonly successCalls: bigint;
  readonly failedCalls: bigint;
  readonly totalUsage: string;
  readonly totalCredits: string;
}

/**
 * The figures of a range's published hours, added up by step; steps without any are zeros. From the ledger, which holds every hour's
 * totals: of two years of hours none of their users' rows is read.
 */
export async function barsOf(db: Db, { start, end }: Range, step: Step): Promise<Bar[]> {
  const one = Sql.sql`('1 ' || ${step}::text)::interval`;
  return db.$queryRaw<Bar[]>`
    select b.at, greatest(b.at, ${start}::timestamptz) as start, least(b.next, ${end}::timestamptz) as "end",
           coalesce(calls, 0)::bigint as calls, coalesce("successCalls", 0)::bigint as "successCalls",
           coalesce("failedCalls", 0)::bigint as "failedCalls", coalesce("totalUsage", 0)::text as "totalUsage",
           coalesce("totalCredits", 0)::text as "totalCredits"
      from (select utc at time zone 'UTC' as at, (utc + ${one}) at time zone 'UTC' as next
              from generate_series(date_trunc(${step}::text, ${start}::timestamptz at time zone 'UTC'),
                                   (${end}::timestamptz - interval '1 hour') at time zone 'UTC', ${one}) as utc) as b
           left join (select date_trunc(${step}::text, hour, 'UTC') as at, sum(calls) as calls, sum("successCalls") as "successCalls",
                             sum("failedCalls") as "failedCalls", sum("totalUsage") as "totalUsage", sum("totalCredits") as "totalCredits"
                        from "StatHour" where hour >= ${start}::timestamptz and hour < ${end}::timestamptz group by 1) as summed using (at)
     order by b.at`;
}

/** A user or a model, and what its calls come to. */
export interface TopLine {
  readonly name: string;
  readonly calls: bigint;
  readonly successCalls: bigint;
  readonly failedCalls: bigint;
  readonly totalUsage: string;
  readonly totalCredits: string;
}

const sums = Sql.sql`
  sum("totalCalls")::bigint as calls, sum("successCalls")::bigint as "successCalls", sum("failedCalls")::bigint as "failedCalls",
  sum("totalUsage")::text as "totalUsage", sum("totalCredits")::text as "totalCredits"`;

const most = Sql.sql`order by sum("totalCredits") desc, sum("totalCalls") desc, name`;

/** The users with the most credits in a range. Reads every row of the range: of many users it takes seconds. */
export async function topUsers(db: Db, { start, end }: Range, limit: number): Promise<TopLine[]> {
  return db.$queryRaw<TopLine[]>`
    select "userDid" as name, ${sums} from "ModelCallStat"
     where "timeType" = 'hour' and "timestamp" >= ${start}::timestamptz and "timestamp" < ${end}::timestamptz and "totalCalls" > 0
     group by 1 ${most} limit ${limit}::int`;
}

/** The models with the most credits in a range, by the hours whose models are derived. */
export async function topModels(db: Db, { start, end }: Range, limit: number): Promise<TopLine[]> {
  return db.$queryRaw<TopLine[]>`
    select "providerId" || '/' || model as name, ${sums} from "StatModel"
     where hour >= ${start}::timestamptz and hour < ${end}::timestamptz
     group by 1 ${most} limit ${limit}::int`;
}
