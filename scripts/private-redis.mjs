// How does a Redis of our own come into the checkout, and run there? Node built-ins only.
import { spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { librariesIn, unpackPackages } from './debian.mjs';
import { freePort } from './ports.mjs';
import { end, identify, isEnding, lastLines, lives, run, sleep } from './processes.mjs';

const NONE =
  'No redis-server or valkey-server is on the PATH: install Redis or Valkey (brew install redis, dnf install valkey, ' +
  'pacman -S valkey, …), or set REDIS_URL to a server of yours.';
const START_TIMEOUT = 60_000; // reading a long append-only file takes its time

// --- the program ---------------------------------------------------------------------------------------------------

/** How to call a Redis that runs here: one on the PATH, else the one unpacked in `dir`; undefined when there is none. */
export async function findRedis(dir) {
  const folders = (process.env.PATH ?? '').split(path.delimiter).filter(Boolean);
  for (const folder of [...folders, path.join(dir, 'usr/bin')]) {
    for (const command of ['redis-server', 'valkey-server'].map((name) => path.join(folder, name))) {
      if (!existsSync(command)) continue;
      const env = folder.startsWith(dir) ? { ...process.env, LD_LIBRARY_PATH: librariesIn(dir) } : process.env;
      // It may be there and not run: unpacked on another system, or without a library that was removed since.
      if ((await run([command, '--version'], { env })).code === 0) return { command, env };
    }
  }
  return undefined;
}

/** On Debian and Ubuntu: unpacks the distribution's packages into `dir`, without root and without installing anything. */
export async function unpackRedis(dir) {
  const namesOf = (redis) => ['server', 'tools'].map((part) => `${redis}-${part}`);
  try {
    await unpackPackages(dir, [namesOf('redis'), namesOf('valkey')]);
  } catch (error) {
    throw new Error(`${NONE}\n(${error.message})`, { cause: error });
  }
}

// --- the server ----------------------------------------------------------------------------------------------------

const identityFile = (home) => path.join(home, 'process.json');

/** The process that serves this data, if one does. */
export function redisProcess(home) {
  try {
    const identity = JSON.parse(readFileSync(identityFile(home), 'utf8'));
    return lives(identity) ? identity : undefined;
  } catch {
    return undefined;
  }
}

/** Starts the server, or joins it if it runs; resolves when it answers. `home` holds its data. */
export async function startRedis({ home, port, password, passwordIsNew, throwAway, binaries }) {
  if (passwordIsNew) await stopRedis(home);
  const running = redisProcess(home);
  if (running) {
    await untilReady(home, running, port, password);
    return { pid: running.pid, port };
  }
  const redis = await findRedis(binaries);
  if (!redis) throw new Error(NONE);
  if (throwAway) rmSync(home, { recursive: true, force: true });
  mkdirSync(home, { recursive: true, mode: 0o700 });
  const ownPort = await freePort(port);
  const settings = path.join(home, 'redis.conf');
  rmSync(settings, { force: true }); // the mode counts only for a new file
  writeFileSync(settings, settingsFor(home, ownPort, password), { mode: 0o600 });
  const log = openSync(`${home}.log`, 'w', 0o600);
  // A session of its own: Ctrl-C in the terminal is for us; we stop the server when its users have stopped.
  const options = { cwd: home, env: redis.env, stdio: ['ignore', log, log], detached: true };
  const child = spawn(redis.command, [settings], options);
  closeSync(log);
  child.on('error', () => {}); // untilReady says it
  child.unref();
  const server = identify(child.pid);
  writeFileSync(identityFile(home), JSON.stringify(server)); // at once: two servers on the same data would spoil them
  await untilReady(home, server, ownPort, password);
  return { pid: child.pid, port: ownPort };
}

// In a file, not on the command line, where `ps` would show the password to everybody.
const settingsFor = (home, port, password) => `# Written at each start by scripts/private-redis.mjs.
bind 127.0.0.1
port ${port}
requirepass ${password}
dir ${JSON.stringify(home)}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
`;

/** Stops the server; it writes its append-only file to the end first. */
export async function stopRedis(home) {
  const server = redisProcess(home);
  if (server) await end(server, ['SIGTERM', 2_000]);
}

async function untilReady(home, server, port, password) {
  for (const deadline = Date.now() + START_TIMEOUT; !(await answers(port, password)); await sleep(20)) {
    const ended = !lives(server);
    if (isEnding()) throw new Error('asked to stop');
    if (!ended && Date.now() < deadline) continue;
    const what = ended ? 'did not start' : 'takes too long to start';
    throw new Error(`Redis ${what}; ${home}.log ends with:\n${lastLines(readFileSync(`${home}.log`, 'utf8'), 8)}`);
  }
}

/** True once it has read its data and takes commands. */
const answers = (port, password) =>
  new Promise((resolve) => {
    const socket = net.connect(port, '127.0.0.1', () => socket.write(`AUTH ${password}\r\nPING\r\n`));
    let said = '';
    const end = (answer) => {
      socket.destroy();
      resolve(answer);
    };
    socket.setTimeout(1_000, () => end(false));
    socket.on('error', () => end(false));
    socket.on('close', () => end(false));
    socket.on('data', (chunk) => {
      said += chunk;
      if (said.includes('+PONG')) end(true);
      else if (said.includes('-')) end(false);
    });
  });
