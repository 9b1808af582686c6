// A newcomer's machine: who they are, what is on their PATH, and what is left on it when they have gone.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  lchownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statfsSync,
  statSync,
  symlinkSync,
} from 'node:fs';
import { freemem, tmpdir } from 'node:os';
import path from 'node:path';
import { it } from 'vitest';
import { commandLine, startOf } from '../../../scripts/processes.mjs';
import { until } from '../../support/hourhand.ts';

/** Root may be anybody, and may mount what is only seen by what it starts. */
export const isRoot = process.getuid?.() === 0;
export const mayMount =
  isRoot && spawnSync('unshare', ['-m', 'sh', '-c', 'mount -t tmpfs -o size=1m none /mnt']).status === 0;

const hasProc = existsSync('/proc/self/stat');
if (!hasProc) console.log('SKIPPED: what is left running is seen in /proc alone, which this system lacks');
/** For tests that look at what runs. */
export const itWithProc = it.skipIf(!hasProc);

const GIGABYTE = 2 ** 30;

/**
 * A folder that others may enter, gone afterwards.
 *
 * @param heavy packages are going to be installed there: in memory, where there is plenty, for the thousands of files cost a
 *   slow disk minutes
 */
export function temporaryFolder({ heavy = false } = {}): Disposable & { dir: string } {
  const dir = mkdtempSync(path.join(heavy && memoryIsPlenty() ? '/dev/shm' : tmpdir(), 'hourhand-newcomer-'));
  chmodSync(dir, 0o755);
  return { dir, [Symbol.dispose]: () => rmSync(dir, { recursive: true, force: true }) };
}

function memoryIsPlenty(): boolean {
  // In containers often nothing may run from there.
  const mount = hasProc && readFileSync('/proc/mounts', 'utf8').match(/^\S+ \/dev\/shm \S+ (\S+)/m);
  if (!mount || /(^|,)(noexec|ro)(,|$)/.test(mount[1] ?? '')) return false;
  const { bavail, bsize } = statfsSync('/dev/shm');
  return bavail * bsize > 3 * GIGABYTE && freemem() > 6 * GIGABYTE;
}

/** Where a program is, on the PATH of now. */
export const which = (name: string): string | undefined =>
  process.env.PATH?.split(path.delimiter)
    .map((folder) => path.join(folder, name))
    .find(existsSync);

/**
 * Makes a folder for a PATH that holds Node, npm, a shell and these programs, and nothing else.
 *
 * @param programs by the names they get: of those that are not there, none
 */
export function onlyThese(dir: string, programs: Record<string, string | undefined> = {}): string {
  mkdirSync(dir, { recursive: true });
  const always = Object.fromEntries(['npm', 'npx', 'sh', 'env'].map((name) => [name, which(name)]));
  for (const [name, at] of Object.entries({ ...always, ...programs, node: process.execPath })) {
    if (at) symlinkSync(at, path.join(dir, name));
  }
  return dir;
}

/** Makes a folder and all in it somebody's; files that have other names elsewhere stay whose they are. */
export function give(dir: string, uid: number): void {
  lchownSync(dir, uid, uid);
  for (const entry of readdirSync(dir, { withFileTypes: true })) {
    const at = path.join(dir, entry.name);
    if (entry.isDirectory()) give(at, uid);
    else if (statSync(at, { throwIfNoEntry: false })?.nlink === 1) lchownSync(at, uid, uid);
  }
}

/** The environment of now, without what npm and these tests have put there. */
export function environment(own: Record<string, string | undefined>): NodeJS.ProcessEnv {
  const ours = /^(npm_|VITEST|TEST|DATABASE_URL|REDIS_URL|PORT$|HOST$|NODE_ENV|INIT_CWD|CI$|FORCE_COLOR)/;
  return { ...Object.fromEntries(Object.entries(process.env).filter(([name]) => !ours.test(name))), ...own };
}

export interface Place {
  readonly cwd: string;
  readonly env: NodeJS.ProcessEnv;
  readonly uid?: number;
  readonly gid?: number;
}

/** A command in a terminal: it can be watched, and ended with Ctrl-C. */
export interface Command {
  readonly child: ChildProcess;
  /** All that it has said. */
  said(): string;
  /** Resolves to the words when it says them; rejects with all it said when it ends without. */
  says(words: RegExp): Promise<RegExpMatchArray>;
  /** Resolves to its exit code. */
  ends(): Promise<number>;
  interrupt(): Promise<number>;
}

export function type(place: Place, command: string, ...args: string[]): Command {
  const child = spawn(command, args, { ...place, detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
  let said = '';
  const hear = (chunk: unknown) => {
    said += chunk;
  };
  for (const stream of [child.stdout, child.stderr]) stream.on('data', hear);
  const exited = new Promise<number>((resolve) => {
    child.on('error', (error) => {
      hear(error.message);
      resolve(127);
    });
    child.on('close', (code) => resolve(code ?? -1));
  });
  let ended = false;
  exited.then(() => {
    ended = true;
  });
  const ends = () => exited;
  return {
    child,
    said: () => said,
    ends,
    async says(words) {
      const find = async () => said.match(words);
      const found = await until(find, (match) => match !== null || ended, 170_000);
      if (!found) throw new Error(`ended without saying ${words}:\n${said}`);
      return found;
    },
    interrupt() {
      if (child.pid && !ended) process.kill(-child.pid, 'SIGINT'); // a terminal signals all that is in its foreground
      return ends();
    },
  };
}

/** Types a command and waits for its end. */
export async function typed(
  place: Place,
  command: string,
  ...args: string[]
): Promise<{ code: number; said: string; ms: number }> {
  const begun = performance.now();
  const running = type(place, command, ...args);
  const code = await running.ends();
  return { code, said: running.said(), ms: performance.now() - begun };
}

/** The processes whose command line or working folder names this folder. */
export function processesOf(dir: string): number[] {
  return pids().filter((pid) => {
    try {
      return `${readFileSync(`/proc/${pid}/cmdline`, 'utf8')}\0${readlinkSync(`/proc/${pid}/cwd`)}`.includes(dir);
    } catch {
      return false; // it has ended
    }
  });
}

/** kill -9 of all that runs there; some end by themselves when others are gone. */
export function killAll(dir: string, which = /./): void {
  for (const pid of processesOf(dir)) {
    try {
      if (which.test(readFileSync(`/proc/${pid}/cmdline`, 'utf8'))) process.kill(pid, 'SIGKILL');
    } catch {
      // it has ended
    }
  }
}

const pids = () =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number);

/** All that a user has on this machine outside one folder: processes, temporary files, shared memory. */
export function belongings(uid: number, except: string): string[] {
  // One that has ended and is not yet buried counts as gone; so do those that ended while we looked.
  const processes = pids()
    .filter((pid) => statSync(`/proc/${pid}`, { throwIfNoEntry: false })?.uid === uid)
    .filter((pid) => startOf(pid) !== undefined)
    .map((pid) => `process ${pid} ${commandLine(pid)}`);
  const folders = ['/tmp', '/var/tmp', '/dev/shm', '/run', '/var/lib', '/var/cache', '/var/log', tmpdir()].filter(
    existsSync,
  );
  const files = [...new Set(folders)].flatMap((folder) => filesOf(folder, uid, except));
  const segments = readFileSync('/proc/sysvipc/shm', 'utf8')
    .split('\n')
    .slice(1)
    .map((line) => line.trim().split(/\s+/))
    .filter((fields) => Number(fields[7]) === uid)
    .map((fields) => `shared memory ${fields[1]}`);
  return [...processes, ...new Set(files), ...segments];
}

function filesOf(folder: string, uid: number, except: string): string[] {
  const { stdout } = spawnSync('find', [folder, '-path', except, '-prune', '-o', '-uid', String(uid), '-print'], {
    encoding: 'utf8',
  });
  return stdout.split('\n').filter(Boolean);
}

/** All files in a folder, by their names in it. */
export const filesIn = (dir: string): string[] => readdirSync(dir, { recursive: true }).map(String).sort();
