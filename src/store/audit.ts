// Which closed hours are recounted next, and what did the audits find?

import { endOf, type Hour, hourOf, startOf } from '../time/hour.ts';
import { type Db, instant, type Now, type Pool } from './db.ts';
import { differences } from './stats.ts';

/** A difference that was found, until an audit of the same hour finds none. */
export interface AuditFinding {
  readonly hour: Hour;
  readonly at: Date;
  readonly found: string;
  /** The hour has been rolled up since. */
  readonly repaired: boolean;
}

/**
 * The next of the closed hours, in rotation: those that an audit found wrong, those that none has seen, then whose audit is the
 * longest ago.
 *
 * @param audits so many of them are to see every hour once
 */
export async function hoursToAudit(db: Db, audits: number): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    with settled as (
      select hour, "auditedAt", "auditFound" from "StatHour" where state = 'closed' and fence = 0 and "sealedAt" is null
    )
    select hour from settled order by "auditFound" is null, "auditedAt" nulls first, hour
     limit (select ceil(count(*) / greatest(${audits}::float8, 1)) + 1 from settled)`;
  return rows.map((row) => hourOf(row.hour));
}

/** Users whose rows are not what the calls add up to, and some of the figures. */
export interface AuditResult {
  readonly users: number;
  readonly found: string;
}

const NAMED = 5;

/**
 * Recount one hour from the calls, in one snapshot. What a mark tells of is no difference: it is on its way.
 *
 * @returns what differs; `undefined` where nothing does, or where the hour is closed and settled no more
 */
export async function auditHour(pool: Pool, hour: Hour, now?: Now): Promise<AuditResult | undefined> {
  const start = startOf(hour);
  const named: string[] = [];
  const users = await pool.$transaction(
    async (db) => {
      const settled = await db.$queryRaw<object[]>`
        select 1 from "StatHour" where hour = ${start}::timestamptz and state = 'closed' and fence = 0 and "sealedAt" is null`;
      if (settled.length === 0) return undefined;
      let differing = 0;
      for await (const batch of differences(db, { start, end: endOf(hour) })) {
        for (const { userDid, differing: figures, pending } of batch) {
          if (pending) continue;
          differing += 1;
          if (named.length < NAMED) named.push(`${userDid}: ${figures.join('; ')}`);
        }
      }
      return differing;
    },
    { isolationLevel: 'RepeatableRead' },
  );
  if (users === undefined) return undefined;
  const found =
    users === 0 ? null : `${users} user-hours differ: ${named.join('. ')}${users > NAMED ? '. And more' : ''}`;
  await pool.$executeRaw`
    update "StatHour" set "auditedAt" = ${instant(now)}, "auditFound" = ${found}::text where hour = ${start}::timestamptz`;
  return found === null ? undefined : { users, found };
}

/** What the audits found, the newest hours first; and since when every closed hour has been seen by one, null where some has not. */
export async function auditStatus(db: Db, limit: number): Promise<{ since: Date | null; findings: AuditFinding[] }> {
  const [{ since }] = await db.$queryRaw<[{ since: Date | null }]>`
    select case when bool_and("auditedAt" is not null) then min("auditedAt") end as since
      from "StatHour" where state = 'closed' and "sealedAt" is null`;
  const rows = await db.$queryRaw<(Omit<AuditFinding, 'hour'> & { hour: Date })[]>`
    select hour, "auditedAt" as at, "auditFound" as found, state = 'closed' and "closedAt" > "auditedAt" as repaired
      from "StatHour" where "auditFound" is not null order by hour desc limit ${limit}::int`;
  return { since, findings: rows.map((row) => ({ ...row, hour: hourOf(row.hour) })) };
}
