// The board, as its own page asks it, and as any other page might.

import { request } from 'node:http';
import { appRoutes, buildHistoryRoutes } from '@bull-board/api/dist/routes.js';
import { startDashboard } from '../../src/dashboard/server.ts';
import type { Hourhand } from './hourhand.ts';

/** Every change that this version of the board knows, with all that can be switched on: `put /api/queues/pause`. */
export const WRITES = [
  ...appRoutes.api,
  ...buildHistoryRoutes({} as never, { hasUsage: true, canPurge: true, hasLatency: true }), // no handler of it is called
]
  .flatMap(({ method, route }) => [method].flat().flatMap((m) => [route].flat().map((path) => `${m} ${path}`)))
  .filter((route) => !route.startsWith('get '));

export interface Answer {
  status: number;
  text: string;
  headers: NodeJS.Dict<string | string[]>;
}

/** Send exactly this, as a browser's attacker or curl would: no URL is tidied up on the way. */
export function askAt(
  port: number,
  method: string,
  path: string,
  headers: Record<string, string> = {},
  body?: string,
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    // Node's client tells the length of what a DELETE brings no server.
    const length = body === undefined ? {} : { 'Content-Length': String(Buffer.byteLength(body)) };
    const whole = { ...length, ...headers };
    const to = { host: '127.0.0.1', port, method: method.toUpperCase(), path, headers: whole, agent: false };
    const asked = request(to, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (chunk) => {
        text += chunk;
      });
      response.on('end', () => resolve({ status: response.statusCode ?? 0, text, headers: response.headers }));
    });
    asked.on('error', reject);
    asked.end(body);
  });
}

/** All that Redis holds for this hourhand, byte by byte. */
export async function everythingOf({ redis, prefix }: Hourhand): Promise<Record<string, string>> {
  // BullMQ's note that it has looked for stalled jobs goes by itself after some seconds.
  const keys = (await redis.keys(`${prefix}:*`)).filter((key) => !key.endsWith(':stalled-check')).sort();
  const values = await Promise.all(keys.map((key) => redis.dumpBuffer(key)));
  return Object.fromEntries(keys.map((key, i) => [key, values[i]?.toString('hex') ?? '']));
}

/** The cookies that an answer sets, as a browser sends them back. */
export const cookiesOf = ({ headers }: Pick<Answer, 'headers'>): Record<string, string> =>
  Object.fromEntries([headers['set-cookie'] ?? []].flat().map((cookie) => cookie.split(';')[0]?.split('=') ?? []));

/** What the board's own page sends with a write: its origin, and the token that its page was given, as `as` says who asks. */
export async function ownHeaders(port: number, as: Record<string, string> = {}): Promise<Record<string, string>> {
  const { 'XSRF-TOKEN': token = '' } = cookiesOf(await askAt(port, 'get', '/queues', as));
  const cookie = [as.Cookie, `XSRF-TOKEN=${token}`].filter((one) => one !== undefined).join('; ');
  const own = { Origin: `http://127.0.0.1:${port}`, 'Sec-Fetch-Site': 'same-origin', 'X-XSRF-TOKEN': token };
  return { ...as, ...own, Cookie: cookie };
}

/** An operator at the board. */
export async function openBoard(hourhand: Hourhand) {
  const { url, close } = await startDashboard(hourhand);
  const port = Number(new URL(url).port);
  const own = await ownHeaders(port);
  return {
    port,
    /** What a button does: the answer's status. */
    put: async (path: string) => (await askAt(port, 'put', `/queues/api/queues${path}`, own)).status,
    [Symbol.asyncDispose]: close,
  };
}
