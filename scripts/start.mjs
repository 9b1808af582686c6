// npm start: everything a newcomer needs, from a bare checkout to a running hourhand; Ctrl-C or SIGTERM ends it.
// npm run servers (--servers-only): the private servers alone, for `npx hourhand …` and whoever else wants them.
import path from 'node:path';
import { checkGiven } from '../src/given-servers.mjs';
import { holderOf, tryLock } from './lock.mjs';
import { runUntilStopped } from './processes.mjs';
import { local, root, runningServers, startServers } from './servers.mjs';
import { checkNode, setUp } from './set-up.mjs';
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
  await setUp({ needsRedis: needs.redis });
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
  const lockFile = path.join(local, 'start.lock');
  const unlock = tryLock(lockFile, {
    address: `http://${process.env.HOST || '127.0.0.1'}:${process.env.PORT || 3000}`,
  });
  if (!unlock) {
    const first = holderOf(lockFile);
    throw new Error(
      `npm start runs already${first ? ` (pid ${first.pid}): see ${first.address}, or` : ':'} stop it first.`,
    );
  }
  try {
    return await withServers((servers) => {
      // A sample is for whoever has just come: not where somebody gave us a server.
      const command = ['dist/cli.js', 'up', ...(needs.postgres && needs.redis ? ['--sample', SAMPLE] : [])];
      const env = {
        ...process.env,
        DATABASE_URL: databaseUrl ?? servers.databaseUrl,
        REDIS_URL: redisUrl ?? servers.redisUrl,
      };
      return runUntilStopped(process.execPath, command, { cwd: root, env, stop, patience: DRAIN });
    });
  } finally {
    unlock();
  }
}

async function serversOnly() {
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
await exitAfter(() => checkGiven({ DATABASE_URL: databaseUrl, REDIS_URL: redisUrl }).then(work), stop);
