// Puts Prisma on our own driver. Its stock adapter spells a `Date` without a zone, and begins a transaction in two
// messages.

import { hash } from 'node:crypto';
import { PrismaPg } from '@prisma/adapter-pg';
import type {
  IsolationLevel,
  SqlDriverAdapterFactory,
  SqlQuery,
  SqlQueryable,
  Transaction,
} from '@prisma/driver-adapter-utils';
import type pg from 'pg';
import type { Client, Isolation } from './driver.ts';
import { spellDates } from './timestamps.ts';

/** Prisma's adapter for a pool of ours (`poolOf`), which is ended with it. */
export function adapterOf(pool: pg.Pool, onError: (error: Error) => void): SqlDriverAdapterFactory {
  const stock = new PrismaPg(pool, { onPoolError: onError, disposeExternalPool: true });
  const levels = new Map<Isolation, ReturnType<PrismaPg['connect']>>();
  const adapterAt = (level: Isolation) => {
    const known = levels.get(level) ?? stockAt(level, pool, onError).connect();
    levels.set(level, known);
    return known;
  };
  return {
    provider: stock.provider,
    adapterName: stock.adapterName,
    connect: async () => {
      const adapter = await stock.connect();
      return {
        ...queryable(adapter),
        executeScript: (script) => adapter.executeScript(script),
        startTransaction: async (level) =>
          transactional(await (await adapterAt(isolationOf(level))).startTransaction()),
        getConnectionInfo: () => adapter.getConnectionInfo(),
        dispose: () => adapter.dispose(),
      };
    },
  };
}

/** The stock adapter for transactions of one level: the connections that it gets begin theirs so, in one message. */
function stockAt(level: Isolation, pool: pg.Pool, onError: (error: Error) => void): PrismaPg {
  const connect = async () => {
    const client = (await pool.connect()) as unknown as Client; // made by the class that the pool was given
    client.isolation = level;
    return client;
  };
  return new PrismaPg(Object.create(pool, { connect: { value: connect } }), {
    onConnectionError: onError,
    statementNameGenerator: ({ sql }) => nameOf(sql),
  });
}

function transactional(stock: Transaction): Transaction {
  return {
    ...queryable(stock),
    options: stock.options,
    commit: () => stock.commit(),
    rollback: () => stock.rollback(),
    createSavepoint: async (name) => stock.createSavepoint?.(name),
    rollbackToSavepoint: async (name) => stock.rollbackToSavepoint?.(name),
    releaseSavepoint: async (name) => stock.releaseSavepoint?.(name),
  };
}

function isolationOf(level: IsolationLevel | undefined): Isolation {
  if (level === undefined) return 'READ COMMITTED';
  if (level === 'READ COMMITTED' || level === 'REPEATABLE READ' || level === 'SERIALIZABLE') return level;
  throw new Error(`expected READ COMMITTED, REPEATABLE READ or SERIALIZABLE, got ${level}`);
}

/** What an adapter or a transaction is asked, with the instants spelled out. */
function queryable(stock: SqlQueryable): SqlQueryable {
  return {
    provider: stock.provider,
    adapterName: stock.adapterName,
    queryRaw: (query) => stock.queryRaw(spelled(query)),
    executeRaw: (query) => stock.executeRaw(spelled(query)),
  };
}

/**
 * No instant reaches the stock adapter as one: it would drop the zone. Prisma tells each by its type, also if it is text
 * by now.
 */
function spelled(query: SqlQuery): SqlQuery {
  if (!query.argTypes.some(({ scalarType }) => scalarType === 'datetime')) return query;
  const isInstant = (i: number) => query.argTypes[i]?.scalarType === 'datetime';
  return {
    ...query,
    args: query.args.map((arg, i) => (isInstant(i) ? spellDates(arg) : arg)),
    argTypes: query.argTypes.map((type, i) => (isInstant(i) ? { ...type, scalarType: 'string' } : type)),
  };
}

const names = new Map<string, string>();

/**
 * A statement with a name is parsed once for each connection, and soon planned no more. For the ledger's statements, whose
 * plans follow from their keys, that is most of the work. A statement that meets the calls or their figures has no name:
 * its best plan depends on how many rows there are, each time.
 */
function nameOf(sql: string): string {
  if (sql.includes('"ModelCall')) return '';
  const name = names.get(sql) ?? `h${hash('sha1', sql)}`;
  names.set(sql, name);
  return name;
}
