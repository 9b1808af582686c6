// What does a tick of the clean-up do?

import { addJobs, jobOf } from '../queues/define-job.ts';
import type { Queues } from '../queues/redis.ts';
import { failStaleCalls } from '../queues/stale.ts';
import type { Context } from './context.ts';

/** Ask for a clean-up, in a job that is kept and can be retried: nothing of a tick is. One that is under way stands for it. */
export function tickStaleProcessor({ queues }: { queues: Queues }) {
  return async (_: Context): Promise<void> => addJobs(queues.stale, [jobOf(failStaleCalls, {})]);
}
