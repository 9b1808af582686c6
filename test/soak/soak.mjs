// Does everything come out right, whatever happens? Random faults under a stream of new, late, changed and deleted calls:
// npm run soak [-- --seed N --minutes M --workers W]. The same seed has the same plan.
import { randomInt } from 'node:crypto';
import { mkdirSync, rmSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { local, root, runningServers, stopServers } from '../../scripts/servers.mjs';
import { checkNode, setUp } from '../../scripts/set-up.mjs';
import { step } from '../../scripts/steps.mjs';
import { awaitStopRequest, exitAfter } from '../../scripts/stop-request.mjs';

checkNode();
const stop = awaitStopRequest();
const options = readOptions();
const dir = path.join(local, 'soak');
const WRITERS = 4;
const SETTLE_MS = 60_000;

function readOptions() {
  const usage = (text) => {
    console.error(`npm run soak -- [--seed N] [--minutes M] [--workers W]: ${text}`);
    process.exit(2);
  };
  try {
    const { values } = parseArgs({
      options: Object.fromEntries(['seed', 'minutes', 'workers'].map((name) => [name, { type: 'string' }])),
    });
    const number = (name, fallback, least, most) => {
      const value = Number(values[name] ?? fallback);
      if (!(value >= least && value <= most)) usage(`${name}: expected ${least} to ${most}, got "${values[name]}"`);
      return value;
    };
    return {
      seed: Math.floor(number('seed', randomInt(1_000_000), 0, Number.MAX_SAFE_INTEGER)),
      minutes: number('minutes', 3, 0.2, 24 * 60),
      workers: Math.floor(number('workers', 3, 1, 16)),
    };
  } catch (error) {
    return usage(error.message);
  }
}

async function soak() {
  const { users } = runningServers(dir);
  if (users.length > 0)
    throw new Error(`another soak runs in this checkout (pid ${users[0].pid}): wait for it, or stop it`);
  await setUp({ needsRedis: true });
  await stopServers(dir, true); // left over from a killed run
  rmSync(dir, { recursive: true, force: true });
  mkdirSync(dir, { recursive: true });
  // What is installed and built by now.
  const [{ startWorld }, { prepare, run }] = await Promise.all([import('./world.mjs'), import('./run.mjs')]);
  let world;
  let failed = true;
  try {
    await step('soak servers', async () => {
      world = await startWorld({ ...options, dir, say: console.log });
    });
    if (stop.exitCode === undefined) await prepare(world, options);
    if (stop.exitCode === undefined)
      failed = !(await run(world, { ...options, writers: WRITERS, settleMs: SETTLE_MS, stop }));
    return stop.exitCode ?? (failed ? 1 : 0);
  } finally {
    await world?.stop();
    if (failed && stop.exitCode === undefined) console.log(`logs: ${path.relative(root, dir)}`);
    else await removed();
  }
}

/** A process that was killed may write its last line. */
async function removed() {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return rmSync(dir, { recursive: true, force: true });
    } catch (error) {
      if (attempt === 10) throw error;
      await sleep(100);
    }
  }
}

await exitAfter(soak, stop);
