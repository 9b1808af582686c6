// What does a worker process do, from its start to its end?

import { setTimeout as sleep } from 'node:timers/promises';
import {
  DelayedError,
  type Job,
  RateLimitError,
  UnrecoverableError,
  WaitingChildrenError,
  WaitingError,
  Worker,
} from 'bullmq';
import { version } from './config.ts';
import { type Connections, quiet } from './connections.ts';
import type { Process } from './processors/context.ts';
import { rollUpHourProcessor } from './processors/roll-up-hour.ts';
import { rollUpMarksProcessor } from './processors/roll-up-marks.ts';
import { rollUpUsersProcessor } from './processors/roll-up-users.ts';
import { tickStatsProcessor } from './processors/tick-stats.ts';
import { enqueueOwed } from './producers/hours.ts';
import { ensureScheduler, wishes } from './producers/schedules.ts';
import { maxmemoryPolicy, workerConnection } from './queues/redis.ts';
import { rollUpHour, rollUpMarks, rollUpUsers, statsTick } from './queues/stats.ts';
import { reasonOf } from './store/db.ts';
import { coverFromNowOn } from './store/ranges.ts';
import { deployOf } from './store/schedules.ts';

const MINUTE_MS = 60_000;
const ENSURE_MS = 30_000;
/** What a clean stop waits for jobs under way; after that they are left to be picked up as stalled. */
const DRAIN_MS = 4_000;

/** BullMQ's signals that a job goes on elsewhere; they are no failures. */
const SIGNALS = [WaitingChildrenError, DelayedError, WaitingError, RateLimitError];

/**
 * Work until `stop` is called: a BullMQ worker for each queue, and every 30 seconds a look whether the schedulers stand
 * and what is owed. Any number of such processes may run.
 */
export async function startWorker(connections: Connections): Promise<{ stop(): Promise<void> }> {
  const { config, log, pool, redis, queues, policy } = connections;
  const onError = quiet(log);
  const found = await maxmemoryPolicy(redis);
  if (found !== 'noeviction') {
    log.warn({ expected: 'noeviction', found }, 'Redis may throw jobs away: set its maxmemory-policy');
  }
  await coverFromNowOn(pool);
  const deploy = await deployOf(pool, version);
  // Opened once nothing can fail any more that would leave it open.
  const connection = workerConnection({ url: config.REDIS_URL, prefix: config.REDIS_PREFIX }, onError('Redis'));
  const work = (queue: string, concurrency: number, deadlineMs: number, process: Process) => {
    const worker = new Worker(queue, (job, token, signal) => run(process, deadlineMs, job, token, signal), {
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

  const run = async (process: Process, deadlineMs: number, job: Job, token = '', signal?: AbortSignal) => {
    const ending = new AbortController();
    const give = (reason: unknown) => ending.abort(new Error(`given up: ${reasonOf(reason)}`));
    const lost = () => give(signal?.reason);
    const deadline = setTimeout(
      () => give(new Error(`not done within ${deadlineMs / MINUTE_MS} minutes`)),
      deadlineMs,
    );
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
  };

  const deps = { pool, queues, policy };
  const ensure = async () => {
    for (const wish of wishes(queues, { modelCallStats: config.MODEL_CALL_STATS_CRON_TIME })) {
      const ensured = await ensureScheduler(pool, wish, deploy);
      if (ensured !== 'kept') log.info({ scheduler: wish.id, ensured }, 'scheduler ensured');
    }
    await enqueueOwed(deps);
  };
  // At work first: what is waiting need not wait for a look at everything.
  const workers = [
    work(statsTick.queue, 1, MINUTE_MS, tickStatsProcessor(deps)),
    work(rollUpHour.queue, config.WORKER_CONCURRENCY, 5 * MINUTE_MS, rollUpHourProcessor(deps)),
    work(rollUpUsers.queue, config.WORKER_CONCURRENCY, 15 * MINUTE_MS, rollUpUsersProcessor(deps)),
    work(rollUpMarks.queue, 1, 15 * MINUTE_MS, rollUpMarksProcessor(deps)),
  ];
  const stopping = new AbortController();
  let ensuring = ensure();
  const stop = async () => {
    stopping.abort();
    // An idle close can hang for as long as Redis does not answer.
    const closed = Promise.all(workers.map((worker) => worker.close()));
    if ((await Promise.race([closed, sleep(DRAIN_MS, 'late' as const)])) === 'late') {
      log.warn('jobs still running after the deadline: another worker takes them over');
    }
    await Promise.race([ensuring, sleep(500)]).catch(() => {});
    connection.disconnect();
    log.info('worker stopped');
  };
  try {
    await ensuring;
  } catch (error) {
    await stop();
    throw error;
  }
  ensuring = repeat(ENSURE_MS, stopping.signal, () => ensure().catch((error) => onError('ensure')(error)));
  log.info({ version, concurrency: config.WORKER_CONCURRENCY }, 'worker started');
  return { stop };
}

/** Rejects when the signal aborts: a processor that hangs must not hold its hour for ever. */
function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
  });
}

async function repeat(ms: number, signal: AbortSignal, task: () => Promise<void>): Promise<void> {
  while (!signal.aborted) {
    await sleep(ms, undefined, { signal }).catch(() => {});
    if (!signal.aborted) await task();
  }
}
