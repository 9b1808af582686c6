// What does a process do with the jobs of one queue?

import {
  DelayedError,
  type Job,
  RateLimitError,
  UnrecoverableError,
  WaitingChildrenError,
  WaitingError,
  Worker,
} from 'bullmq';
import { type Config, version } from './config.ts';
import { quiet } from './connections.ts';
import type { Logger } from './logger.ts';
import type { Process } from './processors/context.ts';
import type { RedisConnection } from './queues/redis.ts';
import { reasonOf } from './store/db.ts';

export const MINUTE_MS = 60_000;

/** BullMQ's signals that a job goes on elsewhere; they are no failures. */
const SIGNALS = [WaitingChildrenError, DelayedError, WaitingError, RateLimitError];

/**
 * Workers on one connection, each for a queue: so many jobs at once, each with a deadline. Every failure is logged here, and
 * nowhere else.
 */
export function queueWorkers({
  config,
  log,
  connection,
}: {
  config: Config;
  log: Logger;
  connection: RedisConnection;
}) {
  const onError = quiet(log);
  return (queue: string, concurrency: number, deadlineMs: number, process: Process): Worker => {
    const worker = new Worker(queue, (job, token, signal) => attempt(log, process, deadlineMs, job, token, signal), {
      connection,
      prefix: config.REDIS_PREFIX,
      concurrency,
      name: `hourhand-${version}`, // no blanks: Redis refuses them in a connection's name
      // A worker that dies is missed after 15 s; a job may lose its worker many times before it is given up.
      lockDuration: 15_000,
      stalledInterval: 5_000,
      maxStalledCount: 20,
    });
    worker.on('error', onError(`Redis, ${queue}`));
    // Every failure once, here: those that a processor threw, and those of jobs that lost their worker too often.
    worker.on('failed', (job, error) => {
      const { hour } = Object(job?.data);
      const attempt = job?.attemptsMade;
      const final =
        error instanceof UnrecoverableError || attempt === undefined || attempt >= (job?.opts.attempts ?? 1);
      log[final ? 'error' : 'warn'](
        { queue, job: job?.name, hour, attempt, final, reason: reasonOf(error) },
        'job failed',
      );
    });
    worker.on('stalled', (id) => log.warn({ queue, id }, 'job stalled, taken over'));
    // Somebody else runs it by now: the zombie stops at its next step, and the database refuses the rest.
    worker.on('lockRenewalFailed', (ids) => {
      for (const id of ids) worker.cancelJob(id, 'lock lost');
    });
    return worker;
  };
}

/** One attempt: given up when its lock is lost or its deadline has passed. */
async function attempt(
  log: Logger,
  process: Process,
  deadlineMs: number,
  job: Job,
  token = '',
  signal?: AbortSignal,
) {
  const ending = new AbortController();
  const give = (reason: unknown) => ending.abort(new Error(`given up: ${reasonOf(reason)}`));
  const lost = () => give(signal?.reason);
  const deadline = setTimeout(() => give(new Error(`not done within ${deadlineMs / MINUTE_MS} minutes`)), deadlineMs);
  signal?.addEventListener('abort', lost);
  try {
    return await Promise.race([process({ job, token, log, signal: ending.signal }), aborted(ending.signal)]);
  } catch (error) {
    if (error instanceof UnrecoverableError || SIGNALS.some((Signal) => error instanceof Signal)) throw error;
    // Without the database client's preamble: this is what an operator reads in Bull Board.
    throw new Error(reasonOf(error), { cause: error });
  } finally {
    // Else each job would be kept in memory until its deadline.
    clearTimeout(deadline);
    signal?.removeEventListener('abort', lost);
  }
}

/** Rejects when the signal aborts: a processor that hangs must not hold its hour for ever. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
  });
}
