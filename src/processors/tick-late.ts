// What does a tick of the late data do?

import { enqueueLate, type HoursPolicy } from '../producers/hours.ts';
import type { Queues } from '../queues/redis.ts';
import type { Pool } from '../store/db.ts';
import type { Context } from './context.ts';
import { saySwept } from './say-swept.ts';

/** Ask for the users whose calls came late, all the marks of an hour together. */
export function tickLateProcessor(deps: { pool: Pool; queues: Queues; policy: HoursPolicy }) {
  return async ({ log }: Context) => {
    const { marked, settled, swept } = await enqueueLate(deps);
    saySwept(log, swept);
    const found = { marked: marked.length, settled: settled.length };
    if (found.marked + found.settled > 0) log.info(found, 'late data');
    return found;
  };
}
