// Has somebody asked us to stop?
import { constants } from 'node:os';
import { endRunning } from './processes.mjs';
import { whyFull } from './room.mjs';

/**
 * Listens for Ctrl-C, SIGTERM, a closed terminal and the end of the npm that started us. `requested` resolves when one
 * comes; from then on `exitCode` is a shell's for it. A command of the set-up that is under way is ended.
 *
 * Only the first counts: on Ctrl-C the terminal signals us and npm as well, and npm passes its own on.
 */
export function awaitStopRequest() {
  const stop = { exitCode: undefined };
  stop.requested = new Promise((resolve) => {
    const request = (name) => {
      if (stop.exitCode !== undefined) return;
      stop.exitCode = 128 + constants.signals[name];
      endRunning();
      resolve();
    };
    // Whoever read what we say may leave (npm start | head): no reason to leave the servers behind.
    for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
    for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(name, () => request(name));
    const parent = process.ppid; // npm, or a shell between it and us, which may keep its signal to itself
    const ofNpm = process.env.npm_lifecycle_event !== undefined;
    // It also keeps this process alive: to listen for signals alone does not.
    setInterval(() => ofNpm && process.ppid !== parent && request('SIGTERM'), 500);
  });
  return stop;
}

/** Does the work and ends this process with the exit code it resolves to. */
export async function exitAfter(work, stop) {
  try {
    process.exitCode = await work();
  } catch (error) {
    // What fails because we were asked to stop has not failed.
    if (stop.exitCode === undefined) console.error(`\n${whyFull(error.message)}${error.message}`);
    process.exitCode = stop.exitCode ?? 1;
  }
  process.exit();
}
