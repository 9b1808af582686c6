// Where is it kept who is signed in?

import type pg from 'pg';
import { openPool } from './db.ts';

export const SESSIONS = 'DashboardSession';

/**
 * A small pool of plain `pg` for the library that keeps the sessions. A server that does not answer is given up after five
 * seconds: somebody waits for a page. The caller ends it.
 */
export function sessionPool(url: string, onError: (error: Error) => void): pg.Pool {
  const more = { connectionTimeoutMillis: 5_000, query_timeout: 5_000 };
  return openPool(url, { max: 2, onError, more }).on('error', onError);
}
