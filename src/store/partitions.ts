// In which partitions is ModelCall kept, if in any, and how long do they last?

import { setTimeout as sleep } from 'node:timers/promises';
import type { Range } from '../time/range.ts';
import { type Db, instant, type Now, type Pool, Sql, sqlState } from './db.ts';
import { BUCKETS, calledWithin, callHour } from './scope.ts';
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
const partitions = Sql.sql`
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

/** The periods of a plan, from the present one on, that no partition holds; a period of which one holds a part is left as it is. */
export async function missingPartitions(db: Db, { by, ahead }: Plan, now?: Now): Promise<Range[]> {
  const step = Sql.sql`('1 ' || ${by}::text)::interval`;
  return db.$queryRaw<Range[]>`
    with partition as materialized (${partitions})
    select start, "end"
      from date_trunc(${by}::text, ${instant(now)} at time zone 'UTC') as present,
           generate_series(present, present + ${ahead}::int * ${step}, ${step}) as utc,
           lateral (select utc at time zone 'UTC' as start, (utc + ${step}) at time zone 'UTC' as "end") as period
     where not exists (select from partition p where coalesce(p.start, '-infinity') < period."end" and p."end" > period.start)
     order by start`;
}

/** How long a partition may make the gateway wait for the tables that it needs for a moment; then it gives way, and comes again. */
const LOCK_MS = 500;
/** Calls of the default partition that are moved in passing. */
const FEW = 10_000;

/**
 * Make the partition of a period, and move into it what the default partition holds of it, if that is little. All others go on
 * writing: only the default partition is locked, for the moment in which it is looked through.
 *
 * @returns the calls moved; or, where they are too many for that, `stuck`, and nothing was made; `undefined` where somebody else is at it, or was
 * @throws where a lock is not to be had at once: to be tried again
 */
export async function createPartition(pool: Pool, range: Range): Promise<{ moved: number } | 'stuck' | undefined> {
  return pool.$transaction(async (db) => {
    if (!(await mayPartition(db)) || (await isThere(db, range))) return undefined;
    // Attaching reads the whole default partition, in which nothing should be.
    await db.$executeRaw`set local statement_timeout = '5s'`;
    await db.$executeRawUnsafe(`lock table "${DEFAULT_PARTITION}" in access exclusive mode`);
    if ((await strays(db, range)) > FEW) return 'stuck';
    const name = nameOf(range.start);
    const [start, end] = [range.start, range.end].map((bound) => bound.toISOString());
    await db.$executeRawUnsafe(`create table "${name}" (like "ModelCall" including all excluding indexes)`);
    await db.$executeRawUnsafe(`alter table "${name}" owner to ${await ownerOf(db)}`);
    const moved = await db.$executeRawUnsafe(
      `with moved as (delete from "${DEFAULT_PARTITION}" where "callTime" >= '${start}' and "callTime" < '${end}' returning *)
       insert into "${name}" select * from moved`,
    );
    await db.$executeRawUnsafe(
      `alter table "ModelCall" attach partition "${name}" for values from ('${start}') to ('${end}')`,
    );
    return { moved };
  });
}

async function isThere(db: Db, { start }: Range): Promise<boolean> {
  const rows = await db.$queryRaw<
    object[]
  >`select 1 from (${partitions}) as partition where start = ${start}::timestamptz`;
  return rows.length > 0;
}

/** Named by its first day. */
export function nameOf(start: Date): string {
  return `ModelCall_${start.toISOString().slice(0, 10).replaceAll('-', '')}`;
}

/** The calls of a range in the default partition, counted to just above `FEW`. */
async function strays(db: Db, range: Range): Promise<number> {
  const [row] = await db.$queryRaw<[{ calls: number }]>`
    select count(*)::int as calls
      from (select from ${Sql.raw(`"${DEFAULT_PARTITION}"`)} where ${calledWithin(range)} limit ${FEW + 1}::int) as found`;
  return row.calls;
}

/** Whether the default partition holds any call at all. */
export async function hasStrays(db: Db): Promise<boolean> {
  const rows = await db.$queryRawUnsafe<object[]>(`select 1 from "${DEFAULT_PARTITION}" limit 1`);
  return rows.length > 0;
}

async function ownerOf(db: Db): Promise<string> {
  const [row] = await db.$queryRaw<[{ owner: string }]>`
    select relowner::regrole::text as owner from pg_class where oid = to_regclass('"ModelCall"')`;
  return row.owner;
}

const impatient = Sql.raw(`set local lock_timeout = ${LOCK_MS}`);

/** Whether we are alone at it, until the transaction ends; and impatient from now on. */
async function mayPartition(db: Db): Promise<boolean> {
  await db.$executeRaw(impatient);
  const [row] = await db.$queryRaw<
    [{ taken: boolean }]
  >`select pg_try_advisory_xact_lock(${PARTITION_LOCK}::bigint) as taken`;
  return row.taken;
}

/**
 * Take the check away that a conversion left behind whose process was killed: once its bound is reached, it would refuse the gateway's
 * calls.
 *
 * @returns whether there was one
 */
export async function dropAbandonedCheck(pool: Pool): Promise<boolean> {
  return pool.$transaction(async (db) => {
    if (!(await mayPartition(db))) return false;
    const layout = await layoutOf(db); // as it is now that nobody else changes it
    if (layout.kind !== 'plain' || !layout.spanCheck) return false;
    await db.$executeRawUnsafe(`alter table "ModelCall" drop constraint "${SPAN_CHECK}"`);
    return true;
  });
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

/** Hour by hour, from the first that has a call: by the index, and by the ledger's key. */
async function isSealed(db: Db, { name, end }: Partition): Promise<boolean> {
  const table = Sql.raw(`"${name}"`);
  const [row] = await db.$queryRaw<[{ sealed: boolean }]>`
    select not exists (
      select from generate_series((select min(${callHour}) at time zone 'UTC' from ${table}), ${end}::timestamptz - interval '1 hour', interval '1 hour') as h(hour)
       where not exists (select from "StatHour" l where l.hour = h.hour and l."sealedAt" is not null)
         and exists (select from ${table} where ${callHour} = h.hour at time zone 'UTC' offset 0)) as sealed`;
  return row.sealed;
}

/** So often a busy table is asked for, and how long it is left alone in between. */
const ATTEMPTS = 20;
const PAUSE_MS = 500;

/**
 * Detach a partition, if all its calls lie in sealed hours still: it stays as a table under its name, with its calls, for whoever archives
 * it or drops it. For a moment nobody writes: not concurrently, because PostgreSQL cannot where there is a default partition.
 *
 * @returns whether it was detached; not where a call of an unsealed hour has come in
 * @throws {Error} where the table was in use at each of many attempts, in 500 ms each
 */
export async function detachPartition(pool: Pool, partition: Partition): Promise<boolean> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await pool.$transaction(async (db) => {
        await db.$executeRaw(impatient);
        await db.$executeRaw`select pg_advisory_xact_lock(${PARTITION_LOCK}::bigint)`;
        await db.$executeRawUnsafe('lock table "ModelCall" in access exclusive mode');
        if (!(await isSealed(db, partition))) return false;
        await db.$executeRawUnsafe(`alter table "ModelCall" detach partition "${partition.name}"`);
        await noteGone(db, partition);
        return true;
      });
    } catch (error) {
      if (sqlState(error) !== LOCK_NOT_AVAILABLE || attempt === ATTEMPTS) throw error;
    }
    await sleep(PAUSE_MS);
  }
}

/** What comes of these hours from now on came late, as after a retention that deletes. */
async function noteGone(db: Db, { start, end }: Partition): Promise<void> {
  await db.$executeRaw`
    update "StatHour" set "bucketsGone" = ${BUCKETS}::int
     where "sealedAt" is not null and hour >= coalesce(${start}::timestamptz, '-infinity') and hour < ${end}::timestamptz`;
}

/** SQLSTATE of a lock that was not to be had in time. */
export const LOCK_NOT_AVAILABLE = '55P03';

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
