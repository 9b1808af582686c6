// What runs: two servers, some workers, and how they are reached, killed and started again.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, openSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import pg from 'pg';
import { postgresPid } from '../../scripts/private-postgres.mjs';
import { redisProcess } from '../../scripts/private-redis.mjs';
import { end, identify } from '../../scripts/processes.mjs';
import { root, startServers } from '../../scripts/servers.mjs';

/** Everything often, so that minutes hold what else takes days. */
const SETTINGS = {
  MODEL_CALL_STATS_CRON_TIME: '*/5 * * * * *',
  LATE_DATA_SECONDS: '3',
  CLEANUP_STALE_MODEL_CALLS_CRON_TIME: '*/7 * * * * *',
  STALE_MODEL_CALL_TIMEOUT_MINUTES: '1',
  // Some stay under way, so that their figure is seen too.
  STALE_MODEL_CALL_TIMEOUTS: 'video=100000,openai/gpt-2=100000',
  AUDIT_MODEL_CALL_STATS_CRON_TIME: '*/20 * * * * *',
  CHECK_MODEL_STATUS_CRON_TIME: '*/10 * * * * *',
  PARTIAL_BACKOFF_MAX_SECONDS: '20',
  // Hours of both kinds: with a child for each user, and cut into ranges of buckets.
  FANOUT_MAX_USER_JOBS: '8',
  WORKER_CONCURRENCY: '2',
};

/** SIGTERM ends a worker within so long, whatever it is at. */
const TERM_MS = 15_000;

export async function startWorld({ dir, workers, say }) {
  const servers = await startServers({ dir });
  const { databaseUrl, redisUrl } = servers;
  const env = { PATH: process.env.PATH, HOME: process.env.HOME, TZ: process.env.TZ, ...SETTINGS };
  Object.assign(env, { DATABASE_URL: databaseUrl, REDIS_URL: redisUrl, PORT: '0' });
  const problems = [];
  const problem = (text) => {
    problems.push(text);
    say(`PROBLEM: ${text}`);
  };
  const [{ openQueues, producerConnection }, { connect }, backfills] = await Promise.all(
    ['queues/redis.js', 'store/db.js', 'producers/backfills.js'].map((file) => import(`../../dist/${file}`)),
  );
  const connection = producerConnection({ url: redisUrl }, () => {});
  const queues = openQueues(connection, '{hourhand}');
  const pool = connect(databaseUrl, { connections: 4, onError: () => {} });
  const policy = { maxHoursPerTick: 1_000, backOffMaxSeconds: 20, storeZeroRows: false, windowDays: 7 };
  const commands = new Set();
  const starting = new Set();
  // Once it stops nothing is started any more, and what is just being started is stopped as well.
  const unlessStopped = (start) => async () => {
    if (world.stopped) return undefined;
    const started = start();
    starting.add(started);
    return started.finally(() => starting.delete(started));
  };

  const world = {
    databaseUrl,
    redisUrl,
    say,
    stopped: false,
    problems,
    problem,
    queues,
    workers: Array.from({ length: workers }, (_, i) =>
      workerOf({ dir, env, problem, ended: () => world.stopped }, i + 1),
    ),

    /** What `hourhand backfill` does, without a process for each. */
    backfill: (range, { only = 'all', user } = {}) =>
      user === undefined
        ? backfills.backfillHours({ pool, queues, policy }, range, { only, reason: 'backfill', requestedBy: 'soak' })
        : backfills.backfillUser({ pool, queues }, user, range, { requestedBy: 'soak' }),

    /** A command of hourhand, as an operator types it. */
    async hourhand(...args) {
      const child = spawn(process.execPath, [path.join(root, 'dist/cli.js'), ...args], {
        env: { ...env, LOG_LEVEL: 'error' },
        stdio: ['ignore', 'pipe', 'pipe'],
        detached: true,
      });
      commands.add(child);
      let said = '';
      for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (said += chunk));
      const [code] = await once(child, 'close');
      commands.delete(child);
      if (code === 2) problem(`hourhand ${args.join(' ')}: ${said}`);
      return { code, said };
    },

    /** Whether the ledger covers a range of one hour. */
    covers: ({ start }) =>
      withPostgres(world, async (client) => {
        const { rowCount } = await client.query(
          `select from "StatRange" where start <= $1 and coalesce("end", 'infinity') > $1`,
          [start],
        );
        return rowCount > 0;
      }),

    stopPostgres: (how) => end(identify(postgresPid(path.join(dir, 'postgres'))), [how, 10_000]),
    startPostgres: unlessStopped(() => startServers({ dir, redis: false })),
    stopRedis: () => end(redisProcess(path.join(dir, 'redis'))), // by SIGKILL
    startRedis: unlessStopped(async () => {
      const started = await startServers({ dir, postgres: false });
      if (started.redisUrl !== redisUrl) throw new Error('another process has taken the port of Redis meanwhile');
    }),

    /** What the product's own audit said: it mends what it finds, but there must be nothing to be found. */
    auditFindings: () =>
      world.workers.flatMap(({ file }) =>
        readFileSync(file, 'utf8')
          .split('\n')
          .filter((line) => line.includes('"audit: ')),
      ),

    async stop() {
      world.stopped = true;
      connection.disconnect();
      for (const child of commands) child.kill('SIGKILL');
      await Promise.all(world.workers.map((worker) => worker.stop('SIGKILL')));
      await Promise.allSettled(starting);
      await pool.$disconnect();
      await servers.release();
    },
  };
  return world;
}

/** A worker process that somebody starts again whenever it ends, as a supervisor does. */
function workerOf({ dir, env, problem, ended }, number) {
  mkdirSync(dir, { recursive: true });
  const file = path.join(dir, `worker-${number}.log`);
  let child;
  let wanted = false;
  let killed = false;
  const start = () => {
    const log = openSync(file, 'a');
    const begin = readFileSync(file).length;
    // The channel tells it of our own end, however we come to it.
    const mine = spawn(process.execPath, [path.join(root, 'dist/cli.js'), 'worker'], {
      env,
      stdio: ['ignore', log, log, 'ipc'],
      detached: true,
    });
    closeSync(log);
    child = mine;
    killed = false;
    mine.once('exit', async (code, name) => {
      // Without its servers it may end at its start, and says so; once at work it never ends by itself.
      const atWork = readFileSync(file).subarray(begin).includes('"worker started"');
      if (atWork && !killed) problem(`worker ${number} ended by itself, ${name ?? `exit code ${code}`}: ${file}`);
      if (!wanted || child !== mine) return;
      await sleep(500);
      if (wanted && child === mine) start();
    });
  };
  const worker = {
    file,
    start() {
      if (ended()) return;
      wanted = true;
      start();
    },
    signal: (name) => child?.kill(name),
    async stop(name) {
      wanted = false;
      killed = true;
      if (!child || child.exitCode !== null || child.signalCode !== null) return;
      const ended = once(child, 'exit').then(() => true);
      if (name === 'SIGKILL') child.kill('SIGCONT');
      child.kill(name);
      if (await Promise.race([ended, sleep(TERM_MS, false, { ref: false })])) return;
      problem(`worker ${number} did not end within ${TERM_MS / 1_000} s of ${name}`);
      child.kill('SIGKILL');
      await ended;
    },
  };
  return worker;
}

/** A connection for one piece of work. A server that is just coming up again is waited for. */
export async function withPostgres({ databaseUrl }, work) {
  const client = await patient(() => connected(databaseUrl));
  try {
    return await work(client);
  } finally {
    await client.end().catch(() => {});
  }
}

async function patient(connect, ms = 10_000) {
  for (const deadline = Date.now() + ms; ; await sleep(100)) {
    try {
      return await connect();
    } catch (error) {
      if (Date.now() > deadline) throw error;
    }
  }
}

export async function connected(connectionString, application = 'soak') {
  const client = new pg.Client({
    connectionString,
    application_name: application,
    connectionTimeoutMillis: 5_000,
    options: '-c timezone=UTC -c statement_timeout=60s',
  });
  client.on('error', () => {}); // its server is stopped under it
  await client.connect();
  return client;
}

export async function withRedis({ redisUrl }, work) {
  const redis = new Redis(redisUrl, { lazyConnect: true, retryStrategy: () => null, commandTimeout: 5_000 });
  redis.on('error', () => {}); // what fails says so itself
  try {
    await redis.connect();
    return await work(redis);
  } finally {
    redis.disconnect();
  }
}
