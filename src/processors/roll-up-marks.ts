// How are the marked users of an hour rolled up again?

import { UnrecoverableError } from 'bullmq';
import { requestHour, requestMarkedWhole } from '../producers/hours.ts';
import { parseData } from '../queues/define-job.ts';
import type { Queues } from '../queues/redis.ts';
import { rollUpMarks } from '../queues/stats.ts';
import type { Pool } from '../store/db.ts';
import { noteGap } from '../store/gaps.ts';
import { type ClosePolicy, failHour, recountHour } from '../store/ledger.ts';
import { markedScopes } from '../store/marks.ts';
import { storeZeroRows } from '../store/stats.ts';
import { closeHourAloud } from './close-hour.ts';
import type { Context } from './context.ts';
import { nameFailed, rollUpScope, type ScopeResult } from './roll-up-scope.ts';

/** Above so many marked users the whole hour is asked for: it is cheaper, and takes their marks with it. */
const MAX_USERS = 1_000;

/**
 * Roll up the marked users of an hour, bucket by bucket, by a child's own steps, then derive the ledger's counts anew.
 * A user that cannot be stored leaves the hour partial and keeps the mark; both wait for the hour's back-off.
 */
export function rollUpMarksProcessor(deps: { pool: Pool; queues: Queues; policy: ClosePolicy }) {
  const { pool, policy } = deps;
  return async (context: Context) => {
    const { job, signal, log } = context;
    const { hour } = parseData(rollUpMarks, job);
    await noteGap(pool, hour);
    // A user whose name is too long for a mark: nobody knows which one.
    if (await requestMarkedWhole(deps, hour)) return { hour, asked: 'the whole hour' };
    const { scopes, asOf } = await markedScopes(pool, hour);
    const users = scopes.reduce((sum, scope) => sum + scope.users.length, 0);
    if (users > MAX_USERS) {
      await requestHour(deps, hour, { reason: 'late', requestedBy: 'marks' });
      return { hour, users, asked: 'the whole hour' };
    }
    const failed: ScopeResult['failed'] = [];
    let run = 0;
    for (const [i, scope] of scopes.entries()) {
      const result = await rollUpScope(pool, scope, signal);
      failed.push(...result.failed);
      run = Math.max(run, result.run);
      await job.updateProgress(Math.round((100 * (i + 1)) / scopes.length));
    }
    await pool.$transaction((db) => recountHour(db, hour, failed.length > 0 ? null : asOf));
    if (policy.storeZeroRows) await storeZeroRows(pool, hour, policy.windowDays);
    await job.log(`${users - failed.length} of ${users} users rolled up again`);
    if (failed.length > 0) {
      const error = nameFailed(failed);
      await failHour(pool, hour, error, policy);
      throw new UnrecoverableError(`hour ${hour} is partial: cannot be stored: ${error}`);
    }
    if (users > 0) log.info({ hour, users }, 'users rolled up again');
    // The mended user may have been the last that a partial hour waited for.
    await closeHourAloud(context, deps, hour, run, 'child');
    return { hour, users };
  };
}
