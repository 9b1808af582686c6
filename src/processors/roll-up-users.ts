// How are some users of an hour rolled up?

import { UnrecoverableError } from 'bullmq';
import { parseData } from '../queues/define-job.ts';
import { rollUpUsers, type UsersData } from '../queues/stats.ts';
import { type Pool, reasonOf } from '../store/db.ts';
import { type ClosePolicy, failShards, shardIsDone } from '../store/ledger.ts';
import { type Scope, shownName } from '../store/scope.ts';
import { rollUp } from '../store/stats.ts';
import { closeHourAloud } from './close-hour.ts';
import type { Context } from './context.ts';
import { nameFailed, rollUpScope, type ScopeResult, wholeHour } from './roll-up-scope.ts';

/**
 * Roll up one user or a range of buckets, and close the hour if that was the last of it.
 *
 * It may run twice, beside its own zombie, or days late: figures are derived under the buckets' locks, and what counts as
 * done is the shard of whichever run the ledger named in that same statement.
 */
export function rollUpUsersProcessor(deps: { pool: Pool; policy: ClosePolicy }) {
  const { pool } = deps;
  return async (context: Context) => {
    const { job, signal } = context;
    const data = parseData(rollUpUsers, job);
    const scope = scopeOf(data);
    // Only when it is first begun: whoever runs it again wants its user rolled up again.
    const fresh = job.attemptsStarted <= 1;
    if (fresh && data.userDid !== undefined && (await shardIsDone(pool, data))) {
      await job.log(`run ${data.run}: rolled up together with the hour's other users`);
      return { run: data.run, together: true };
    }
    const result = await work(pool, data, scope, fresh, signal).catch(async (error: unknown) => {
      const last = job.attemptsMade + 1 >= (job.opts.attempts ?? 1);
      // The ledger's note is a courtesy: without it the hour is partial all the same.
      if (last) await failShards(pool, scope, data.run, `${whom(data)}: ${reasonOf(error)}`).catch(() => {});
      throw error;
    });
    const line = `run ${result.run}: ${result.users} users, ${result.calls} calls; ${result.written} rows written, ${result.removed} removed`;
    await Promise.all([job.log(line), job.updateProgress(100)]);
    if (result.failed.length > 0) {
      const error = nameFailed(result.failed);
      await failShards(pool, scope, Math.max(result.run, data.run), error);
      throw new UnrecoverableError(`cannot be stored: ${error}`);
    }
    signal.throwIfAborted();
    const closing = await closeHourAloud(context, deps, data.hour, result.run, 'child');
    return { run: result.run, users: result.users, calls: Number(result.calls), hour: closing.outcome };
  };
}

/**
 * Where an hour has few calls, the first of its single users' children does the work of all: one statement costs no more than
 * one user's, and the others find themselves done. Where somebody is at one of them, or one cannot be stored, each is on
 * its own.
 */
async function work(
  pool: Pool,
  data: UsersData,
  scope: Scope,
  fresh: boolean,
  signal: AbortSignal,
): Promise<ScopeResult> {
  signal.throwIfAborted();
  const all = fresh && data.together ? await wholeHour(pool, data.hour, rollUp) : undefined;
  return all ? { ...all, failed: [] } : rollUpScope(pool, scope, signal);
}

function scopeOf({ hour, lo, hi, userDid }: UsersData): Scope {
  return { hour, lo, hi, ...(userDid === undefined ? {} : { users: [userDid] }) };
}

function whom({ lo, hi, userDid }: UsersData): string {
  return userDid === undefined ? `buckets ${lo}–${hi}` : shownName(userDid);
}
