// npm test: sets up, starts servers for tests alone, and runs vitest with the arguments given.
import { existsSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { checkGiven } from '../src/given-servers.mjs';
import { runUntilStopped } from './processes.mjs';
import { localTest, root, startServers, stopServers } from './servers.mjs';
import { checkNode, setUp } from './set-up.mjs';
import { step } from './steps.mjs';
import { awaitStopRequest, exitAfter } from './stop-request.mjs';

checkNode();
const stop = awaitStopRequest();
const { DATABASE_URL, REDIS_URL, TEST_DATABASE_URL, TEST_REDIS_URL, ...others } = process.env;
const databaseUrl = TEST_DATABASE_URL || DATABASE_URL || undefined;
const redisUrl = TEST_REDIS_URL || REDIS_URL || undefined;
const needs = { postgres: !databaseUrl, redis: !redisUrl };

async function test() {
  await checkGiven({
    [TEST_DATABASE_URL ? 'TEST_DATABASE_URL' : 'DATABASE_URL']: databaseUrl,
    [TEST_REDIS_URL ? 'TEST_REDIS_URL' : 'REDIS_URL']: redisUrl,
  });
  await setUp({ needsRedis: needs.redis, needsCounterparts: true });
  let servers;
  try {
    if (needs.postgres || needs.redis) {
      await step('test servers', async () => {
        servers = await startServers({ dir: localTest, ...needs, throwAway: true });
      });
    }
    if (stop.exitCode !== undefined) return stop.exitCode;
    const command = ['node_modules/vitest/vitest.mjs', 'run', ...process.argv.slice(2)];
    // No DATABASE_URL and REDIS_URL: a test that forgets whose servers it may use reaches none.
    const env = {
      ...others,
      TEST_DATABASE_URL: databaseUrl ?? servers.databaseUrl,
      TEST_REDIS_URL: redisUrl ?? servers.redisUrl,
    };
    const code = await runUntilStopped(process.execPath, command, { cwd: root, env, stop, patience: 5_000 });
    return stop.exitCode ?? code;
  } finally {
    await stopOwnServers();
    await servers?.release();
  }
}

/** Tests that kill servers have some of their own; a test that was itself ended has left them running. */
async function stopOwnServers() {
  const own = path.join(localTest, 'own');
  for (const name of existsSync(own) ? readdirSync(own) : []) await stopServers(path.join(own, name), true);
}

await exitAfter(test, stop);
