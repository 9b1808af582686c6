// The jobs of the model check: a tick, a check, its probes, and what is told of it outside.

import { z } from 'zod';
import { type JobDefinition, retried } from './define-job.ts';

/**
 * The step is stored on the job, so that a crash resumes where it died. Which models are to be looked at, and how, stands
 * in ModelCheck; 0 until a scheduled check has its row there.
 */
const checkData = z.object({
  step: z.enum(['plan', 'probe', 'judge']),
  check: z.int().nonnegative(),
});
export type CheckData = z.infer<typeof checkData>;

export const checkModels: JobDefinition<CheckData> = {
  queue: 'models-check',
  schema: checkData,
  name: ({ check }) => (check === 0 ? 'check of all models' : `check ${check}, by hand`),
  // A scheduled check that is not over yet stands for the next one; what a person asks for is always done.
  deduplicationId: ({ check }) => (check === 0 ? 'check' : `check-${check}`),
  options: retried,
};

/** Names alone: what a probe may do, and with which key, is asked of Postgres and of the worker's environment. */
const probeData = z.object({ probe: z.int().positive(), providerId: z.string(), model: z.string() });
export type ProbeData = z.infer<typeof probeData>;

export const probeModel: JobDefinition<ProbeData> = {
  queue: 'models-probe',
  schema: probeData,
  name: ({ providerId, model }) => `probe ${providerId}/${model}`,
  // The check judges once all have settled, failed ones too.
  options: { ...retried, ignoreDependencyOnFailure: true },
};

export function probeJobId({ probe }: ProbeData, parentId: string): string {
  return `probe-${probe}-p${parentId}`;
}

const announcementData = z.object({ transition: z.int().positive() });
export type AnnouncementData = z.infer<typeof announcementData>;

/** One transition told to the webhook: tried for about an hour, and asked for again by later checks for a day. */
export const announceTransition: JobDefinition<AnnouncementData> = {
  queue: 'models-webhook',
  schema: announcementData,
  name: ({ transition }) => `transition ${transition}`,
  deduplicationId: ({ transition }) => `transition-${transition}`,
  options: { ...retried, attempts: 12 },
};
