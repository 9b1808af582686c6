// Who is at it? A lock is a symbolic link that names its process; it counts only as long as that process lives, so that a
// killed one leaves nothing to clean up by hand. A link is there whole or not at all, and takes no room on a disk that is full.
// (Node cannot lock a file through the kernel.)
import { lstatSync, mkdirSync, readlinkSync, renameSync, rmSync, symlinkSync } from 'node:fs';
import path from 'node:path';
import { identify, lives, sleep } from './processes.mjs';

const ageOf = (file) => Date.now() - (lstatSync(file, { throwIfNoEntry: false })?.mtimeMs ?? Date.now());

function read(file) {
  try {
    return JSON.parse(readlinkSync(file));
  } catch {
    return undefined; // gone, or not made here
  }
}

/** The live process that holds the lock, with what it said about itself; undefined when nobody does. */
export function holderOf(file) {
  const holder = read(file);
  return lives(holder) ? holder : undefined;
}

/** Takes the lock if nobody alive has it, and returns the function that gives it back; else undefined. */
export function tryLock(file, about = {}) {
  mkdirSync(path.dirname(file), { recursive: true });
  for (let attempt = 0; attempt < 2; attempt++) {
    try {
      symlinkSync(JSON.stringify({ ...identify(process.pid), ...about }), file);
      return () => rmSync(file, { force: true });
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
      if (!removeIfStale(file)) return undefined;
    }
  }
  return undefined;
}

/** Says more about the process that holds the lock, this one. */
export function noteInLock(file, about) {
  rmSync(`${file}.new`, { force: true });
  symlinkSync(JSON.stringify({ ...identify(process.pid), ...about }), `${file}.new`);
  renameSync(`${file}.new`, file);
}

/** Whoever holds a lock installs packages or builds, or starts servers: nothing of it takes longer. */
const PATIENCE_MINUTES = 15;

/** Takes the lock, waiting for whoever has it; `onWait` hears once whom we wait for, `giveUp` says when not to. */
export async function lock(file, { onWait, giveUp, minutes = PATIENCE_MINUTES } = {}) {
  const deadline = Date.now() + minutes * 60_000;
  for (let told = false; ; await sleep(100)) {
    const unlock = tryLock(file);
    if (unlock) return unlock;
    if (giveUp?.()) throw new Error(`gave up waiting for ${file}`);
    const holder = holderOf(file);
    if (Date.now() > deadline) {
      throw new Error(
        `gave up after ${minutes} minutes: process ${holder?.pid} holds ${file}; end it, and do this again`,
      );
    }
    if (holder && !told) onWait?.(holder);
    told = told || Boolean(holder);
  }
}

/** One process at a time removes: or the second would remove the lock that the first took in place of the stale one. */
function removeIfStale(file) {
  const guard = `${file}.guard`;
  try {
    symlinkSync(String(process.pid), guard);
  } catch {
    if (ageOf(guard) > 5_000) rmSync(guard, { recursive: true, force: true }); // its maker was killed inside these few lines (0.5.0 made a folder)
    return false;
  }
  try {
    const holder = read(file);
    if (holder ? lives(holder) : ageOf(file) < 2_000) return false;
    rmSync(file, { force: true });
    return true;
  } finally {
    rmSync(guard, { force: true });
  }
}
