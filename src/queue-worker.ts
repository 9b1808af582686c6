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
import type { Metrics, Outcome, QueueCounts } from './metrics.ts';
import type { Process } from './processors/context.ts';
import { type RedisConnection, type TelemetryOf, workerName } from './queues/redis.ts';
import { reasonOf } from './store/db.ts';

export const MINUTE_MS = 60_000;

/** BullMQ's signals that a job goes on elsewhere; they are no failures. */
const SIGNALS = [WaitingChildrenError, DelayedError, WaitingError, RateLimitError];

/**
 * Workers on one connection, each for a queue: so many jobs at once, each with a deadline. Every failure is logged here, and
 * nowhere else; every attempt is counted here.
 */
export function queueWorkers({
  config,
  log,
  connection,
  identity,
  withoutInfo = false,
  telemetryOf,
  metrics,
}: {
  config: Config;
  log: Logger;
  connection: RedisConnection;
  /** Of the database: the workers' name shows the beginning of it. */
  identity: string;
  /** Redis does not answer INFO: BullMQ, which would wait for it for ever, takes it for an old one, and a job may start a second late. */
  withoutInfo?: boolean;
  telemetryOf?: TelemetryOf | undefined;
  /** Where what is counted is also served. */
  metrics?: Metrics | undefined;
}) {
  const onError = quiet(log);
  return (queue: string, concurrency: number, deadlineMs: number, process: Process): Worker => {
    const counts = metrics?.of(queue);
    const work = (job: Job, token?: string, signal?: AbortSignal) =>
      counted(counts, job, () => attempt(log, process, deadlineMs, job, token, signal));
    const worker = new Worker(queue, work, {
      connection,
      skipVersionCheck: withoutInfo,
      telemetry: telemetryOf?.(queue),
      prefix: config.REDIS_PREFIX,
      concurrency,
      name: workerName(version, identity),
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
      const final = job === undefined || isFinal(job, job.attemptsMade, error);
      log[final ? 'error' : 'warn'](
        { queue, job: job?.name, hour, attempt, final, reason: reasonOf(error) },
        'job failed',
      );
    });
    worker.on('stalled', (id) => {
      counts?.stalled();
      log.warn({ queue, id }, 'job stalled, taken over');
    });
    // Somebody else runs it by now: the zombie stops at its next step, and the database refuses the rest.
    worker.on('lockRenewalFailed', (ids) => {
      for (const id of ids) worker.cancelJob(id, 'lock lost');
    });
    return worker;
  };
}

/** Whether a job is tried no more. */
function isFinal({ opts }: Job, attempts: number, error: unknown): boolean {
  return error instanceof UnrecoverableError || attempts >= (opts.attempts ?? 1);
}

const isSignal = (error: unknown) => SIGNALS.some((Signal) => error instanceof Signal);

/** Count an attempt, by the step at which it begins: the job's data names another in between. */
async function counted<Result>(
  counts: QueueCounts | undefined,
  job: Job,
  attempt: () => Promise<Result>,
): Promise<Result> {
  if (!counts) return attempt();
  const { step } = Object(job.data);
  const begun = performance.now();
  const count = (outcome: Outcome) =>
    counts.attempt(typeof step === 'string' ? step : '', outcome, (performance.now() - begun) / 1_000);
  try {
    const result = await attempt();
    count('completed');
    return result;
  } catch (error) {
    count(isSignal(error) ? 'moved' : isFinal(job, job.attemptsMade + 1, error) ? 'failed' : 'retried');
    throw error;
  }
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
    if (error instanceof UnrecoverableError || isSignal(error)) throw error;
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
