// What does a tick of the model check do?

import { announceTransitions, enqueueCheck } from '../producers/models.ts';
import type { Queues } from '../queues/redis.ts';
import type { Pool } from '../store/db.ts';

/** Ask for a look at all models, and again for the announcements that failed. Whatever the tick is called and whatever it carries. */
export function tickModelsProcessor({ pool, queues }: { pool: Pool; queues: Queues }) {
  return async () => {
    await enqueueCheck(queues);
    await announceTransitions(pool, queues);
  };
}
