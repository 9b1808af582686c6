// Will an hour's figures stay as they are?

import { type Hour, hourOf } from '../time/hour.ts';
import type { Range } from '../time/range.ts';
import { hasEnded, isAhead } from './clock.ts';
import { type Db, Sql } from './db.ts';

/**
 * What is known of each hour of a range, `missing` ones included: `(hour, state, revision, "asOf", sealed, marked,
 * "underWay", older, early, final)`.
 *
 * Final: closed, no user marked, no call under way (it may still end, or be failed as stale), and no older transaction left that may bring
 * one without a mark. A final hour is not frozen: whoever changes its calls leaves a mark, and it has another revision. A
 * sealed one is.
 *
 * Early: the clock was fast when the hour was closed. It has not ended, or its figures are of a time to come. Such an
 * hour is not final.
 */
export function standingsOf({ start, end }: Range): Sql.Sql {
  return Sql.sql`
    select known.*,
           state = 'closed' and not early and (sealed or (marked = 0 and not "underWay" and not older)) as final
      from (select hour, coalesce(l.state::text, 'missing') as state, coalesce(l.revision, 0) as revision, l."asOf",
                   l."sealedAt" is not null as sealed,
                   (select count(distinct m."userDid")::int from "StatMark" m where m.hour = hour.hour) as marked,
                   exists (select from "ModelCall" where status = 'processing' and "callTime" >= hour and "callTime" < hour + interval '1 hour'
                           offset 0) as "underWay",
                   l.fence is distinct from 0 as older,
                   not ${hasEnded(Sql.sql`hour.hour`)} or (l."sealedAt" is null and ${isAhead(Sql.sql`l."asOf"`)})
                     as early
              from generate_series(${start}::timestamptz, ${end}::timestamptz - interval '1 hour', interval '1 hour') as hour(hour)
                   left join "StatHour" l using (hour)) as known`;
}

/** How many hours of a range are final and since when, and some of those that are not, each with the reason. */
export interface Standing {
  readonly final: number;
  readonly provisional: number;
  /** Every call that had been committed by then is in the final hours' figures; null where there are none. */
  readonly asOf: Date | null;
  /** The oldest of them. */
  readonly reasons: { readonly hour: Hour; readonly why: string }[];
}

const NAMED = 20;

export async function standingOf(db: Db, range: Range): Promise<Standing> {
  const rows = await db.$queryRaw<
    { hour: Date; why: string; final: number; provisional: number; asOf: Date | null }[]
  >`
    with standing as materialized (${standingsOf(range)}),
    counted as (
      select count(*) filter (where final)::int as final, count(*) filter (where not final)::int as provisional,
             min("asOf") filter (where final) as "asOf" from standing
    )
    select counted.*, hour, why
      from counted left join (select hour, ${why} as why from standing where not final order by hour limit ${NAMED}::int) as named on true
     order by hour`;
  const [first] = rows;
  const reasons = rows.filter((row) => row.hour).map((row) => ({ hour: hourOf(row.hour), why: row.why }));
  return { final: first?.final ?? 0, provisional: first?.provisional ?? 0, asOf: first?.asOf ?? null, reasons };
}

const why = Sql.sql`case when state <> 'closed' then state else concat_ws(', ',
  case when early then 'closed by a clock that was fast' end,
  case when marked > 0 then marked || ' users marked' end,
  case when "underWay" then 'calls under way' end,
  case when older then 'older transactions' end) end`;

/**
 * Up to where all of a closed stretch is settled: its end, or the first of its hours that is marked, has calls under
 * way, or waits for older transactions.
 */
export async function settledUntil(db: Db, { start, end }: Range): Promise<Date> {
  const within = (hour: Sql.Sql) => Sql.sql`${hour} >= ${start}::timestamptz and ${hour} < ${end}::timestamptz`;
  const [row] = await db.$queryRaw<[{ until: Date }]>`
    select least(${end}::timestamptz,
      (select hour from "StatHour" l
        where fence is distinct from 0 and state = 'closed' and "sealedAt" is null and ${within(Sql.sql`hour`)}
        order by hour limit 1),
      (select hour from "StatMark" m where ${within(Sql.sql`hour`)}
          and not exists (select from "StatHour" l where l.hour = m.hour and l."sealedAt" is not null offset 0)
        order by hour limit 1),
      (select date_trunc('hour', "callTime", 'UTC') from "ModelCall"
        where status = 'processing' and ${within(Sql.sql`"callTime"`)}
        order by "callTime" limit 1)) as until`;
  return row.until;
}

/** The closed hours that wait for older transactions: published, and to run once more. */
export async function waitingHours(db: Db, limit: number): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    select hour from "StatHour" where fence is distinct from 0 and state = 'closed' and "sealedAt" is null
     order by hour desc limit ${limit}::int`;
  return rows.map((row) => hourOf(row.hour));
}

/** How many closed hours wait for older transactions, and where they lie. */
export async function waitingSpan(db: Db): Promise<{ hours: number; first: Date | null; last: Date | null }> {
  const [row] = await db.$queryRaw<[{ hours: number; first: Date | null; last: Date | null }]>`
    select count(*)::int as hours, min(hour) as first, max(hour) as last
      from "StatHour" where fence is distinct from 0 and state = 'closed' and "sealedAt" is null`;
  return row;
}
