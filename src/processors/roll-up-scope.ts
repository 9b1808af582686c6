// How are the users of a scope rolled up, and which of them cannot be?

import { type Db, isDataError, type Pool, reasonOf } from '../store/db.ts';
import { BUCKETS, lockScope, type Scope, shownName, tryToLockScope } from '../store/scope.ts';
import { type RolledUp, rollUp, usersOfScope } from '../store/stats.ts';
import type { Hour } from '../time/hour.ts';

export interface ScopeResult extends Pick<RolledUp, 'run' | 'users' | 'calls' | 'written' | 'removed'> {
  /** Users whose figures cannot be stored, each with the reason; everybody else's are. */
  failed: { userDid: string; reason: string }[];
}

/**
 * Roll up a scope, in a transaction that begins with its locks. Where the data is at fault, halve it at once, down to the
 * users that cannot be stored: all others are stored, and the rows of those stay as they were.
 *
 * @param signal no new transaction is begun once it has aborted
 * @throws errors of the server and the traffic: trying again may help
 */
export async function rollUpScope(pool: Pool, scope: Scope, signal: AbortSignal): Promise<ScopeResult> {
  signal.throwIfAborted();
  try {
    const done = await pool.$transaction(async (db) => {
      await lockScope(db, scope);
      return rollUp(db, scope);
    });
    return { ...done, failed: [] };
  } catch (error) {
    if (!isDataError(error)) throw error;
    const halves = await halve(pool, scope);
    if (halves.length === 0) throw error;
    if (halves.length === 1) {
      const userDid = halves[0]?.users?.[0] ?? '';
      return { run: 0, users: 0, calls: 0n, written: 0, removed: 0, failed: [{ userDid, reason: reasonOf(error) }] };
    }
    const results: ScopeResult[] = [];
    for (const half of halves) results.push(await rollUpScope(pool, half, signal));
    return results.reduce(sum);
  }
}

/**
 * Do something to a whole hour in one transaction, where nobody else is at any of its users and all of them can be stored.
 *
 * @returns `undefined`: it is not so, and nothing was changed
 * @throws errors of the server and the traffic
 */
export async function wholeHour<T>(
  pool: Pool,
  hour: Hour,
  work: (db: Db, scope: Scope) => Promise<T>,
): Promise<T | undefined> {
  const scope = { hour, lo: 0, hi: BUCKETS - 1 };
  try {
    return await pool.$transaction(async (db) => ((await tryToLockScope(db, scope)) ? work(db, scope) : undefined));
  } catch (error) {
    if (isDataError(error)) return undefined;
    throw error;
  }
}

/** Two parts of a scope; one where it is a single user; none where nobody is left in it. */
async function halve(pool: Pool, scope: Scope): Promise<Scope[]> {
  const { lo, hi } = scope;
  if (lo < hi) {
    const middle = Math.floor((lo + hi) / 2);
    return [
      { ...scope, hi: middle },
      { ...scope, lo: middle + 1 },
    ];
  }
  const users = await usersOfScope(pool, scope);
  const middle = Math.ceil(users.length / 2);
  return [users.slice(0, middle), users.slice(middle)]
    .filter((part) => part.length > 0)
    .map((part) => ({ ...scope, users: part }));
}

function sum(a: ScopeResult, b: ScopeResult): ScopeResult {
  return {
    run: Math.max(a.run, b.run),
    users: a.users + b.users,
    calls: a.calls + b.calls,
    written: a.written + b.written,
    removed: a.removed + b.removed,
    failed: [...a.failed, ...b.failed],
  };
}

/** At most 20 names: `z1…, z2… and 3 more: numeric field overflow (22003)`. */
export function nameFailed(failed: ScopeResult['failed']): string {
  const reasons = new Map<string, string[]>();
  for (const { userDid, reason } of failed) reasons.set(reason, [...(reasons.get(reason) ?? []), userDid]);
  return [...reasons]
    .map(([reason, users]) => {
      const more = users.length > 20 ? ` and ${users.length - 20} more` : '';
      return `${users.slice(0, 20).map(shownName).join(', ')}${more}: ${reason}`;
    })
    .join('; ');
}
