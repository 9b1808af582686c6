// How are both servers reached, and what is said when one does not answer?

import { type Config, migrations, version } from './config.ts';
import type { Logger } from './logger.ts';
import type { AuditPolicy } from './processors/audit-hours.ts';
import type { CheckPolicy } from './processors/check-models.ts';
import type { ProbePolicy } from './processors/probe-model.ts';
import type { HoursPolicy } from './producers/hours.ts';
import { checkInterval } from './producers/models.ts';
import type { StalePolicy } from './producers/stale.ts';
import {
  askForKey,
  openQueues,
  producerConnection,
  type Queues,
  type RedisAddress,
  type RedisConnection,
  untilReady,
} from './queues/redis.ts';
import type { AlarmPolicy } from './store/alarms.ts';
import type { CutPolicy } from './store/cut.ts';
import { connect, type Pool, reasonOf } from './store/db.ts';
import { pendingMigrations } from './store/migrate.ts';
import type { Kept } from './time/kept.ts';
import { intervalOf, type Pattern } from './time/pattern.ts';
import type { Traces } from './traces.ts';

/** What a worker, the dashboard and the commands work with; opened first, closed last. */
export interface Connections {
  readonly config: Config;
  readonly log: Logger;
  readonly pool: Pool;
  readonly redis: RedisConnection;
  readonly queues: Queues;
  readonly policy: HoursPolicy & CutPolicy;
  readonly modelPolicy: CheckPolicy & ProbePolicy;
  readonly stalePolicy: StalePolicy;
  readonly auditPolicy: AuditPolicy;
  readonly alarmPolicy: AlarmPolicy;
  /** What the scheduler's retention keeps. */
  readonly kept: Kept;
  /** Where a collector is named. */
  readonly traces?: Traces;
  close(): Promise<void>;
}

const BOOT_MS = 10_000;
const DAY_SECONDS = 24 * 3600;

/**
 * Reach both servers, or say within ten seconds which of them did not answer and why; and find the schema whole.
 *
 * @param patient for commands that stream a report: no statement or idle transaction is cut off
 * @throws {Error} in words for an operator; no secret of a URL is in it
 */
export async function openConnections(config: Config, log: Logger, { patient = false } = {}): Promise<Connections> {
  const quieted = quiet(log);
  const pool = connect(config.DATABASE_URL, {
    connections: config.WORKER_CONCURRENCY * 2 + 5,
    onError: quieted('PostgreSQL'),
    patient,
  });
  const redis = producerConnection(redisAddress(config), quieted('Redis'));
  let traces: Traces | undefined;
  const close = async () => {
    redis.disconnect();
    await Promise.all([traces?.stop(), pool.$disconnect()]);
  };
  try {
    await within(BOOT_MS, 'PostgreSQL', pool.$queryRaw`select 1`);
    const pending = await pendingMigrations(pool, migrations);
    if (pending.length > 0) throw new Error(`the database lacks ${pending.join(', ')}: type hourhand migrate`);
    await untilReady(redis, BOOT_MS);
    await askForKey(redis, config.REDIS_PREFIX);
    traces = await tracesOf(config, quieted('collector of traces'));
  } catch (error) {
    await close();
    throw error;
  }
  const policy = {
    maxHoursPerTick: config.MAX_HOURS_PER_TICK,
    maxUserJobs: config.FANOUT_MAX_USER_JOBS,
    minCalls: config.FANOUT_MIN_CALLS,
    backOffMaxSeconds: config.PARTIAL_BACKOFF_MAX_SECONDS,
    storeZeroRows: config.STORE_ZERO_ROWS,
    windowDays: config.ACTIVE_USER_WINDOW_DAYS,
  };
  const modelPolicy = {
    minimumCalls: config.MODEL_MINIMUM_CALLS,
    slowSeconds: config.MODEL_SLOW_SECONDS,
    probesPerHour: config.MODEL_PROBES_PER_HOUR,
    creditsPerDay: config.MODEL_PROBE_CREDITS_PER_DAY,
    defaultCredits: config.MODEL_PROBE_DEFAULT_CREDITS,
    timeoutSeconds: config.MODEL_PROBE_TIMEOUT_SECONDS,
    generate: config.MODEL_PROBE_GENERATE,
    allowHttp: config.MODEL_ALLOW_HTTP,
    historyDays: config.MODEL_HISTORY_DAYS,
    announce: config.MODEL_WEBHOOK_URL !== '',
    interval: () => checkInterval(pool, config.CHECK_MODEL_STATUS_CRON_TIME),
  };
  const stalePolicy = {
    limits: { minutes: config.STALE_MODEL_CALL_TIMEOUT_MINUTES, others: config.STALE_MODEL_CALL_TIMEOUTS },
    everySeconds: secondsBetween(config.CLEANUP_STALE_MODEL_CALLS_CRON_TIME),
  };
  const auditPolicy = {
    audits: (config.AUDIT_WITHIN_DAYS * DAY_SECONDS) / secondsBetween(config.AUDIT_MODEL_CALL_STATS_CRON_TIME),
    historyDays: config.CHANGE_HISTORY_DAYS,
    callsKeptDays: config.CALLS_KEPT_DAYS,
  };
  const alarmPolicy = {
    noHourClosedMinutes: config.ALARM_NO_HOUR_CLOSED_MINUTES,
    tickMissedSeconds: config.ALARM_TICK_MISSED_SECONDS,
    hourPartialMinutes: config.ALARM_HOUR_PARTIAL_MINUTES,
  };
  const kept = { calls: config.RETAIN_CALLS, stats: config.RETAIN_STATS };
  const queues = openQueues(redis, config.REDIS_PREFIX, traces?.of);
  return {
    config,
    log,
    pool,
    redis,
    queues,
    policy,
    modelPolicy,
    stalePolicy,
    auditPolicy,
    alarmPolicy,
    kept,
    traces,
    close,
  };
}

/** Nothing of it is loaded where no collector is named. */
async function tracesOf(config: Config, onError: (error: Error) => void): Promise<Traces | undefined> {
  const { OTEL_EXPORTER_OTLP_ENDPOINT: base, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: own } = config;
  const url = own || (base && `${base.replace(/\/$/, '')}/v1/traces`);
  return url ? (await import('./traces.ts')).startTraces(url, version, onError) : undefined;
}

/** From one firing to the next; of a scheduler that is off, whose work is asked for by hand, a day. */
function secondsBetween(pattern: Pattern): number {
  return pattern === 'off' ? DAY_SECONDS : intervalOf(pattern, new Date());
}

export function redisAddress({ REDIS_URL: url, REDIS_CLUSTER: cluster, REDIS_PREFIX: prefix }: Config): RedisAddress {
  return { url, cluster, prefix };
}

/** Hand a server's errors to the log, the same one at most every ten seconds: a server that is down says it often. */
export function quiet(log: Logger): (server: string) => (error: Error) => void {
  const said = new Map<string, number>();
  return (server) => (error) => {
    const reason = reasonOf(error);
    const key = `${server} ${reason}`;
    if (Date.now() - (said.get(key) ?? 0) < 10_000) return;
    said.set(key, Date.now());
    log.warn({ server, reason }, 'server error');
  };
}

/** @throws {Error} naming the server, also where it does not answer in time */
export async function within<T>(ms: number, server: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${ms / 1000} s`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } catch (error) {
    throw new Error(`${server}: not ready: ${reasonOf(error)}`, { cause: error });
  } finally {
    clearTimeout(timer);
  }
}
