// How do imported calls reach the table? Plain pg, because Prisma has no COPY.

import type { Writable } from 'node:stream';
import type pg from 'pg';
import { from as copyFrom } from 'pg-copy-streams';
import { connectClient } from './client.ts';

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
const conflict = `"ModelCall" call WHERE call.id = staged.id AND ${figuresOf('call')} IS DISTINCT FROM ${figuresOf('staged')}`;

/** A connection within one transaction, and what ends it early. */
export interface ImportTransaction {
  readonly client: pg.Client;
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
    cancel = await canceller(client, databaseUrl);
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

const begin = `
  BEGIN ISOLATION LEVEL READ COMMITTED;
  SET LOCAL statement_timeout = 0;
  SET LOCAL idle_in_transaction_session_timeout = 0;
  SET LOCAL datestyle = ISO;
  SET LOCAL timezone = 'UTC';
  SET LOCAL work_mem = '64MB';
  SET LOCAL jit = off;
  CREATE TEMPORARY TABLE staged (
    line bigint NOT NULL,
    ${definitions},
    id text COLLATE "C" NOT NULL
  ) ON COMMIT DROP`;

/** Takes rows in COPY's text format: line, the columns of a call, id. */
export function stagingStream({ client }: ImportTransaction): Writable {
  return client.query(copyFrom('COPY staged FROM STDIN'));
}

interface Span {
  readonly users: number;
  readonly first?: Date;
  readonly last?: Date;
}

/** The staged calls' users, and the first and the last of their instants. */
export async function spanOfStaged(transaction: ImportTransaction): Promise<Span> {
  const [span] = await ask<{ users: string; first: Date | null; last: Date | null }>(
    transaction,
    `SELECT count(*) AS users, min(first) AS first, max(last) AS last
       FROM (SELECT min("callTime") AS first, max("callTime") AS last FROM staged GROUP BY "userDid") AS users`,
  );
  return { users: Number(span?.users), first: span?.first ?? undefined, last: span?.last ?? undefined };
}

/**
 * Insert the staged calls whose ids are new; returns how many those were. It leaves its own marks, one for each user and
 * ended hour, where the trigger would leave one for each call.
 *
 * Where ids are `hash`es of the rows, equal rows are told apart by counting them. They are sorted by time first, so that an
 * hour's calls lie together in the table. Where ids are the file's `own`, the first line of an id is the one that counts.
 */
export async function insertStaged(
  { client, signal }: ImportTransaction,
  ids: 'hash' | 'own',
  metadata?: object,
): Promise<number> {
  const id = { hash: `id || '-' || row_number() OVER (PARTITION BY "callTime", id)`, own: 'id' }[ids];
  signal?.throwIfAborted();
  await client.query(`SELECT set_config('hourhand.marks_itself', 'yes', true)`);
  const { rows } = await client.query<{ calls: string }>(
    `WITH inserted AS (
       INSERT INTO "ModelCall" (id, "totalUsage", metadata, ${names.join(', ')})
       SELECT ${id}, coalesce("inputTokens", 0) + coalesce("outputTokens", 0), $1::jsonb, ${names.join(', ')}
         FROM staged
        ${ids === 'own' ? 'ORDER BY line' : ''}
       ON CONFLICT (id) DO NOTHING
       RETURNING date_trunc('hour', "callTime", 'UTC') AS hour, "userDid"
     ), marked AS (
       INSERT INTO "StatMark" (hour, "userDid", reason)
       SELECT hour, "userDid", 'late' FROM inserted i
        WHERE hour < date_trunc('hour', clock_timestamp(), 'UTC')
          AND NOT EXISTS (SELECT FROM "StatHour" l WHERE l.hour = i.hour AND l."sealedAt" IS NOT NULL)
        GROUP BY hour, "userDid"
     )
     SELECT count(*) AS calls FROM inserted`,
    [metadata],
  );
  return Number(rows[0]?.calls);
}

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

/** Tell the planner of many new calls. */
export async function analyzeCalls(transaction: ImportTransaction): Promise<void> {
  await ask(transaction, 'ANALYZE "ModelCall"');
}

/** Whether there is any call at all. */
export async function hasCalls(databaseUrl: string): Promise<boolean> {
  const client = await connectClient(databaseUrl, 'import');
  const found = await client.query('SELECT FROM "ModelCall" LIMIT 1').finally(() => client.end());
  return found.rowCount !== 0;
}

async function ask<Row>({ client, signal }: ImportTransaction, sql: string): Promise<Row[]> {
  signal?.throwIfAborted();
  const result = await client.query(sql);
  return result.rows as Row[]; // The caller wrote the statement: it knows the shape.
}

/** Aborting must end the statement that runs at this moment: hanging up would leave it running to its end. */
async function canceller(client: pg.Client, databaseUrl: string): Promise<() => void> {
  const { rows } = await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
  const cancelling = async () => {
    const other = await connectClient(databaseUrl, 'import');
    await other.query('SELECT pg_cancel_backend($1)', [rows[0]?.pid]).finally(() => other.end());
  };
  return () => void cancelling().catch(() => {}); // The server is gone: nothing is left to cancel.
}
