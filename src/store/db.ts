// How is PostgreSQL reached, and what does it say when it refuses?

import pg from 'pg';
import { Prisma, PrismaClient } from '../generated/prisma/client.ts';
import { adapterOf } from './adapter.ts';
import { type Prepared, poolOf, reach } from './driver.ts';

export { Prisma as Sql };

/**
 * A connection pool, or a transaction in it. Each statement of either runs under our settings, whatever the role, the
 * database or a pooler has set: src/store/driver.ts.
 */
export type Db = Prisma.TransactionClient;
export type Pool = PrismaClient;

const MINUTE_MS = 60_000;

export interface PoolOptions {
  readonly connections: number;
  readonly onError: (error: Error) => void;
  /** No statement and no idle transaction is cut off: for a report that streams to a slow reader. */
  readonly patient?: boolean;
  /** Whether statements are prepared under names. */
  readonly prepared?: Prepared;
}

/** Open a pool of at most `connections`. Nothing is asked of the server before the first statement. */
export function connect(
  url: string,
  { connections, onError, patient = false, prepared = 'auto' }: PoolOptions,
): Pool {
  const pool = openPool(url, { max: connections, onError, patient, prepared });
  return new PrismaClient({
    adapter: adapterOf(pool, onError),
    // Longer than any statement: the server ends them, the client only counts.
    transactionOptions: {
      timeout: (patient ? 24 * 60 : 6) * MINUTE_MS,
      maxWait: MINUTE_MS,
    },
  });
}

/** The same for plain `pg`; `more` comes before what all connections have. */
export function openPool(
  url: string,
  { more = {}, ...options }: Omit<PoolOptions, 'connections'> & { max: number; more?: pg.PoolConfig },
): pg.Pool {
  return poolOf({ connectionString: url, application_name: 'hourhand', ...reach, ...options, ...more });
}

/**
 * A transaction whose statements all see one instant, and which may read calls.
 *
 * A lock takes no snapshot, so the table is locked before the snapshot is taken. Taken later, a partition could be
 * made in between: the snapshot would still see its calls in the default partition, where no statement looks for them
 * any more. The lock is that of any reader; it needs the right to SELECT, and works on a standby too.
 */
export async function inOneSnapshot<T>(pool: Pool, work: (db: Db) => Promise<T>): Promise<T> {
  return pool.$transaction(
    async (db) => {
      await db.$executeRaw`lock table only "ModelCall" in access share mode`;
      return work(db);
    },
    { isolationLevel: 'RepeatableRead' },
  );
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
  return error instanceof pg.DatabaseError ? error.code : serverError(error)?.originalCode;
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

/** Whether the database's client threw this, rather than our own code: its words, or the server's. */
export function isOfPostgres(error: unknown): error is Error {
  if (error instanceof Prisma.PrismaClientKnownRequestError) {
    // P1…: no server, no answer, no such database. P2010 and others: what a statement met.
    return /^P1\d{3}$/.test(error.code) || serverError(error) !== undefined;
  }
  return (
    error instanceof Prisma.PrismaClientInitializationError ||
    error instanceof Prisma.PrismaClientUnknownRequestError ||
    error instanceof pg.DatabaseError
  );
}
