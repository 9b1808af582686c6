// What goes to a provider, and what comes back?

import type OpenAI from 'openai';
import type { ModelError } from '../store/model-errors.ts';
import { redactHost } from './redact.ts';

const REDIRECTS = 3;

/** A whole answer: its body has been read, and was no longer than allowed. */
export interface Received {
  readonly status: number;
  readonly headers: Headers;
  readonly body: Uint8Array<ArrayBuffer>;
}

/** A request in the client's words. */
export type Question = (client: OpenAI) => { asResponse(): Promise<unknown> };

/** No answer, or one that says no. It does not leave this folder: `said` is what the provider said, unredacted. */
export class Refused extends Error {
  readonly reason: ModelError;
  readonly said: string;
  readonly status: number;
  readonly retryAt: Date | undefined;
  /** Told after the detail, and made fit for it already: as one run of characters a host can look like a key. */
  readonly host: string;
  constructor(
    reason: ModelError,
    detail: string,
    {
      said = '',
      status = 0,
      retryAt,
      host = '',
    }: { said?: string; status?: number; retryAt?: Date; host?: string } = {},
  ) {
    super(detail);
    this.reason = reason;
    this.said = said;
    this.status = status;
    this.retryAt = retryAt;
    this.host = host;
  }
}

/** Tens of megabytes, and most workers never ask a model. To be awaited before a clock runs: the first time it takes a second. */
export const loadClient = () => import('openai');

/**
 * Make one request, and read the answer to its end: `signal` covers both. The client spells the request; it does not
 * repeat it, and what it reads from the environment (`OPENAI_CUSTOM_HEADERS`, an organization) is for another provider.
 *
 * @param limit how many bytes of a body are read before it is refused
 * @throws {Refused} where the answer is none
 * @throws what `fetch` throws
 */
export async function exchange(
  { baseUrl, key, signal, limit }: { baseUrl: string; key: string; signal: AbortSignal; limit: number },
  question: Question,
): Promise<Received> {
  let received: Received | undefined;
  let failed: unknown;
  const transport = async (url: string | URL | Request, init: RequestInit = {}) => {
    try {
      const headers = ourHeaders(init.headers, key);
      const { method, body } = init;
      received = await follow(new URL(String(url)), { method, body, headers, signal }, { key, limit });
      // The client reads nothing but that there was an answer; and some statuses may have no body.
      return new Response(null, { status: 200 });
    } catch (error) {
      failed = error;
      throw error;
    }
  };
  const { default: OpenAI } = await loadClient();
  const client = new OpenAI({
    baseURL: baseUrl,
    apiKey: key,
    adminAPIKey: null,
    organization: null,
    project: null,
    maxRetries: 0,
    logLevel: 'off', // else OPENAI_LOG=debug would print what is sent
    // Asked for by the client, to learn whether forms can be sent.
    fetch: Object.assign(transport, { Response }),
  });
  await question(client)
    .asResponse()
    .catch((error: unknown) => {
      throw failed ?? error;
    });
  if (!received) throw new Error('expected the client to make a request, it made none');
  return received;
}

/** What the client means to say, and no more: it would also tell about this machine, and what the environment adds. */
function ourHeaders(theirs: RequestInit['headers'], key: string): Headers {
  // A connection of its own: one left over from the last probe may have been closed from the other side.
  const headers = new Headers({ authorization: `Bearer ${key}`, connection: 'close' });
  const meant = new Headers(theirs);
  for (const name of ['accept', 'content-type', 'user-agent']) {
    const value = meant.get(name);
    if (value !== null) headers.set(name, value);
  }
  return headers;
}

/** Redirects are followed by us: within the origin alone, since the key goes with them, and with the same method. */
async function follow(
  url: URL,
  request: RequestInit,
  { key, limit }: { key: string; limit: number },
): Promise<Received> {
  for (let hops = 0; ; hops++) {
    const response = await fetch(url.href, { ...request, redirect: 'manual' });
    const location = [301, 302, 303, 307, 308].includes(response.status) ? response.headers.get('location') : null;
    if (location === null) return read(response, limit);
    await response.body?.cancel();
    const said = `HTTP ${response.status}: redirected`;
    if (!URL.canParse(location, url.href)) throw new Refused('malformed answer', `${said}, but not to a URL`);
    const next = new URL(location, url);
    if (next.origin !== url.origin) {
      const host = `${next.protocol}//${redactHost(next.host, key)}`;
      throw new Refused('malformed answer', `${said} to another host, not followed:`, { host });
    }
    if (hops === REDIRECTS) throw new Refused('malformed answer', `${said} more than ${REDIRECTS} times`);
    [next.username, next.password] = ['', ''];
    url = next;
    if (response.status === 303) {
      request.headers = new Headers(request.headers);
      request.headers.delete('content-type');
      Object.assign(request, { method: 'GET', body: undefined });
    }
  }
}

async function read(response: Response, limit: number): Promise<Received> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of response.body ?? []) {
    size += chunk.byteLength;
    // Leaving the loop cancels the rest.
    if (size > limit) throw new Refused('malformed answer', `HTTP ${response.status}: longer than ${limit} bytes`);
    chunks.push(chunk);
  }
  return { status: response.status, headers: response.headers, body: new Uint8Array(Buffer.concat(chunks)) };
}
