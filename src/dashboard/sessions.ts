// How is it remembered who has signed in?

import connectPgSimple from 'connect-pg-simple';
import type { Request, RequestHandler } from 'express';
import session from 'express-session';
import { SESSIONS, sessionPool } from '../store/sessions.ts';
import { type Credential, fingerprint } from './credentials.ts';

declare module 'express-session' {
  interface SessionData {
    name: string;
    /** Of the credential. */
    proof: string;
  }
}

export const SESSION_COOKIE = 'hourhand.sid';

export interface Sessions {
  /** Reads the session of a request, and keeps it alive. Its error: PostgreSQL did not answer. */
  readonly remember: RequestHandler;
  /** A session of its own for whoever has just proved who they are; old ones are forgotten. */
  begin(req: Request, credential: Credential): Promise<void>;
  end(req: Request): Promise<void>;
  close(): Promise<void>;
}

export interface SessionPolicy {
  readonly databaseUrl: string;
  readonly secret: string;
  readonly hours: number;
  readonly https: boolean;
}

/** Sessions in PostgreSQL, of so many hours since their last request. Nothing is stored of those who have not signed in. */
export function openSessions(
  { databaseUrl, secret, hours, https }: SessionPolicy,
  onError: (error: Error) => void,
): Sessions {
  const pool = sessionPool(databaseUrl, onError);
  const Store = connectPgSimple(session);
  const store = new (class extends Store {
    /** One whose life cannot be prolonged ends sooner: no reason to break off an answer. */
    override touch(sid: string, data: session.SessionData, done: () => void = () => {}) {
      super.touch(sid, data, () => done());
    }
  })({ pool, tableName: SESSIONS, pruneSessionInterval: false, errorLog: () => {} });
  const handle = session({
    name: SESSION_COOKIE,
    secret,
    store,
    resave: false,
    saveUninitialized: false,
    rolling: true,
    ...(https ? { proxy: true } : {}),
    cookie: {
      httpOnly: true,
      sameSite: 'strict',
      path: '/',
      maxAge: hours * 3_600_000,
      secure: 'auto',
    },
  });
  return {
    remember: (req, res, next) => {
      // PUBLIC_URL says what browsers speak, whether or not the proxy does.
      if (https) req.headers['x-forwarded-proto'] = 'https';
      return handle(req, res, next);
    },
    async begin(req, credential) {
      await done((then) => req.session.regenerate(then)); // or whoever planted the old one would be signed in too
      Object.assign(req.session, { name: credential.name, proof: fingerprint(credential) });
      await done((then) => req.session.save(then));
      store.pruneSessions(() => {});
    },
    end: (req) => done((then) => req.session.destroy(then)),
    close: () => pool.end(),
  };
}

const done = (begin: (then: (error?: unknown) => void) => void) =>
  new Promise<void>((resolve, reject) => begin((error) => (error ? reject(error) : resolve())));
