// Tells whether this database may use the prefix in Redis, in words for an operator.

import type { Queue } from 'bullmq';
import { askOwner, type Claimant, type Holding, MOVED_MS, type Seen } from './queues/owner.ts';
import { type NamedWorker, namedWorkers, type Queues, type RedisConnection } from './queues/redis.ts';
import type { Pool } from './store/db.ts';
import { type Identity, identityOf } from './store/identity.ts';
import type { Finding } from './store/warnings.ts';

/** Why a prefix is not ours: what is so, and what to type. */
export interface Foreign {
  readonly detail: string;
  readonly remedy: string;
}

/** What one look found. */
export interface Look {
  readonly holding: Holding;
  /** Set if this database may neither work nor change anything under the prefix. */
  readonly foreign: Foreign | undefined;
  /** Set if the prefix was taken over from the place where this database was before. */
  readonly moved: string | undefined;
}

export interface Ownership {
  /** This database, as it is now. */
  claimant(): Promise<Claimant>;
  /** Look, and change nothing. */
  look(): Promise<Look>;
  /** Look as one that works or changes something: what is free or ours is held, and marked as seen now. */
  hold(): Promise<Look>;
  /**
   * The workers on a queue, but not those that say they are of another database; undefined if Redis does not tell us.
   * Workers before 0.7 do not say whose they are.
   *
   * @param own this database, if it was asked for before: then nothing is asked of Postgres
   */
  workersOn(queue: Queue, own?: Pick<Claimant, 'id'>): Promise<NamedWorker[] | undefined>;
  /** How many workers on a queue are not known to be of this database; undefined if Redis does not tell us. */
  strangersOn(queue: Queue): Promise<number | undefined>;
  /** What to warn of after a look: a prefix that is not ours, and workers that may be of another database. */
  findings(look: Look, queues: Queues): Promise<Finding[]>;
}

/** @param host where our PostgreSQL is, for people; without a secret */
export function ownershipOf(
  { pool, redis }: { pool: Pool; redis: RedisConnection },
  { prefix, host }: { prefix: string; host: string },
): Ownership {
  const claimant = async (): Promise<Claimant> => ({ ...(await identityOf(pool)), host });
  const ask = (how: 'look' | 'hold') => async () => {
    const own = await claimant();
    return lookOf(await askOwner(redis, prefix, own, how), own, prefix);
  };
  return {
    claimant,
    look: ask('look'),
    hold: ask('hold'),
    workersOn: async (queue, own) => {
      const { id } = own ?? (await identityOf(pool));
      const workers = await namedWorkers(queue);
      return workers?.filter(({ identity }) => identity === undefined || id.startsWith(identity));
    },
    strangersOn: async (queue) => {
      const { id } = await identityOf(pool);
      return (await namedWorkers(queue))?.filter(({ identity }) => !(identity && id.startsWith(identity))).length;
    },
    findings: async ({ foreign }, queues) => {
      const strangers = strangersIn((await namedWorkers(queues.hours)) ?? [], await identityOf(pool));
      return [
        ...(foreign ? [{ subject: '', ...foreign }] : []),
        // Where the prefix is another's, its workers are there by right.
        ...(strangers && !foreign ? [{ subject: 'workers', ...strangers }] : []),
      ];
    },
  };
}

function lookOf(holding: Holding, own: Claimant, prefix: string): Look {
  const us = `this one is ${nameOf(own)}`;
  switch (holding.state) {
    case 'other': {
      const { owner } = holding;
      const detail = `the prefix ${prefix} belongs to another hourhand, ${nameOf(owner)}, ${ago(owner)}; ${us}`;
      const remedy = 'set REDIS_PREFIX to one of its own; if the other is gone for good, type hourhand claim-redis';
      return { holding, foreign: { detail, remedy }, moved: undefined };
    }
    case 'copy': {
      const { owner } = holding;
      const other = `another copy of this database, ${nameOf(owner)}, ${ago(owner)}`;
      const detail = `the prefix ${prefix} is used by ${other}; ${us}`;
      const remedy =
        `if this one takes its place, stop its processes and wait for ${MOVED_MS / 60_000} minutes; ` +
        'if both are to live, type hourhand identity new here, and set REDIS_PREFIX to one of its own';
      return { holding, foreign: { detail, remedy }, moved: undefined };
    }
    case 'unreadable': {
      const detail = `what is in ${prefix}:owner cannot be read, so the prefix is somebody else's; ${us}`;
      const remedy = 'set REDIS_PREFIX to one of its own; if nothing else uses this one, type hourhand claim-redis';
      return { holding, foreign: { detail, remedy }, moved: undefined };
    }
    case 'moved': {
      const { owner } = holding;
      const moved = `the prefix ${prefix} was taken over from ${nameOf(owner)}, ${ago(owner)}; ${us}`;
      return { holding, foreign: undefined, moved };
    }
    default:
      return { holding, foreign: undefined, moved: undefined };
  }
}

/** A name of a database from elsewhere may hold anything. */
const quoted = (text: string) =>
  JSON.stringify(text.slice(0, 100)).replace(/[\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g, '?');

export function nameOf({ database, host }: Pick<Claimant, 'database' | 'host'>): string {
  return `the database ${quoted(database)} at ${quoted(host).slice(1, -1)}`;
}

function ago({ ageMs }: Seen): string {
  const seconds = Math.round(ageMs / 1_000);
  if (seconds < 120) return `seen ${seconds} s ago`;
  const minutes = Math.round(seconds / 60);
  return minutes < 120 ? `seen ${minutes} minutes ago` : `seen ${Math.round(minutes / 60)} hours ago`;
}

/** Workers that look for jobs under our prefix and may be of another database. */
function strangersIn(workers: readonly NamedWorker[], { id }: Pick<Identity, 'id'>): Foreign | undefined {
  const others = workers.filter(({ identity }) => identity !== undefined && !id.startsWith(identity));
  if (others.length > 0) {
    const detail = `${others.length} workers of another database are connected under this prefix`;
    return { detail, remedy: 'stop them, or set their REDIS_PREFIX to one of its own' };
  }
  const silent = workers.filter(({ identity }) => identity === undefined);
  if (silent.length === 0) return undefined;
  const versions = [...new Set(silent.map(({ version }) => version))].sort().join(', ');
  const who = `${silent.length} workers of version ${versions}`;
  return {
    detail: `${who} are connected under this prefix, and do not say of which database`,
    remedy: 'replace them by this version; until then those of another database take jobs from this one',
  };
}
