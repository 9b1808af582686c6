// How are the closed hours audited?

import { requestHour } from '../producers/hours.ts';
import type { Queues } from '../queues/redis.ts';
import { forgetActions } from '../store/actions.ts';
import { forgetAlarms } from '../store/alarms.ts';
import { type AuditResult, auditHour, hoursToAudit } from '../store/audit.ts';
import { forgetChanges } from '../store/changes.ts';
import { readClock, whyHeld } from '../store/clock.ts';
import type { Pool } from '../store/db.ts';
import { beginWalk } from '../store/gaps.ts';
import { forgetRuns } from '../store/runs.ts';
import { hoursToSeal, sealHour } from '../store/seal.ts';
import type { Hour } from '../time/hour.ts';
import type { Context } from './context.ts';

export interface AuditPolicy {
  /** So many audits are to see every closed hour once. */
  readonly audits: number;
  readonly historyDays: number;
  /** Hours older than so many days are sealed: the gateway archives its calls. Never, where it is not given. */
  readonly callsKeptDays?: number | undefined;
}

/**
 * Recount the next share of the closed hours from the calls. An hour that differs, which nothing that hourhand knows of explains,
 * is an error in the log and in the status, and is rolled up again, with the repair as its reason. Then seal what is old and right,
 * where the gateway takes its calls away by itself. If the clock may have stepped, nothing is sealed, and no history
 * forgotten.
 */
export function auditHoursProcessor(deps: { pool: Pool; queues: Queues; policy: AuditPolicy }) {
  const { pool, policy } = deps;
  return async (context: Context) => {
    const { job, signal, log } = context;
    await beginWalk(pool, { again: true }); // the workers' looks go on with it
    const hours = await hoursToAudit(pool, policy.audits);
    let differing = 0;
    const differs = async (hour: Hour, result: AuditResult) => {
      differing += 1;
      await sayDifference(context, hour, result);
      await requestHour(deps, hour, { reason: 'repair', requestedBy: 'audit' });
    };
    for (const [i, hour] of hours.entries()) {
      signal.throwIfAborted();
      const result = await auditHour(pool, hour);
      if (result) await differs(hour, result);
      await job.updateProgress(Math.round((100 * (i + 1)) / hours.length));
    }
    const clock = await readClock(pool);
    let held = whyHeld(clock);
    const seals = policy.callsKeptDays !== undefined && !held;
    const old = seals ? await hoursToSeal(pool, policy.callsKeptDays, clock.now) : [];
    let sealed = 0;
    for (const hour of old) {
      signal.throwIfAborted();
      held ??= whyHeld(await readClock(pool));
      if (held) break;
      const sealing = await sealHour(pool, hour);
      if (sealing.outcome === 'sealed') sealed += 1;
      if (sealing.outcome === 'differs') await differs(hour, sealing);
    }
    if (sealed > 0) log.info({ hours: sealed }, 'hours sealed');
    if (!held) await forgetHistory(pool, policy.historyDays, clock.now);
    else await job.log(`nothing is sealed or forgotten: ${held}`);
    await job.log(
      `${hours.length} hours recounted, ${differing} differ${old.length > 0 ? `; ${sealed} of ${old.length} old hours sealed` : ''}`,
    );
    return { audited: hours.length, differing, sealed };
  };
}

async function forgetHistory(pool: Pool, days: number, now: Date): Promise<void> {
  await forgetChanges(pool, days, now);
  await forgetRuns(pool, days, now);
  await forgetActions(pool, days, now);
  await forgetAlarms(pool, days, now);
}

/** In the log, for whoever is on call, and on the job. */
export async function sayDifference({ job, log }: Context, hour: Hour, { users, found }: AuditResult): Promise<void> {
  log.error({ hour, users, found }, 'audit: stored figures are not what the calls add up to');
  await job.log(`${hour}: ${found}`);
}
