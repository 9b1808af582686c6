// How are calls and statistics removed that are no longer kept?

import { type Retained, retain } from '../producers/retain.ts';
import type { Queues } from '../queues/redis.ts';
import type { Pool } from '../store/db.ts';
import type { Kept } from '../time/kept.ts';
import { sayDifference } from './audit-hours.ts';
import type { Context } from './context.ts';

/**
 * Seal, delete, and say on the job what was done, which hours were passed over and why. It may run twice, or die on any line: each hour
 * goes on where it ended.
 */
export function retainCallsProcessor({ pool, queues, kept }: { pool: Pool; queues: Queues; kept: Kept }) {
  return async (context: Context): Promise<Retained> => {
    const { job, signal, log } = context;
    const done = await retain(
      { pool, queues },
      {
        kept,
        requestedBy: 'retention',
        signal,
        onProgress: (_, looked, total) => job.updateProgress(Math.round((100 * looked) / total)),
        onDiffering: (hour, result) => sayDifference(context, hour, result),
      },
    );
    signal.throwIfAborted();
    const { sealed, calls, callHours, detached, stats, statHours, passed, late, held } = done;
    if (held) {
      log.warn({ reason: held }, 'retention waits');
      await job.log(`waits: ${held}`);
    }
    await job.log(
      `${sealed} hours sealed; ${calls} calls of ${callHours} hours and ${stats} statistics of ${statHours} hours deleted`,
    );
    for (const name of detached) await job.log(`${name} detached: a table of its own now`);
    for (const [why, { hours, first }] of Object.entries(passed)) {
      await job.log(`${hours} hours passed over: ${why}: ${first.join(', ')}${hours > first.length ? ', …' : ''}`);
    }
    for (const { hour, calls, users } of late.first) {
      await job.log(`${hour}: ${calls} late calls, not applied and kept: ${users.join(', ')}`);
    }
    if (sealed + calls + detached.length + stats > 0)
      log.info({ sealed, calls, callHours, detached, stats, statHours }, 'retention');
    if (late.calls > 0) log.warn({ calls: late.calls, hours: late.hours }, 'late calls of sealed hours: not applied');
    return done;
  };
}
