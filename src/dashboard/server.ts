// What does the dashboard answer, and where?

import { once } from 'node:events';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import express, { type ErrorRequestHandler, type Express } from 'express';
import helmet from 'helmet';
import { type Config, migrations, version } from '../config.ts';
import type { Connections } from '../connections.ts';
import type { Logger } from '../logger.ts';
import { reasonOf } from '../store/db.ts';
import { type Answer, board } from './board.ts';
import { fromThisMachine, onlyAllowedWrites, refuseWrites } from './guard.ts';
import { health } from './health.ts';
import { models } from './models.ts';

const QUEUES = '/queues';
/** What `close` waits for answers under way. */
const DRAIN_MS = 500;

/**
 * Serve Bull Board, `/api/models`, `/healthz` and `/readyz` on this machine until `close`, which takes no longer than about half a
 * second, whoever is still connected.
 *
 * @param sample the calls are the sample that `npm start` loaded, and the pages say so
 * @throws {Error} naming PORT or HOST when nobody can listen there
 */
export async function startDashboard(
  connections: Connections,
  { sample = false }: { sample?: boolean } = {},
): Promise<{ url: string; close(): Promise<void> }> {
  const { config, log } = connections;
  const server = createServer(dashboard(connections, sample));
  await listen(server, config);
  const { port } = server.address() as AddressInfo; // a server that listens on a port has such an address
  const url = `http://${config.HOST === '::1' ? '[::1]' : config.HOST}:${port}`;
  log.info({ url }, 'dashboard started');
  return { url, close: () => close(server) };
}

function dashboard(connections: Connections, sample: boolean): Express {
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
    .use(models(connections))
    .get('/', (_req, res) => res.redirect(QUEUES))
    .use(QUEUES, onlyAllowedWrites(connections), board(queues, { path: QUEUES, sample, answerTo }))
    .use(refuseWrites)
    .use((_req, res) => {
      res.status(404).json({ error: 'Not found', message: `There is ${QUEUES}, /api/models, /healthz and /readyz.` });
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

async function listen(server: Server, { HOST, PORT }: Config): Promise<void> {
  try {
    await once(server.listen(PORT, HOST), 'listening');
  } catch (cause) {
    throw new Error(whyNot(cause as NodeJS.ErrnoException, HOST, PORT), { cause }); // listen fails with a system error
  }
}

function whyNot({ code, message }: NodeJS.ErrnoException, host: string, port: number): string {
  if (code === 'EADDRINUSE') return `PORT ${port} is taken on ${host}: free it, or set PORT to another (0 takes any)`;
  if (code === 'EACCES') return `PORT ${port} is not open to this user on ${host}: set PORT to 1024 or more`;
  if (code === 'EADDRNOTAVAIL') return `HOST ${host} is no address of this machine: set HOST to 127.0.0.1`;
  return `PORT ${port} on ${host}: ${message}`;
}

async function close(server: Server): Promise<void> {
  const timer = setTimeout(() => server.closeAllConnections(), DRAIN_MS);
  await new Promise((resolve) => server.close(resolve));
  clearTimeout(timer);
}
