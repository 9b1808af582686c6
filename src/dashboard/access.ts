// Who asks, and what may they do?

import { BlockList } from 'node:net';
import cookieParser from 'cookie-parser';
import { doubleCsrf } from 'csrf-csrf';
import type { Request, RequestHandler, Response } from 'express';
import { reasonOf } from '../store/db.ts';
import { type Credential, fingerprint, holderOf, type Role } from './credentials.ts';
import { READS, refuse } from './guard.ts';
import type { Sessions } from './sessions.ts';

/** Somebody who is known, or on this machine alone, without credentials, anybody. */
export interface Operator {
  readonly name: string;
  readonly role: Role;
  readonly how: 'token' | 'proxy' | 'session' | 'anonymous';
}

declare global {
  namespace Express {
    interface Locals {
      operator?: Operator;
      csrfToken?: () => string;
      /** Why nobody can be known at present. */
      unknowable?: string;
    }
  }
}

export interface AccessPolicy {
  readonly credentials: readonly Credential[];
  /** Whoever reaches this machine's own address is an operator: nobody has given credentials or a proxy. */
  readonly anonymous: boolean;
  /** The headers in which a proxy that is trusted names the user and their groups. */
  readonly proxy: {
    readonly trusted: (address: string) => boolean;
    readonly userHeader: string;
    readonly groupsHeader: string;
    readonly operators: readonly string[];
  };
  /** Browsers speak https to whoever speaks to us. */
  readonly https: boolean;
  /** Signs what forms and scripts send back. */
  readonly csrfSecret: string;
}

/** Who asks; undefined where nobody is known. */
export const whoAsks = (res: Response): Operator | undefined => res.locals.operator;

/** Who asks, behind the gate, where somebody does. */
export function operatorOf(res: Response): Operator {
  const operator = whoAsks(res);
  if (!operator) throw new Error('expected somebody who is known, got nobody: is this before the gate?');
  return operator;
}

/** What a form sends back as `_csrf`, or a script in the header X-XSRF-TOKEN; sets the cookie that it must agree with. */
export function csrfToken(_req: Request, res: Response): string {
  if (!res.locals.csrfToken) throw new Error('expected a request that was seen by whoIsThere, got another');
  return res.locals.csrfToken();
}

const CSRF_COOKIE = 'XSRF-TOKEN'; // the board's own page copies a cookie of this name into the header, by itself

/** What is fetched by scripts and pages, rather than opened by somebody. */
const FETCHED = /^\/((queues\/)?(api|static|assets)\/|healthz$|readyz$)/;

export interface Access {
  /** Finds out who asks, and lets everybody through. */
  readonly whoIsThere: RequestHandler[];
  /** Lets those through who are known: others are sent to sign in where they look at a page, and refused elsewhere. */
  readonly gate: RequestHandler;
  /** Refuses writes that another page may have caused. Needs the body of forms. */
  readonly noForgery: RequestHandler;
}

/** Words and deeds of those who ask, in this order: `whoIsThere`, `noForgery`, what is open, `gate`, `onlyOperatorsWrite`. */
export function access(policy: AccessPolicy, sessions: Sessions | undefined): Access {
  const { credentials, proxy } = policy;
  const secure = (req: Request) => policy.https || req.secure;
  const csrf = doubleCsrf({
    getSecret: () => policy.csrfSecret,
    getSessionIdentifier: (req) => identifierOf(req),
    cookieName: CSRF_COOKIE,
    cookieOptions: { httpOnly: false, sameSite: 'strict', path: '/' },
    getCsrfTokenFromRequest: (req) => req.get('x-xsrf-token') ?? fieldOf(req, '_csrf'),
  });

  const textOnly: RequestHandler = (req, _res, next) => {
    // The parser reads JSON out of a cookie that says so; who looks for a token or a session expects text.
    for (const [name, value] of Object.entries(req.cookies)) if (typeof value !== 'string') delete req.cookies[name];
    next();
  };
  const identify: RequestHandler = (req, res, next) => {
    const token = /^Bearer +(\S.*)$/i.exec(req.headers.authorization ?? '')?.[1];
    const operator = (token && byToken(credentials, token)) || byProxy(req, proxy) || undefined;
    // A token that is wrong is nobody's, whatever cookie comes with it.
    if (operator || token || !sessions)
      return known(res, operator ?? (token ? undefined : byPlace(req, policy)), next);
    sessions.remember(req, res, (error?: unknown) => {
      if (error) res.locals.unknowable = reasonOf(error);
      known(res, error ? undefined : bySession(req, credentials), next);
    });
  };
  const known = (res: Response, operator: Operator | undefined, next: () => void) => {
    if (operator) res.locals.operator = operator;
    next();
  };
  const giveToken: RequestHandler = (req, res, next) => {
    let token: string | undefined; // one for each answer: another one would set the cookie again
    res.locals.csrfToken = () => {
      token ??= csrf.generateCsrfToken(req, res, { cookieOptions: cookieFor(secure(req)) });
      return token;
    };
    if (req.method === 'GET' && !FETCHED.test(req.path)) res.locals.csrfToken();
    next();
  };

  return {
    whoIsThere: [cookieParser(), textOnly, identify, giveToken],
    noForgery: (req, res, next) => {
      if (READS.includes(req.method) || !needsToken(req, whoAsks(res)) || csrf.validateRequest(req)) return next();
      refuse(
        res,
        `CSRF: expected the token of the cookie ${CSRF_COOKIE} as X-XSRF-TOKEN or _csrf, got none or another's`,
      );
    },
    gate: (req, res, next) => {
      if (whoAsks(res)) return next();
      if (res.locals.unknowable !== undefined) return unavailable(res);
      const to = `/sign-in?to=${encodeURIComponent(pageOf(req))}`;
      if (req.get('hx-request')) res.set('HX-Redirect', to);
      else if (req.method === 'GET' && /\btext\/html\b/i.test(req.headers.accept ?? '')) return res.redirect(303, to);
      res.status(401).set('WWW-Authenticate', 'Bearer').json({
        error: 'Nobody is signed in',
        message:
          'expected a session (/sign-in), a token (Authorization: Bearer …) or the word of a known proxy, got none that is known',
      });
    },
  };
}

/** The page that somebody looks at: of one of its parts, what the browser says. */
function pageOf(req: Request): string {
  const at = req.get('hx-current-url') ?? '';
  if (!req.get('hx-request') || !URL.canParse(at)) return req.originalUrl;
  const { pathname, search } = new URL(at);
  return `${pathname}${search}`;
}

/** Lets reads through, and writes of operators. */
export const onlyOperatorsWrite: RequestHandler = (req, res, next) => {
  if (READS.includes(req.method)) return next();
  const { name, role } = operatorOf(res);
  if (role === 'operator') return next();
  refuse(res, `expected an operator, got ${role} ${name}`);
};

export function unavailable(res: Response): void {
  res
    .status(503)
    .json({ error: 'Unavailable', message: 'PostgreSQL does not answer: nobody can be known by a session now.' });
}

/** A field of a form; undefined where there is none, or more than one. */
export function fieldOf(req: Request, name: string): string | undefined {
  const value: unknown = Object(req.body)[name];
  return typeof value === 'string' ? value : undefined;
}

function byToken(credentials: readonly Credential[], token: string): Operator | undefined {
  const holder = holderOf(credentials, token);
  return holder && { name: holder.name, role: holder.role, how: 'token' };
}

/** A comma in the name is two names: somebody sent one past the proxy. */
const PROXY_USER = /^[^,\p{Cc}]{1,200}$/u;

function byProxy(req: Request, proxy: AccessPolicy['proxy']): Operator | undefined {
  if (!proxy.trusted(req.socket.remoteAddress ?? '')) return undefined;
  const name = req.get(proxy.userHeader)?.trim() ?? '';
  if (!PROXY_USER.test(name)) return undefined;
  const groups = (req.get(proxy.groupsHeader) ?? '').split(',').map((group) => group.trim());
  const role = [name, ...groups].some((one) => proxy.operators.includes(one)) ? 'operator' : 'viewer';
  return { name, role, how: 'proxy' };
}

const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8);
loopback.addAddress('::1', 'ipv6');

/** Whoever asks from this machine, unless it is a proxy that nobody has told us of: then it is the world. */
function byPlace(req: Request, { anonymous }: AccessPolicy): Operator | undefined {
  const { remoteAddress = '' } = req.socket;
  const here = loopback.check(remoteAddress, remoteAddress.includes(':') ? 'ipv6' : 'ipv4');
  const forwarded = Object.keys(req.headers).some((name) => /^(forwarded|via|x-real-ip|x-forwarded-.*)$/.test(name));
  return anonymous && here && !forwarded ? { name: 'anonymous', role: 'operator', how: 'anonymous' } : undefined;
}

function bySession(req: Request, credentials: readonly Credential[]): Operator | undefined {
  const { name, proof } = req.session ?? {};
  if (name === undefined) return undefined;
  const credential = credentials.find((one) => one.name === name);
  if (credential && fingerprint(credential) === proof) return { name, role: credential.role, how: 'session' };
  req.session.destroy(() => {}); // of a credential that was changed or taken away; if it stays, it is as void the next time
  return undefined;
}

/** A token is of one session, of one user of the proxy, or of those whom nobody knows. */
function identifierOf(req: Request): string {
  const operator = req.res && whoAsks(req.res);
  if (!operator) return 'nobody';
  return `${operator.how} ${operator.how === 'session' ? req.sessionID : operator.name}`;
}

/**
 * A browser adds by itself what proves who asks, whichever page makes it ask. Nobody's browser adds an API token; and what is no browser
 * (curl, on this machine, without credentials) was made to ask by nobody else, unless it sends what a foreign form can send.
 */
function needsToken(req: Request, operator: Operator | undefined): boolean {
  if (operator?.how === 'token') return false;
  if (operator?.how === 'session' || operator?.how === 'proxy') return true;
  const names = Object.keys(req.headers);
  const browser = names.some((name) => name === 'origin' || name === 'cookie' || name.startsWith('sec-fetch-'));
  return browser || (operator !== undefined && isForm(req));
}

const isForm = (req: Request) => /^application\/x-www-form-urlencoded\b/i.test(req.headers['content-type'] ?? '');

const cookieFor = (secure: boolean) => ({ httpOnly: false, sameSite: 'strict', path: '/', secure }) as const;
