// Who may ask a worker process whether it lives, and what it has counted?

import { hash, timingSafeEqual } from 'node:crypto';
import { createServer } from 'node:http';
import { type Config, version } from './config.ts';
import { close, listen } from './listen.ts';
import type { Logger } from './logger.ts';
import type { Metrics } from './metrics.ts';
import { reasonOf } from './store/db.ts';

/**
 * Serve `/metrics` to whoever knows `METRICS_TOKEN`; where there is none, to this machine. And `/healthz`, to everybody, as the
 * dashboard does: it answers for as long as the process lives, so that whoever runs it in a container can see one that hangs.
 *
 * @throws {Error} naming METRICS_PORT or METRICS_HOST when nobody can listen there
 */
export async function serveMetrics(
  { config, log }: { config: Config; log: Logger },
  { registry }: Metrics,
): Promise<{ url: string; close(): Promise<void> }> {
  const { METRICS_HOST: host, METRICS_PORT: port = 0, METRICS_TOKEN: token } = config;
  const server = createServer(async ({ url, method = '', headers }, res) => {
    const say = (status: number, text: string, more = {}) =>
      res.writeHead(status, { 'Content-Type': 'text/plain', 'Cache-Control': 'no-store', ...more }).end(text);
    const path = url?.split('?', 1)[0] ?? '';
    if (!['/metrics', '/healthz'].includes(path)) return say(404, 'There are /metrics and /healthz.\n');
    if (!['GET', 'HEAD'].includes(method)) return say(405, 'expected GET\n', { Allow: 'GET, HEAD' });
    if (path === '/healthz') {
      return say(200, JSON.stringify({ status: 'ok', version }), { 'Content-Type': 'application/json' });
    }
    if (token !== '' && !isBearer(headers.authorization, token)) {
      return say(401, 'expected the bearer token METRICS_TOKEN\n', { 'WWW-Authenticate': 'Bearer' });
    }
    try {
      say(200, await registry.metrics(), { 'Content-Type': registry.contentType });
    } catch (error) {
      say(500, `${reasonOf(error)}\n`);
    }
  });
  const names = { host: 'METRICS_HOST', port: 'METRICS_PORT' };
  const url = `${await listen(server, { host, port, names })}/metrics`;
  log.info({ url }, 'metrics served');
  return { url, close: () => close(server) };
}

/** Compared by their hashes, which are of one length, in a time that tells nothing. */
function isBearer(authorization: string | undefined, token: string): boolean {
  const [, given = ''] = /^bearer +(.+)$/i.exec(authorization ?? '') ?? [];
  return timingSafeEqual(hash('sha256', given, 'buffer'), hash('sha256', token, 'buffer'));
}
