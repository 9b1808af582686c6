// How do imported calls reach the table? Plain pg, because Prisma has no COPY.

import type { Writable } from 'node:stream';
import { from as copyFrom } from 'pg-copy-streams';
import { canceller, connectClient } from './client.ts';
import { beginning, type Client } from './driver.ts';

/** What a file says of a call: its name there, in the order in which rows are copied, and the table's column and type. */
const COLUMNS = {
  call_time: ['"callTime"', 'timestamptz(6)'],
  user_did: ['"userDid"', 'text'],
  app_did: ['"appDid"', 'text'],
  provider: ['"providerId"', 'text'],
  model: ['model', 'text'],
  type: ['type', '"ModelCallType"'],
  input_tokens: ['"inputTokens"', 'bigint'],
  output_tokens: ['"outputTokens"', 'bigint'],
  credits: ['credits', 'numeric(20,8)'],
  status: ['status', '"ModelCallStatus"'],
  duration_s: ['duration', 'numeric(20,6)'],
} as const;

export type CallColumn = keyof typeof COLUMNS;

const names = Object.values(COLUMNS).map(([name]) => name);
const definitions = Object.values(COLUMNS).map(([name, type]) => `${name} ${type}`);
const figuresOf = (table: string) => `(${names.map((name) => `${table}.${name}`).join(', ')})`;
const conflict = `known call WHERE call.id = staged.id AND ${figuresOf('call')} IS DISTINCT FROM ${figuresOf('staged')}`;

/** A connection within one transaction, and what ends it early. */
export interface ImportTransaction {
  readonly client: Client;
  readonly signal?: AbortSignal;
}

/**
 * Do some work in one transaction, with an empty staging table: committed where its result is to be kept, and rolled
 * back where it is not, where the work throws, or when the signal aborts, even within a long statement (rejecting with
 * the signal's reason). No time-out holds here: ten million rows take minutes.
 */
export async function inImport<T>(
  databaseUrl: string,
  signal: AbortSignal | undefined,
  work: (transaction: ImportTransaction) => Promise<T>,
  keep: (result: T) => boolean,
): Promise<T> {
  signal?.throwIfAborted();
  const client = await connectClient(databaseUrl, 'import');
  let cancel = () => {};
  try {
    cancel = canceller(client);
    signal?.addEventListener('abort', cancel);
    await client.query(begin);
    const result = await work({ client, signal });
    signal?.throwIfAborted();
    await client.query(keep(result) ? 'COMMIT' : 'ROLLBACK');
    return result;
  } catch (error) {
    await client.query('ROLLBACK').catch(() => {}); // A lost connection rolls back by itself.
    throw signal?.aborted ? signal.reason : error;
  } finally {
    signal?.removeEventListener('abort', cancel);
    await client.end().catch(() => {});
  }
}

/**
 * The ids have no collation of their own. Compared with an id of `ModelCall` they take the collation of that column,
 * so that its key can be used. With a collation of their own each look-up would read the whole table.
 *
 * `rounded` names the columns that are stored with fewer decimals than the file gives.
 */
const begin = `
  ${beginning({ patient: true })};
  SET LOCAL lock_timeout = '60s';
  CREATE TEMPORARY TABLE staged (
    line bigint NOT NULL,
    rounded text NOT NULL,
    ${definitions},
    id text NOT NULL
  ) ON COMMIT DROP;
  CREATE TEMPORARY TABLE known (
    id text NOT NULL,
    ${definitions}
  ) ON COMMIT DROP`;

/** Takes rows in COPY's text format: line, the rounded columns' names, the columns of a call, id. */
export function stagingStream({ client }: ImportTransaction): Writable {
  return client.query(copyFrom('COPY staged FROM STDIN'));
}

interface StagedTotals {
  readonly users: number;
  readonly first?: Date;
  readonly last?: Date;
  readonly roundedCredits: number;
  readonly roundedDurations: number;
}

/** The users of the staged calls, their first and last instant, and how many amounts and durations are rounded. */
export async function totalsOfStaged(transaction: ImportTransaction): Promise<StagedTotals> {
  const [totals] = await ask<{ first: Date | null; last: Date | null } & Record<string, string>>(
    transaction,
    `SELECT count(*) AS users, min(first) AS first, max(last) AS last, coalesce(sum(credits), 0) AS credits,
            coalesce(sum(durations), 0) AS durations
       FROM (SELECT min("callTime") AS first, max("callTime") AS last,
                    count(*) FILTER (WHERE rounded LIKE '%credits%') AS credits,
                    count(*) FILTER (WHERE rounded LIKE '%duration_s%') AS durations
               FROM staged GROUP BY "userDid") AS users`,
  );
  return {
    users: Number(totals?.users),
    first: totals?.first ?? undefined,
    last: totals?.last ?? undefined,
    roundedCredits: Number(totals?.credits),
    roundedDurations: Number(totals?.durations),
  };
}

/** How many calls were new, and the tables that they went to: several where `ModelCall` is partitioned. */
export interface Inserted {
  readonly calls: number;
  /** Those of them whose hours are sealed, and these hours: they are in no figure. */
  readonly sealed: { readonly calls: number; readonly hours: number };
  readonly tables: string[];
}

/** Any order will do, and sorting by bytes is the quickest. */
const BYTES = 'COLLATE "C"';

/**
 * Insert the staged calls whose ids are new. It leaves its own marks, one for each user and ended hour, where the trigger
 * would leave one for each call.
 *
 * Where ids are `hash`es of the rows, equal rows are told apart by counting them. They are sorted by time first, so that an
 * hour's calls lie together in the table. Where ids are the file's `own`, the first line of an id is the one that counts, and
 * `known` holds afterwards what is stored under each.
 */
export async function insertStaged(
  transaction: ImportTransaction,
  ids: 'hash' | 'own',
  metadata?: object,
): Promise<Inserted> {
  const partitioned = ids === 'own' && (await lookUpInPartitions(transaction));
  const calls = {
    hash: `SELECT id || '-' || row_number() OVER (PARTITION BY "callTime", id) AS id, ${names.join(', ')} FROM staged`,
    own: `SELECT id, ${names.join(', ')}
            FROM (SELECT DISTINCT ON (id ${BYTES}) * FROM staged
                   WHERE NOT EXISTS (SELECT FROM known WHERE known.id = staged.id)
                   ORDER BY id ${BYTES}, line) AS firsts
           ORDER BY line`,
  }[ids];
  const returned = { hash: '"userDid"', own: `id, ${names.join(', ')}` }[ids];
  const noted = { hash: '', own: `, noted AS (INSERT INTO known SELECT ${returned} FROM inserted)` }[ids];
  const { client, signal } = transaction;
  signal?.throwIfAborted();
  await client.query(`SELECT set_config('hourhand.marks_itself', 'yes', true)`);
  const { rows } = await client.query<{ calls: string; tables: string[]; sealedCalls: string; sealedHours: string }>(
    `WITH inserted AS (
       INSERT INTO "ModelCall" (id, "totalUsage", metadata, ${names.join(', ')})
       SELECT id, coalesce("inputTokens", 0) + coalesce("outputTokens", 0), $1::jsonb, ${names.join(', ')}
         FROM (${calls}) AS calls
       ON CONFLICT DO NOTHING
       RETURNING ${returned}, date_trunc('hour', "callTime", 'UTC') AS hour, tableoid
     )${noted}, marked AS (
       INSERT INTO "StatMark" (hour, "userDid", reason)
       SELECT hour, "userDid", 'late' FROM inserted i
        WHERE hour < date_trunc('hour', clock_timestamp(), 'UTC')
        GROUP BY hour, "userDid"
     ), sealed AS (
       SELECT count(*) AS calls, count(DISTINCT i.hour) AS hours
         FROM inserted i JOIN "StatHour" l ON l.hour = i.hour AND l."sealedAt" IS NOT NULL
     )
     SELECT coalesce(sum(counted.calls), 0) AS calls, coalesce(array_agg(tableoid::regclass::text), '{}') AS tables,
            (SELECT calls FROM sealed) AS "sealedCalls", (SELECT hours FROM sealed) AS "sealedHours"
       FROM (SELECT tableoid, count(*) AS calls FROM inserted GROUP BY tableoid) AS counted`,
    [metadata],
  );
  if (ids === 'own') {
    if (partitioned) await ask(transaction, lookUpRest('c."callTime" = rest."callTime"'));
    await ask(transaction, lookUpRest('true'));
  }
  const [row] = rows;
  return {
    calls: Number(row?.calls),
    sealed: { calls: Number(row?.sealedCalls), hours: Number(row?.sealedHours) },
    tables: row?.tables ?? [],
  };
}

/**
 * If the calls are in partitions, find what is stored under the staged ids, whenever it was called: the key of a
 * partition does not keep an id from being used again at another time. Each id is looked up in each partition. If
 * that takes more look-ups than there are calls, all calls are read once instead.
 *
 * @returns whether the calls are in partitions
 */
async function lookUpInPartitions(transaction: ImportTransaction): Promise<boolean> {
  const [size] = await ask<{ partitioned: boolean; few: boolean }>(
    transaction,
    `SELECT count(*) > 0 AS partitioned,
            count(*) > 0 AND (SELECT count(*) FROM staged) * count(*) < sum(reltuples) AS few
       FROM pg_partition_tree('"ModelCall"') JOIN pg_class ON oid = relid WHERE isleaf`,
  );
  if (!size?.partitioned) return false;
  if (size.few) {
    await ask(transaction, lookUpRest('true'));
  } else {
    await ask(transaction, 'ANALYZE staged (id)'); // the planner expects 200 different ids otherwise
    await ask(transaction, readOnce);
  }
  return true;
}

const readOnce = `
  INSERT INTO known
  SELECT DISTINCT ON (id ${BYTES}) id, ${names.join(', ')} FROM "ModelCall" WHERE id IN (SELECT id FROM staged)
   ORDER BY id ${BYTES}, "callTime"`;

/**
 * What is stored under each staged id that is not known yet. Each is looked up by the key: OFFSET 0 keeps the planner
 * from reading all calls.
 */
const lookUpRest = (where: string) => `
  INSERT INTO known
  SELECT DISTINCT ON (call.id ${BYTES}) call.id, ${names.map((name) => `call.${name}`).join(', ')}
    FROM (SELECT id, "callTime" FROM staged
           WHERE NOT EXISTS (SELECT FROM known WHERE known.id = staged.id) OFFSET 0) AS rest,
         LATERAL (SELECT * FROM "ModelCall" c WHERE c.id = rest.id AND ${where} OFFSET 0) AS call
   ORDER BY call.id ${BYTES}, call."callTime"`;

export interface Conflict {
  readonly line: number;
  readonly id: string;
  /** The columns, by the file's names, in which it differs from the stored call of its id. */
  readonly columns: string[];
}

/**
 * The staged lines that say something else than the stored call of their id, in order, some at a time. Asked after the
 * insert, so that lines of the file, earlier calls, and calls written meanwhile are all compared alike.
 */
export async function* conflictsOfStaged(transaction: ImportTransaction): AsyncGenerator<Conflict> {
  const differing = Object.entries(COLUMNS).map(
    ([column, [name]]) => `CASE WHEN call.${name} IS DISTINCT FROM staged.${name} THEN '${column}' END`,
  );
  await ask(
    transaction,
    `DECLARE conflicts NO SCROLL CURSOR FOR
     SELECT line::float, staged.id, array_remove(ARRAY[${differing.join(', ')}], NULL) AS columns
       FROM staged, ${conflict}
      ORDER BY line`,
  );
  for (;;) {
    const conflicts = await ask<Conflict>(transaction, 'FETCH 1000 FROM conflicts');
    if (conflicts.length === 0) return;
    yield* conflicts;
  }
}

/** Forget the staged lines that conflict with a stored call. */
export async function unstageConflicts(transaction: ImportTransaction): Promise<void> {
  await ask(transaction, `DELETE FROM staged USING ${conflict}`);
}

/** Tell the planner of many new calls: in the tables that they went to, by their names as SQL spells them. */
export async function analyzeCalls(transaction: ImportTransaction, tables: readonly string[]): Promise<void> {
  await ask(transaction, `ANALYZE ${tables.join(', ')}`);
}

/** Whether there is any call at all. */
export async function hasCalls(databaseUrl: string): Promise<boolean> {
  const client = await connectClient(databaseUrl, 'import');
  const found = await client.alone('SELECT FROM "ModelCall" LIMIT 1').finally(() => client.end());
  return found.rowCount !== 0;
}

async function ask<Row>({ client, signal }: ImportTransaction, sql: string): Promise<Row[]> {
  signal?.throwIfAborted();
  const result = await client.query(sql);
  return result.rows as Row[]; // The caller wrote the statement: it knows the shape.
}
