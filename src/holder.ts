// Stops a worker from taking jobs under a prefix that belongs to another database.

import type { Worker } from 'bullmq';
import type { Connections } from './connections.ts';
import { settleWarnings } from './store/warnings.ts';

/**
 * Holds the prefix for a worker process, from look to look. While it belongs to another database, or to another copy
 * of this one, the process' workers take no jobs. The jobs that they have go to their end.
 */
export function openHolder(
  { log, pool, queues, ownership }: Connections,
  workers: readonly Worker[],
): {
  /** @returns whether the prefix is ours. @throws if a server did not answer: then all stays as it was. */
  look(): Promise<boolean>;
} {
  let foreign = false;
  const pausing = new Map<Worker, Promise<void>>();

  return {
    async look() {
      const look = await ownership.hold();
      if (look.moved) log.warn(look.moved);
      if (look.foreign && !foreign)
        log.error(look.foreign, 'no more jobs are taken: the prefix in Redis is not ours');
      if (!look.foreign && foreign) log.info('jobs are taken again: the prefix in Redis is ours');
      foreign = look.foreign !== undefined;
      for (const worker of workers) (foreign ? pause : resume)(worker);
      await settleWarnings(pool, 'redis-owner', await ownership.findings(look, queues));
      return !foreign;
    },
  };

  /** Not waited for: it lets go of the queue at once, and is over when the jobs under way are. */
  function pause(worker: Worker): void {
    if (worker.isPaused()) return;
    const paused = worker.pause().catch((error: Error) => void worker.emit('error', error));
    pausing.set(worker, paused);
    void paused.then(() => pausing.delete(worker));
  }

  /** A worker that is still on its way to its pause would never come out of it: the next look tries again. */
  function resume(worker: Worker): void {
    if (worker.isPaused() && !pausing.has(worker)) worker.resume();
  }
}
