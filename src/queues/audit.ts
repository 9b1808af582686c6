// The job of the audit.

import { z } from 'zod';
import { type JobDefinition, retried } from './define-job.ts';

/** One at a time across the cluster. Which hours it recounts is asked of the ledger. */
export const auditHours: JobDefinition<object> = {
  queue: 'audit-hours',
  schema: z.object({}),
  name: () => 'audit',
  deduplicationId: () => 'audit-hours',
  options: retried,
};
