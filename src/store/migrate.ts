// Applies the migrations that are missing, and says which those are.

import { createHash, randomUUID } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { connectClient } from './client.ts';
import type { Db } from './db.ts';
import { beginning, type Client } from './driver.ts';
import { type Holder, holdersOf, remedyFor, spellHolder } from './holders.ts';

/** The advisory lock that Prisma's own engine takes, so that neither runs beside the other. */
const PRISMA_LOCK = 72_707_369;

/** SQLSTATE of a lock that was not to be had in time. */
const LOCK_NOT_AVAILABLE = '55P03';

interface Migration {
  readonly name: string;
  readonly sql: string;
  readonly checksum: string;
}

/** How long a migration waits for its locks in all, and at once: the gateway's calls queue behind it for that long. */
const PATIENCE_MS = 60_000;
const LOCK_MS = 500;
/** Longer than the second after which PostgreSQL ends an autovacuum that is in the way. */
const VACUUM_MS = 1_500;
const PAUSE_MS = 500;

/**
 * Apply the migrations that are missing, in order, as plain SQL and in Prisma's own table: Prisma's command wants an
 * engine that is a download, and a later `prisma migrate deploy` agrees with what is written here. Each is one
 * transaction with its entry, whole or not at all; the first that fails stops the rest. That transaction takes the lock
 * and asks again what is applied, so that it works through a pooler, and several at once apply each once.
 *
 * @param patienceMs how long one may go on trying to get its locks
 * @returns the names applied
 * @throws {Error} naming the migration that failed, now or before
 */
export async function migrate(
  url: string,
  folder: string,
  onApplied: (name: string) => void = () => {},
  { patienceMs = PATIENCE_MS } = {},
): Promise<string[]> {
  const client = await connectClient(url, 'migrate');
  try {
    const applied: string[] = [];
    const known = await alone(client, patienceMs, () => entries(client));
    for (const migration of migrationsIn(folder)) {
      if (isApplied(migration, known)) continue;
      if (!(await apply(client, migration, patienceMs))) continue;
      applied.push(migration.name);
      onApplied(migration.name);
    }
    return applied;
  } finally {
    await client.end();
  }
}

/**
 * Do some work in a transaction, while no other process migrates.
 *
 * @throws {Error} naming the session that migrates for longer than that
 */
async function alone<T>(client: Client, patienceMs: number, work: () => Promise<T>): Promise<T> {
  try {
    await client.query(`${beginning({ patient: true })}; SET LOCAL lock_timeout = '${patienceMs}ms'`);
    await client.query('select pg_advisory_xact_lock($1)', [PRISMA_LOCK]).catch(async (cause) => {
      if (!isLocked(cause)) throw cause;
      await client.query('rollback');
      throw new Error(`another process migrates; ${await inTheWay(client)}`, { cause });
    });
    const result = await work();
    await client.query('commit');
    return result;
  } catch (error) {
    await client.query('rollback').catch(() => {});
    throw error;
  }
}

function isLocked(error: unknown): boolean {
  return error instanceof pg.DatabaseError && error.code === LOCK_NOT_AVAILABLE;
}

/** The checksums of the migrations that were applied, by name. */
async function entries(client: Client): Promise<Map<string, string>> {
  await client.query(`
    create table if not exists _prisma_migrations (
      id varchar(36) primary key not null, checksum varchar(64) not null, finished_at timestamptz,
      migration_name varchar(255) not null, logs text, rolled_back_at timestamptz,
      started_at timestamptz not null default now(), applied_steps_count integer not null default 0)`);
  const { rows } = await client.query<{ name: string; checksum: string; finished: boolean }>(`
    select migration_name as name, checksum, finished_at is not null as finished
      from _prisma_migrations where rolled_back_at is null`);
  const failed = rows.find((row) => !row.finished);
  if (failed) {
    throw new Error(
      `migration ${failed.name} was begun by another tool and did not end: ` +
        'see to it, then set rolled_back_at in _prisma_migrations',
    );
  }
  return new Map(rows.map((row) => [row.name, row.checksum]));
}

/** @throws {Error} if another text of the same name was applied */
function isApplied({ name, checksum }: Migration, known: ReadonlyMap<string, string>): boolean {
  const applied = known.get(name);
  if (applied !== undefined && applied !== checksum) {
    const [expected, found] = [applied, checksum].map((text) => `${text.slice(0, 12)}…`);
    throw new Error(`migration ${name} was edited after it was applied: expected ${expected}, found ${found}`);
  }
  return applied !== undefined;
}

/** @returns whether this process applied it */
async function apply(client: Client, migration: Migration, patienceMs: number): Promise<boolean> {
  const deadline = performance.now() + patienceMs;
  let lockMs = LOCK_MS;
  for (;;) {
    try {
      return await alone(client, patienceMs, async () => {
        if (isApplied(migration, await entries(client))) return false;
        await client.query(`set local lock_timeout = '${lockMs}ms'`);
        await client.query(migration.sql);
        await client.query(
          `insert into _prisma_migrations (id, checksum, migration_name, finished_at, applied_steps_count)
           values ($1, $2, $3, clock_timestamp(), 1)`,
          [randomUUID(), migration.checksum, migration.name],
        );
        return true;
      });
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      const failed = (why: string) =>
        new Error(`migration ${migration.name}: ${why}; nothing of it was applied`, { cause });
      if (!isLocked(cause)) throw failed(reason);
      if (performance.now() > deadline) throw failed(`${reason}; ${await inTheWay(client)}`);
    }
    lockMs = (await isVacuumed(client)) ? VACUUM_MS : LOCK_MS;
    await sleep(PAUSE_MS);
  }
}

/** Whether autovacuum is at a table that the gateway does not wait for. */
async function isVacuumed(client: Client): Promise<boolean> {
  const { rowCount } = await client.alone(`
    select from pg_locks l join pg_stat_activity a on a.pid = l.pid join pg_class c on c.oid = l.relation
     where l.granted and l.mode = 'ShareUpdateExclusiveLock' and a.usesysid is null
       and c.relnamespace = current_schema()::regnamespace and c.relname !~ '^(ModelCall(_|$)|StatMark$)'`);
  return rowCount !== 0;
}

/** Who holds the tables, or migrates, for longest, and what to do about it. */
async function inTheWay(client: Client): Promise<string> {
  const { rows } = await client.alone(
    holdersOf(`
      l.relation in (select oid from pg_class where relnamespace = current_schema()::regnamespace)
      or l.locktype = 'advisory' and l.classid = 0 and l.objid = ${PRISMA_LOCK}`),
  );
  const [holder] = rows as Holder[];
  if (!holder) return 'who was in the way has ended: try again';
  return `in the way is ${spellHolder(holder).replace(/,$/, '')}: ${remedyFor(holder)}, and try again`;
}

/** The names of the migrations that the database lacks. */
export async function pendingMigrations(db: Db, folder: string): Promise<string[]> {
  const [{ there }] = await db.$queryRaw<
    [{ there: boolean }]
  >`select to_regclass('_prisma_migrations') is not null as there`;
  const rows = there
    ? await db.$queryRaw<{ name: string }[]>`
        select migration_name as name from _prisma_migrations where finished_at is not null and rolled_back_at is null`
    : [];
  const applied = new Set(rows.map((row) => row.name));
  return migrationsIn(folder)
    .map(({ name }) => name)
    .filter((name) => !applied.has(name));
}

/** The migrations of a folder, in order. */
export function migrationsIn(folder: string): Migration[] {
  return readdirSync(folder)
    .filter((name) => existsSync(path.join(folder, name, 'migration.sql')))
    .sort()
    .map((name) => {
      const sql = readFileSync(path.join(folder, name, 'migration.sql'), 'utf8');
      return { name, sql, checksum: createHash('sha256').update(sql).digest('hex') };
    });
}
