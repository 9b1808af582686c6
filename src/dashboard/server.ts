// What does the dashboard answer, and where?

import { createServer } from 'node:http';
import express, { type ErrorRequestHandler, type Express } from 'express';
import helmet from 'helmet';
import { migrations, version } from '../config.ts';
import type { Connections } from '../connections.ts';
import { close, listen } from '../listen.ts';
import type { Logger } from '../logger.ts';
import { type Metrics, openMetrics } from '../metrics.ts';
import { reasonOf } from '../store/db.ts';
import { type Answer, board } from './board.ts';
import { countDeduplicated } from './deduplicated.ts';
import { fromThisMachine, onlyAllowedWrites, refuseWrites } from './guard.ts';
import { health } from './health.ts';
import { metrics as scraped } from './metrics.ts';
import { models } from './models.ts';

const QUEUES = '/queues';

/**
 * Serve Bull Board, `/api/models`, `/metrics`, `/healthz` and `/readyz` on this machine until `close`, which takes no longer than about half a
 * second, whoever is still connected.
 *
 * @param sample the calls are the sample that `npm start` loaded, and the pages say so
 * @param metrics what this process counts, where it also works
 * @throws {Error} naming PORT or HOST when nobody can listen there
 */
export async function startDashboard(
  connections: Connections,
  { sample = false, metrics = openMetrics() }: { sample?: boolean; metrics?: Metrics } = {},
): Promise<{ url: string; close(): Promise<void> }> {
  const { config, log } = connections;
  const server = createServer(dashboard(connections, metrics, sample));
  const url = await listen(server, { host: config.HOST, port: config.PORT, names: { host: 'HOST', port: 'PORT' } });
  const deduplicated = countDeduplicated(connections, metrics.registry);
  log.info({ url }, 'dashboard started');
  return {
    url,
    async close() {
      deduplicated.close();
      await close(server);
    },
  };
}

function dashboard(connections: Connections, { registry }: Metrics, sample: boolean): Express {
  const { log, queues } = connections;
  const answerTo = answers(log);
  const onError: ErrorRequestHandler = (error, _req, res, next) => {
    if (res.headersSent) return next(error);
    const { status, body } = answerTo(error);
    res.status(status).json(body);
  };
  return express()
    .use(helmet({ contentSecurityPolicy: { directives } }))
    .use(fromThisMachine)
    .use(health(connections, { version, migrations }))
    .use(scraped(connections, registry))
    .use(models(connections))
    .get('/', (_req, res) => res.redirect(QUEUES))
    .use(QUEUES, onlyAllowedWrites(connections), board(queues, { path: QUEUES, sample, answerTo }))
    .use(refuseWrites)
    .use((_req, res) => {
      res
        .status(404)
        .json({ error: 'Not found', message: `There is ${QUEUES}, /api/models, /metrics, /healthz and /readyz.` });
    })
    .use(onError);
}

/** Helmet's defaults, with styles and fonts from here alone, and without asking for https, which nobody serves here. */
const directives = { styleSrc: ["'self'", "'unsafe-inline'"], fontSrc: ["'self'"], upgradeInsecureRequests: null };

/** An error in words and without its stack. Ours are logged; those of whoever asked (4xx) are theirs to read. */
function answers(log: Logger): (error: unknown) => Answer {
  return (error) => {
    const { status: said } = Object(error);
    const status = Number.isInteger(said) && said >= 400 && said < 500 ? said : 500;
    const message = reasonOf(error);
    if (status === 500) log.warn({ reason: message }, 'dashboard could not answer');
    return { status, body: { error: status === 500 ? 'hourhand could not do this' : 'Bad request', message } };
  };
}
