// The jobs of the clean-up of stale calls: a tick, and the clean-up.

import { z } from 'zod';
import { type JobDefinition, retried } from './define-job.ts';

/** The name of its account, stored on the job, so that an attempt after a crash goes on with it. */
const cleanupData = z.object({ cleanup: z.string().optional() });
export type CleanupData = z.infer<typeof cleanupData>;

/** One at a time across the cluster. What is stale, and after how long, is asked of Postgres and of the worker's own settings. */
export const failStaleCalls: JobDefinition<CleanupData> = {
  queue: 'stale-calls',
  schema: cleanupData,
  name: () => 'stale calls',
  deduplicationId: () => 'stale-calls',
  options: retried,
};
