// How are the calls that hang failed?

import { randomUUID } from 'node:crypto';
import { cleanUp, type StalePolicy } from '../producers/stale.ts';
import { parseData } from '../queues/define-job.ts';
import { failStaleCalls } from '../queues/stale.ts';
import { readClock, whyHeld } from '../store/clock.ts';
import type { Pool } from '../store/db.ts';
import type { CleanUp } from '../store/stale.ts';
import type { Context } from './context.ts';

/**
 * Fail every call that has been processing for longer than its limit, and say on the job which models and hours they
 * were of; in the log too, as a warning where it is many more than usual. It may run twice, or die on any line: what it
 * had done is done and accounted for, and each call is failed once.
 */
export function failStaleCallsProcessor(deps: { pool: Pool; policy: StalePolicy }) {
  return async ({ job, signal, log }: Context): Promise<CleanUp | { nothing: string }> => {
    // A fast clock would fail calls that have only just begun.
    const held = whyHeld(await readClock(deps.pool));
    if (held) {
      await job.log(`waits: ${held}`);
      return { nothing: `failed: ${held}` };
    }
    const { cleanup = randomUUID() } = parseData(failStaleCalls, job);
    await job.updateData({ cleanup });
    const { done, usual, rise } = await cleanUp(deps, {
      cleanup,
      requestedBy: null,
      signal,
      onProgress: (looked, total) => job.updateProgress(total === 0 ? 100 : Math.round((100 * looked) / total)),
    });
    for (const { provider, model, type, limitMinutes, calls } of done.models) {
      await job.log(`${provider}/${model} ${type}: ${calls} calls exceeded ${limitMinutes} minutes`);
    }
    const { calls } = done;
    const hours = Object.keys(done.hours).length;
    if (rise) {
      const worst = Math.max(...done.models.map((line) => line.calls));
      const { provider, model } = done.models.find((line) => line.calls === worst) ?? {};
      log.warn({ calls, usual: Math.round(usual), hours, provider, model }, 'many more calls hang than usual');
    } else if (calls > 0) log.info({ calls, hours }, 'stale calls failed');
    signal.throwIfAborted();
    return done;
  };
}
