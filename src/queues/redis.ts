// How is Redis reached?

import { Queue } from 'bullmq';
import { Redis, type RedisOptions } from 'ioredis';
import { auditHours } from './audit.ts';
import { announceTransition, checkModels, probeModel } from './models.ts';
import { failStaleCalls } from './stale.ts';
import { rollUpHour, rollUpMarks, rollUpUsers } from './stats.ts';

export interface RedisAddress {
  readonly url: string;
  /** In braces, so that all keys of a queue are on one node of a cluster. */
  readonly prefix: string;
}

/** A replica that was a master a moment ago answers READONLY: reconnect and send again (2), or it is a hot loop. */
const reconnectOnError = (error: Error) => (error.message.startsWith('READONLY') ? 2 : false);

/**
 * A connection for adding jobs: while Redis is away it fails within about two seconds instead of waiting for it. An add
 * that failed may have happened; all are deduplicated.
 */
export function producerConnection({ url }: RedisAddress, onError: (error: Error) => void): Redis {
  return open(url, onError, { enableOfflineQueue: false, maxRetriesPerRequest: 1, commandTimeout: 5_000 });
}

/** A connection for working: it waits for Redis as long as it takes. */
export function workerConnection({ url }: RedisAddress, onError: (error: Error) => void): Redis {
  return open(url, onError, { maxRetriesPerRequest: null });
}

function open(url: string, onError: (error: Error) => void, options: RedisOptions): Redis {
  const redis = new Redis(url, {
    ...options,
    connectTimeout: 5_000,
    retryStrategy: (times) => Math.min(100 * 2 ** times, 2_000),
    reconnectOnError,
  });
  redis.on('error', onError);
  return redis;
}

/**
 * Wait until a connection is ready.
 *
 * @throws {Error} when it is not within `ms`, with Redis' last error
 */
export async function untilReady(redis: Redis, ms: number): Promise<void> {
  let last: Error | undefined;
  const remember = (error: Error) => {
    last = error;
  };
  redis.on('error', remember);
  try {
    await new Promise<void>((resolve, reject) => {
      if (redis.status === 'ready') return resolve();
      const timer = setTimeout(
        () => reject(new Error(`Redis: not ready within ${ms / 1000} s: ${last?.message ?? 'no answer'}`)),
        ms,
      );
      redis.once('ready', () => {
        clearTimeout(timer);
        resolve();
      });
    });
  } finally {
    redis.off('error', remember);
  }
  // A database that is not there is only an event to the client, which then goes on in database 0.
  await redis.select(redis.options.db ?? 0);
}

/** What Redis does when its memory is full. It may not tell everyone, and need not: what it does not say is unknown, and no reason to be found wanting. */
export async function maxmemoryPolicy(redis: Redis): Promise<string> {
  try {
    const info = await redis.info('memory');
    return /^maxmemory_policy:(\S+)/m.exec(info)?.[1] ?? 'unknown: INFO does not say';
  } catch (error) {
    if (error instanceof Error && error.name === 'ReplyError') return `unknown: ${error.message}`;
    throw error;
  }
}

export interface Queues {
  readonly ticks: Queue;
  readonly hours: Queue;
  readonly users: Queue;
  readonly marks: Queue;
  readonly lateTicks: Queue;
  readonly staleTicks: Queue;
  readonly stale: Queue;
  readonly modelTicks: Queue;
  readonly checks: Queue;
  readonly probes: Queue;
  readonly announcements: Queue;
  readonly auditTicks: Queue;
  readonly audits: Queue;
}

/** Every queue, on one connection that the caller keeps and closes. Parents and children never share one. */
export function openQueues(connection: Redis, prefix: string): Queues {
  const open = (name: string) => {
    const queue = new Queue(name, { connection, prefix, streams: { events: { maxLen: 1_000 } } });
    // The connection's owner reports its errors, once.
    queue.on('error', () => {});
    return queue;
  };
  return {
    ticks: open('stats-tick'),
    hours: open(rollUpHour.queue),
    users: open(rollUpUsers.queue),
    marks: open(rollUpMarks.queue),
    lateTicks: open('late-tick'),
    staleTicks: open('stale-tick'),
    stale: open(failStaleCalls.queue),
    modelTicks: open('models-tick'),
    checks: open(checkModels.queue),
    probes: open(probeModel.queue),
    announcements: open(announceTransition.queue),
    auditTicks: open('audit-tick'),
    audits: open(auditHours.queue),
  };
}
