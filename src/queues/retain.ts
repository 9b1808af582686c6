// The job of the retention.

import { z } from 'zod';
import { type JobDefinition, retried } from './define-job.ts';

/** One at a time across the cluster. What is kept is the worker's own setting, and which hours may go is asked of the ledger. */
export const retainCalls: JobDefinition<object> = {
  queue: 'retain-calls',
  schema: z.object({}),
  name: () => 'retention',
  deduplicationId: () => 'retain-calls',
  options: retried,
};
