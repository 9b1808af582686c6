// How is a transition told to the webhook?

import { UnrecoverableError } from 'bullmq';
import { parseData } from '../queues/define-job.ts';
import { announceTransition } from '../queues/models.ts';
import type { Pool } from '../store/db.ts';
import { markAnnounced, transitionOf } from '../store/model-status.ts';
import type { Context } from './context.ts';
import { tellWebhook, type WebhookTarget } from './tell-webhook.ts';

const TIMEOUT_MS = 10_000;

/**
 * Send one transition to the webhook, and note that it was taken. At least once.
 *
 * @throws {Error} where it was not taken: it is sent again
 */
export function announceTransitionProcessor({ pool, webhook }: { pool: Pool; webhook: WebhookTarget | undefined }) {
  return async ({ job, signal }: Context): Promise<unknown> => {
    const { transition: seq } = parseData(announceTransition, job);
    const transition = await transitionOf(pool, seq);
    if (!transition || transition.announcedAt) return { nothing: 'to tell' };
    if (!webhook) throw new UnrecoverableError('MODEL_WEBHOOK_URL is not set where this worker runs');
    const { providerId, at, announcedAt: _, seq: __, ...rest } = transition;
    const said = { type: 'model.status', timestamp: at, data: { provider: providerId, ...rest } };
    const id = `hourhand-transition-${seq}`;
    const status = await tellWebhook(webhook, { id, ...said }, { signal, timeoutMs: TIMEOUT_MS });
    await markAnnounced(pool, seq);
    return { status };
  };
}
