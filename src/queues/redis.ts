// How is Redis reached?

import { connect as connectTcp, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { Queue, type Telemetry } from 'bullmq';
import { AbstractConnector, Cluster, Redis, type RedisOptions, type StandaloneConnectionOptions } from 'ioredis';
import { auditHours } from './audit.ts';
import { announceTransition, checkModels, probeModel } from './models.ts';
import { retainCalls } from './retain.ts';
import { failStaleCalls } from './stale.ts';
import { rollUpHour, rollUpMarks, rollUpUsers } from './stats.ts';

export interface RedisAddress {
  /** Of a server, or of any node of a cluster. */
  readonly url: string;
  readonly cluster?: boolean;
  /** In braces, so that all keys of a queue are on one node of a cluster. */
  readonly prefix: string;
}

export type RedisConnection = Redis | Cluster;

/** A replica that was a master a moment ago answers READONLY: reconnect and send again (2), or it is a hot loop. */
const reconnectOnError = (error: Error) => (error.message.startsWith('READONLY') ? 2 : false);

const retryStrategy = (times: number) => Math.min(100 * 2 ** times, 2_000);

/**
 * A connection for adding jobs: while Redis is away it fails within a few seconds instead of waiting for it. An add
 * that failed may have happened; all are deduplicated.
 */
export function producerConnection(address: RedisAddress, onError: (error: Error) => void): RedisConnection {
  return open(address, onError, { enableOfflineQueue: false, maxRetriesPerRequest: 1, commandTimeout: 5_000 });
}

/** A connection for working: it waits for Redis as long as it takes. */
export function workerConnection(address: RedisAddress, onError: (error: Error) => void): RedisConnection {
  return open(address, onError, { maxRetriesPerRequest: null });
}

/**
 * Opens sockets as the client's own connector does, which listens for the first error of each only: a certificate that is refused can
 * bring two (ours, and what TLS itself says of it), and the second would end the process. By this option, and not on the socket:
 * BullMQ makes connections of its own from ours.
 */
class Connector extends AbstractConnector {
  readonly #options: StandaloneConnectionOptions;

  constructor(options: unknown) {
    const own = options as StandaloneConnectionOptions; // the client gives its own, and does not say so in its types
    super(own.disconnectTimeout ?? 2_000);
    this.#options = own;
  }

  override async connect(): Promise<Socket> {
    this.connecting = true;
    await Promise.resolve(); // the client may take it back
    if (!this.connecting) throw new Error('Connection is closed.');
    const { host = 'localhost', port = 6379, family = 0, tls } = this.#options;
    const address = { host, port, family };
    const socket = tls ? connectTls(Object.assign(address, tls)) : connectTcp(address);
    socket.on('error', (error) => {
      this.firstError ??= error;
    });
    this.stream = socket;
    return socket;
  }
}

function open(
  { url, cluster }: RedisAddress,
  onError: (error: Error) => void,
  options: RedisOptions,
): RedisConnection {
  const common = { ...options, connectTimeout: 5_000, reconnectOnError, Connector };
  const redis = cluster ? openCluster(url, common) : new Redis(url, { ...common, retryStrategy });
  markErrors(redis);
  onErrors(redis, onError);
  return redis;
}

/** The errors of commands: what Redis answered, and what the client says if there is no answer. */
const ofCommands = new WeakSet<object>();

/** Whether a command to Redis failed with this error. Its text does not tell: anybody can use the same words. */
export function isOfRedis(error: unknown): error is Error {
  return error instanceof Error && ofCommands.has(error);
}

/** Note each error of a command as it is told, whoever sent the command: BullMQ does on our connections. */
function markErrors(redis: RedisConnection): void {
  // Of both kinds of client: what is handed on is what was taken.
  const client: Pick<Redis, 'sendCommand'> = redis;
  const send = client.sendCommand.bind(redis);
  client.sendCommand = (command, ...rest) => {
    const reject = command.reject;
    command.reject = (error) => {
      if (error instanceof Error) ofCommands.add(error);
      reject(error);
    };
    return send(command, ...rest);
  };
}

/** All nodes are asked with the user, the password and the TLS of the one that is named. */
function openCluster(url: string, { enableOfflineQueue = true, ...options }: RedisOptions): Cluster {
  const { protocol, username, password } = new URL(url);
  return new Cluster([url], {
    enableOfflineQueue,
    clusterRetryStrategy: retryStrategy,
    slotsRefreshTimeout: 5_000,
    // Names stay names: a certificate is for the name, not for the address that it has today.
    dnsLookup: (name, done) => done(null, name),
    redisOptions: {
      ...options,
      username: decodeURIComponent(username),
      password: decodeURIComponent(password),
      ...(protocol === 'rediss:' ? { tls: {} } : {}),
    },
  });
}

/** A cluster tells of its nodes one by one, and then only that none was left. */
function onErrors(redis: RedisConnection, tell: (error: Error & { lastNodeError?: Error }) => void): () => void {
  const last = (error: Error & { lastNodeError?: Error }) => tell(error.lastNodeError ?? error);
  redis.on('error', last);
  redis.on('node error', last);
  return () => {
    redis.off('error', last);
    redis.off('node error', last);
  };
}

/** What no waiting mends: a certificate or a password that is refused, and a server that is in no cluster. */
export const isFinal = ({ message, code = '' }: Error & { code?: string }) =>
  /^(WRONGPASS|NOAUTH|NOPERM|ERR This instance has cluster support disabled)/.test(message) ||
  /CERT|EPROTO|UNABLE_TO_VERIFY/.test(code);

/**
 * Wait until a connection is ready.
 *
 * @throws {Error} when it is not within `ms`, or will never be, with Redis' last error
 */
export async function untilReady(redis: RedisConnection, ms: number): Promise<void> {
  let off = () => {};
  let timer: NodeJS.Timeout | undefined;
  // A cluster asks for its nodes on connections whose errors it keeps to itself: those that it keeps open tell why.
  const reach = (node: Redis) => void node.connect().catch(() => {});
  if (redis instanceof Cluster) redis.on('+node', reach).nodes().forEach(reach);
  try {
    await new Promise<void>((resolve, reject) => {
      if (redis.status === 'ready') return resolve();
      let last: Error | undefined;
      off = onErrors(redis, (error) => {
        if (!last || error.message !== 'Connection is closed.') last = error; // which says nothing of why
        if (isFinal(error)) reject(new Error(error.message));
      });
      const late = () => new Error(`not ready within ${ms / 1000} s: ${last?.message ?? 'no answer'}`);
      timer = setTimeout(() => reject(late()), ms);
      redis.once('ready', resolve);
    });
  } finally {
    clearTimeout(timer);
    off();
    redis.off('+node', reach);
  }
  // A database that is not there is only an event to the client, which then goes on in database 0.
  if (redis instanceof Redis) await redis.select(redis.options.db ?? 0);
}

/**
 * Ask for a key of ours: the server, or the node of a cluster that has our keys, answers.
 *
 * @throws {Error} also where they are not there, or not for us
 */
export async function askForKey(redis: RedisConnection, prefix: string): Promise<void> {
  try {
    await redis.exists(`${prefix}:any`);
  } catch (cause) {
    const said = cause instanceof Error ? cause.message : String(cause);
    const moved = said.startsWith('MOVED ') && 'it is one node of a Redis Cluster: set REDIS_CLUSTER=true';
    throw new Error(`no answer about ${prefix}: ${moved || said}`, { cause });
  }
}

/** Of all processes that ask, one is told yes, and then nobody for so long; if Redis forgets, somebody is told yes too early. */
export async function takesTurn(redis: RedisConnection, prefix: string, name: string, ms: number): Promise<boolean> {
  return (await redis.set(`${prefix}:turn:${name}`, '1', 'PX', ms, 'NX')) === 'OK';
}

/**
 * The name that a worker process has in Redis: its version, and the beginning of its database's identity. Redis
 * refuses blanks in it.
 */
export function workerName(version: string, identity: string): string {
  return `hourhand-${version}+${identity.slice(0, SHOWN)}`;
}

/** Characters of an identity that a worker's name shows. */
const SHOWN = 8;

/** A worker process by its name. `identity` is the beginning of its database's; workers before 0.7 do not say it. */
export interface NamedWorker {
  readonly version: string;
  readonly identity: string | undefined;
}

/** Who works on a queue; undefined if Redis does not say, because it does not tell every user. */
export async function namedWorkers(queue: Queue): Promise<NamedWorker[] | undefined> {
  const workers = await queue.getWorkers().catch(() => undefined);
  return workers?.map(({ rawname = '' }) => {
    const [, version = 'unknown', identity] = /:w:hourhand-([^+]+)(?:\+(\w+))?$/.exec(rawname) ?? [];
    return { version, identity };
  });
}

/** What is in each queue, by state; all queues in one round trip or two. */
export async function depthsOf(
  queues: Queues,
): Promise<({ queue: string; paused: boolean } & Record<State, number>)[]> {
  return Promise.all(
    Object.values(queues).map(async (queue: Queue) => {
      const [paused, counts] = await Promise.all([queue.isPaused(), queue.getJobCounts(...STATES)]);
      return { queue: queue.name, paused, ...(counts as Record<State, number>) }; // those that were asked for
    }),
  );
}

export const STATES = ['waiting', 'prioritized', 'active', 'delayed', 'waiting-children', 'failed'] as const;
type State = (typeof STATES)[number];

/** The servers that hold keys. */
function mastersOf(redis: RedisConnection): Redis[] {
  return redis instanceof Cluster ? redis.nodes('master') : [redis];
}

/** What Redis does when its memory is full. It may not tell everyone, and need not: what it does not say is unknown, and no reason to be found wanting. */
export async function maxmemoryPolicy(redis: RedisConnection): Promise<string> {
  try {
    const policies = await Promise.all(mastersOf(redis).map(policyOf));
    // Any node may have our keys tomorrow.
    return policies.find((policy) => policy !== NO_EVICTION) ?? NO_EVICTION;
  } catch (error) {
    if (error instanceof Error && error.name === 'ReplyError') return `unknown: ${error.message}`;
    throw error;
  }
}

const NO_EVICTION = 'noeviction';

async function policyOf(redis: Redis): Promise<string> {
  return /^maxmemory_policy:(\S+)/m.exec(await redis.info('memory'))?.[1] ?? 'unknown: INFO does not say';
}

/** What BullMQ asks for; an older one it takes as well, and warns on each connection. */
const OLDEST = [6, 2] as const;

/** What somebody wants of a server: to look, which one does for that takes no writes; to change; or to work, and so to rely on what it keeps. */
export type Wants = 'look' | 'change' | 'work';

/**
 * What Redis does not say of itself is no reason to be found wanting.
 *
 * @returns what was expected and found, and what to do; undefined where nothing is wrong with it
 */
export async function faultOf(redis: RedisConnection, wants: Wants): Promise<string | undefined> {
  try {
    const told = await Promise.all(mastersOf(redis).map((node) => node.info()));
    return told.map((info) => faultIn(info, wants)).find((fault) => fault !== undefined);
  } catch (error) {
    if (error instanceof Error && error.name === 'ReplyError') return undefined;
    throw error;
  }
}

function faultIn(info: string, wants: Wants): string | undefined {
  const field = (name: string) => new RegExp(`^${name}:(.*?)\\r?$`, 'm').exec(info)?.[1] ?? '';
  const version = field('redis_version');
  const [major = 0, minor = 0] = version.split('.').map(Number);
  if (version && (major < OLDEST[0] || (major === OLDEST[0] && minor < OLDEST[1]))) {
    return `expected version ${OLDEST.join('.')} or newer, found ${version}: upgrade it, or name another in REDIS_URL`;
  }
  if (wants === 'look') return undefined;
  if (field('role') === 'slave' && field('slave_read_only') === '1') {
    return `expected one that takes writes, found a replica of ${field('master_host')}:${field('master_port')}: name its master in REDIS_URL`;
  }
  const policy = field('maxmemory_policy');
  if (wants === 'change' || policy === '' || policy === NO_EVICTION) return undefined;
  const setting = `maxmemory-policy ${NO_EVICTION}`;
  return `expected ${setting}, found ${policy}, which may throw jobs away: type redis-cli CONFIG SET ${setting}, and write ${setting} into its redis.conf`;
}

/** @throws {Error} where Redis is full, cannot keep what it is told, or takes nothing of us */
export async function tryToWrite(redis: RedisConnection, prefix: string): Promise<void> {
  await redis.set(`${prefix}:turn:start`, '1', 'PX', 1_000);
}

const REMEDIES: readonly (readonly [RegExp, string])[] = [
  [/^OOM/, 'its memory is full: give it more (maxmemory), or remove what fills it'],
  [/^MISCONF/, 'it cannot write its data to disk: make room there, and see its log'],
  [/^READONLY/, 'it is a replica: name its master in REDIS_URL'],
  [/^WRONGPASS/, 'look at the user and the password in REDIS_URL'],
  [/^NOAUTH/, 'write its password into REDIS_URL: redis://:PASSWORD@…'],
  [/NOPERM/, 'docs/operations.md names the rights that are needed'],
  [/cluster support disabled/, 'leave REDIS_CLUSTER out'],
];

/** The client's own words if there is no answer, which name no server and mean nothing to an operator. */
const JARGON: readonly (readonly [RegExp, string])[] = [
  [/^Stream isn't writeable/, 'there is no connection'],
  [/^Connection is closed/, 'there is no connection'],
  [/^Reached the max retries per request limit/, 'the connection was lost'],
  [/^Failed to refresh slots cache|^All nodes failed|^Cluster isn't ready/, 'no node of the cluster answers'],
  [/^Command timed out/, 'no answer within 5 s'],
];

/** What Redis or its client says, in plain words. To be asked only of what one of them said. */
export function redisInWords(said: string): { said: string; remedy: string | undefined } {
  const plain = JARGON.find(([pattern]) => pattern.test(said))?.[1];
  if (plain) return { said: plain, remedy: 'see whether it runs and can be reached, and do this again' };
  return { said, remedy: REMEDIES.find(([pattern]) => pattern.test(said))?.[1] };
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
  readonly retainTicks: Queue;
  readonly retentions: Queue;
}

/** What BullMQ tells of a queue's jobs, where they are traced. */
export type TelemetryOf = (queue: string) => Telemetry;

/**
 * Every queue, on one connection that the caller keeps and closes. Parents and children never share one. For whoever only looks nothing
 * is written as they are opened: a replica would have them connect again and again.
 */
export function openQueues(
  connection: RedisConnection,
  prefix: string,
  { telemetryOf, wants = 'change' }: { telemetryOf?: TelemetryOf; wants?: Wants } = {},
): Queues {
  const open = (name: string) => {
    const queue = new Queue(name, {
      connection,
      prefix,
      streams: { events: { maxLen: 1_000 } },
      telemetry: telemetryOf?.(name),
      skipMetasUpdate: wants === 'look',
      skipVersionCheck: true, // `faultOf` has asked, once for all of them
    });
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
    retainTicks: open('retain-tick'),
    retentions: open(retainCalls.queue),
  };
}
