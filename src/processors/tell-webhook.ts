// How is a webhook told?

import { Webhook } from 'standardwebhooks';

/** Where something is told, and what it is signed with. Both are secrets: neither goes into a job or a log. */
export interface WebhookTarget {
  readonly url: string;
  readonly secret: string;
}

/** The target that the environment names, if it names one. */
export function targetOf(url: string, secret: string): WebhookTarget | undefined {
  return url === '' ? undefined : { url, secret };
}

/**
 * Send something to a webhook, signed as in the Standard Webhooks specification (`webhook-id`, `webhook-timestamp`,
 * `webhook-signature`). Whoever receives it tells repetitions by `webhook-id`.
 *
 * @returns the status with which it was taken (2xx)
 * @throws {Error} where it was not: any other answer, or none; without the address, which may hold a secret
 */
export async function tellWebhook(
  { url, secret }: WebhookTarget,
  { id, ...said }: { id: string; type: string; timestamp: Date; data: object },
  { signal, timeoutMs }: { signal: AbortSignal; timeoutMs: number },
): Promise<number> {
  const body = JSON.stringify(said);
  const now = new Date();
  const response = await fetch(url, {
    method: 'POST',
    body,
    redirect: 'manual', // what is signed for one host is told to no other
    signal: AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]),
    headers: {
      'content-type': 'application/json',
      'webhook-id': id,
      'webhook-timestamp': String(Math.floor(now.getTime() / 1_000)),
      'webhook-signature': new Webhook(secret, { format: 'raw' }).sign(id, now, body),
    },
  }).catch((cause: unknown) => {
    throw new Error(`the webhook did not answer: ${whyNot(cause)}`, { cause });
  });
  await response.body?.cancel();
  if (!response.ok) throw new Error(`the webhook answered ${response.status || 'with a redirect'}`);
  return response.status;
}

/** Without the address: the system's code for it, or the error's name. */
function whyNot(error: unknown): string {
  const { name, cause } = Object(error);
  return Object(cause).code ?? name ?? 'unknown';
}
