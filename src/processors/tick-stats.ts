// What does a tick of the roll-up do?

import { enqueueOwed, type HoursPolicy } from '../producers/hours.ts';
import { isAskedFor } from '../queues/define-job.ts';
import type { Queues } from '../queues/redis.ts';
import type { Pool } from '../store/db.ts';
import type { Context } from './context.ts';
import { saySwept } from './say-swept.ts';

/** Wake up and look. Whatever the tick is called and whatever it carries: it may have lost both. */
export function tickStatsProcessor(deps: { pool: Pool; queues: Queues; policy: HoursPolicy }) {
  return async ({ job, log }: Context) => {
    const { enqueued, closedEmpty, marked, settled, swept } = await enqueueOwed(deps, undefined, isAskedFor(job));
    saySwept(log, swept);
    const found = {
      enqueued: enqueued.length,
      closedEmpty: closedEmpty.length,
      marked: marked.length,
      settled: settled.length,
    };
    log.info(found, 'tick');
    return found;
  };
}
