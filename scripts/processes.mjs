// How do we run a program, and how do we know later that it is still the same one? Node built-ins only.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { constants } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

/** This checkout. */
export const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const hasProc = existsSync('/proc/self/stat');

/**
 * When a process started, as a string to compare; undefined when there is no such process. A pid alone does not name a
 * process: pids are used again, soonest in containers. A zombie counts as gone: it lingers where nobody reaps orphans.
 */
export function startOf(pid) {
  if (!Number.isInteger(pid) || pid <= 0) return undefined;
  if (hasProc) {
    try {
      const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      return 'ZX'.includes(fields[0]) ? undefined : fields[19];
    } catch {
      return undefined;
    }
  }
  const line = ps('stat=,lstart=', pid);
  return line && !line.startsWith('Z') ? line.replace(/^\S+\s+/, '') : undefined;
}

const ps = (columns, pid) =>
  spawnSync('ps', ['-ww', '-o', columns, '-p', String(pid)], { encoding: 'utf8' }).stdout?.trim() ?? '';

/**
 * What is written down about a process, so that `lives` can tell it from a later one with the same pid, and from one of the
 * checkout that this one was copied from with all that is written down there.
 */
export const identify = (pid) => ({ pid, started: startOf(pid), checkout: root });
export const lives = (identity) =>
  identity?.started !== undefined && startOf(identity.pid) === identity.started && isOurs(identity);

/** One that was moved is still the same: then where it was is nothing any more. */
const isOurs = (identity) => [undefined, root].includes(identity.checkout) || !existsSync(identity.checkout);

export function commandLine(pid) {
  if (startOf(pid) === undefined) return '';
  if (!hasProc) return ps('command=', pid);
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
  } catch {
    return '';
  }
}

/** Sends a signal; a process that has ended meanwhile is what we wanted anyway. */
export function signal(pid, name) {
  try {
    process.kill(pid, name);
  } catch (error) {
    if (error.code !== 'ESRCH') throw error;
  }
}

/** Waits until a process is gone; false when it still lives after `ms`. */
async function gone(identity, ms) {
  for (const deadline = Date.now() + ms; lives(identity); await sleep(20)) if (Date.now() > deadline) return false;
  return true;
}

/**
 * Ends a process and waits until it is gone: or the next start would join it. It gets each signal in turn, with so many ms to
 * heed it, and is killed if it heeds none.
 */
export async function end(identity, ...signals) {
  for (const [name, ms] of signals) {
    signal(identity.pid, name);
    if (await gone(identity, ms)) return;
  }
  signal(identity.pid, 'SIGKILL');
  await gone(identity, 2_000);
}

const running = new Set();
let ending = false;

/** From now on nothing is run any more, and what `run` waits for is ended: npm would take its time to undo what it did. */
export function endRunning() {
  ending = true;
  for (const child of running) {
    child.kill('SIGTERM');
    setTimeout(() => child.kill('SIGKILL'), 2_000);
  }
}
export const isEnding = () => ending;

/** Runs a program to its end and resolves to its exit code and all it said; one that cannot be started has failed. */
export function run([command, ...args], { input, ...options } = {}) {
  if (ending) return Promise.resolve({ code: 1, output: 'asked to stop' });
  return new Promise((resolve) => {
    const stdin = input === undefined ? 'ignore' : 'pipe';
    const child = spawn(command, args, { ...options, stdio: [stdin, 'pipe', 'pipe'] });
    const chunks = [];
    const ended = (code, note) => {
      running.delete(child);
      resolve({ code, output: Buffer.concat(chunks).toString() + note });
    };
    running.add(child);
    child.stdout.on('data', (chunk) => chunks.push(chunk));
    child.stderr.on('data', (chunk) => chunks.push(chunk));
    child.on('error', (error) => ended(127, error.message));
    child.on('close', (code, name) => ended(code ?? 1, name ? `\nended by ${name}` : ''));
    child.stdin?.on('error', () => {}); // it may end without reading; its exit code says what matters
    child.stdin?.end(input);
  });
}

/**
 * Runs a program, showing all it says, until it ends or a stop is requested; then it gets one SIGTERM and `patience` ms.
 * Resolves to its exit code, or to 0 if it was stopped. Whatever it started and left behind is ended with it.
 *
 * It gets a session of its own, so that on Ctrl-C it hears of it once, from us; and a channel to us, whose closing
 * (`process.on('disconnect')`) tells it that we were killed. `onMessage` hears what it sends there.
 */
export async function runUntilStopped(command, args, { cwd, env, stop, patience, onMessage }) {
  const child = spawn(command, args, { cwd, env, stdio: ['ignore', 'inherit', 'inherit', 'ipc'], detached: true });
  const ended = new Promise((resolve) => {
    child.on('error', (error) => resolve(console.error(error.message) ?? 127));
    child.on('exit', (code, name) => resolve(code ?? 128 + constants.signals[name]));
  });
  if (onMessage) child.on('message', onMessage);
  try {
    const code = await Promise.race([ended, stop.requested]);
    if (code !== undefined) return code;
    child.kill('SIGTERM');
    const late = await Promise.race([ended, sleep(patience).then(() => 'late')]);
    if (late === 'late') console.error(`It did not stop within ${patience / 1000} s and is ended.`);
    return 0;
  } finally {
    if (child.pid) signal(-child.pid, 'SIGKILL'); // its process group
  }
}

export const lastLines = (text, count) => text.trimEnd().split('\n').slice(-count).join('\n');
