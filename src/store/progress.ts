// How far has it come?

import { type Hour, hourOf, startOf } from '../time/hour.ts';
import type { Range } from '../time/range.ts';
import { type Db, instant, type Now, Sql } from './db.ts';
import { isHeld } from './held.ts';

export interface HourLine {
  hour: Hour;
  state: string;
  run: number;
  error: string | null;
  nextAttemptAt: Date | null;
}

/** Of the hours asked for, those whose wanted run has ended: closed, or partial with the reason. */
export async function settledHours(db: Db, wanted: readonly { hour: Hour; wanted: number }[]): Promise<HourLine[]> {
  const rows = await db.$queryRaw<(Omit<HourLine, 'hour'> & { hour: Date })[]>`
    select l.hour, l.state::text, l.run, l.error, l."nextAttemptAt"
      from unnest(${wanted.map((w) => startOf(w.hour))}::timestamptz[], ${wanted.map((w) => w.wanted)}::int[]) as w(hour, wanted)
           join "StatHour" l using (hour)
     where l.run >= w.wanted and l.state in ('closed', 'partial')
     order by l.hour`;
  return rows.map((row) => ({ ...row, hour: hourOf(row.hour) }));
}

/** An hour that is not closed, or that is sealed. */
export interface UnclosedHour extends HourLine {
  readonly sealed: boolean;
}

/** The hours of a range that are not closed, `missing` ones included, and the sealed ones; oldest first. */
export async function unclosedHours(db: Db, { start, end }: Range): Promise<UnclosedHour[]> {
  const rows = await db.$queryRaw<(Omit<UnclosedHour, 'hour'> & { hour: Date })[]>`
    select hour, coalesce(l.state::text, 'missing') as state, coalesce(l.run, 0) as run, l.error, l."nextAttemptAt",
           l."sealedAt" is not null as sealed
      from generate_series(${start}::timestamptz, ${end}::timestamptz - interval '1 hour', interval '1 hour') as hour
           left join "StatHour" l using (hour)
     where l.state is distinct from 'closed' or l."sealedAt" is not null
     order by hour`;
  return rows.map((row) => ({ ...row, hour: hourOf(row.hour) }));
}

export interface LedgerStatus {
  now: Date;
  /** The start of the live range: every hour from it to the watermark is closed. `null` before the first start. */
  completeFrom: Date | null;
  /**
   * The first hour of the live range that is not closed, or the hour that runs; never in the future. `null` before
   * the first start.
   */
  watermark: Date | null;
  /** Hours that have ended, are covered and are not closed, those of paused backfills left out. */
  owed: number;
  oldestOwed: Date | null;
  newestOwed: Date | null;
  /** Hours that would be owed if their backfill were not paused. */
  held: number;
  oldestHeld: Date | null;
  newestHeld: Date | null;
  partial: number;
  unsettled: HourLine[];
}

/**
 * The ledger in a few figures, with at most `limit` partial and running hours.
 *
 * A range with as many closed hours as it has hours is passed over by that count.
 */
export async function ledgerStatus(db: Db, limit: number, now?: Now): Promise<LedgerStatus> {
  const [row] = await db.$queryRaw<[Omit<LedgerStatus, 'unsettled'>]>`
    with ended as (
      select date_trunc('hour', ${instant(now)}, 'UTC') as until
    ), owed as materialized (
      select hour, r."end" is null as live, ${isHeld(Sql.sql`l."backfillId"`)} as held from ended, "StatRange" r,
             lateral (select count(*) as closed from "StatHour" c
                       where c.hour >= r.start and c.hour < least(r."end", until) and c.state = 'closed') as known,
             generate_series(r.start, least(r."end", until) - interval '1 hour', interval '1 hour') as hour
             left join "StatHour" l using (hour)
       where known.closed < extract(epoch from least(r."end", until) - r.start) / 3600
         and l.state is distinct from 'closed'
    ), live as (
      select start from "StatRange", ended where "end" is null and start <= until
    )
    select ${instant(now)} as now, (select start from live) as "completeFrom",
           case when exists (select from live)
                then coalesce((select min(hour) from owed where live), (select until from ended))
           end as watermark,
           (select count(*)::int from owed where not held) as owed, (select count(*)::int from owed where held) as held,
           (select min(hour) from owed where not held) as "oldestOwed",
           (select max(hour) from owed where not held) as "newestOwed",
           (select min(hour) from owed where held) as "oldestHeld",
           (select max(hour) from owed where held) as "newestHeld",
           (select count(*)::int from "StatHour" where state = 'partial') as partial`;
  const unsettled = await db.$queryRaw<(Omit<HourLine, 'hour'> & { hour: Date })[]>`
    select hour, state::text, run, error, "nextAttemptAt" from "StatHour" where state in ('partial', 'running')
     order by state = 'partial' desc, hour desc limit ${limit}::int`;
  return { ...row, unsettled: unsettled.map((line) => ({ ...line, hour: hourOf(line.hour) })) };
}

export interface HourFigures {
  running: number;
  partial: number;
  /** Published, and to run once more when older transactions have ended. */
  provisional: number;
  /** Found by an audit to differ from their calls, and not rolled up since. */
  differing: number;
  /** Seconds from the start to the close of the hours that were fanned out and closed in the last 24 hours: their 50th, 95th and 99th percentile. */
  durations: [number, number, number] | null;
}

/** The hours of the ledger, counted. */
export async function hourFigures(db: Db, now?: Now): Promise<HourFigures> {
  const [figures] = await db.$queryRaw<[HourFigures]>`
    select count(*) filter (where state = 'running')::int as running, count(*) filter (where state = 'partial')::int as partial,
           count(*) filter (where state = 'closed' and fence is distinct from 0 and "sealedAt" is null)::int as provisional,
           count(*) filter (where "auditFound" is not null and (state = 'closed' and "closedAt" > "auditedAt") is not true)::int as differing,
           percentile_cont(array[0.5, 0.95, 0.99]) within group (order by extract(epoch from "closedAt" - "startedAt")::float8)
             filter (where "closedAt" > greatest("startedAt", ${instant(now)} - interval '24 hours')) as durations
      from "StatHour"`;
  return figures;
}

/** The ledger's lines of a range, oldest first. */
export async function hourLines(db: Db, { start, end }: Range) {
  const rows = await db.$queryRaw<{ hour: Date; state: string; users: number | null; calls: bigint | null }[]>`
    select hour, state::text, users, calls from "StatHour"
     where hour >= ${start}::timestamptz and hour < ${end}::timestamptz order by hour`;
  return rows.map((row) => ({ ...row, hour: hourOf(row.hour) }));
}

/** When the hour that closed last did so. */
export async function lastClosedAt(db: Db): Promise<Date | null> {
  const [{ at }] = await db.$queryRaw<[{ at: Date | null }]>`select max("closedAt") as at from "StatHour"`;
  return at;
}
