// In which partitions is ModelCall kept, if in any, and how long do they last?

import type { Range } from '../time/range.ts';
import { type Db, instant, type Now, Sql } from './db.ts';
import { calledWithin } from './scope.ts';
import { batches } from './stats.ts';

/** Days, weeks from Monday, or months; in UTC. */
export const PERIODS = ['day', 'week', 'month'] as const;
export type Period = (typeof PERIODS)[number];

/** How the calls are kept: what each partition holds, and how many are made ahead. */
export interface Plan {
  readonly by: Period;
  readonly ahead: number;
}

/**
 * `plain`: one table, as migrations make it; with a `SPAN_CHECK`, `hourhand partition` is at it, or was killed. `foreign`: partitioned by somebody else, who sees to the partitions. `ours`: by
 * `hourhand partition`; `reaches` is the end of the last partition that follows the present one without a gap.
 */
export type Layout =
  | { readonly kind: 'plain'; readonly spanCheck: boolean }
  | { readonly kind: 'foreign' }
  | (Plan & { readonly kind: 'ours'; readonly partitions: number; readonly reaches: Date | null });

/** `hourhand partition` and whoever makes or detaches a partition: one at a time. */
export const PARTITION_LOCK = 72_707_390;

/** Holds what no other partition does. */
export const DEFAULT_PARTITION = 'ModelCall_default';

/** Keeps what is to become the first partition within its bounds, while `hourhand partition` prepares it. */
export const SPAN_CHECK = 'ModelCall_partition_check';

/**
 * What the conversion writes on the table: a dump and its restoration keep it, as they keep the partitions. 0.6 wrote
 * *partition*, and makes none for a table that says *partitions*.
 */
export function spellPlan({ by, ahead }: Plan): string {
  return `hourhand partitions: by ${by}, ${ahead} ahead`;
}

function parsePlan(comment: string | null): Plan | undefined {
  const [, by, ahead] = /^hourhand partitions?: by (day|week|month), (\d+) ahead$/.exec(comment ?? '') ?? [];
  const period = PERIODS.find((known) => known === by);
  return period && { by: period, ahead: Number(ahead) };
}

/** `(name, start, "end")` of each partition but the default; one that begins with the first call has no start. */
export const partitions = Sql.sql`
  select c.relname::text as name, substring(bound from 'FROM [(]''(.+?)''[)]')::timestamptz as start,
         substring(bound from 'TO [(]''(.+?)''[)]')::timestamptz as "end"
    from pg_inherits i join pg_class c on c.oid = i.inhrelid, pg_get_expr(c.relpartbound, c.oid) as bound
   where i.inhparent = to_regclass('"ModelCall"') and bound <> 'DEFAULT'`;

/** From the catalogue alone. */
export async function layoutOf(db: Db, now?: Now): Promise<Layout> {
  const [row] = await db.$queryRaw<
    [{ partitioned: boolean; spanCheck: boolean; comment: string | null; partitions: number; reaches: Date | null }]
  >`
    with partition as materialized (${partitions})
    select relkind = 'p' as partitioned, exists (select from pg_constraint where conrelid = c.oid and conname = ${SPAN_CHECK}) as "spanCheck",
           obj_description(oid, 'pg_class') as comment, (select count(*)::int from partition) as partitions,
           (select min("end") from partition p where "end" > ${instant(now)}
               and exists (select from partition where coalesce(start, '-infinity') <= ${instant(now)} and "end" > ${instant(now)})
               and not exists (select from partition q where q.start <= p."end" and q."end" > p."end")) as reaches
      from pg_class c where oid = to_regclass('"ModelCall"')`;
  if (!row.partitioned) return { kind: 'plain', spanCheck: row.spanCheck };
  const plan = parsePlan(row.comment);
  return plan ? { kind: 'ours', ...plan, partitions: row.partitions, reaches: row.reaches } : { kind: 'foreign' };
}

/** A period that no partition holds. */
export interface MissingPeriod extends Range {
  /** 0 is the present period, 1 the next one. */
  readonly ahead: number;
}

/**
 * The periods of a plan, from the present one on, that no partition holds; a period of which one holds a part is left
 * as it is. Periods are added up in UTC: a day of a zone may have 23 hours.
 */
export async function missingPartitions(db: Db, { by, ahead }: Plan, now?: Now): Promise<MissingPeriod[]> {
  const step = Sql.sql`('1 ' || ${by}::text)::interval`;
  return db.$queryRaw<MissingPeriod[]>`
    with partition as materialized (${partitions}), period as (
      select (first + n * ${step}) at time zone 'UTC' as start,
             (first + (n + 1) * ${step}) at time zone 'UTC' as "end", n as ahead
        from date_trunc(${by}::text, ${instant(now)} at time zone 'UTC') as first,
             generate_series(0, ${ahead}::int) as n
    )
    select * from period
     where not exists (select from partition p
                        where coalesce(p.start, '-infinity') < period."end" and p."end" > period.start)
     order by start`;
}

/** Named by its first day. */
export function nameOf(start: Date): string {
  return `ModelCall_${start.toISOString().slice(0, 10).replaceAll('-', '')}`;
}

/** Whether the default partition holds any call at all. */
export async function hasStrays(db: Db): Promise<boolean> {
  const rows = await db.$queryRawUnsafe<object[]>(`select 1 from "${DEFAULT_PARTITION}" limit 1`);
  return rows.length > 0;
}

/** A partition's bounds; without a start, it begins with the first call. */
export interface Partition {
  readonly name: string;
  readonly start: Date | null;
  readonly end: Date;
}

/** The partitions of ours that end by an instant, the oldest first. */
export async function partitionsBefore(db: Db, before: Date): Promise<Partition[]> {
  if ((await layoutOf(db)).kind !== 'ours') return [];
  return db.$queryRaw<Partition[]>`
    select * from (${partitions}) as partition where "end" <= ${before}::timestamptz order by "end"`;
}

/** A partition's span; one without a start begins with the first call that a table can hold. */
export function spanOf({ start, end }: Partition): Range {
  return { start: start ?? new Date(0), end };
}

/** SQLSTATE of a lock that was not to be had in time. */
export const LOCK_NOT_AVAILABLE = '55P03';
/** SQLSTATE of a statement that took longer than it may, or that somebody ended. */
export const QUERY_CANCELED = '57014';

/** A name as SQL spells it. */
export function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** An id under which calls of several times are kept. */
export interface RepeatedId {
  readonly id: string;
  readonly times: Date[];
}

/**
 * The ids that calls of the range share with others, of whatever time: the partitioned layout cannot forbid them. The other partitions'
 * keys are read once, whole; in one table there are none, and nothing is read. To be asked in a transaction.
 */
export async function* repeatedIds(db: Db, range: Range): AsyncGenerator<RepeatedId[]> {
  if ((await layoutOf(db)).kind === 'plain') return;
  yield* batches<RepeatedId>(
    db,
    Sql.sql`
    select id, array_agg(distinct "callTime" order by "callTime") as times
      from (select c.id, unnest(array[c."callTime", other."callTime"]) as "callTime"
              from (select id, "callTime" from "ModelCall" where ${calledWithin(range)}) as c
                   join "ModelCall" other on other.id = c.id and other."callTime" <> c."callTime") as pairs
     group by id order by id collate "C"`,
  );
}
