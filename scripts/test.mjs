// npm test: sets up, starts servers for tests alone, and runs vitest with the arguments given.
import { chmodSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { checkGiven, withHost } from '../src/given-servers.mjs';
import { runUntilStopped } from './processes.mjs';
import { localTest, ownServersOfTests, root, startServers, stopServers } from './servers.mjs';
import { checkNode, checkWritable, setUp } from './set-up.mjs';
import { step } from './steps.mjs';
import { awaitStopRequest, exitAfter } from './stop-request.mjs';

checkNode();
const stop = awaitStopRequest();
const { DATABASE_URL, REDIS_URL, TEST_DATABASE_URL, TEST_REDIS_URL, ...others } = process.env;
const databaseUrl = TEST_DATABASE_URL || DATABASE_URL || undefined;
const redisUrl = TEST_REDIS_URL || REDIS_URL || undefined;
const needs = { postgres: !databaseUrl, redis: !redisUrl };

async function test() {
  checkWritable();
  await checkGiven({
    [TEST_DATABASE_URL ? 'TEST_DATABASE_URL' : 'DATABASE_URL']: databaseUrl,
    [TEST_REDIS_URL ? 'TEST_REDIS_URL' : 'REDIS_URL']: redisUrl,
  });
  await setUp({ needsRedis: needs.redis, needsPostgres: needs.postgres, needsCounterparts: true });
  let servers;
  let temporary;
  try {
    if (needs.postgres || needs.redis) {
      await step('test servers', async () => {
        servers = await startServers({ dir: localTest, ...needs, throwAway: true });
      });
    }
    if (stop.exitCode !== undefined) return stop.exitCode;
    const command = ['node_modules/vitest/vitest.mjs', 'run', ...process.argv.slice(2)];
    temporary = makeTemporary();
    // No DATABASE_URL and REDIS_URL: a test that forgets whose servers it may use reaches none.
    const env = {
      ...others,
      TMPDIR: temporary,
      // Where a browser would keep something for its next start.
      XDG_CONFIG_HOME: path.join(temporary, 'config'),
      XDG_CACHE_HOME: path.join(temporary, 'cache'),
      TEST_DATABASE_URL: withHost(databaseUrl) ?? servers.databaseUrl,
      TEST_REDIS_URL: redisUrl ?? servers.redisUrl,
    };
    const code = await runUntilStopped(process.execPath, command, { cwd: root, env, stop, patience: 5_000 });
    return stop.exitCode ?? code;
  } finally {
    // Of a test that was itself ended.
    for (const dir of ownServersOfTests()) await stopServers(dir, true);
    if (temporary) rmSync(temporary, { recursive: true, force: true });
    await servers?.release();
  }
}

/** For the tests' temporary files, which go with it however they end; in the checkout where the system has no place. */
function makeTemporary() {
  const make = (folder) => mkdtempSync(path.join(folder, 'hourhand-'));
  let made;
  try {
    made = make(tmpdir());
  } catch {
    mkdirSync(localTest, { recursive: true });
    made = make(localTest);
  }
  chmodSync(made, 0o755); // some tests run programs as somebody else
  return made;
}

await exitAfter(test, stop);
