// Says who this database is.

import { randomUUID } from 'node:crypto';
import type { Db } from './db.ts';

/** A database, told apart from every other one and from its own copies. */
export interface Identity {
  /** Made by the migration; a copy of the database has the same. */
  readonly id: string;
  /** Of the PostgreSQL cluster; null if our role may not ask. A physical copy has the same. */
  readonly system: string | null;
  /** Of the database in its cluster. A logical copy has another. */
  readonly oid: string;
  readonly database: string;
}

/** @throws {Error} if the row is missing */
export async function identityOf(db: Db): Promise<Identity> {
  const [row] = await db.$queryRaw<(Omit<Identity, 'system'> & { asks: boolean })[]>`
    select i.id::text as id, d.oid::text as oid, d.datname::text as database,
           coalesce(has_function_privilege(to_regprocedure('pg_control_system()')::oid, 'execute'), false) as asks
      from "StatIdentity" i, pg_database d where d.datname = current_database()`;
  if (!row) throw new Error('expected one row in "StatIdentity", found none: type hourhand identity new');
  const { asks, ...identity } = row;
  return { ...identity, system: asks ? await systemOf(db) : null };
}

/** A statement of its own: PostgreSQL looks at the right to call a function even where it does not call it. */
async function systemOf(db: Db): Promise<string> {
  const [{ system }] = await db.$queryRaw<[{ system: string }]>`
    select system_identifier::text as system from pg_control_system()`;
  return system;
}

/** Make this database another one than the database that it was copied from. @returns the new id, and the former */
export async function renewIdentity(db: Db): Promise<{ id: string; former: string | null }> {
  const [former] = await db.$queryRaw<{ id: string }[]>`select id::text as id from "StatIdentity" for update`;
  const id = randomUUID();
  await db.$executeRaw`
    insert into "StatIdentity" (id) values (${id}::uuid) on conflict ("only") do update set id = excluded.id`;
  return { id, former: former?.id ?? null };
}
