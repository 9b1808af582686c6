// What does a process do again and again until it ends?

import { setTimeout as sleep } from 'node:timers/promises';

/** Wait, do it, and wait again; until the signal aborts. */
export async function repeat(ms: number, signal: AbortSignal, task: () => Promise<void>): Promise<void> {
  while (!signal.aborted) {
    await sleep(ms, undefined, { signal }).catch(() => {});
    if (!signal.aborted) await task();
  }
}
