// Where may a provider's API be?

import { redact } from './redact.ts';

const LOOPBACK = /^(localhost|127\.[0-9]+\.[0-9]+\.[0-9]+|\[::1\])$/;

/** Whether what is sent there can be read on the way: by plain http, and not to this machine. */
export function inTheClear({ protocol, hostname }: URL): boolean {
  return protocol === 'http:' && !LOOPBACK.test(hostname);
}

/**
 * Read the base URL of an OpenAI-compatible API: without a path `/v1` is added, with one it is taken as it is.
 * A key travels with every request, so plain http goes to this machine alone, unless it is allowed.
 *
 * @throws {RangeError} saying what was expected and what was found; not what could be a credential in it
 */
export function readBaseUrl(text: string, { allowHttp }: { allowHttp: boolean }): string {
  const expected = 'expected the base URL of an API such as https://api.example.com/v1';
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (!url || !/^https?:$/.test(url.protocol)) throw new RangeError(`${expected}, got "${redact(text, '')}"`);
  if (url.username || url.password) throw new RangeError(`${expected}, got one with credentials in it`);
  if (/[?#]/.test(text)) throw new RangeError(`${expected}, got one with a query or a fragment`);
  if (!allowHttp && inTheClear(url)) {
    throw new RangeError(`expected https, or http to this machine, got http to ${url.host}`);
  }
  const path = url.pathname.replace(/\/+$/, '');
  return `${url.origin}${path || '/v1'}`;
}
