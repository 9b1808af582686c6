// How are the closed hours audited?

import { requestHour } from '../producers/hours.ts';
import type { Queues } from '../queues/redis.ts';
import { auditHour, hoursToAudit } from '../store/audit.ts';
import { forgetChanges } from '../store/changes.ts';
import type { Pool } from '../store/db.ts';
import type { Context } from './context.ts';

export interface AuditPolicy {
  /** So many audits are to see every closed hour once. */
  readonly audits: number;
  readonly historyDays: number;
}

/**
 * Recount the next share of the closed hours from the calls. An hour that differs, which nothing that hourhand knows of explains,
 * is an error in the log and in the status, and is rolled up again, with the repair as its reason.
 */
export function auditHoursProcessor({ pool, queues, policy }: { pool: Pool; queues: Queues; policy: AuditPolicy }) {
  return async ({ job, signal, log }: Context) => {
    const hours = await hoursToAudit(pool, policy.audits);
    let differing = 0;
    for (const [i, hour] of hours.entries()) {
      signal.throwIfAborted();
      const result = await auditHour(pool, hour);
      if (result) {
        differing += 1;
        const { users, found } = result;
        log.error({ hour, users, found }, 'audit: stored figures are not what the calls add up to');
        await job.log(`${hour}: ${found}`);
        await requestHour({ pool, queues }, hour, { reason: 'repair', requestedBy: 'audit' });
      }
      await job.updateProgress(Math.round((100 * (i + 1)) / hours.length));
    }
    await forgetChanges(pool, policy.historyDays);
    await job.log(`${hours.length} hours recounted, ${differing} differ`);
    return { audited: hours.length, differing };
  };
}
