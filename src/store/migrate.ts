// Is the schema there, and whole?

import { createHash, randomUUID } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import type pg from 'pg';
import { connectClient } from './client.ts';
import type { Db } from './db.ts';

/** The advisory lock that Prisma's own engine takes, so that neither runs beside the other. */
const PRISMA_LOCK = 72_707_369;

interface Migration {
  readonly name: string;
  readonly sql: string;
  readonly checksum: string;
}

/**
 * Apply the migrations that are missing, in order, as plain SQL and in Prisma's own table: Prisma's command wants an
 * engine that is a download, and a later `prisma migrate deploy` agrees with what is written here. Each is one
 * transaction with its entry, whole or not at all; the first that fails stops the rest.
 *
 * @returns the names applied
 * @throws {Error} naming the migration that failed, now or before
 */
export async function migrate(
  url: string,
  folder: string,
  onApplied: (name: string) => void = () => {},
): Promise<string[]> {
  const client = await connectClient(url, 'migrate');
  try {
    await client.query("set lock_timeout = '60s'; set statement_timeout = 0"); // whatever the role has
    await client.query('select pg_advisory_lock($1)', [PRISMA_LOCK]);
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
        `migration ${failed.name} was begun by another tool and did not end: see to it, then set rolled_back_at in _prisma_migrations`,
      );
    }
    const known = new Map(rows.map((row) => [row.name, row.checksum]));
    const applied: string[] = [];
    for (const migration of migrationsIn(folder)) {
      const checksum = known.get(migration.name);
      if (checksum === undefined) {
        await apply(client, migration);
        applied.push(migration.name);
        onApplied(migration.name);
      } else if (checksum !== migration.checksum) {
        throw new Error(
          `migration ${migration.name} was edited after it was applied: expected ${checksum.slice(0, 12)}…, found ${migration.checksum.slice(0, 12)}…`,
        );
      }
    }
    return applied;
  } finally {
    await client.end();
  }
}

async function apply(client: pg.Client, { name, sql, checksum }: Migration): Promise<void> {
  try {
    await client.query('begin');
    await client.query(sql);
    await client.query(
      `insert into _prisma_migrations (id, checksum, migration_name, finished_at, applied_steps_count)
       values ($1, $2, $3, clock_timestamp(), 1)`,
      [randomUUID(), checksum, name],
    );
    await client.query('commit');
  } catch (cause) {
    await client.query('rollback').catch(() => {});
    throw new Error(
      `migration ${name}: ${cause instanceof Error ? cause.message : cause}; nothing of it was applied`,
      { cause },
    );
  }
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

function migrationsIn(folder: string): Migration[] {
  return readdirSync(folder)
    .filter((name) => existsSync(path.join(folder, name, 'migration.sql')))
    .sort()
    .map((name) => {
      const sql = readFileSync(path.join(folder, name, 'migration.sql'), 'utf8');
      return { name, sql, checksum: createHash('sha256').update(sql).digest('hex') };
    });
}
