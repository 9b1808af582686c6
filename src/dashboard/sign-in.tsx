// How does somebody say who they are?

import { compare } from 'bcryptjs';
import { type Request, type Response, Router } from 'express';
import pLimit from 'p-limit';
import { renderToString } from 'preact-render-to-string';
import type { Connections } from '../connections.ts';
import { csrfToken, fieldOf, unavailable, whoAsks } from './access.ts';
import { addressOf, record } from './account.ts';
import { attempts } from './attempts.ts';
import { type Credential, isPerson, MAX_PASSWORD_BYTES } from './credentials.ts';
import { SESSION_COOKIE, type Sessions } from './sessions.ts';

const MOST_WAITING = 10;

/** Nobody's: what an unknown name is compared with, so that its answer takes as long as a wrong password's. */
const nobodys = (cost: string) => `$2b$${cost}$${'.'.repeat(53)}`;

/** `/sign-in` and `/sign-out`. Mounted before the gate, and behind what keeps forged writes out. */
export function signIn(
  { pool, redis, config, log }: Pick<Connections, 'pool' | 'redis' | 'config' | 'log'>,
  { credentials, sessions }: { credentials: readonly Credential[]; sessions: Sessions | undefined },
): Router {
  const people = credentials.filter(isPerson);
  const dummy = nobodys(
    people
      .map(({ hash }) => hash.slice(4, 6))
      .sort()
      .at(-1) ?? '10',
  );
  const limit = attempts(redis, config.REDIS_PREFIX);
  // Each comparison keeps the process for a tenth of a second at a time: all at once, for as many tenths.
  const oneByOne = pLimit(1);
  const router = Router();

  router.get('/sign-in', (req, res) => {
    const to = localPath(req.query.to);
    if (whoAsks(res)) return res.redirect(303, to);
    if (res.locals.unknowable !== undefined) return unavailable(res);
    show(req, res, 200, { to, people: people.length > 0 });
  });

  router.post('/sign-in', async (req, res) => {
    const to = localPath(fieldOf(req, 'to'));
    const again = (status: number, problem: string) =>
      show(req, res, status, { to, people: people.length > 0, problem });
    if (res.locals.unknowable !== undefined) return unavailable(res);
    if (!sessions || people.length === 0) return again(404, 'Nobody signs in here with a password.');
    const [name = '', password = ''] = [fieldOf(req, 'name')?.trim(), fieldOf(req, 'password')];
    if (Buffer.byteLength(password) > MAX_PASSWORD_BYTES) {
      return again(400, `Expected a password of at most ${MAX_PASSWORD_BYTES} bytes, got a longer one.`);
    }
    const credential = people.find((one) => one.name === name);
    const from = addressOf(req);
    const seconds = await limit.take(from, name);
    if (seconds !== undefined) {
      res.set('Retry-After', `${seconds}`);
      return again(429, `Too many attempts: try again in ${Math.ceil(seconds / 60)} minutes.`);
    }
    if (oneByOne.pendingCount >= MOST_WAITING) return again(503, 'Too many sign in at once: try again in a moment.');
    const right = await oneByOne(() => compare(password, credential?.hash ?? dummy));
    // A name that is not known may be a password, typed into the wrong field.
    const who = credential?.name ?? 'an unknown name';
    if (!credential || !right) {
      await record({ pool, log }, req, res, { who, what: 'failed sign-in' });
      return again(401, 'Expected a name that is known, with its password.');
    }
    await record({ pool, log }, req, res, { who, role: credential.role, what: 'sign in' });
    await sessions.begin(req, credential);
    await limit.forgive(from, name);
    res.redirect(303, to);
  });

  router.post('/sign-out', async (req, res) => {
    if (whoAsks(res)?.how === 'session' && sessions) {
      await record({ pool, log }, req, res, { what: 'sign out' });
      await sessions.end(req);
      res.clearCookie(SESSION_COOKIE, { path: '/' });
    }
    res.redirect(303, '/sign-in');
  });

  // Browsers ask for one by themselves.
  router.get('/favicon.ico', (_req, res) => {
    res.status(204).end();
  });
  router.get('/sign-in.css', (_req, res) => {
    res.type('css').send(STYLE);
  });
  return router;
}

/** A path of our own, and nothing that leads a browser anywhere else; anything that is not one is `/`. */
export function localPath(to: unknown): string {
  if (typeof to !== 'string' || to.length > 2_000 || !URL.canParse(to, 'http://here')) return '/';
  const { origin, pathname, search } = new URL(to, 'http://here');
  const elsewhere = origin !== 'http://here' || !to.startsWith('/') || /^\/[/\\]/.test(pathname);
  return elsewhere || /^\/sign-(in|out)/.test(pathname) ? '/' : `${pathname}${search}`;
}

interface Shown {
  to: string;
  /** Some sign in with a password. */
  people: boolean;
  problem?: string;
}

function show(req: Request, res: Response, status: number, { to, people, problem }: Shown): void {
  const csrf = csrfToken(req, res);
  // A link from another site comes without the cookies that a click on our own page brings.
  const linked = req.get('sec-fetch-site') === 'cross-site';
  const page = (
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <title>hourhand: sign in</title>
        <link rel="stylesheet" href="/sign-in.css" />
      </head>
      <body>
        <main>
          <h1>hourhand</h1>
          {linked && (
            <p>
              Signed in already? <a href={to}>Go on.</a>
            </p>
          )}
          {problem && <p role="alert">{problem}</p>}
          {people ? (
            <form method="post" action="/sign-in">
              <input type="hidden" name="_csrf" value={csrf} />
              <input type="hidden" name="to" value={to} />
              <label>
                Name <input name="name" autocomplete="username" required maxLength={100} />
              </label>
              <label>
                Password <input name="password" type="password" autocomplete="current-password" required />
              </label>
              <button type="submit">Sign in</button>
            </form>
          ) : (
            <p>
              Nobody signs in here with a password: who asks is said by a token, or by the proxy before this page.
            </p>
          )}
        </main>
      </body>
    </html>
  );
  res
    .status(status)
    .type('html')
    .send(`<!doctype html>${renderToString(page)}`);
}

const STYLE = `:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 22rem; margin: 15vh auto; padding: 0 1rem; }
form, label { display: grid; gap: 0.5rem; }
form { gap: 1rem; }
input, button { font: inherit; padding: 0.5rem; min-height: 44px; box-sizing: border-box; }
[role='alert'] { border-left: 4px solid #c0392b; padding-left: 0.75rem; }
`;
