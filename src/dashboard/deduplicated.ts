// How often did a job that was there stand for another?

import { QueueEvents } from 'bullmq';
import { Counter, type Registry } from 'prom-client';
import { type Connections, quiet, redisAddress } from '../connections.ts';
import { workerConnection } from '../queues/redis.ts';

/**
 * Count it of hours and marks, whoever asked for them, from now until `close`. Redis tells of it as it happens: each queue on a connection
 * of its own, which waits.
 */
export function countDeduplicated(
  { config, log, queues }: Pick<Connections, 'config' | 'log' | 'queues'>,
  registry: Registry,
): { close(): void } {
  const counter = new Counter({
    name: 'hourhand_deduplicated_total',
    help: 'Jobs that were not added because one under way stands for them, since this process began to listen.',
    labelNames: ['queue'],
    registers: [registry],
  });
  const onError = quiet(log)('Redis, events');
  const listeners = [queues.hours, queues.marks].map(({ name: queue }) => {
    counter.inc({ queue }, 0);
    const connection = workerConnection(redisAddress(config), onError);
    const events = new QueueEvents(queue, { connection, prefix: config.REDIS_PREFIX });
    events.on('deduplicated', () => counter.inc({ queue }));
    events.on('error', onError);
    return { events, connection };
  });
  return {
    close() {
      for (const { events, connection } of listeners) {
        events.close().catch(() => {});
        connection.disconnect();
      }
    },
  };
}
