// What does the dashboard answer, and where?

import { hkdfSync, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import express, { type ErrorRequestHandler, type Express, type RequestHandler } from 'express';
import helmet from 'helmet';
import proxyAddr from 'proxy-addr';
import { type Config, ConfigError, home, migrations, version } from '../config.ts';
import { type Connections, quiet } from '../connections.ts';
import { close, listen } from '../listen.ts';
import type { Logger } from '../logger.ts';
import { type Metrics, openMetrics } from '../metrics.ts';
import { reasonOf } from '../store/db.ts';
import { type AccessPolicy, access, onlyOperatorsWrite, whoAsks } from './access.ts';
import { account, NoLine } from './account.ts';
import { type Answer, board } from './board.ts';
import { onlyAllowedWrites, refuseWrites } from './board-writes.ts';
import { isPerson, readCredentials } from './credentials.ts';
import { countDeduplicated } from './deduplicated.ts';
import { boundedUrl, fromOurPages } from './guard.ts';
import { alive, readiness } from './health.ts';
import { metrics as scraped } from './metrics.ts';
import { models } from './models.ts';
import { onlyOwnersWrite } from './owner.ts';
import { assets, pages, showProblem } from './pages/routes.tsx';
import { openSessions, type Sessions } from './sessions.ts';
import { signIn } from './sign-in.tsx';

const QUEUES = '/queues';

/**
 * Serve the pages, Bull Board, `/api/models`, `/api/actions`, `/metrics`, `/sign-in`, `/healthz` and `/readyz` until `close`, which takes no longer than about
 * half a second, whoever is still connected.
 *
 * @param sample the calls are the sample that `npm start` loaded, and the pages say so
 * @param metrics what this process counts, where it also works
 * @throws {Error} naming PORT or HOST when nobody can listen there, or what is missing for others than this machine to be served
 */
export async function startDashboard(
  connections: Connections,
  { sample = false, metrics = openMetrics() }: { sample?: boolean; metrics?: Metrics } = {},
): Promise<{ url: string; close(): Promise<void> }> {
  const { config, log } = connections;
  const policy = accessPolicy(config);
  const sessions = policy.credentials.some(isPerson)
    ? openSessions(
        {
          databaseUrl: config.DATABASE_URL,
          secret: policy.sessionSecret,
          hours: config.DASHBOARD_SESSION_HOURS,
          https: policy.https,
        },
        quiet(log)('PostgreSQL'),
      )
    : undefined;
  const server = createServer(dashboard(connections, { sample, metrics, policy, sessions }));
  const place = { host: config.HOST, port: config.PORT, names: { host: 'HOST', port: 'PORT' } };
  const url = await listen(server, place).catch(async (error: unknown) => {
    await sessions?.close();
    throw error;
  });
  const deduplicated = countDeduplicated(connections, metrics.registry);
  log.info({ url }, 'dashboard started');
  return {
    url,
    close: async () => {
      deduplicated.close();
      await close(server);
      await sessions?.close();
    },
  };
}

const LOOPBACK = /^(localhost|127(\.\d+){3}|::1)$/i;

type Policy = AccessPolicy & { readonly sessionSecret: string };

/** @throws {ConfigError} where others than this machine would be served, and nobody asked who they are */
function accessPolicy(config: Config): Policy {
  const { DASHBOARD_CREDENTIALS, DASHBOARD_CREDENTIALS_FILE, DASHBOARD_SECRET, PROXY_ADDRESSES, HOST, PUBLIC_URL } =
    config;
  const credentials = readCredentials(DASHBOARD_CREDENTIALS, DASHBOARD_CREDENTIALS_FILE);
  const anonymous = credentials.length === 0 && PROXY_ADDRESSES.length === 0;
  if (anonymous && (!LOOPBACK.test(HOST) || PUBLIC_URL !== '')) {
    const what = LOOPBACK.test(HOST) ? `PUBLIC_URL ${PUBLIC_URL}` : `HOST ${HOST}`;
    throw new ConfigError(
      `${what}: expected DASHBOARD_CREDENTIALS (hourhand credentials NAME --role operator makes one) or PROXY_ADDRESSES, got neither: without, the dashboard serves this machine alone`,
    );
  }
  const known = DASHBOARD_SECRET || (credentials.length > 0 ? JSON.stringify(credentials) : ownSecret);
  const secret = (use: string) => Buffer.from(hkdfSync('sha256', known, '', use, 32)).toString('hex');
  return {
    credentials,
    anonymous,
    proxy: {
      trusted: trusted(config),
      userHeader: config.PROXY_USER_HEADER,
      groupsHeader: config.PROXY_GROUPS_HEADER,
      operators: config.PROXY_OPERATORS,
    },
    https: /^https:/i.test(PUBLIC_URL),
    csrfSecret: secret('hourhand csrf'),
    sessionSecret: secret('hourhand sessions'),
  };
}

/** Where nobody has given anything to derive one from: it is gone with the process. */
const ownSecret = randomBytes(32);

function trusted({ PROXY_ADDRESSES }: Config): (address: string) => boolean {
  if (PROXY_ADDRESSES.length === 0) return () => false;
  const trusts = proxyAddr.compile(PROXY_ADDRESSES);
  return (address) => trusts(address, 0);
}

function dashboard(
  connections: Connections,
  {
    sample,
    metrics,
    policy,
    sessions,
  }: { sample: boolean; metrics: Metrics; policy: Policy; sessions: Sessions | undefined },
): Express {
  const { log, queues, config } = connections;
  const answerTo = answers(log);
  const onError: ErrorRequestHandler = (error, req, res, next) => {
    if (res.headersSent) return next(error);
    const answer = answerTo(error);
    if (showProblem(req, res, answer, sample)) return;
    const { status, body } = answer;
    // What a server said is for those who are known.
    res.status(status).json(status === 500 && !whoAsks(res) ? { ...body, message: 'Its log says why.' } : body);
  };
  const { whoIsThere, noForgery, gate } = access(policy, sessions);
  const boardFor = (readOnly: boolean) => board(queues, { path: QUEUES, sample, readOnly, answerTo });
  const [toRead, toChange] = [boardFor(true), boardFor(false)];
  return express()
    .set('trust proxy', policy.proxy.trusted)
    .use(headers)
    .use(boundedUrl)
    .use(fromOurPages({ host: config.HOST, loopback: LOOPBACK.test(config.HOST), publicUrl: config.PUBLIC_URL }))
    .use(assets(home))
    .use(alive(version))
    .use(...whoIsThere)
    .use(readiness(connections, { version, migrations }))
    .use(express.urlencoded({ extended: false, limit: '16kb', parameterLimit: 50 }))
    .use(noForgery)
    .use(signIn(connections, { credentials: policy.credentials, sessions }))
    .use(gate)
    .use(onlyOperatorsWrite)
    .use(onlyOwnersWrite(connections))
    .use(scraped(connections, metrics.registry))
    .use(models(connections))
    .use(account(connections))
    .use(QUEUES, onlyAllowedWrites(connections), (req, res, next) =>
      (whoAsks(res)?.role === 'operator' ? toChange : toRead)(req, res, next),
    )
    .use(pages(connections, { sample }))
    .use(refuseWrites)
    .use((req, res) => {
      const answer = { status: 404, body: { error: 'Not found', message: NOTHING_ELSE } };
      if (!showProblem(req, res, answer, sample)) res.status(404).json(answer.body);
    })
    .use(onError);
}

const NOTHING_ELSE = `There is /, ${QUEUES}, /actions, /api/models, /api/actions, /metrics, /sign-in, /healthz and /readyz.`;

/** Nothing but our own, and nothing that stands in the page itself. Without asking for https, which nobody may serve here. */
const own = {
  defaultSrc: ["'none'"],
  scriptSrc: ["'self'"],
  styleSrc: ["'self'"],
  imgSrc: ["'self'"],
  fontSrc: ["'self'"],
  connectSrc: ["'self'"],
  formAction: ["'self'"],
  baseUri: ["'none'"],
  frameAncestors: ["'none'"],
};
/** Bull Board puts styles into its page, and draws with data: URLs. */
const boards = {
  ...own,
  defaultSrc: ["'self'"],
  styleSrc: ["'self'", "'unsafe-inline'"],
  imgSrc: ["'self'", 'data:'],
  baseUri: ["'self'"],
};
const helmetWith = (directives: Record<string, string[]>) =>
  helmet({
    contentSecurityPolicy: { useDefaults: false, directives },
    xFrameOptions: { action: 'deny' },
    // With helmet's own, no-referrer, browsers say of a form of ours that it comes from nowhere (Origin: null).
    referrerPolicy: { policy: 'same-origin' },
  });
const [strict, looser] = [helmetWith(own), helmetWith(boards)];

const headers: RequestHandler = (req, res, next) => {
  if (!/^\/(queues\/static|assets)\//i.test(req.path)) res.set('Cache-Control', 'no-store');
  (/^\/queues(\/|$)/i.test(req.path) ? looser : strict)(req, res, next);
};

const HEADLINES: Record<number, string> = {
  404: 'Not found',
  409: 'Not as it is now',
  413: 'Too large',
  500: 'hourhand could not do this',
};

/** An error in words and without its stack. Ours are logged; those of whoever asked (4xx) are theirs to read. */
function answers(log: Logger): (error: unknown) => Answer {
  return (error) => {
    const { status: said } = Object(error);
    const status = Number.isInteger(said) && said >= 400 && said < 500 ? said : 500;
    const message = reasonOf(error);
    if (error instanceof NoLine) {
      log.warn({ reason: reasonOf(error.cause) }, 'account: a line was not written, and nothing was changed');
      return { status: error.status, body: { error: 'Unavailable', message } };
    }
    if (status === 500) log.warn({ reason: message }, 'dashboard could not answer');
    return { status, body: { error: HEADLINES[status] ?? 'Bad request', message } };
  };
}
