// What may be changed in Bull Board?

import { type Request, type RequestHandler, Router } from 'express';
import type { Connections } from '../connections.ts';
import { record } from './account.ts';
import { READS, refuse } from './guard.ts';

/** Everything that may be changed in Bull Board, as its own routes, and what that is called in the account. */
const ALLOWED = {
  '/api/queues/pause': 'pause all queues',
  '/api/queues/resume': 'resume all queues',
  '/api/queues/:queueName/pause': 'pause queue',
  '/api/queues/:queueName/resume': 'resume queue',
  '/api/queues/:queueName/retry/:queueStatus': 'retry all',
  '/api/queues/:queueName/clean/:queueStatus': 'remove all',
  '/api/queues/:queueName/promote': 'promote all',
  '/api/queues/:queueName/:jobId/retry': 'retry',
  '/api/queues/:queueName/:jobId/clean': 'remove',
  '/api/queues/:queueName/:jobId/promote': 'promote',
};

/**
 * Let reads and the allowed writes through to the board, which are written down before, and refuse the rest: whatever a newer version
 * adds is refused until it stands above; the buttons of what is missing are there, and answer with the sentence below. To be mounted where the board is: both
 * are then routers of Express with the same settings, and read the same path in the same way, however it is spelled.
 */
export function onlyAllowedWrites(written: Pick<Connections, 'log' | 'pool'>): Router {
  const router = Router();
  router.use((req, _res, next) => next(READS.includes(req.method) ? 'router' : undefined));
  for (const [route, what] of Object.entries(ALLOWED)) {
    router.put(route, async (req: Request<Record<string, string>>, res, next) => {
      const { queueName, jobId, queueStatus } = req.params;
      const subject = [queueName, jobId ?? queueStatus].filter((part) => part !== undefined).join(' ') || null;
      await record(written, req, res, { what, subject });
      res.once('finish', () =>
        written.log.info({ path: req.originalUrl, status: res.statusCode }, 'asked of the board'),
      );
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
