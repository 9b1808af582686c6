// What does a worker process do, from its start to its end?

import { setTimeout as sleep } from 'node:timers/promises';
import { version } from './config.ts';
import { type Connections, quiet, redisAddress, serverOf } from './connections.ts';
import { stateAtWork } from './dashboard/state.ts';
import { statusOf } from './dashboard/status.ts';
import { openHolder } from './holder.ts';
import type { Metrics } from './metrics.ts';
import { announceTransitionProcessor } from './processors/announce-transition.ts';
import { askForProcessor } from './processors/ask-for.ts';
import { auditHoursProcessor } from './processors/audit-hours.ts';
import { checkModelsProcessor } from './processors/check-models.ts';
import type { Process } from './processors/context.ts';
import { failStaleCallsProcessor } from './processors/fail-stale-calls.ts';
import { lookForWarnings } from './processors/look-for-warnings.ts';
import { probeModelProcessor } from './processors/probe-model.ts';
import { retainCallsProcessor } from './processors/retain-calls.ts';
import { rollUpHourProcessor } from './processors/roll-up-hour.ts';
import { rollUpMarksProcessor } from './processors/roll-up-marks.ts';
import { rollUpUsersProcessor } from './processors/roll-up-users.ts';
import { saySwept } from './processors/say-swept.ts';
import { targetOf } from './processors/tell-webhook.ts';
import { tickProcessor } from './processors/tick.ts';
import { tickLateProcessor } from './processors/tick-late.ts';
import { tickModelsProcessor } from './processors/tick-models.ts';
import { tickStatsProcessor } from './processors/tick-stats.ts';
import { clockWatch } from './producers/clock.ts';
import { enqueueOwed, enqueueUntold } from './producers/hours.ts';
import { keepPartitions } from './producers/partitions.ts';
import { ensureScheduler, ticksOf, wishes } from './producers/schedules.ts';
import { freeLost } from './producers/watchdog.ts';
import { MINUTE_MS, queueWorkers } from './queue-worker.ts';
import { auditHours } from './queues/audit.ts';
import { announceTransition, checkModels, probeModel } from './queues/models.ts';
import { isFinal, maxmemoryPolicy, takesTurn, workerConnection } from './queues/redis.ts';
import { retainCalls } from './queues/retain.ts';
import type { SchedulerId } from './queues/schedulers.ts';
import { failStaleCalls } from './queues/stale.ts';
import { rollUpHour, rollUpMarks, rollUpUsers } from './queues/stats.ts';
import { repeat } from './repeat.ts';
import { finishBackfills } from './store/backfills.ts';
import { isDataError } from './store/db.ts';
import { rememberState, type Uncovered } from './store/gaps.ts';
import { deriveWaiting } from './store/hour-models.ts';
import { lateTotals } from './store/late.ts';
import { nameOf } from './store/partitions.ts';
import { coverFromNowOn } from './store/ranges.ts';
import { deployOf } from './store/schedules.ts';
import { settleWarnings } from './store/warnings.ts';

const ENSURE_MS = 30_000;
/** Shorter, so that the process whose turn it was is in time for the next. */
const TURN_MS = 25_000;
/** For so long of every look the models of closed hours are derived: what is left is left to the next. */
const MODELS_MS = 10_000;
/** What a clean stop waits for jobs under way; after that they are left to be picked up as stalled. */
const DRAIN_MS = 4_000;

/**
 * Work until `stop` is called: a BullMQ worker for each queue, and every 30 seconds a look whether the schedulers stand
 * and what is owed. Any number of such processes may run: each looks when it starts, then one of them for all.
 *
 * @param env where the providers' keys are looked up by their names
 * @param metrics where what is counted is also served
 * @param everyMs between two looks
 */
export async function startWorker(
  connections: Connections,
  env: NodeJS.ProcessEnv = process.env,
  metrics?: Metrics,
  everyMs = ENSURE_MS,
): Promise<{ stop(): Promise<void> }> {
  const { config, log, pool, redis, queues, ownership, policy, stalePolicy, auditPolicy, callParts, kept, traces } =
    connections;
  const onError = quiet(log);
  const found = await maxmemoryPolicy(redis);
  const withoutInfo = found.startsWith('unknown');
  if (found !== 'noeviction') {
    log.warn({ expected: 'noeviction', found }, 'Redis may throw jobs away: set its maxmemory-policy');
  }
  // Before anything is compared with the clock.
  const lookAtClock = clockWatch({ pool, log, backOffMaxSeconds: policy.backOffMaxSeconds });
  await lookAtClock();
  const firstStart = await coverFromNowOn(pool);
  let deploy = await deployOf(pool, version);
  const { id: identity } = await ownership.claimant();
  // Opened once nothing can fail any more that would leave it open.
  const connection = workerConnection(redisAddress(config), onError('Redis'));
  const work = queueWorkers({ config, log, connection, identity, withoutInfo, telemetryOf: traces?.of, metrics });
  const deps = { pool, queues, policy };
  const keepAhead = partitionKeeper(connections);
  /** The part of a look that is of Postgres alone. */
  const ensureWithoutRedis = async () => {
    await keepAhead().catch(onError('partitions'));
    for (const backfill of await finishBackfills(pool)) log.info({ backfill }, 'backfill finished');
  };
  const ensure = async () => {
    for (const wish of wishes(queues, config)) {
      const ensured = await ensureScheduler(pool, wish, deploy);
      if (ensured !== 'kept') log.info({ scheduler: wish.id, ensured }, 'scheduler ensured');
    }
    await ensureWithoutRedis();
    const { enqueued, marked, swept } = await enqueueOwed(deps);
    saySwept(log, swept);
    await warnOfLate(connections);
    const lost = await freeLost(queues, { enqueued, marked: [...marked, ...(await enqueueUntold(deps))] });
    if (lost.length === 0) return;
    log.warn(
      { jobs: lost.length, first: lost[0] },
      'jobs that nobody would ever find: removed, and what is owed enqueued again',
    );
    await enqueueOwed(deps);
    await enqueueUntold(deps);
  };
  const warn = async () => {
    const uncovered = await lookForWarnings({ pool, log, callParts });
    const { ok, state, key } = stateAtWork(await statusOf(connections));
    if (await rememberState(pool, key)) log[ok ? 'info' : 'warn']({ ok }, state);
    return uncovered;
  };
  const tick = (id: SchedulerId, process: Process) =>
    work(ticksOf(queues, id).name, 1, MINUTE_MS, tickProcessor({ pool, id }, process));
  const webhook = targetOf(config.MODEL_WEBHOOK_URL, config.MODEL_WEBHOOK_SECRET);
  // At work first: what is waiting need not wait for a look at everything.
  const workers = [
    tick('model.call.stats', tickStatsProcessor(deps)),
    work(rollUpHour.queue, config.WORKER_CONCURRENCY, 5 * MINUTE_MS, rollUpHourProcessor(deps)),
    work(rollUpUsers.queue, config.WORKER_CONCURRENCY, 15 * MINUTE_MS, rollUpUsersProcessor(deps)),
    work(rollUpMarks.queue, config.WORKER_CONCURRENCY, 15 * MINUTE_MS, rollUpMarksProcessor(deps)),
    tick('late.model.calls', tickLateProcessor(deps)),
    tick('cleanup.stale.model.calls', askForProcessor(queues.stale, failStaleCalls)),
    work(failStaleCalls.queue, 1, 60 * MINUTE_MS, failStaleCallsProcessor({ pool, policy: stalePolicy })),
    tick('check.model.status', tickModelsProcessor(deps)),
    ...checkWorkers(work, connections, env),
    tick('audit.model.call.stats', askForProcessor(queues.audits, auditHours)),
    work(auditHours.queue, 1, 60 * MINUTE_MS, auditHoursProcessor({ pool, queues, policy: auditPolicy })),
    tick('retain.model.calls', askForProcessor(queues.retentions, retainCalls)),
    work(retainCalls.queue, 1, 60 * MINUTE_MS, retainCallsProcessor({ pool, queues, kept })),
    work(announceTransition.queue, 4, MINUTE_MS, announceTransitionProcessor({ pool, webhook })),
  ];
  const stopping = new AbortController();
  const holder = openHolder(connections, workers);
  const failed = (error: Error) => onError(serverOf(error) ?? 'ensure')(error);
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
    const uncovered = await warn().catch(onError('warnings'));
    if (firstStart && uncovered && uncovered.hours > 0) sayFirstStart(log, uncovered);
  } catch (error) {
    // A server that goes away is waited for, as at any later look. What no waiting mends ends the process.
    if (!passes(error)) {
      await stop();
      throw error;
    }
    failed(error);
  }
  const lookInTurn = async () => {
    if (!(await holder.look())) return ensureWithoutRedis();
    // A turn of its own: one of 0.6 would take the other, and PostgreSQL refuses what it does with it.
    if (!(await takesTurn(redis, config.REDIS_PREFIX, 'look-2', TURN_MS))) return;
    await ensure();
    await warn().catch(onError('warnings'));
    await deriveWaiting(pool, AbortSignal.any([stopping.signal, AbortSignal.timeout(MODELS_MS)]));
  };
  /** In each process, and without Redis: a process compares PostgreSQL's clock with its own. */
  const watchClock = async () => {
    const { now, trusted } = await lookAtClock();
    // The clock was fast when this process started: later deploys of its version would have no say until then.
    if (trusted && deploy.startedAt > now) deploy = await deployOf(pool, version);
  };
  ensuring = repeat(everyMs, stopping.signal, async () => {
    await watchClock().catch(onError('clock'));
    await lookInTurn().catch(failed);
  });
  log.info({ version, concurrency: config.WORKER_CONCURRENCY }, 'worker started');
  return { stop };
}

/** Whether an error is of a server that may be there again, and take us again, a moment later. */
function passes(error: unknown): error is Error {
  const server = serverOf(error);
  return server === 'Redis' ? !isFinal(error as Error) : server === 'PostgreSQL' && !isDataError(error);
}

/** A database that holds the calls of a year already: nobody rolls them up unless somebody asks. */
function sayFirstStart(log: Connections['log'], { hours, calls, moreCalls, first, last }: Uncovered): void {
  log.warn(
    { hours, calls, moreCalls, first, last },
    'first start: calls of earlier hours are in no figure; to have them rolled up, type hourhand backfill --uncovered',
  );
}

/** Nothing but waiting, so many at once in each process; a provider's own concurrency is counted in Postgres. */
const PROBES = 64;

/** Those that look at the models: in every worker process, and in a check by hand where no worker is there. */
export function checkWorkers(
  work: ReturnType<typeof queueWorkers>,
  { pool, queues, modelPolicy: policy }: Connections,
  env: NodeJS.ProcessEnv,
) {
  return [
    work(checkModels.queue, 4, 5 * MINUTE_MS, checkModelsProcessor({ pool, queues, policy })),
    work(
      probeModel.queue,
      PROBES,
      10 * MINUTE_MS,
      probeModelProcessor({ pool, policy, secretOf: (name) => env[name] }),
    ),
  ];
}

/**
 * Keeps a warning while something came late for sealed hours that nobody has accepted, and says so in the log once.
 */
async function warnOfLate({ pool, log }: Connections): Promise<void> {
  const { hours, writes, first } = await lateTotals(pool);
  const named = `${first.join(', ')}${hours > first.length ? ', …' : ''}`;
  const detail = `${writes} writes came late for ${hours} sealed hours (${named})`;
  const remedy =
    'They are in no figure. See them by "hourhand late list", and accept them by "hourhand late accept HOUR…"';
  const { raised } = await settleWarnings(pool, 'sealed-late', hours === 0 ? [] : [{ subject: '', detail, remedy }]);
  for (const warning of raised) log.warn({ hours, writes, first }, warning.detail);
}

/** Makes the partitions that are missing, and says so. What it cannot make is said once by all processes together. */
function partitionKeeper({ config, pool, redis, log }: Connections): () => Promise<void> {
  const mayLock = () => takesTurn(redis, config.REDIS_PREFIX, 'partition', 10 * MINUTE_MS);
  return async () => {
    const { created, raised, ended, checkDropped } = await keepPartitions(pool, { mayLock });
    if (checkDropped) log.warn('the check of a partitioning that did not end is taken away');
    for (const { start, moved } of created) log.info({ partition: nameOf(start), moved }, 'partition created');
    for (const { subject, detail, remedy } of raised) log.warn({ partition: subject, remedy }, detail);
    for (const { subject } of ended) log.info({ partition: subject }, 'warning ended');
  };
}
