// How is a transition told to the webhook?

import { UnrecoverableError } from 'bullmq';
import { Webhook } from 'standardwebhooks';
import { parseData } from '../queues/define-job.ts';
import { announceTransition } from '../queues/models.ts';
import type { Pool } from '../store/db.ts';
import { markAnnounced, transitionOf } from '../store/model-status.ts';
import type { Context } from './context.ts';

/** Where transitions are told, and what they are signed with. Both are secrets: neither goes into a job or a log. */
export interface WebhookTarget {
  readonly url: string;
  readonly secret: string;
}

const TIMEOUT_MS = 10_000;

/**
 * Send one transition to the webhook, signed as in the Standard Webhooks specification (`webhook-id`, `webhook-timestamp`,
 * `webhook-signature`), and note that it was taken. At least once: whoever receives it tells repetitions by `webhook-id`.
 *
 * @throws {Error} where it was not taken (any answer but 2xx): it is sent again
 */
export function announceTransitionProcessor({ pool, webhook }: { pool: Pool; webhook: WebhookTarget | undefined }) {
  return async ({ job, signal }: Context): Promise<unknown> => {
    const { transition: seq } = parseData(announceTransition, job);
    const transition = await transitionOf(pool, seq);
    if (!transition || transition.announcedAt) return { nothing: 'to tell' };
    if (!webhook) throw new UnrecoverableError('MODEL_WEBHOOK_URL is not set where this worker runs');
    const { providerId, at, announcedAt: _, seq: __, ...rest } = transition;
    const body = JSON.stringify({ type: 'model.status', timestamp: at, data: { provider: providerId, ...rest } });
    const id = `hourhand-transition-${seq}`;
    const now = new Date();
    const response = await fetch(webhook.url, {
      method: 'POST',
      body,
      redirect: 'manual', // what is signed for one host is told to no other
      signal: AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]),
      headers: {
        'content-type': 'application/json',
        'webhook-id': id,
        'webhook-timestamp': String(Math.floor(now.getTime() / 1_000)),
        'webhook-signature': new Webhook(webhook.secret, { format: 'raw' }).sign(id, now, body),
      },
    }).catch((cause: unknown) => {
      throw new Error(`the webhook did not answer: ${whyNot(cause)}`, { cause });
    });
    await response.body?.cancel();
    if (!response.ok) throw new Error(`the webhook answered ${response.status || 'with a redirect'}`);
    await markAnnounced(pool, seq);
    return { status: response.status };
  };
}

/** Without the address, which may hold a secret: the system's code for it, or the error's name. */
function whyNot(error: unknown): string {
  const { name, cause } = Object(error);
  return Object(cause).code ?? name ?? 'unknown';
}
