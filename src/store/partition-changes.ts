// Makes and detaches partitions of ModelCall, and stops the gateway for some milliseconds only.
//
// Rows move from one partition into another under a lock of the parent: docs/decisions/0009-partitions.md says why.

import { setTimeout as sleep } from 'node:timers/promises';
import type { Range } from '../time/range.ts';
import { type Db, instant, type Now, type Pool, sqlState } from './db.ts';
import { type Holder, holdersQuery, longHolder, remedyFor, spellHolder } from './holders.ts';
import {
  DEFAULT_PARTITION,
  LOCK_NOT_AVAILABLE,
  nameOf,
  PARTITION_LOCK,
  type Partition,
  QUERY_CANCELED,
  quoted,
  SPAN_CHECK,
  spanOf,
} from './partitions.ts';
import { BUCKETS, callHour } from './scope.ts';

/** How long the gateway may wait behind us for the table while there is time to try again. */
const CALM_MS = 100;
/** The same if the lock is needed soon. */
const URGENT_MS = 500;
/** For so long one statement under the lock may run, its wait for the lock included. */
const LOCKED_MS = 1_000;
/** The same for a statement that nobody waits behind. */
const UNLOCKED_MS = 10_000;

/** A larger default partition is not read under the lock: attaching a partition reads all of it. */
const LARGEST_DEFAULT_MB = 64;
/** More calls than these are not moved under the lock. */
const MOST_STRAYS = 2_000;

/** What came of making a partition. */
export type Making =
  | { readonly outcome: 'made'; readonly moved: number }
  /** Another process is at it, or was. */
  | { readonly outcome: 'elsewhere' }
  /** The table was in use: nothing was changed. `holder` is the oldest transaction in the way, if one is left. */
  | { readonly outcome: 'busy'; readonly holder: Holder | undefined };

/** Why a partition cannot be made before somebody has seen to it. */
export interface Obstacle {
  readonly detail: string;
  readonly remedy: string;
}

/** What keeps the partition of a period from being made, whoever holds the table; nothing is locked. */
export async function obstacleTo(db: Db, range: Range): Promise<Obstacle | undefined> {
  const name = nameOf(range.start);
  const [row] = await db.$queryRawUnsafe<[{ taken: boolean; mb: number; strays: number }]>(`
    select ${isDraft(name)} is false as taken, size.mb,
           case when size.mb <= ${LARGEST_DEFAULT_MB} then (
             select count(*)::int from (select from ${quoted(DEFAULT_PARTITION)} where ${calledWithin(range)}
                                         limit ${MOST_STRAYS + 1}) as stray) end as strays
      from (select pg_relation_size(${literal(quoted(DEFAULT_PARTITION))}::regclass) / 2.0 ^ 20) as size(mb)`);
  if (row.taken) {
    return {
      detail: `a table named ${name} is there already, and is no partition of ModelCall`,
      remedy: `rename it: ALTER TABLE ${quoted(name)} RENAME TO …`,
    };
  }
  const remedy = 'make the partition by hand when it is quiet: docs/scaling.md, "Partitions", has the statements';
  if (row.strays === null) {
    const mb = Math.ceil(row.mb);
    return {
      detail: `${DEFAULT_PARTITION} takes ${mb} MB: expected at most ${LARGEST_DEFAULT_MB} MB to read under a lock`,
      remedy: `VACUUM ${quoted(DEFAULT_PARTITION)}; if it takes as much afterwards, ${remedy}`,
    };
  }
  if (row.strays > MOST_STRAYS) {
    return {
      detail: `${DEFAULT_PARTITION} holds more than ${MOST_STRAYS} calls of ${name}: too many to move under a lock`,
      remedy,
    };
  }
  return undefined;
}

/**
 * Make the partition of a period, and move the calls of that period out of the default partition.
 *
 * The table is made beforehand, without a lock. Then one message takes the lock, moves, attaches and commits:
 * PostgreSQL needs no further word from this process, so a process that hangs or dies keeps nobody waiting. A table
 * that was made and not attached is replaced by the next attempt, or dropped by the next look.
 *
 * @param urgent wait for the lock for 500 ms rather than 100; a transaction that is older is not waited for at all
 * @param mayLock asked last, before anything is changed; if it says no, the outcome is `busy`
 * @throws what PostgreSQL says, if it is no lack of a lock; nothing was changed then
 */
export async function createPartition(
  pool: Pool,
  range: Range,
  { urgent = false, mayLock = async () => true }: { urgent?: boolean; mayLock?: () => Promise<boolean> } = {},
): Promise<Making> {
  const patience = urgent ? URGENT_MS : CALM_MS;
  const holder = await longHolder(() => holdersOf(pool), patience);
  if (holder) return { outcome: 'busy', holder };
  if (!(await mayLock())) return { outcome: 'busy', holder: undefined };
  const name = nameOf(range.start);
  try {
    await inOneMessage(pool, draft(name), { patience, limit: UNLOCKED_MS });
    await inOneMessage(pool, attach(name, range), { patience });
  } catch (error) {
    if (sqlState(error) === NOTHING_TO_DO) return { outcome: 'elsewhere' };
    await dropDrafts(pool, [name]).catch(() => {}); // The next look drops it.
    if (!isInUse(error)) throw error;
    return { outcome: 'busy', holder: (await holdersOf(pool))[0] };
  }
  return { outcome: 'made', moved: await movedInto(pool, name) };
}

/** The comment of a table that is to become a partition: nobody else's table has it. */
const DRAFT = 'hourhand partition: not attached yet';

/** True for a draft, false for another table that is no partition, null if there is no such table. */
function isDraft(name: string): string {
  return `(select obj_description(c.oid, 'pg_class') is not distinct from '${DRAFT}'
             from pg_class c where c.oid = to_regclass(${literal(quoted(name))}) and not c.relispartition)`;
}

/** SQLSTATE of a block that found that there is nothing to do for it. */
const NOTHING_TO_DO = 'HH001';
function giveUp(why: string): string {
  return `raise exception 'hourhand: ${why}' using errcode = '${NOTHING_TO_DO}'`;
}
/** Another process makes or detaches partitions at this moment, or has made this one. */
const giveWay = giveUp('another process makes this change');

/** Make the empty table with its indexes, in place of a draft that a killed process left. */
function draft(name: string): string {
  return `
    begin
      if not pg_try_advisory_xact_lock(${PARTITION_LOCK}) then ${giveWay}; end if;
      if ${isDraft(name)} then drop table ${quoted(name)}; end if;
      if to_regclass(${literal(quoted(name))}) is not null then ${giveWay}; end if;
      create table ${quoted(name)} (like "ModelCall" including all);
      execute (select format('alter table %I owner to %s', ${literal(name)}, relowner::regrole)
                 from pg_class where oid = to_regclass('"ModelCall"'));
      comment on table ${quoted(name)} is '${DRAFT}';
    end`;
}

/**
 * The parent is locked first, so that no statement waits with a list of partitions that it has read already. No
 * reader and no writer of the parent holds a lock on the default partition then. Others, such as a vacuum, are not
 * waited for. The new table's comment says how many calls were moved, because a message gives back no rows.
 */
function attach(name: string, range: Range): string {
  const [start, end] = [range.start, range.end].map((bound) => literal(bound.toISOString()));
  return `
    declare
      moved int;
    begin
      if not pg_try_advisory_xact_lock(${PARTITION_LOCK}) or ${isDraft(name)} is not true then ${giveWay}; end if;
      lock table only "ModelCall" in access exclusive mode;
      lock table only ${quoted(DEFAULT_PARTITION)} in access exclusive mode nowait;
      perform set_config('hourhand.archives', 'yes', true); -- no call leaves its hour: none is looked for by its id
      with moved as (delete from ${quoted(DEFAULT_PARTITION)} where ${calledWithin(range)} returning *)
      insert into ${quoted(name)} select * from moved;
      get diagnostics moved = row_count;
      if moved > ${2 * MOST_STRAYS} then -- they came since they were counted: the next look says so
        raise exception 'hourhand: too many calls to move' using errcode = '${LOCK_NOT_AVAILABLE}';
      end if;
      alter table "ModelCall" attach partition ${quoted(name)} for values from (${start}) to (${end});
      execute format('comment on table ${quoted(name)} is %L', 'hourhand partition: ' || moved || ' calls moved');
    end`;
}

async function movedInto(db: Db, name: string): Promise<number> {
  const [row] = await db.$queryRaw<[{ moved: number | null }]>`
    select substring(obj_description(to_regclass(${quoted(name)}), 'pg_class')
                     from '(\\d+) calls moved')::int as moved`;
  return row.moved ?? 0;
}

/** The tables that a killed process made for a partition and did not attach. */
export async function draftsOf(db: Db): Promise<string[]> {
  const rows = await db.$queryRaw<{ name: string }[]>`
    select relname::text as name from pg_class c
     where relnamespace = (select relnamespace from pg_class where oid = to_regclass('"ModelCall"'))
       and relname like 'ModelCall\\_%' and relkind = 'r' and not relispartition
       and obj_description(oid, 'pg_class') = ${DRAFT}::text`;
  return rows.map((row) => row.name);
}

/** Drop such tables, unless somebody has put something into one. */
export async function dropDrafts(pool: Pool, names: readonly string[]): Promise<void> {
  for (const name of names) {
    await inOneMessage(
      pool,
      `
      declare
        used boolean;
      begin
        if not pg_try_advisory_xact_lock(${PARTITION_LOCK}) or ${isDraft(name)} is not true then return; end if;
        select exists (select from ${quoted(name)}) into used;
        if not used then drop table ${quoted(name)}; end if;
      end`,
      { patience: URGENT_MS, limit: UNLOCKED_MS },
    );
  }
}

/**
 * Take the check away that a conversion left behind whose process was killed: once its bound is reached, it would
 * refuse the gateway's calls. In the last hours before that, no transaction is too old to be waited for.
 *
 * @returns `gone` if it was dropped; `elsewhere` if a living `hourhand partition` needs it
 */
export async function dropAbandonedCheck(
  pool: Pool,
  now?: Now,
): Promise<{ outcome: 'gone' | 'elsewhere' } | { outcome: 'busy'; holder: Holder | undefined }> {
  const [check] = await pool.$queryRaw<{ abandoned: boolean; soon: boolean }[]>`
    select pg_try_advisory_xact_lock(${PARTITION_LOCK}::bigint) as abandoned,
           substring(pg_get_constraintdef(oid) from '''(.+?)''')::timestamptz
             < ${instant(now)} + interval '12 hours' as soon
      from pg_constraint where conrelid = to_regclass('"ModelCall"') and conname = ${SPAN_CHECK}`;
  if (!check?.abandoned) return { outcome: 'elsewhere' };
  const holder = check.soon ? undefined : await longHolder(() => holdersOf(pool), URGENT_MS);
  if (holder) return { outcome: 'busy', holder };
  try {
    await inOneMessage(
      pool,
      `
      begin
        if not pg_try_advisory_xact_lock(${PARTITION_LOCK}) then ${giveWay}; end if;
        alter table "ModelCall" drop constraint if exists "${SPAN_CHECK}";
      end`,
      { patience: URGENT_MS },
    );
    return { outcome: 'gone' };
  } catch (error) {
    if (sqlState(error) === NOTHING_TO_DO) return { outcome: 'elsewhere' };
    if (!isInUse(error)) throw error;
    return { outcome: 'busy', holder: (await holdersOf(pool))[0] };
  }
}

/** A retention tries this often to detach a partition. */
const ATTEMPTS = 20;
/** It leaves the table alone for as long in between. */
const PAUSE_MS = 500;

/**
 * Detach a partition if all its calls lie in sealed hours: it stays as a table under its name, with its calls, to be
 * archived or dropped. Not concurrently, because PostgreSQL cannot if there is a default partition.
 *
 * @returns whether it was detached; not if a call of an unsealed hour has come in, or a late one that is not listed yet
 * @throws {Error} if the table was in use at each of many attempts; it names the session
 */
export async function detachPartition(
  pool: Pool,
  partition: Partition,
  { attempts = ATTEMPTS }: { attempts?: number } = {},
): Promise<boolean> {
  for (let attempt = 1; ; attempt++) {
    if (!(await mayDetach(pool, partition))) return false;
    let holder = await longHolder(() => holdersOf(pool), URGENT_MS);
    if (!holder) {
      try {
        await inOneMessage(pool, detach(partition), { patience: URGENT_MS, before: keepVacuumOut(partition.name) });
        return true;
      } catch (error) {
        if (sqlState(error) === NOTHING_TO_DO) return false;
        if (!isInUse(error)) throw error;
        [holder] = await holdersOf(pool);
      }
    }
    if (attempt === attempts) {
      const remedy = holder
        ? `${spellHolder(holder)} is in the way: ${remedyFor(holder)}`
        : 'try again when it is quieter';
      throw new Error(
        `${partition.name} was not detached: ModelCall was in use at each of ${attempts} attempts; ${remedy}`,
      );
    }
    await sleep(PAUSE_MS);
  }
}

async function mayDetach(db: Db, partition: Partition): Promise<boolean> {
  const [row] = await db.$queryRawUnsafe<[{ may: boolean }]>(`select ${conditionsOf(partition)} as may`);
  return row.may;
}

/**
 * What must be true of a partition that is detached. It is looked at without a lock first, and once more under the
 * lock: what is written here must be cheap, for the gateway waits for it.
 */
function conditionsOf(partition: Partition): string {
  return [allSealed(partition), allListed(partition)].map((condition) => `(${condition})`).join(' and ');
}

/** Hour by hour, from the first that has a call: by the ledger's key, and in unsealed hours by the index of calls. */
function allSealed({ name, end }: Partition): string {
  const last = `${literal(end.toISOString())}::timestamptz - interval '1 hour'`;
  return `
    not exists (
      select from generate_series((select min(${callHour.sql}) at time zone 'UTC' from ${quoted(name)}),
                                  ${last}, interval '1 hour') as h(hour)
       where not exists (select from "StatHour" l where l.hour = h.hour and l."sealedAt" is not null)
         and exists (select from ${quoted(name)} where ${callHour.sql} = h.hour at time zone 'UTC' offset 0))`;
}

/** All that came late for its sealed hours is listed: what has been written before the lock has left its mark. */
function allListed(partition: Partition): string {
  const { start, end } = spanOf(partition);
  return `
    not exists (
      select from "StatMark" m
       where m.hour >= ${literal(start.toISOString())}::timestamptz and m.hour < ${literal(end.toISOString())}::timestamptz
         and exists (select from "StatHour" l where l.hour = m.hour and l."sealedAt" is not null))`;
}

/** The hours' calls are gone: what comes of them from now on came late, as after a retention that deletes. */
function detach(partition: Partition): string {
  const { name, start, end } = partition;
  const first = start ? `${literal(start.toISOString())}::timestamptz` : `'-infinity'::timestamptz`;
  return `
    begin
      perform pg_advisory_xact_lock(${PARTITION_LOCK});
      lock table only "ModelCall" in access exclusive mode;
      if not (${conditionsOf(partition)}) then ${giveUp('a call of an unsealed hour has come in, or a late one that is not listed yet')}; end if;
      alter table "ModelCall" detach partition ${quoted(name)};
      update "StatHour" set "bucketsGone" = ${BUCKETS}
       where "sealedAt" is not null and hour >= ${first} and hour < ${literal(end.toISOString())}::timestamptz;
    end`;
}

/**
 * No reader and no writer waits for this mode. A session that waits for it longer than `deadlock_timeout`, one
 * second, makes an autovacuum give way. Half a second under the exclusive lock does not, and a vacuum may take hours.
 */
function keepVacuumOut(name: string): string {
  return `lock table only ${quoted(name)} in share update exclusive mode`;
}

/**
 * Run a block of PL/pgSQL as one message, which PostgreSQL runs as one transaction and commits by itself. It depends
 * on no setting of a connection, a role or a pooler. If the driver puts it into a transaction of its own, as it must
 * behind a pooler, a process that hangs before the commit loses the session after a second.
 *
 * @param patience milliseconds for each lock of the block
 * @param limit milliseconds for the whole block
 * @param before a statement that nobody waits behind
 */
async function inOneMessage(
  pool: Pool,
  block: string,
  { patience, limit = LOCKED_MS, before }: { patience: number; limit?: number; before?: string },
): Promise<void> {
  await pool.$executeRawUnsafe(
    [
      'set transaction isolation level read committed',
      `set local timezone = 'UTC'`,
      `set local idle_in_transaction_session_timeout = ${LOCKED_MS}`,
      `set local lock_timeout = '3s'`,
      `set local statement_timeout = '4s'`,
      ...(before ? [before] : []),
      `set local lock_timeout = ${patience}`,
      `set local statement_timeout = ${limit}`,
      `do $hourhand$ ${block} $hourhand$`,
    ].join(';\n'),
  );
}

/** The lock was not to be had in time, or the work under it was not done in time. */
function isInUse(error: unknown): boolean {
  return [LOCK_NOT_AVAILABLE, QUERY_CANCELED].includes(sqlState(error) ?? '');
}

async function holdersOf(db: Db): Promise<Holder[]> {
  return db.$queryRawUnsafe<Holder[]>(holdersQuery);
}

/** The calls of a range, as `calledWithin` of src/store/scope.ts says it, without parameters. */
function calledWithin({ start, end }: Range): string {
  const [from, to] = [start, end].map((bound) => `${literal(bound.toISOString())}::timestamptz at time zone 'UTC'`);
  return `${callHour.sql} >= ${from} and ${callHour.sql} < ${to}`;
}

function literal(text: string): string {
  return `'${text.replaceAll("'", "''")}'`;
}
