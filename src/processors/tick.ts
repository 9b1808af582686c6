// What does every tick do, whichever scheduler it is of?

import { isAskedFor } from '../queues/define-job.ts';
import type { SchedulerId } from '../queues/schedulers.ts';
import { type Pool, reasonOf } from '../store/db.ts';
import { markTicked, scheduleOf } from '../store/schedules.ts';
import type { Process } from './context.ts';

/**
 * A tick that was in Redis already when its scheduler was paused ends without doing anything, unless a person asked for it. One that
 * is done is written down as its scheduler's last; that this could not be is no failure of the tick.
 */
export function tickProcessor({ pool, id }: { pool: Pool; id: SchedulerId }, process: Process): Process {
  return async (context) => {
    const { job, log } = context;
    if (!isAskedFor(job) && (await scheduleOf(pool, id))?.pausedAt) return { nothing: 'done, for it is paused' };
    const done = await process(context);
    await markTicked(pool, id).catch((error: unknown) => {
      log.warn({ scheduler: id, reason: reasonOf(error) }, 'last tick not written down');
    });
    return done;
  };
}
