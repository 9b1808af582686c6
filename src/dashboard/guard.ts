// Who may ask, and what may be changed?

import { type RequestHandler, type Response, Router } from 'express';
import type { Connections } from '../connections.ts';

/** How this machine is spelled in a browser's address bar. */
const LOOPBACK = ['127.0.0.1', 'localhost', '[::1]'];
const READS = ['GET', 'HEAD', 'OPTIONS'];

/**
 * Everything that may be changed in Bull Board, as its own routes. Whatever a newer version adds is refused until it
 * stands here; the buttons of what is missing are there, and answer with the sentence below.
 */
const ALLOWED = [
  '/api/queues/pause',
  '/api/queues/resume',
  '/api/queues/:queueName/pause',
  '/api/queues/:queueName/resume',
  '/api/queues/:queueName/retry/:queueStatus',
  '/api/queues/:queueName/clean/:queueStatus',
  '/api/queues/:queueName/promote',
  '/api/queues/:queueName/:jobId/retry',
  '/api/queues/:queueName/:jobId/clean',
  '/api/queues/:queueName/:jobId/promote',
];

/**
 * Serve only pages of our own on this machine: the board asks nobody who they are, so that any site that the operator's
 * browser visits could otherwise read it (under a name of its own that resolves to 127.0.0.1) or change it.
 */
export const fromThisMachine: RequestHandler = (req, res, next) => {
  const port = req.socket.localPort;
  const hosts = LOOPBACK.flatMap((name) => (port === 80 ? [name, `${name}:80`] : [`${name}:${port}`]));
  const host = req.headers.host?.toLowerCase();
  if (!host || !hosts.includes(host)) return refuse(res, `Host: expected ${hosts.join(', ')}, got ${shown(host)}`);
  if (READS.includes(req.method)) return next();

  const { origin, 'sec-fetch-site': site, 'content-type': type } = req.headers;
  if (origin !== undefined && origin !== `http://${host}`) {
    return refuse(res, `Origin: expected http://${host}, got ${shown(origin)}`);
  }
  if (site !== undefined && site !== 'same-origin' && site !== 'none') {
    return refuse(res, `Sec-Fetch-Site: expected same-origin or none, got ${shown(String(site))}`);
  }
  // Forms and text/plain are what a foreign page can send without asking first. The board's own page sends no body.
  const empty = req.headers['transfer-encoding'] === undefined && Number(req.headers['content-length'] ?? 0) === 0;
  if (type === undefined ? !empty : !/^application\/json\s*(;|$)/i.test(type)) {
    return refuse(res, `Content-Type: expected application/json, got ${shown(type)}`);
  }
  next();
};

/**
 * Let reads and the allowed writes through to the board, and refuse the rest. To be mounted where the board is: both
 * are then routers of Express with the same settings, and read the same path in the same way, however it is spelled.
 */
export function onlyAllowedWrites({ log }: Pick<Connections, 'log'>): Router {
  const router = Router();
  router.use((req, _res, next) => next(READS.includes(req.method) ? 'router' : undefined));
  for (const route of ALLOWED) {
    router.put(route, (req, res, next) => {
      res.once('finish', () => log.info({ path: req.originalUrl, status: res.statusCode }, 'asked of the board'));
      next('router');
    });
  }
  router.use(refuseWrites);
  return router;
}

/** The end of every write that nobody allowed, wherever it was sent. */
export const refuseWrites: RequestHandler = (req, res, next) => {
  if (READS.includes(req.method)) return next();
  refuse(res, 'The board retries, promotes, removes, cleans, pauses and resumes. hourhand decides everything else.');
};

function refuse(res: Response, message: string): void {
  // The board shows the one as a headline and the other below it.
  res.status(403).json({ error: 'Refused', message });
}

function shown(value: string | undefined): string {
  return value === undefined ? 'none' : JSON.stringify(value.slice(0, 100));
}
