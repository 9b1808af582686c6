// npm start: everything a newcomer needs, from a bare checkout to a running hourhand; Ctrl-C or SIGTERM ends it.
// npm run servers (--servers-only): the private servers alone, for `npx hourhand …` and whoever else wants them.
import net from 'node:net';
import { checkGiven } from '../src/given-servers.mjs';
import { holderOf, noteInLock, tryLock } from './lock.mjs';
import { runUntilStopped } from './processes.mjs';
import { local, root, runningServers, startLock, startServers } from './servers.mjs';
import { checkNode, checkWritable, setUp } from './set-up.mjs';
import { step } from './steps.mjs';
import { awaitStopRequest, exitAfter } from './stop-request.mjs';

const DRAIN = 6_000; // what hourhand gets to end its jobs; with its servers it then stays below 10 s
const SAMPLE = 'samples/azure-code.csv';

checkNode();
const stop = awaitStopRequest();
const databaseUrl = process.env.DATABASE_URL || undefined;
const redisUrl = process.env.REDIS_URL || undefined;
const needs = { postgres: !databaseUrl, redis: !redisUrl };

/** Sets up, starts the private servers that are needed, and has them used; stops them whatever happens. */
async function withServers(use) {
  await setUp({ needsRedis: needs.redis, needsPostgres: needs.postgres });
  if (!needs.postgres && !needs.redis) return use({});
  let servers;
  try {
    await step('servers', async () => {
      servers = await startServers({ dir: local, ...needs, database: 'hourhand' });
      return [needs.postgres && 'PostgreSQL', needs.redis && 'Redis'].filter(Boolean).join(' and ');
    });
    return stop.exitCode ?? (await use(servers));
  } finally {
    await servers?.release();
  }
}

async function start() {
  checkWritable();
  const unlock = tryLock(startLock);
  if (!unlock) throw new Error(whoRuns());
  try {
    await checkPlace();
    return await withServers((servers) => {
      // A sample is for whoever has just come: not where somebody gave us a server.
      const command = ['dist/cli.js', 'up', ...(needs.postgres && needs.redis ? ['--sample', SAMPLE] : [])];
      const env = {
        ...process.env,
        DATABASE_URL: databaseUrl ?? servers.databaseUrl,
        REDIS_URL: redisUrl ?? servers.redisUrl,
      };
      return runUntilStopped(process.execPath, command, {
        cwd: root,
        env,
        stop,
        patience: DRAIN,
        onMessage: remember,
      });
    });
  } finally {
    unlock();
  }
}

/** hourhand says where its dashboard is, which may be on a port that was free. */
function remember({ dashboard }) {
  try {
    if (dashboard) noteInLock(startLock, { dashboard });
  } catch {
    // The disk is full, say: no reason to end what runs.
  }
}

function whoRuns() {
  const first = holderOf(startLock);
  const where = first?.dashboard ? `see ${first.dashboard}` : 'and is still setting up: wait for it';
  return `npm start runs already${first ? ` (pid ${first.pid})` : ''}, ${where}, or stop it (npm run stop).`;
}

/** hourhand says these things too, but only after a set-up that may take a minute. */
async function checkPlace() {
  const { HOST: host = '127.0.0.1', PORT: text = '3000' } = process.env;
  if (!/^\d+$/.test(text) || Number(text) > 65_535) {
    throw new Error(`PORT: expected a whole number from 0 to 65535, got "${text}"`);
  }
  const port = Number(text);
  const code = await new Promise((resolve) => {
    const server = net.createServer();
    server.once('error', (error) => resolve(error.code));
    server.listen(port, host, () => server.close(() => resolve(undefined)));
  });
  if (code === 'EADDRINUSE') {
    throw new Error(
      `PORT ${port} is taken on ${host}: free it, or type PORT=${(port % 65_535) + 1} npm start (0 takes any).`,
    );
  }
  if (code === 'EACCES')
    throw new Error(`PORT ${port} is not open to this user on ${host}: type PORT=3000 npm start.`);
  if (code) throw new Error(`HOST ${host} is no address of this machine (${code}): type HOST=127.0.0.1 npm start.`);
}

async function serversOnly() {
  checkWritable();
  if (!needs.postgres && !needs.redis) {
    console.log('DATABASE_URL and REDIS_URL are set: there is nothing to start.');
    return 0;
  }
  const running = runningServers(local);
  if (running.users.length > 0 && (!needs.postgres || running.databaseUrl) && (!needs.redis || running.redisUrl)) {
    console.log(`The private servers run already, for pid ${running.users.map(({ pid }) => pid).join(' and ')}.`);
    sayWhere(running);
    return 0;
  }
  return withServers(async (servers) => {
    sayWhere(servers);
    console.log('  Ctrl-C stops them.');
    await stop.requested;
    return 0;
  });
}

function sayWhere(servers) {
  const host = (url) => new URL(url).host;
  if (needs.postgres) console.log(`  PostgreSQL: ${host(servers.databaseUrl)}, database hourhand`);
  if (needs.redis) console.log(`  Redis:      ${host(servers.redisUrl)}`);
  console.log('  With their passwords: .local/servers.json, where npx hourhand finds them by itself.');
}

const work = process.argv.includes('--servers-only') ? serversOnly : start;
// Before anything is installed: a wrong address is said in seconds.
await exitAfter(
  () =>
    checkGiven({
      DATABASE_URL: databaseUrl,
      DATABASE_DIRECT_URL: process.env.DATABASE_DIRECT_URL || undefined,
      REDIS_URL: redisUrl,
    }).then(work),
  stop,
);
