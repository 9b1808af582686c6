// How does the one table of calls become a partitioned one? Plain pg, because an index that is made concurrently wants no transaction.

import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { HOUR_MS } from '../time/hour.ts';
import { canceller, connectClient } from './client.ts';
import type { Now } from './db.ts';
import { type Holder, holdersQuery, longHolder, remedyFor, spellHolder } from './holders.ts';
import {
  DEFAULT_PARTITION,
  LOCK_NOT_AVAILABLE,
  nameOf,
  PARTITION_LOCK,
  type Period,
  type Plan,
  QUERY_CANCELED,
  quoted,
  SPAN_CHECK,
  spellPlan,
} from './partitions.ts';
import { spellInstant } from './timestamps.ts';

/** What is there, and what would become of it. */
export interface Prospect {
  /** By the planner's estimate. */
  readonly calls: number;
  readonly bytes: number;
  /** Where the first partition ends, which holds all calls that are there: a whole period of its own later than tomorrow. */
  readonly boundary: Date;
}

/** It cannot be done as things are, and nothing was changed. The message is one line for whoever asked. */
export class PartitionRefused extends Error {
  override readonly name = 'PartitionRefused';
}

export interface ConversionOptions {
  readonly databaseUrl: string;
  readonly plan: Plan;
  readonly dryRun: boolean;
  /** Told what is to come, and then of each step before it begins. */
  readonly onProspect: (prospect: Prospect) => void;
  readonly onStep: (step: string) => void;
  readonly signal?: AbortSignal;
  readonly now?: Now;
  /** How often the table is asked for before it is given up: 60 times, a second and more apart. */
  readonly attempts?: number;
}

/**
 * Make `ModelCall` the partitioned table of a plan, without copying: the table that is there becomes the first partition. What takes
 * long (an index, and one reading of the table to prove its span) is done before, while everybody writes; the exclusive lock is held
 * for the catalogue alone. The partitions ahead are made afterwards, as ever: src/producers/partitions.ts.
 *
 * @returns the milliseconds for which writers had to wait; `undefined` where it was only asked
 * @throws {PartitionRefused} where it cannot be done
 * @throws the signal's reason where it aborts; whatever ends it, the table is as it was
 */
export async function partitionCalls(options: ConversionOptions): Promise<number | undefined> {
  const { databaseUrl, plan, dryRun, onProspect, onStep, signal, attempts } = options;
  signal?.throwIfAborted();
  const client = await connectClient(databaseUrl, 'partition');
  const cancel = canceller(client);
  signal?.addEventListener('abort', cancel);
  try {
    if (client.pooled) {
      throw new PartitionRefused(
        'expected a session of our own, found a pooler: name PostgreSQL itself in DATABASE_DIRECT_URL',
      );
    }
    await client.query(settings);
    const prospect = await lookAt(client, plan, options.now);
    onProspect(prospect);
    if (dryRun) return undefined;
    try {
      onStep('the index of its new key is made; everybody goes on writing');
      await prepareKey(client, signal);
      onStep('the table is read once; everybody goes on writing');
      await proveSpan(client, prospect, options.now, { attempts, signal });
      onStep('the table is exchanged');
      return await exchange(client, plan, prospect, { attempts, signal });
    } catch (error) {
      signal?.removeEventListener('abort', cancel);
      await withdraw(client).catch(() =>
        onStep(`ModelCall is in use: ${SPAN_CHECK} may be left, which a worker drops, or the index ${KEY_INDEX}`),
      );
      throw error;
    }
  } catch (error) {
    throw signal?.aborted ? signal.reason : error;
  } finally {
    signal?.removeEventListener('abort', cancel);
    await client.end().catch(() => {});
  }
}

/** For so long the gateway may wait behind us for the lock. */
const LOCK_MS = 500;
/** For so long a statement under the lock may run, its wait for the lock included. */
const LOCKED_MS = 1_000;

/** What is not done under the lock waits for older transactions, and nobody waits for it. */
const settings = `
  SET timezone = 'UTC'; SET datestyle = ISO; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0;
  SET lock_timeout = 0`;

/** How much later than now the first partition ends, at least: the gateway's calls must lie before it until all is done. */
const MARGIN = '24 hours';

/** @throws {PartitionRefused} where it cannot be done */
async function lookAt(client: pg.Client, { by }: Plan, now?: Now): Promise<Prospect> {
  const { rows: locks } = await client.query<{ taken: boolean }>('SELECT pg_try_advisory_lock($1) AS taken', [
    PARTITION_LOCK,
  ]);
  if (!locks[0]?.taken) throw new PartitionRefused('somebody else is making or detaching partitions at this moment');
  const { rows: tables } = await client.query<{ relkind: string; calls: number; bytes: string }>(
    `SELECT relkind, greatest(reltuples, 0) AS calls, pg_table_size(oid) AS bytes FROM pg_class WHERE oid = '"ModelCall"'::regclass`,
  );
  const [table] = tables;
  if (table?.relkind !== 'r')
    throw new PartitionRefused('expected ModelCall to be one plain table, it is partitioned already');
  const { rows: obstacles } = await client.query<{ what: string }>(obstaclesQuery);
  if (obstacles.length > 0) {
    throw new PartitionRefused(
      `expected nothing that depends on the table ModelCall itself, got ${obstacles.map(({ what }) => what).join('; ')}`,
    );
  }
  const { rows: bounds } = await client.query<{ boundary: Date }>(
    `SELECT (date_trunc($1, (coalesce($2::timestamptz, now()) + '${MARGIN}') AT TIME ZONE 'UTC')
             + ('1 ' || $1)::interval) AT TIME ZONE 'UTC' AS boundary`,
    [by, now && spellInstant(now)],
  );
  const boundary = bounds[0]?.boundary ?? new Date(Number.NaN);
  const { rows: beyond } = await client.query<{ newest: Date | null }>(
    `SELECT max(date_trunc('hour', "callTime" AT TIME ZONE 'UTC')) AT TIME ZONE 'UTC' AS newest FROM "ModelCall"`,
  );
  const newest = beyond[0]?.newest;
  if (newest && newest >= boundary) {
    throw new PartitionRefused(
      `expected all calls before ${boundary.toISOString()}, where the first partition would end, got one in the hour of ${newest.toISOString()}`,
    );
  }
  return {
    calls: table.calls,
    bytes: Number(table.bytes),
    boundary,
  };
}

/** Of the new key, until it is one. */
const KEY_INDEX = 'ModelCall_id_callTime_idx';

/** What would go on speaking of the first partition alone, or cannot be had of a partitioned table. The table's own parts are taken along. */
const obstaclesQuery = `
  WITH t AS (SELECT '"ModelCall"'::regclass::oid AS oid)
  SELECT pg_describe_object(classid, objid, objsubid) AS what FROM pg_depend d, t
   WHERE refclassid = 'pg_class'::regclass AND refobjid = t.oid
     AND (deptype = 'n' OR classid IN ('pg_policy'::regclass, 'pg_publication_rel'::regclass))
     AND NOT (classid = 'pg_constraint'::regclass AND objid IN (SELECT c.oid FROM pg_constraint c WHERE conrelid = t.oid))
     AND NOT (classid = 'pg_trigger'::regclass AND objid IN (SELECT g.oid FROM pg_trigger g WHERE tgrelid = t.oid))
     AND classid <> 'pg_attrdef'::regclass
  UNION
  SELECT 'foreign key ' || conname FROM pg_constraint, t WHERE conrelid = t.oid AND contype = 'f'
  UNION
  SELECT 'unique or exclusion index ' || indexrelid::regclass FROM pg_index, t
   WHERE indrelid = t.oid AND (indisunique OR indisexclusion) AND NOT indisprimary AND indexrelid::regclass::text <> '"${KEY_INDEX}"'
  UNION
  SELECT 'trigger ' || tgname || ' with transition tables' FROM pg_trigger, t
   WHERE tgrelid = t.oid AND tgtype & 1 = 1 AND (tgoldtable IS NOT NULL OR tgnewtable IS NOT NULL)
  UNION
  SELECT 'row-level security' FROM pg_class c, t WHERE c.oid = t.oid AND relrowsecurity
  UNION
  SELECT 'inheritance from ' || inhparent::regclass FROM pg_inherits, t WHERE inhrelid = t.oid
  ORDER BY 1`;

async function prepareKey(client: pg.Client, signal?: AbortSignal): Promise<void> {
  await run(client, `DROP INDEX CONCURRENTLY IF EXISTS "${KEY_INDEX}"`, signal); // half of one, perhaps
  await run(client, `SET lock_timeout = '60min'`, signal); // it waits for older transactions, one of which may never end
  await run(client, `CREATE UNIQUE INDEX CONCURRENTLY "${KEY_INDEX}" ON "ModelCall" (id, "callTime")`, signal);
  await run(client, 'SET lock_timeout = 0', signal);
}

/** Until the exchange, the check refuses a call beyond the boundary: it must be over well before that is reached. */
async function proveSpan(client: pg.Client, { boundary }: Prospect, now: Now, tries: Tries): Promise<void> {
  const { signal } = tries;
  await underLock(
    client,
    async () => `
      ALTER TABLE "ModelCall" DROP CONSTRAINT IF EXISTS "${SPAN_CHECK}",
        ADD CONSTRAINT "${SPAN_CHECK}" CHECK ("callTime" < '${boundary.toISOString()}') NOT VALID`,
    tries,
  );
  const left = boundary.getTime() - (now ?? new Date()).getTime() - HOUR_MS;
  await run(client, `SET statement_timeout = ${Math.max(1, Math.min(left, 2 ** 31 - 1))}`, signal);
  await run(client, `ALTER TABLE "ModelCall" VALIDATE CONSTRAINT "${SPAN_CHECK}"`, signal);
  await run(client, 'SET statement_timeout = 0', signal);
}

async function withdraw(client: pg.Client): Promise<void> {
  await client.query('ROLLBACK');
  await client.query('SET statement_timeout = 0');
  const { rows: checks } = await client.query(
    `SELECT 1 FROM pg_constraint WHERE conrelid = to_regclass('"ModelCall"') AND conname = '${SPAN_CHECK}'`,
  );
  if (checks.length > 0) {
    await underLock(client, async () => `ALTER TABLE "ModelCall" DROP CONSTRAINT IF EXISTS "${SPAN_CHECK}"`, {
      attempts: 15,
    });
  }
  await client.query(`SET lock_timeout = '5s'`); // nobody waits behind this, but it waits for every reader
  await client.query(`DROP INDEX CONCURRENTLY IF EXISTS "${KEY_INDEX}"`);
}

/** @returns the milliseconds for which writers had to wait */
async function exchange(client: pg.Client, plan: Plan, prospect: Prospect, tries: Tries): Promise<number> {
  await underLock(
    client,
    async () => `
      DO $hourhand$
      DECLARE
        since timestamptz;
      BEGIN
        LOCK TABLE "ModelCall" IN ACCESS EXCLUSIVE MODE;
        since := clock_timestamp();
        ${(await statements(client, plan, prospect)).join(';\n')};
        PERFORM set_config('hourhand.waited',
                           ceil(extract(epoch FROM clock_timestamp() - since) * 1000)::text, false);
      END $hourhand$`,
    tries,
  );
  const { rows } = await client.query<{ ms: number }>(`SELECT current_setting('hourhand.waited')::int AS ms`);
  return rows[0]?.ms ?? Number.NaN;
}

/** What makes the exchange, in order: written from what the table has at this moment, by its own words. */
async function statements(client: pg.Client, { by, ahead }: Plan, prospect: Prospect): Promise<string[]> {
  const boundary = prospect.boundary.toISOString();
  const first = `ModelCall_before_${nameOf(prospect.boundary).replace('ModelCall_', '')}`;
  const { rows } = await client.query<{
    part: 'key' | 'index' | 'trigger' | 'grant' | 'owner';
    name: string;
    sql: string;
    more: string;
  }>(
    `WITH t AS (SELECT '"ModelCall"'::regclass::oid AS oid)
     SELECT 'key' AS part, conname::text AS name, '' AS sql, '' AS more FROM pg_constraint, t WHERE conrelid = t.oid AND contype = 'p'
     UNION ALL
     SELECT 'index', relname, pg_get_indexdef(indexrelid), '' FROM pg_index JOIN pg_class c ON c.oid = indexrelid, t
      WHERE indrelid = t.oid AND NOT indisunique
     UNION ALL
     SELECT 'trigger', tgname, pg_get_triggerdef(g.oid),
            CASE tgenabled WHEN 'A' THEN 'ENABLE ALWAYS' WHEN 'R' THEN 'ENABLE REPLICA' WHEN 'D' THEN 'DISABLE' ELSE '' END
       FROM pg_trigger g, t WHERE tgrelid = t.oid AND NOT tgisinternal
     UNION ALL
     SELECT 'grant', '', format('GRANT %s%s ON "ModelCall" TO %s%s', a.privilege_type, c.columns,
                                CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
                                CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END), ''
       FROM t, (SELECT oid, relacl AS acl, '' AS columns FROM pg_class
                UNION ALL
                SELECT attrelid, attacl, format(' (%I)', attname) FROM pg_attribute) AS c, aclexplode(c.acl) AS a
      WHERE c.oid = t.oid
     UNION ALL
     SELECT 'owner', relowner::regrole::text, '', '' FROM pg_class, t WHERE pg_class.oid = t.oid
     ORDER BY 1, 2`,
  );
  const of = (part: string) => rows.filter((row) => row.part === part);
  const ofFirst = (name: string) => quoted(`${first}_${name.replace(/^ModelCall_/, '')}`);
  return [
    ...of('key').flatMap(({ name }) => [
      `ALTER TABLE "ModelCall" DROP CONSTRAINT ${quoted(name)}`,
      `ALTER TABLE "ModelCall" ADD CONSTRAINT ${ofFirst(name)} PRIMARY KEY USING INDEX "${KEY_INDEX}"`,
    ]),
    ...of('index').map(({ name }) => `ALTER INDEX ${quoted(name)} RENAME TO ${ofFirst(name)}`),
    ...of('trigger').map(({ name }) => `DROP TRIGGER ${quoted(name)} ON "ModelCall"`),
    `ALTER TABLE "ModelCall" RENAME TO "${first}"`,
    `CREATE TABLE "ModelCall" (LIKE "${first}" INCLUDING ALL EXCLUDING INDEXES) PARTITION BY RANGE ("callTime")`,
    `ALTER TABLE "ModelCall" DROP CONSTRAINT "${SPAN_CHECK}"`,
    ...of('owner').map(({ name }) => `ALTER TABLE "ModelCall" OWNER TO ${name}`),
    ...of('key').map(
      ({ name }) => `ALTER TABLE "ModelCall" ADD CONSTRAINT ${quoted(name)} PRIMARY KEY (id, "callTime")`,
    ),
    ...of('index').map(({ sql }) => sql),
    `ALTER TABLE "ModelCall" ATTACH PARTITION "${first}" FOR VALUES FROM (MINVALUE) TO ('${boundary}')`,
    `ALTER TABLE "${first}" DROP CONSTRAINT "${SPAN_CHECK}"`,
    `CREATE TABLE "${DEFAULT_PARTITION}" PARTITION OF "ModelCall" DEFAULT`,
    ...of('owner').map(({ name }) => `ALTER TABLE "${DEFAULT_PARTITION}" OWNER TO ${name}`),
    ...of('trigger').flatMap(({ name, sql, more }) => [
      sql,
      ...(more ? [`ALTER TABLE "ModelCall" ${more} TRIGGER ${quoted(name)}`] : []),
    ]),
    ...of('grant').map(({ sql }) => sql),
    bounds(by, boundary),
    `COMMENT ON TABLE "ModelCall" IS '${spellPlan({ by, ahead })}'`,
  ];
}

/**
 * Each instant's own partition, whole: a part of one would mislead the planner. Of immutable functions alone (an interval is taken from a
 * timestamp without time zone), or it is not inlined.
 */
function bounds(by: Period, boundary: string): string {
  const begin = (instant: string, less = '') => `date_trunc('${by}', ${instant} AT TIME ZONE 'UTC'${less})`;
  return `
    CREATE OR REPLACE FUNCTION "inPartitionsOf"(called timestamptz, start timestamptz, "end" timestamptz) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
      SELECT called >= CASE WHEN start < '${boundary}' THEN '-infinity' ELSE ${begin('start')} AT TIME ZONE 'UTC' END
         AND called < CASE WHEN "end" <= '${boundary}' THEN '${boundary}'
                           ELSE (${begin(`"end"`, " - interval '1 microsecond'")} + interval '1 ${by}') AT TIME ZONE 'UTC' END
    $$`;
}

/** How often the table is asked for, and what ends that. */
interface Tries {
  readonly attempts?: number;
  readonly signal?: AbortSignal;
}

const ATTEMPTS = 60;
const PAUSE_MS = 1_000;

/**
 * Run statements that need the table for themselves for a moment, in one message that ends with the commit:
 * PostgreSQL waits for no word of ours while everybody waits. A transaction that has held the table for longer than
 * we would wait is left alone, and whatever the lock or the work is not to be had for in time is tried again.
 *
 * Before that the table is locked in a mode that no reader and no writer minds, and no change of the table can pass:
 * what `write` reads of the table stays so. It also makes an autovacuum give way, which would not for half a second.
 *
 * @param write what is run; with `;` between statements
 */
async function underLock(
  client: pg.Client,
  write: () => Promise<string>,
  { attempts = ATTEMPTS, signal }: Tries,
): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    let cause: unknown;
    let holder = await longHolder(() => holdersOf(client), LOCK_MS);
    if (!holder) {
      try {
        await run(client, `BEGIN; SET LOCAL lock_timeout = '3s'`, signal);
        await run(client, 'LOCK TABLE "ModelCall" IN SHARE UPDATE EXCLUSIVE MODE', signal);
        const sql = await write();
        await run(
          client,
          `SET LOCAL lock_timeout = ${LOCK_MS}; SET LOCAL statement_timeout = ${LOCKED_MS}; ${sql}; COMMIT`,
          signal,
        );
        return;
      } catch (error) {
        await client.query('ROLLBACK');
        if (!isInUse(error)) throw error;
        cause = error;
        [holder] = await holdersOf(client);
      }
    }
    if (attempt === attempts) {
      const remedy = holder
        ? `${spellHolder(holder)} is in the way: ${remedyFor(holder)}`
        : 'end the long transactions that read or write it, and try again';
      throw new Error(`ModelCall was in use at each of ${attempts} attempts; ${remedy}`, { cause });
    }
    await sleep(PAUSE_MS, undefined, { signal });
  }
}

async function holdersOf(client: pg.Client): Promise<Holder[]> {
  return (await client.query<Holder>(holdersQuery)).rows;
}

/** The lock was not to be had in time, or the work under it was not done in time. */
function isInUse(error: unknown): boolean {
  return error instanceof pg.DatabaseError && [LOCK_NOT_AVAILABLE, QUERY_CANCELED].includes(error.code ?? '');
}

async function run(client: pg.Client, sql: string, signal?: AbortSignal): Promise<void> {
  signal?.throwIfAborted();
  await client.query(sql);
}
