// The jobs of the clean-up of stale calls: a tick, and the clean-up.

import { z } from 'zod';
import { type JobDefinition, retried } from './define-job.ts';

/** One at a time across the cluster. What is stale, and after how long, is asked of Postgres and of the worker's own settings. */
export const failStaleCalls: JobDefinition<Record<string, never>> = {
  queue: 'stale-calls',
  schema: z.object({}).strict() as z.ZodType<Record<string, never>>,
  name: () => 'stale calls',
  deduplicationId: () => 'stale-calls',
  options: retried,
};
