// How is PostgreSQL reached, and what does it say when it refuses?

import { hash } from 'node:crypto';
import { PrismaPg } from '@prisma/adapter-pg';
import pg from 'pg';
import { Prisma, PrismaClient } from '../generated/prisma/client.ts';

export { Prisma as Sql };

/** A connection pool, or a transaction in it. */
export type Db = Prisma.TransactionClient;
export type Pool = PrismaClient;

const MINUTE_MS = 60_000;

/**
 * How long a server may take to take a connection, and when a connection on which nothing comes is asked whether anybody is
 * still there: after 30 seconds, and given up 10 later. Without, a statement waits for ever on a line that was cut.
 */
export const reach = {
  connectionTimeoutMillis: 10_000,
  keepAlive: true,
  keepAliveInitialDelayMillis: 30_000,
};

/**
 * Open a pool of at most `connections`. Nothing is asked of the server before the first statement.
 *
 * A statement is given up after five minutes, and a transaction that sits idle after one: neither may hold an hour's
 * locks for ever. `patient` lifts both, for a report that streams to a slow reader. `work_mem` lets a shard of 50,000
 * calls be sorted and hashed in memory.
 */
export function connect(
  url: string,
  {
    connections,
    onError,
    patient = false,
  }: { connections: number; onError: (error: Error) => void; patient?: boolean },
): Pool {
  const pool = openPool(url, { max: connections, onError, patient });
  return new PrismaClient({
    adapter: new PrismaPg(pool, {
      onPoolError: onError,
      onConnectionError: onError,
      disposeExternalPool: true,
      statementNameGenerator: ({ sql }) => nameOf(sql),
    }),
    // Longer than any statement: the server ends them, the client only counts.
    transactionOptions: {
      timeout: (patient ? 24 * 60 : 6) * MINUTE_MS,
      maxWait: MINUTE_MS,
    },
  });
}

/** Connections as ours are to be, for who works with plain `pg`; `more` comes before what they all have. */
export function openPool(
  url: string,
  {
    max,
    onError,
    patient = false,
    more = {},
  }: { max: number; onError: (error: Error) => void; patient?: boolean; more?: pg.PoolConfig },
): pg.Pool {
  const settings = {
    application_name: 'hourhand',
    timezone: 'UTC',
    datestyle: 'ISO', // the client reads no other
    statement_timeout: patient ? 0 : 5 * MINUTE_MS,
    idle_in_transaction_session_timeout: patient ? 0 : MINUTE_MS,
    work_mem: '64MB',
    jit: 'off',
    // Whatever the role or the database says; here, because a statement of its own in every transaction is a round trip each.
    default_transaction_isolation: 'read\\ committed',
  };
  const options = Object.entries(settings)
    .map(([name, value]) => `-c ${name}=${value}`)
    .join(' ');
  const pool = new pg.Pool({ connectionString: withOptions(url, options), max, options, ...reach, ...more });
  // Between the pool's own listener and that of whoever gets the connection there is a moment without any: a server that
  // stops just then (its last word may come with the answer before it) would end the process.
  pool.on('connect', (client) => client.on('error', onError));
  return pool;
}

const names = new Map<string, string>();

/**
 * A statement with a name is parsed once for each connection, and soon planned no more: of the ledger's, whose plans are what their
 * keys make them, that is most of the work. Those that meet the calls or their figures have none: how they are best done hangs on
 * how many there are, each time.
 */
function nameOf(sql: string): string {
  if (sql.includes('"ModelCall')) return '';
  const name = names.get(sql) ?? `h${hash('sha1', sql)}`;
  names.set(sql, name);
  return name;
}

/** Those of a URL would take the place of ours: they come before them instead. */
function withOptions(url: string, ours: string): string {
  const address = new URL(url);
  const theirs = address.searchParams.get('options');
  if (theirs === null) return url;
  address.searchParams.set('options', `${theirs} ${ours}`);
  return address.href;
}

/**
 * `now` of a statement: Postgres' clock, or the instant that a test gives.
 * No process asks its own clock what is owed (worker clocks differ by minutes).
 */
export type Now = Date | undefined;
export function instant(now: Now): Prisma.Sql {
  return now ? Prisma.sql`${now}::timestamptz` : Prisma.sql`now()`;
}

/** The SQLSTATE of an error that came from the server, else `undefined`. */
export function sqlState(error: unknown): string | undefined {
  return serverError(error)?.originalCode;
}

/**
 * Whether the error lies in the data that a statement met, rather than in the server or the traffic
 * (SQLSTATE classes 08 connection, 40 rollback, 53 resources, 55 not in state, 57 operator, and errors without one).
 */
export function isDataError(error: unknown): boolean {
  const state = sqlState(error);
  return state !== undefined && !/^(08|40|53|55|57|58|XX)/.test(state);
}

/** What an error says, without the client's preamble: fit for a ledger, a job or a log. */
export function reasonOf(error: unknown): string {
  const server = serverError(error);
  if (server?.originalMessage) return `${server.originalMessage} (${server.originalCode})`;
  const text =
    error instanceof Error ? error.message || String((error as NodeJS.ErrnoException).code) : String(error);
  const last = text.trim().split('\n').at(-1) ?? text;
  return /Message: `(.+)`$/.exec(last)?.[1] ?? last;
}

function serverError(error: unknown): { originalCode?: string; originalMessage?: string } | undefined {
  if (!(error instanceof Prisma.PrismaClientKnownRequestError)) return undefined;
  const adapterError = error.meta?.driverAdapterError as {
    cause?: { originalCode?: string; originalMessage?: string };
  };
  return adapterError?.cause;
}
