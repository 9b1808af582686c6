// What is the state of each hour of a range?

import { type Hour, hourOf } from '../time/hour.ts';
import type { Range } from '../time/range.ts';
import { type Db, instant, type Now, Sql } from './db.ts';
import { isHeld } from './held.ts';
import { isCovered } from './ranges.ts';

/**
 * What an operator sees of an hour. `reopened`: published before, and to run again. `owed`: to be rolled up, and
 * never published. `held`: either, but of a backfill that is paused. `uncovered`: it holds calls, in no covered
 * range. `before`: in no covered range either, and no call is known. `ahead`: not ended yet.
 */
export const CELLS = [
  'closed',
  'running',
  'owed',
  'reopened',
  'held',
  'partial',
  'uncovered',
  'before',
  'ahead',
] as const;
export type Cell = (typeof CELLS)[number];

/** An hour in the calendar; amounts as text, for no float can hold them. */
export interface CoverageHour {
  readonly hour: Hour;
  readonly cell: Cell;
  readonly users: number | null;
  readonly calls: bigint | null;
  readonly credits: string | null;
  readonly error: string | null;
  readonly sealed: boolean;
  /** Users who are to be rolled up again. */
  readonly marked: boolean;
}

const cells = ({ start, end }: Range, now: Now) => Sql.sql`
  select h.hour, users, calls, "totalCredits"::text as credits, error, "sealedAt" is not null as sealed,
         case when h.hour >= date_trunc('hour', ${instant(now)}, 'UTC') then 'ahead'
              when l.state in ('closed', 'partial', 'running') then l.state::text
              when ${isHeld(Sql.sql`l."backfillId"`)} then 'held'
              when l.wanted > l.run or ${isCovered(Sql.sql`h.hour`)}
                then case when l.state = 'open' and l.revision > 0 then 'reopened' else 'owed' end
              when exists (select from "StatGap" g where g.hour = h.hour) then 'uncovered'
              else 'before' end as cell
    from generate_series(${start}::timestamptz, ${end}::timestamptz - interval '1 hour', interval '1 hour') as h(hour)
         left join "StatHour" l on l.hour = h.hour`;

/** Every hour of a range, oldest first. */
export async function coverageOf(db: Db, range: Range, now?: Now): Promise<CoverageHour[]> {
  const rows = await db.$queryRaw<(Omit<CoverageHour, 'hour'> & { hour: Date })[]>`
    select cell.*, exists (select from "StatMark" m where m.hour = cell.hour) as marked
      from (${cells(range, now)}) as cell order by hour`;
  return rows.map((row) => ({ ...row, hour: hourOf(row.hour) }));
}

/** A day of a longer range: how many of its hours are in which state. */
export interface CoverageDay {
  readonly day: Date;
  readonly cells: Partial<Record<Cell, number>>;
  readonly calls: bigint;
  readonly credits: string;
}

/** Every day of a range, oldest first. */
export async function coverageByDay(db: Db, range: Range, now?: Now): Promise<CoverageDay[]> {
  return db.$queryRaw<CoverageDay[]>`
    select day, jsonb_object_agg(cell, hours) as cells, sum(calls)::bigint as calls, sum(credits)::text as credits
      from (select date_trunc('day', hour, 'UTC') as day, cell, count(*) as hours,
                   coalesce(sum(calls), 0) as calls, coalesce(sum(credits::numeric), 0) as credits
              from (${cells(range, now)}) as cell group by 1, 2) as counted
     group by day order by day`;
}

/** All that the ledger says of one hour; `undefined` where it does not know it. */
export interface HourRecord {
  readonly state: string;
  readonly run: number;
  readonly wanted: number;
  /** Of a backfill that is paused, and not answered yet. */
  readonly held: boolean;
  readonly reason: string;
  readonly requestedBy: string | null;
  readonly users: number | null;
  readonly calls: bigint | null;
  readonly successCalls: bigint | null;
  readonly failedCalls: bigint | null;
  readonly totalUsage: string | null;
  readonly totalCredits: string | null;
  readonly attempts: number;
  readonly nextAttemptAt: Date | null;
  readonly startedAt: Date | null;
  readonly closedAt: Date | null;
  readonly sealedAt: Date | null;
  readonly revision: number;
  readonly asOf: Date | null;
  readonly auditedAt: Date | null;
  readonly auditFound: string | null;
  readonly error: string | null;
  readonly marked: number;
  /** Of a sealed hour: writes that came late and that nobody has accepted; they are in no figure. */
  readonly late: number;
}

export async function recordOf(db: Db, { start }: Pick<Range, 'start'>): Promise<HourRecord | undefined> {
  const [row] = await db.$queryRaw<HourRecord[]>`
    select state::text, run, wanted, state not in ('closed', 'running') and ${isHeld(Sql.sql`"backfillId"`)} as held, reason::text, "requestedBy", users, calls, "successCalls", "failedCalls", "totalUsage"::text,
           "totalCredits"::text, attempts, "nextAttemptAt", "startedAt", "closedAt", "sealedAt", revision, "asOf", "auditedAt",
           "auditFound", error, (select count(distinct m."userDid")::int from "StatMark" m
             where m.hour = l.hour) as marked,
           (select coalesce(sum(writes - accepted), 0)::int from "StatLate" t where t.hour = l.hour) as late
      from "StatHour" l where hour = ${start}::timestamptz`;
  return row;
}

/** A shard of an hour's current run. */
export interface ShardLine {
  readonly shard: number;
  readonly lo: number;
  readonly hi: number;
  readonly userDid: string | null;
  readonly state: string;
  readonly error: string | null;
}

/** The shards of the current run, those that failed first; they are dropped when the hour closes. */
export async function shardLines(db: Db, { start }: Pick<Range, 'start'>, limit: number): Promise<ShardLine[]> {
  return db.$queryRaw<ShardLine[]>`
    select shard, lo::int, hi::int, "userDid", s.state::text, s.error
      from "StatShard" s join "StatHour" using (hour, run)
     where hour = ${start}::timestamptz order by array_position(array['failed', 'open', 'done'], s.state::text), shard limit ${limit}::int`;
}
