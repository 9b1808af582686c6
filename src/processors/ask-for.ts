// What does a tick do that only asks for a job?

import type { Queue } from 'bullmq';
import { addJobs, type JobDefinition, jobOf } from '../queues/define-job.ts';

/** Ask for the work in a job that is kept and can be retried: nothing of a tick is. One that is under way stands for it. */
export function askForProcessor(queue: Queue, definition: JobDefinition<object>) {
  return async (): Promise<void> => addJobs(queue, [jobOf(definition, {})]);
}
