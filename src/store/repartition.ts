// How does the one table of calls become a partitioned one? Plain pg, because an index that is made concurrently wants no transaction.

import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { HOUR_MS } from '../time/hour.ts';
import { canceller, connectClient } from './client.ts';
import type { Now } from './db.ts';
import {
  DEFAULT_PARTITION,
  LOCK_NOT_AVAILABLE,
  nameOf,
  PARTITION_LOCK,
  type Period,
  type Plan,
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
  const { databaseUrl, plan, dryRun, onProspect, onStep, signal } = options;
  signal?.throwIfAborted();
  const client = await connectClient(databaseUrl, 'partition');
  const cancel = canceller(client);
  signal?.addEventListener('abort', cancel);
  try {
    if (client.pooled) {
      throw new PartitionRefused(
        'expected a session of our own, found a pooler: name PostgreSQL itself in DATABASE_DIRECT_URL, beside DATABASE_URL',
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
      await proveSpan(client, prospect, options.now, signal);
      onStep('the table is exchanged');
      return await exchange(client, plan, prospect, signal);
    } catch (error) {
      // The index first: it is only slow, while the check would refuse calls one day.
      signal?.removeEventListener('abort', cancel);
      await withdraw(client).catch(() => {}); // A lost server: a worker takes the check away.
      throw error;
    }
  } catch (error) {
    throw signal?.aborted ? signal.reason : error;
  } finally {
    signal?.removeEventListener('abort', cancel);
    await client.end().catch(() => {});
  }
}

/** Longer than the second after which PostgreSQL ends an autovacuum that is in the way; a moment for whoever queues behind us. */
const PATIENCE = `'1500ms'`;

const settings = `
  SET timezone = 'UTC'; SET datestyle = ISO; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0;
  SET lock_timeout = ${PATIENCE}`;

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
    `SELECT (date_trunc($1, (coalesce($2::timestamptz, now()) + '${MARGIN}') AT TIME ZONE 'UTC') + ('1 ' || $1)::interval)
            AT TIME ZONE 'UTC' AS boundary`,
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
  await run(client, `SET lock_timeout = 0`, signal); // it waits for older transactions, and nobody for it
  await run(client, `CREATE UNIQUE INDEX CONCURRENTLY "${KEY_INDEX}" ON "ModelCall" (id, "callTime")`, signal);
}

/** Until the exchange, the check refuses a call beyond the boundary: it must be over well before that is reached. */
async function proveSpan(client: pg.Client, { boundary }: Prospect, now: Now, signal?: AbortSignal): Promise<void> {
  await run(client, `SET lock_timeout = ${PATIENCE}`, signal);
  await again(signal, () =>
    run(
      client,
      `ALTER TABLE "ModelCall" DROP CONSTRAINT IF EXISTS "${SPAN_CHECK}",
         ADD CONSTRAINT "${SPAN_CHECK}" CHECK ("callTime" < '${boundary.toISOString()}') NOT VALID`,
      signal,
    ),
  );
  const left = boundary.getTime() - (now ?? new Date()).getTime() - HOUR_MS;
  await run(client, 'SET lock_timeout = 0', signal); // no writer waits for it
  await run(client, `SET statement_timeout = ${Math.max(1, Math.min(left, 2 ** 31 - 1))}`, signal);
  await run(client, `ALTER TABLE "ModelCall" VALIDATE CONSTRAINT "${SPAN_CHECK}"`, signal);
  await run(client, `SET statement_timeout = 0; SET lock_timeout = ${PATIENCE}`, signal);
}

async function withdraw(client: pg.Client): Promise<void> {
  await client.query('ROLLBACK');
  await client.query(`SET statement_timeout = 0; SET lock_timeout = '60s'`);
  await client.query(`ALTER TABLE "ModelCall" DROP CONSTRAINT IF EXISTS "${SPAN_CHECK}"`);
  await client.query(`DROP INDEX CONCURRENTLY IF EXISTS "${KEY_INDEX}"`);
}

/** @returns the milliseconds for which writers had to wait */
async function exchange(client: pg.Client, plan: Plan, prospect: Prospect, signal?: AbortSignal): Promise<number> {
  return again(signal, async () => {
    await run(client, 'BEGIN', signal);
    try {
      await run(client, 'LOCK TABLE "ModelCall" IN ACCESS EXCLUSIVE MODE', signal);
      const since = performance.now();
      for (const sql of await statements(client, plan, prospect)) await run(client, sql, signal);
      await run(client, 'COMMIT', signal);
      return Math.ceil(performance.now() - since);
    } catch (error) {
      await client.query('ROLLBACK');
      throw error;
    }
  });
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
  const quoted = (name: string) => `"${name.replaceAll('"', '""')}"`;
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

const ATTEMPTS = 30;

/** What needs a lock for a moment gives way soon, so that nobody queues behind it for long, and comes again. */
async function again<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      if (!isLocked(error)) throw error;
      if (attempt === ATTEMPTS) {
        throw new Error(
          `ModelCall was in use at each of ${ATTEMPTS} attempts: end the long transactions that read or write it, and try again`,
          { cause: error },
        );
      }
    }
    await sleep(1_000, undefined, { signal });
  }
}

function isLocked(error: unknown): boolean {
  return error instanceof pg.DatabaseError && error.code === LOCK_NOT_AVAILABLE;
}

async function run(client: pg.Client, sql: string, signal?: AbortSignal): Promise<void> {
  signal?.throwIfAborted();
  await client.query(sql);
}
