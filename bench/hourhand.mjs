// How is hourhand itself measured? Its own worker processes, started as an operator starts them, with everything switched on; the
// clock runs from the moment before the jobs are enqueued until the ledger says closed.
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { root } from '../scripts/servers.mjs';
import { connected } from './databases.mjs';

const TABLES = ['ModelCallStat', 'StatHour', 'StatShard', 'StatMark', 'StatChange', 'Backfill', 'BackfillHour'];
const dist = (file) => import(`../dist/${file}`);

/** Connections as a command has them, and so many workers. */
export async function openHourhand(servers, { workers = 1, env = {} } = {}) {
  const [{ readConfig }, { openConnections }, { createLogger }, hours, backfills] = await Promise.all(
    ['config.js', 'connections.js', 'logger.js', 'producers/hours.js', 'producers/backfills.js'].map(dist),
  );
  // The clean-up of calls that hang runs as well; it finds none, or the rivals would count other calls than hourhand did.
  const environment = {
    ...serversOf(servers),
    REDIS_PREFIX: `{bench-${randomUUID()}}`, // several databases share one Redis
    LOG_LEVEL: 'info',
    STALE_MODEL_CALL_TIMEOUT_MINUTES: '525600',
    ...env,
  };
  const connections = await openConnections(readConfig(environment), createLogger('silent'));
  const client = await connected(servers.databaseUrl);
  const processes = [];
  const bench = {
    connections,
    client,
    processes,
    async start(count) {
      const started = await Promise.all(Array.from({ length: count }, () => startWorker(environment)));
      processes.push(...started);
    },
    /** As it was before the first run, and nobody at work; without a range, hourhand finds nothing owed meanwhile. */
    async reset(range) {
      await client.query('delete from "StatRange" where "end" is not null');
      await bench.idle();
      // Not truncated: new files throw away what every connection knows of a table, which no hour of an operator's does.
      for (const table of TABLES) await client.query(`delete from "${table}"`);
      for (const table of TABLES) await client.query(`vacuum "${table}"`);
      if (range) await client.query('insert into "StatRange" values ($1, $2)', [range.start, range.end]);
    },
    /** Milliseconds from enqueued to closed, of hours that a tick found owed. */
    async live(starts) {
      const owed = starts.map((start) => ({ hour: start.toISOString().slice(0, 13), backfilled: false }));
      const since = performance.now();
      await hours.enqueueHours(connections.queues, owed);
      await bench.closed(starts.length, since);
      return performance.now() - since;
    },
    /** Milliseconds of a backfill, from before the ledger is asked until all is closed. */
    async backfill(range, asked = {}) {
      const since = performance.now();
      const request = await backfills.backfillHours(connections, range, {
        only: 'all',
        reason: 'backfill',
        requestedBy: 'bench',
        ...asked,
      });
      await bench.closed(request.hours.length, since);
      return performance.now() - since;
    },
    /** Looks more often where it cannot last long: what the looking itself adds stays below some percent. */
    async closed(count, since) {
      const closed = `select count(*)::int as closed from "StatHour" where state = 'closed' and wanted <= run and run > 0`;
      for (;;) {
        const { rows } = await client.query({ name: 'closed', text: closed });
        if (rows[0].closed >= count) return;
        await sleep(Math.min(100, Math.max(1, (performance.now() - since) / 40)));
      }
    },
    async idle() {
      const { hours: parents, users, marks } = connections.queues;
      for (;;) {
        const counts = await Promise.all(
          [parents, users, marks].map((queue) =>
            queue.getJobCountByTypes('active', 'waiting', 'prioritized', 'waiting-children', 'delayed'),
          ),
        );
        if (counts.every((count) => count === 0)) return;
        await sleep(20);
      }
    },
    async stop() {
      await Promise.all(processes.splice(0).map((worker) => worker.stop()));
    },
    async close() {
      await bench.stop();
      await client.end();
      await connections.close();
    },
  };
  await bench.start(workers);
  return bench;
}

/** The command, as an operator types it. */
export function command(environment, args, stdio) {
  return spawn(process.execPath, [path.join(root, 'dist', 'cli.js'), ...args], {
    env: { PATH: process.env.PATH, HOME: process.env.HOME, ...environment },
    stdio: ['ignore', ...stdio],
  });
}

/** The environment that names these servers. */
export const serversOf = ({ databaseUrl, redisUrl }) => ({ DATABASE_URL: databaseUrl, REDIS_URL: redisUrl });

async function startWorker(environment) {
  const child = command(environment, ['worker'], ['pipe', 'inherit']);
  for await (const line of createInterface(child.stdout)) {
    if (line.includes('"worker started"')) break;
  }
  child.stdout.resume();
  return {
    pid: child.pid,
    async stop() {
      child.kill('SIGTERM');
      await once(child, 'exit');
    },
  };
}

/** Peak and present memory of a process, in MB; undefined where the system does not tell. */
export function memoryOf(pid) {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    const of = (name) => Number(status.match(new RegExp(`${name}:\\s+(\\d+) kB`))?.[1]) / 1024;
    return { peak: of('VmHWM'), now: of('VmRSS') };
  } catch {
    return undefined;
  }
}

/** Bytes that Redis uses for its data at this moment. */
export async function redisBytes(redis) {
  return Number((await redis.info('memory')).match(/used_memory:(\d+)/)[1]);
}

/** Bytes of data beyond what Redis used before: the peak during the work, and what is left after it. */
export async function redisPeak(redis, work) {
  const before = await redisBytes(redis);
  let peak = before;
  let done = false;
  const watching = (async () => {
    while (!done) {
      peak = Math.max(peak, await redisBytes(redis));
      await sleep(10);
    }
  })();
  const result = await work().finally(() => {
    done = true;
  });
  await watching;
  return { result, peak: (peak - before) / 2 ** 20, left: ((await redisBytes(redis)) - before) / 2 ** 20 };
}
