// Which closed hours are recounted next, and what did the audits find?

import { endOf, type Hour, hourOf, startOf } from '../time/hour.ts';
import type { Range } from '../time/range.ts';
import { hasEnded, isAhead } from './clock.ts';
import { type Db, inOneSnapshot, instant, type Now, type Pool, Sql } from './db.ts';
import { recountHour } from './ledger.ts';
import { shownName } from './scope.ts';
import { differences } from './stats.ts';
import { ledgerDifferences, modelDifferences, type TotalsDifference } from './totals.ts';

/** A difference that was found, until an audit of the same hour finds none. */
export interface AuditFinding {
  readonly hour: Hour;
  readonly at: Date;
  readonly found: string;
  /** The hour has been rolled up since. */
  readonly repaired: boolean;
}

/** An hour is recounted if it is closed, has ended, and waits for no older transaction. */
const isSettled = Sql.sql`(state = 'closed' and fence = 0 and "sealedAt" is null
  and ${hasEnded(Sql.sql`hour`)} and not ${isAhead(Sql.sql`"asOf"`)})`;

/** When an hour was recounted. An audit in the future, by a fast clock, does not count. */
const audited = Sql.sql`case when "auditedAt" <= statement_timestamp() then "auditedAt" end`;

/**
 * The next of the closed hours, in rotation: those that an audit found wrong, those that none has seen, then whose audit is the
 * longest ago.
 *
 * @param audits so many of them are to see every hour once
 */
export async function hoursToAudit(db: Db, audits: number): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    with fenced as (
      select hour, ${audited} as "auditedAt", "auditFound" from "StatHour" where ${isSettled}
    )
    select hour from fenced order by "auditFound" is null, "auditedAt" nulls first, hour
     limit (select ceil(count(*) / greatest(${audits}::float8, 1)) + 1 from fenced)`;
  return rows.map((row) => hourOf(row.hour));
}

/**
 * What an audit of a range can recount: its closed hours; and how many of its hours are sealed, or not closed for
 * good.
 */
export async function auditable(
  db: Db,
  { start, end }: Range,
): Promise<{ hours: Hour[]; sealed: number; open: number }> {
  const rows = await db.$queryRaw<{ hour: Date; sealed: boolean; open: boolean }[]>`
    select hour, l."sealedAt" is not null as sealed, ${isSettled} is not true as open
      from generate_series(${start}::timestamptz, ${end}::timestamptz - interval '1 hour', interval '1 hour') as hour
           left join "StatHour" l using (hour)
     order by hour`;
  return {
    hours: rows.filter(({ sealed, open }) => !sealed && !open).map((row) => hourOf(row.hour)),
    sealed: rows.filter(({ sealed }) => sealed).length,
    open: rows.filter(({ sealed, open }) => open && !sealed).length,
  };
}

/**
 * Users whose rows are not what the calls add up to, and some of the figures; no users where only the totals of them
 * all differ.
 */
export interface AuditResult {
  readonly users: number;
  readonly found: string;
}

const NAMED = 5;

/**
 * Recount one closed and settled hour from the calls, in one snapshot, and write down what was found: its rows, or
 * where these are right what the ledger and the models say of them all together.
 *
 * @returns what differs; `undefined` where nothing does, or where the hour is closed and settled no more
 */
export async function auditHour(pool: Pool, hour: Hour, now?: Now): Promise<AuditResult | undefined> {
  const audit = await inOneSnapshot(pool, async (db) => {
    const settled = await db.$queryRaw<object[]>`
      select 1 from "StatHour" where hour = ${startOf(hour)}::timestamptz and ${isSettled}`;
    if (settled.length === 0) return undefined;
    return { result: (await recount(db, hour)) ?? (await recountTotals(db, hour)) };
  });
  if (audit) await recordAudit(pool, hour, audit.result, now);
  // The repair by a run of its own follows; what only the ledger has wrong is right at once.
  if (audit) await pool.$transaction((db) => recountHour(db, hour, null));
  return audit?.result;
}

/** Compare an hour's figures with its calls, in a transaction. What a mark tells of is no difference: it is on its way. */
export async function recount(db: Db, hour: Hour): Promise<AuditResult | undefined> {
  const named: string[] = [];
  let users = 0;
  for await (const batch of differences(db, { start: startOf(hour), end: endOf(hour) })) {
    for (const { userDid, differing, pending } of batch) {
      if (pending) continue;
      users += 1;
      if (named.length < NAMED) named.push(`${shownName(userDid)}: ${differing.join('; ')}`);
    }
  }
  if (users === 0) return undefined;
  return { users, found: `${users} user-hours differ: ${named.join('. ')}${users > NAMED ? '. And more' : ''}` };
}

/** Compare what the ledger and the models say of an hour with its rows and its calls, in a transaction; likewise. */
async function recountTotals(db: Db, hour: Hour): Promise<AuditResult | undefined> {
  const range = { start: startOf(hour), end: endOf(hour) };
  const found: TotalsDifference[] = [];
  for (const compare of [ledgerDifferences, modelDifferences]) {
    for await (const batch of compare(db, range))
      found.push(...batch.filter(({ pending }) => !pending).slice(0, NAMED));
  }
  if (found.length === 0) return undefined;
  const named = found.slice(0, NAMED).map(({ what, differing }) => `${what}: ${differing.join('; ')}`);
  return { users: 0, found: `totals differ: ${named.join('. ')}${found.length > NAMED ? '. And more' : ''}` };
}

/** Write down that an hour was recounted, and what was found. */
export async function recordAudit(db: Db, hour: Hour, result: AuditResult | undefined, now?: Now): Promise<void> {
  await db.$executeRaw`
    update "StatHour" set "auditedAt" = ${instant(now)}, "auditFound" = ${result?.found ?? null}::text
     where hour = ${startOf(hour)}::timestamptz`;
}

/** What the audits found, the newest hours first; when the last was, and since when every closed hour has been seen by one, null where some has not. */
export async function auditStatus(
  db: Db,
  limit: number,
): Promise<{ since: Date | null; last: Date | null; findings: AuditFinding[] }> {
  const [seen] = await db.$queryRaw<[{ since: Date | null; last: Date | null }]>`
    select case when bool_and(${audited} is not null) then min("auditedAt") end as since, max(${audited}) as last
      from "StatHour" where state = 'closed' and "sealedAt" is null`;
  const rows = await db.$queryRaw<(Omit<AuditFinding, 'hour'> & { hour: Date })[]>`
    select hour, "auditedAt" as at, "auditFound" as found, state = 'closed' and "closedAt" > "auditedAt" as repaired
      from "StatHour" where "auditFound" is not null order by hour desc limit ${limit}::int`;
  return { ...seen, findings: rows.map((row) => ({ ...row, hour: hourOf(row.hour) })) };
}
