// npm run stop: ends npm start and npm run servers, and stops the private servers, also those that a killed start has left.
// npm run reset (--reset): and deletes their data, after asking; --yes asks nothing.
import { existsSync } from 'node:fs';
import path from 'node:path';
import { createInterface } from 'node:readline/promises';
import { holderOf, tryLock } from './lock.mjs';
import { commandLine, end } from './processes.mjs';
import { whyFull } from './room.mjs';
import { local, localTest, ownServersOfTests, runningServers, startLock, stopServers } from './servers.mjs';
import { checkNode, checkWritable, setUpLock } from './set-up.mjs';

const PATIENCE = 20_000; // what npm start needs to end its jobs and its servers, and more
const USAGE = 2;

/** Resolves to how many processes it ended, saying each. */
async function stop() {
  let ended = 0;
  const { users } = runningServers(local);
  const settingUp = [holderOf(setUpLock)].filter((holder) => holder && commandLine(holder.pid).includes('start.mjs'));
  const all = [holderOf(startLock), ...settingUp, ...users].filter(Boolean);
  for (const user of new Map(all.map((one) => [one.pid, one])).values()) {
    console.log(`  ${commandLine(user.pid).trim()} (pid ${user.pid}) is asked to end`);
    await end(user, ['SIGTERM', PATIENCE]);
    ended++;
  }
  const [tests] = runningServers(localTest).users;
  if (tests) console.log(`  ${commandLine(tests.pid).trim()} (pid ${tests.pid}) goes on, with servers of its own`);
  for (const dir of [local, ...(tests ? [] : [localTest, ...ownServersOfTests()])]) {
    const left = Object.entries(runningServers(dir).pids);
    if (left.length === 0) continue;
    await stopServers(dir, dir !== local);
    for (const [name, pid] of left) console.log(`  ${name} (pid ${pid}), left over, is stopped`);
    ended += left.length;
  }
  return ended;
}

async function reset() {
  const held = ['postgres', 'redis'].filter((name) => existsSync(path.join(local, name)));
  if (held.length === 0) return console.log('The private servers hold nothing: there is nothing to empty.');
  if (!process.argv.includes('--yes') && !(await isMeant(held))) return;
  await stop();
  const unlock = tryLock(startLock);
  if (!unlock) throw new Error('npm start was begun meanwhile: nothing is emptied.');
  try {
    await stopServers(local, true);
  } finally {
    unlock();
  }
  console.log('The private servers are empty. npm start loads the sample anew.');
}

async function isMeant(held) {
  if (!process.stdin.isTTY) {
    console.error('npm run reset asks before it deletes, and nobody can answer here: type npm run reset -- --yes');
    process.exitCode = USAGE;
    return false;
  }
  console.log(
    `Every call, every hour and every job in the private servers of this checkout is to go (.local/${held.join(', .local/')}). ` +
      'Servers of DATABASE_URL and REDIS_URL are not touched.',
  );
  const questions = createInterface({ input: process.stdin, output: process.stdout });
  const closed = new Promise((resolve) => questions.once('close', () => resolve('')));
  const answer = await Promise.race([questions.question('Delete it all? [y/N] '), closed]); // Ctrl-C and Ctrl-D close
  questions.close();
  if (/^y(es)?$/i.test(answer.trim())) return true;
  console.log('Nothing is deleted.');
  return false;
}

checkNode();
try {
  checkWritable();
  if (process.argv.includes('--reset')) await reset();
  else console.log((await stop()) > 0 ? 'Stopped.' : 'Nothing was running.');
} catch (error) {
  console.error(`${whyFull(error.message)}${error.message}`);
  process.exitCode = 1;
}
