// Opens connections to PostgreSQL on which nothing depends on what the session, the role or a pooler has set.

import pg from 'pg';
import { DEPENDENT_TYPES, holdsDate, independently } from './timestamps.ts';

const MINUTE_MS = 60_000;

/** What 0.6 and older do not say of themselves; the triggers of the ledger and of the figures want it. */
const PROTOCOL = '2';

/** Whether statements are prepared under names: `auto` does it unless a pooler stands between. */
export type Prepared = 'auto' | 'on' | 'off';

/**
 * How long a server may take to accept a connection. A connection on which nothing comes is probed after 30 seconds, and
 * given up 10 seconds later; without that, a statement waits for ever on a line that was cut.
 */
export const reach = {
  connectionTimeoutMillis: 10_000,
  keepAlive: true,
  keepAliveInitialDelayMillis: 30_000,
};

/** Named in the startup message: a pooler keeps these two for each client, while it drops or refuses `options`. */
const STARTUP = { TimeZone: 'UTC', DateStyle: 'ISO, MDY' };

export interface SessionConfig extends pg.ClientConfig {
  /** No statement and no idle transaction is cut off: for a report that streams to a slow reader. */
  readonly patient?: boolean | undefined;
  readonly prepared?: Prepared | undefined;
  /** Hears of a connection that is lost while nothing runs on it. */
  readonly onError?: ((error: Error) => void) | undefined;
}

/**
 * What each of our statements runs under. A statement is given up after five minutes, and a transaction that sits idle
 * after one minute: neither may hold an hour's locks for ever. `work_mem` lets a shard of 50,000 calls be sorted and
 * hashed in memory.
 */
function settings(patient: boolean): Record<string, string> {
  return {
    timezone: STARTUP.TimeZone,
    datestyle: STARTUP.DateStyle,
    statement_timeout: String(patient ? 0 : 5 * MINUTE_MS),
    idle_in_transaction_session_timeout: String(patient ? 0 : MINUTE_MS),
    lock_timeout: '0',
    work_mem: '64MB',
    jit: 'off',
    'hourhand.protocol': PROTOCOL,
  };
}

/** What a transaction of ours must find itself under, by the server's own names. */
export const EXPECTED: Readonly<Record<string, string>> = {
  ...STARTUP,
  transaction_isolation: 'read committed',
  client_encoding: 'UTF8',
  session_replication_role: 'origin', // or no trigger would mark what we change
  'hourhand.protocol': PROTOCOL,
};

export type Isolation = 'READ COMMITTED' | 'REPEATABLE READ' | 'SERIALIZABLE';

/**
 * Begin a transaction under our settings, in one message and one round trip.
 *
 * `search_path` goes back to what the role, the database and the URL say: behind a pooler, another client may have left
 * its own in the server's session. There is no query in the message, so that no snapshot is taken by it.
 */
export function beginning({
  isolation = 'READ COMMITTED',
  patient = false,
}: {
  isolation?: Isolation;
  patient?: boolean;
}) {
  const ours = Object.entries(settings(patient)).map(([name, value]) => `SET LOCAL ${name} = '${value}'`);
  return [`BEGIN ISOLATION LEVEL ${isolation}`, 'SET LOCAL search_path TO DEFAULT', ...ours].join('; ');
}

/** A statement as pg takes it. */
interface Statement {
  readonly text?: string;
  readonly values?: readonly unknown[];
  readonly name?: string | undefined;
  readonly types?: pg.CustomTypesConfig;
  readonly query_timeout?: number;
  /** Of a stream, such as COPY's. */
  readonly submit?: unknown;
}

type Connected = (error?: Error | null) => void;

/** What pg's client has, and its types leave out or spell as overloads that no subclass can have. */
interface Internals {
  readonly processID: number | null;
  connect(callback: Connected): void;
  getStartupConf(): Record<string, string>;
  // biome-ignore lint/suspicious/noExplicitAny: what comes back is a promise, or the query itself (of COPY)
  query(statement: unknown, ...more: unknown[]): any;
}
type ClientOfPg = Omit<pg.Client, keyof Internals> & Internals;
// The types of pg are narrower than it is.
const ClientOfPg = pg.Client as unknown as new (config: SessionConfig) => ClientOfPg;

class OurClient extends ClientOfPg {
  /** Whether a pooler stands between; known once connected. */
  pooled = false;
  /** Of the transactions to come. */
  isolation: Isolation = 'READ COMMITTED';
  readonly #patient: boolean;
  readonly #prepared: Prepared;

  constructor(config: SessionConfig) {
    super(config);
    this.#patient = config.patient ?? false;
    this.#prepared = config.prepared ?? 'auto';
    this.on('error', config.onError ?? (() => {}));
    for (const oid of DEPENDENT_TYPES) {
      this.setTypeParser(oid, 'text', independently(oid, pg.types.getTypeParser(oid, 'text')));
    }
  }

  override getStartupConf(): Record<string, string> {
    return { ...super.getStartupConf(), ...STARTUP };
  }

  /** Connect, and look who answers. */
  override connect(callback?: Connected): Promise<void> | undefined {
    const connecting = new Promise<void>((resolve, reject) => {
      super.connect((error) => (error ? reject(error) : resolve()));
    }).then(() => this.#settle());
    if (!callback) return connecting;
    connecting.then(
      () => callback(),
      (error) => callback(error),
    );
    return undefined;
  }

  /**
   * A session of our own is set for good. Behind a pooler the server's session belongs to others too: nothing may be left
   * in it, and each transaction sets what it needs.
   */
  async #settle(): Promise<void> {
    const ours = { ...settings(this.#patient), default_transaction_isolation: 'read committed' };
    const set = Object.entries(ours).map(([name, value]) => `set_config('${name}', '${value}', pooled)`);
    const text = `
      select pooled, ${set.join(', ')}
        from (select pg_backend_pid() is distinct from ${this.processID ?? 'null'} as pooled) as session`;
    try {
      const { rows } = await super.query({ text, query_timeout: reach.connectionTimeoutMillis });
      this.pooled = rows[0].pooled;
      const { options = '' } = this.getStartupConf();
      if (this.pooled && /\bsearch_path\b/.test(options)) throw new Error(DROPPED_SEARCH_PATH);
    } catch (error) {
      this.end().catch(() => {});
      throw error;
    }
  }

  /** @throws {Error} if a `Date` is among the values: pg would spell it in the zone of this process */
  override query(statement: unknown, ...more: unknown[]) {
    if (typeof statement === 'string') return super.query(statement, ...refuseDates(more));
    const { text, values, types, name, submit, ...rest } = statement as Statement;
    if (submit) return super.query(statement, ...more); // a stream
    if (text === 'BEGIN') return super.query(beginning({ isolation: this.isolation, patient: this.#patient }));
    const named = this.#prepared === 'on' || (this.#prepared === 'auto' && !this.pooled);
    return super.query(
      {
        ...rest,
        text,
        values: values && refuseDates(values),
        ...(name && named ? { name } : {}),
        ...(types ? { types: independentTypes(types) } : {}),
      },
      ...more,
    );
  }

  /** A statement of its own: behind a pooler in a transaction, where it finds our settings. */
  async alone(statement: unknown, ...more: unknown[]): Promise<pg.QueryResult> {
    return this.pooled ? this.inTransaction(statement, ...more) : this.query(statement, ...more);
  }

  async inTransaction(statement: unknown, ...more: unknown[]): Promise<pg.QueryResult> {
    await this.query({ text: 'BEGIN' });
    try {
      const result = await this.query(statement, ...more);
      await this.query({ text: 'COMMIT' });
      return result;
    } catch (error) {
      if (error instanceof pg.DatabaseError) await this.query({ text: 'ROLLBACK' });
      throw error;
    }
  }
}

const DROPPED_SEARCH_PATH =
  'expected no search_path in the options of DATABASE_URL, for a pooler stands between that may drop it: ' +
  'type ALTER ROLE … IN DATABASE … SET search_path = …, and take it out there';

function refuseDates<Values extends readonly unknown[]>(values: Values): Values {
  if (values.some(holdsDate)) throw new Error('expected each instant as text with its zone, found a Date');
  return values;
}

function independentTypes(types: pg.CustomTypesConfig): pg.CustomTypesConfig {
  // Of both formats, and of the types that pg has names for.
  const getTypeParser = ((oid: number, format: 'text') => {
    const parse = types.getTypeParser(oid, format);
    return format === 'text' ? independently(oid, parse) : parse;
  }) as pg.CustomTypesConfig['getTypeParser'];
  return { getTypeParser };
}

/** A connection of ours: pg's client in all that is used of it, and what stands above. */
export type Client = pg.Client & Pick<OurClient, 'pooled' | 'isolation' | 'alone' | 'inTransaction'>;
// Its methods are those of pg, whose overloads it cannot spell.
export const Client = OurClient as unknown as new (config: SessionConfig) => Client;

type PoolOfPg = Omit<pg.Pool, 'query' | 'connect'> & {
  connect(): Promise<Client & pg.PoolClient>;
  query(statement: unknown, values?: readonly unknown[]): Promise<pg.QueryResult>;
};
const PoolOfPg = pg.Pool as unknown as new (config: object) => PoolOfPg; // as with the client

class OurPool extends PoolOfPg {
  override async query(statement: unknown, values?: readonly unknown[]): Promise<pg.QueryResult> {
    const client = await this.connect();
    client.isolation = 'READ COMMITTED'; // a transaction of another level may have had this connection before
    try {
      const result = await client.alone(statement, values);
      client.release();
      return result;
    } catch (error) {
      client.release(error instanceof Error ? error : true); // as pg-pool does
      throw error;
    }
  }
}

/** A pool of such connections; what is asked of the pool itself is a statement of its own. The caller ends it. */
export function poolOf(config: SessionConfig & pg.PoolConfig): pg.Pool {
  return new OurPool({ ...config, Client }) as unknown as pg.Pool; // it is one
}
