// How are both servers reached, and what is said when one does not answer?

import { type Config, migrations, version } from './config.ts';
import { addressOf, unreachable } from './given-servers.mjs';
import type { Logger } from './logger.ts';
import { type Ownership, ownershipOf } from './ownership.ts';
import type { AuditPolicy } from './processors/audit-hours.ts';
import type { CheckPolicy } from './processors/check-models.ts';
import type { ProbePolicy } from './processors/probe-model.ts';
import type { HoursPolicy } from './producers/hours.ts';
import { checkInterval } from './producers/models.ts';
import type { StalePolicy } from './producers/stale.ts';
import {
  askForKey,
  faultOf as faultOfRedis,
  isOfRedis,
  openQueues,
  producerConnection,
  type Queues,
  type RedisAddress,
  type RedisConnection,
  redisInWords,
  tryToWrite,
  untilReady,
  type Wants,
} from './queues/redis.ts';
import { repeat } from './repeat.ts';
import type { AlarmPolicy } from './store/alarms.ts';
import { type CallParts, callPartsOf } from './store/call-parts.ts';
import { connectClient, Unreached } from './store/client.ts';
import type { CutPolicy } from './store/cut.ts';
import { connect, type Db, isOfPostgres, type Pool, reasonOf, sqlState } from './store/db.ts';
import { pendingMigrations } from './store/migrate.ts';
import { type Look, lookAt, postgresRemedy } from './store/server.ts';
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
  /** Whose the prefix in Redis is. */
  readonly ownership: Ownership;
  readonly policy: HoursPolicy & CutPolicy;
  readonly modelPolicy: CheckPolicy & ProbePolicy;
  readonly stalePolicy: StalePolicy;
  readonly auditPolicy: AuditPolicy;
  readonly alarmPolicy: AlarmPolicy;
  /** The triggers and indexes that `ModelCall` must have. */
  readonly callParts: CallParts;
  /** What the scheduler's retention keeps. */
  readonly kept: Kept;
  /** Where a collector is named. */
  readonly traces?: Traces;
  close(): Promise<void>;
}

const BOOT_MS = 10_000;
const DAY_SECONDS = 24 * 3600;

/** Why a server does not take us: by its address, with what was expected and found, and what to do. No secret is in it. */
export class Refusal extends Error {}

/**
 * Reach both servers, or say within some seconds which of them does not do, and why; find the schema whole; and, to
 * work or change something, find the prefix in Redis to be ours.
 *
 * @param patient for commands that stream a report: no statement or idle transaction is cut off
 * @param claims for the command that takes the prefix from its owner: whose it is does not matter
 * @param onWarning told of a prefix that belongs to another database if we only look, or that was taken over
 * @throws {Error} in words for an operator; no secret of a URL is in it
 */
export async function openConnections(
  config: Config,
  log: Logger,
  {
    patient = false,
    wants = 'look',
    claims = false,
    onWarning = (text) => log.warn(text),
  }: { patient?: boolean; wants?: Wants; claims?: boolean; onWarning?: (text: string) => void } = {},
): Promise<Connections> {
  await checkServers(config, wants);
  const quieted = quiet(log);
  const pool = connect(config.DATABASE_URL, {
    connections: config.WORKER_CONCURRENCY * 2 + 5,
    onError: quieted('PostgreSQL'),
    patient,
    prepared: config.DATABASE_PREPARED,
  });
  const redis = producerConnection(redisAddress(config), quieted('Redis'));
  const host = addressOf('PostgreSQL', config.DATABASE_URL).shown;
  const ownership = ownershipOf({ pool, redis }, { prefix: config.REDIS_PREFIX, host });
  let traces: Traces | undefined;
  const close = async () => {
    redis.disconnect();
    await Promise.all([traces?.stop(), pool.$disconnect()]);
  };
  try {
    await checkSchema(pool);
    await untilReady(redis, BOOT_MS).catch((error) => {
      throw inWords(error, config, 'Redis');
    });
    if (!claims) await checkOwner(ownership, config, { wants, onWarning });
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
  const queues = openQueues(redis, config.REDIS_PREFIX, { telemetryOf: traces?.of, wants });
  return {
    config,
    log,
    pool,
    redis,
    queues,
    ownership,
    policy,
    modelPolicy,
    stalePolicy,
    auditPolicy,
    alarmPolicy,
    callParts: callPartsOf(migrations),
    kept,
    traces,
    close,
  };
}

const URLS = { PostgreSQL: 'DATABASE_URL', Redis: 'REDIS_URL' } as const;
type Server = keyof typeof URLS;

/** @throws {Refusal} where something else answers at the address, or nobody */
async function answers(server: Server, config: Config): Promise<void> {
  const mend = config.given.has(URLS[server]) ? `mend ${URLS[server]}` : 'type npm start (or npm run servers)';
  const problem = await unreachable(server, config[URLS[server]], { ms: BOOT_MS, mend });
  if (problem) throw new Refusal(problem);
}

const refusal = (server: Server, config: Config, ...said: string[]) =>
  new Refusal([`${server} at ${addressOf(server, config[URLS[server]]).shown}`, ...said].join(': '));

/**
 * Look at both servers before anything is begun.
 *
 * @throws {Refusal} saying in one line all that is wrong with either
 */
export async function checkServers(config: Config, wants: Wants, { direct = false } = {}): Promise<void> {
  const looks = [checkPostgres(config, { writes: wants !== 'look', direct }), checkRedis(config, wants)];
  const refused = (await Promise.allSettled(looks)).filter((look) => look.status === 'rejected');
  if (refused.length > 1) throw new Refusal(refused.map(({ reason }) => reasonOf(reason)).join('; '));
  if (refused[0]) throw refused[0].reason;
}

/**
 * @param direct also past the pooler, if DATABASE_DIRECT_URL names a way
 * @throws {Refusal} unless it answers, takes us, is new enough, keeps our settings, and, if `writes`, can be written
 */
export async function checkPostgres(config: Config, { writes = false, direct = false } = {}): Promise<void> {
  const found = await lookAtPostgres(config, { writes });
  if (!direct || config.DATABASE_DIRECT_URL === '') return;
  const other = { ...config, DATABASE_URL: config.DATABASE_DIRECT_URL };
  const past = await lookAtPostgres(other, { writes }).catch((error) => {
    throw new Refusal(reasonOf(error).replaceAll('DATABASE_URL', 'DATABASE_DIRECT_URL'));
  });
  if (found !== past) {
    const wanted = `expected the database of DATABASE_URL (${found}), found another (${past})`;
    throw new Refusal(`DATABASE_DIRECT_URL: ${wanted}: name the same one`);
  }
}

/** @returns which database of which server it is */
async function lookAtPostgres(config: Config, { writes }: { writes: boolean }): Promise<string> {
  await answers('PostgreSQL', config);
  let look: Look;
  try {
    const client = await connectClient(config.DATABASE_URL, 'check');
    look = await within(BOOT_MS, 'PostgreSQL', lookAt(client, { writes })).finally(() => {
      client.end().catch(() => {}); // not waited for: it may be silent by now
    });
  } catch (error) {
    throw inWords(error, config, 'PostgreSQL');
  }
  if (look.fault) throw refusal('PostgreSQL', config, look.fault);
  return look.database;
}

/** @throws {Error} naming what is missing */
export async function checkSchema(db: Db): Promise<void> {
  const pending = await pendingMigrations(db, migrations);
  if (pending.length > 0) throw new Error(`the database lacks ${pending.join(', ')}: type hourhand migrate`);
}

/** On a connection of its own, whose errors are in what it throws and nowhere else. */
async function checkRedis(config: Config, wants: Wants): Promise<void> {
  await answers('Redis', config);
  let fault: string | undefined;
  const redis = producerConnection(redisAddress(config), () => {});
  try {
    await untilReady(redis, BOOT_MS);
    await askForKey(redis, config.REDIS_PREFIX);
    fault = await faultOfRedis(redis, wants);
    if (!fault && wants === 'work') await tryToWrite(redis, config.REDIS_PREFIX);
  } catch (error) {
    throw inWords(error, config, 'Redis');
  } finally {
    redis.disconnect();
  }
  if (fault) throw refusal('Redis', config, fault);
}

/** @throws {Refusal} if the prefix belongs to another database, and somebody wants to work or to change something */
async function checkOwner(
  ownership: Ownership,
  config: Config,
  { wants, onWarning }: { wants: Wants; onWarning: (text: string) => void },
): Promise<void> {
  if (wants === 'look') {
    // Whoever only looks is told, and reads on: PostgreSQL says what is true.
    const look = await ownership.look().catch((error: unknown) => {
      if (isOfRedis(error)) return undefined;
      throw error;
    });
    if (look?.foreign) onWarning(`${look.foreign.detail}: ${look.foreign.remedy}`);
    return;
  }
  const { foreign, moved } = await ownership.hold().catch((error: unknown) => {
    // A Redis that is full takes no note of us, but still says whose the prefix is; PostgreSQL may be all that is changed.
    if (wants === 'change' && isOfRedis(error)) return ownership.look();
    throw inWords(error, config);
  });
  if (foreign) throw refusal('Redis', config, foreign.detail, foreign.remedy);
  if (moved) onWarning(moved);
}

/**
 * An error as a person who typed a command is to read it: what a server or its client said is told with the server's
 * address, and with what to do. An error of our own code is left as it is, whatever its words.
 *
 * @param from the server, where it is known whose error it is
 */
export function inWords(error: unknown, config: Config, from: Server | undefined = serverOf(error)): unknown {
  if (error instanceof Refusal) return error;
  const said = reasonOf(error).replace(/^((PostgreSQL|Redis|not ready): )+/, '');
  if (from === 'Redis') {
    const { said: plain, remedy } = redisInWords(said);
    if (remedy) return refusal('Redis', config, plain.replace(/([.,] .*|\.)$/, ''), remedy);
    return refusal('Redis', config, said, ...ofCertificates(said));
  }
  const state = stateOf(error);
  const remedy = postgresRemedy(state);
  if (remedy) return refusal('PostgreSQL', config, said.includes(`(${state})`) ? said : `${said} (${state})`, remedy);
  return from ? refusal(from, config, said, ...ofCertificates(said), ...ofLostConnections(said)) : error;
}

/** Which server an error came from, by who threw it; undefined if it is our own. */
export function serverOf(error: unknown): Server | undefined {
  if (error instanceof NotReady) return error.server;
  if (isOfRedis(error)) return 'Redis';
  return isOfPostgres(error) || error instanceof Unreached ? 'PostgreSQL' : undefined;
}

/** What to do if PostgreSQL or its client says that the connection is gone. */
function ofLostConnections(said: string): string[] {
  const lost = /^(Connection terminated|Server has closed the connection|Can't reach database server)|ECONN|EPIPE/;
  return lost.test(said) ? ['see whether it runs and can be reached, and do this again'] : [];
}

/** What to do about a certificate that Node refuses, of whichever server. */
function ofCertificates(said: string): string[] {
  if (/self-signed certificate|unable to (verify the first|get( local)? issuer) certificate/.test(said)) {
    return ['set NODE_EXTRA_CA_CERTS to the file of the authority that signed it'];
  }
  return said.includes("certificate's altnames") ? ['name the host as the certificate does'] : [];
}

/** The SQLSTATE of what PostgreSQL said, here or further down among the causes. */
function stateOf(error: unknown): string | undefined {
  if (!(error instanceof Error)) return undefined;
  return sqlState(error) ?? stateOf(error.cause);
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

/** Where sessions are our own: past a pooler, if there is a way. */
export function directUrl(config: Config): string {
  return config.DATABASE_DIRECT_URL || config.DATABASE_URL;
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

/** A server that did not answer in time, or not as it should. */
class NotReady extends Error {
  readonly server: Server | undefined;
  constructor(server: string, cause: unknown) {
    super(`${server}: not ready: ${reasonOf(cause)}`, { cause });
    this.server = server === 'PostgreSQL' || server === 'Redis' ? server : undefined;
  }
}

/**
 * Watch that PostgreSQL goes on to answer while a command is at work. Without, a server that falls silent on an open
 * connection keeps the command waiting for ever, because the server's own time-outs are silent too.
 *
 * @param everyMs between two questions, each of which has `limitMs` for its answer; the third miss in a row counts
 */
export function watchForSilence(
  pool: Pool,
  { everyMs = 30_000, limitMs = 10_000 }: { everyMs?: number; limitMs?: number } = {},
): { silent: Promise<never>; stop(): void } {
  const stopping = new AbortController();
  const silent = new Promise<never>((_, reject) => {
    let misses = 0;
    void repeat(everyMs, stopping.signal, async () => {
      try {
        await within(limitMs, 'PostgreSQL', pool.$queryRaw`select 1`);
        misses = 0;
      } catch (error) {
        misses += 1;
        if (misses === MISSES) reject(error);
      }
    });
  });
  silent.catch(() => {}); // the race tells its error
  return { silent, stop: () => stopping.abort() };
}

const MISSES = 3;

/** @throws {Error} naming the server, also where it does not answer in time */
export async function within<T>(ms: number, server: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${ms / 1000} s`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } catch (error) {
    // What another server said stays its own.
    const other = serverOf(error);
    throw other && other !== server ? error : new NotReady(server, error);
  } finally {
    clearTimeout(timer);
  }
}
