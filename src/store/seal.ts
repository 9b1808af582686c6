// Which hours keep their figures, whatever becomes of their calls?

import { endOf, type Hour, hourOf, ordinalOf, startOf } from '../time/hour.ts';
import type { Range } from '../time/range.ts';
import { type AuditResult, recordAudit, recount } from './audit.ts';
import { isAhead } from './clock.ts';
import { type Db, instant, type Now, type Pool, Sql } from './db.ts';
import { writeModels } from './hour-models.ts';
import { forgetLate } from './late.ts';
import { recountHour } from './ledger.ts';
import { BUCKETS, calledIn, lockScope, MODELS_LOCK } from './scope.ts';
import { standingsOf } from './standing.ts';

/**
 * What sealing came to. `passed`: not one of its conditions but the figures holds it up, and why. `differs`: the figures are not
 * what the calls add up to; the audit's finding says so.
 */
export type Sealing =
  | { readonly outcome: 'sealed' | 'already' }
  | { readonly outcome: 'passed'; readonly why: string }
  | ({ readonly outcome: 'differs' } & AuditResult);

/**
 * Seal an hour: from then on it is never rolled up, marked, repaired or backfilled, and its calls may go. Only an hour that is
 * final, and whose figures are what its calls add up to, recounted now.
 *
 * The recount is under the locks of all its buckets, so that no roll-up writes between it and the seal; one that comes
 * later finds the hour sealed. Whatever else may have changed meanwhile is asked by the statement that seals. A writer whose transaction
 * is open all the while is seen by nobody: that is why whoever deletes calls recounts them once more (src/store/retain.ts).
 *
 * @param dryRun say what it would come to, and write nothing
 */
export async function sealHour(
  pool: Pool,
  hour: Hour,
  { dryRun = false, now }: { dryRun?: boolean; now?: Now } = {},
): Promise<Sealing> {
  return pool.$transaction(async (db): Promise<Sealing> => {
    await lockScope(db, { hour, lo: 0, hi: BUCKETS - 1 });
    await lockModels(db, hour); // before anything locks the hour's row, as whoever derives the models does
    const before = await obstacle(db, hour);
    if (before) return before;
    const result = await recount(db, hour);
    if (!dryRun) await recordAudit(db, hour, result, now);
    if (result) return { outcome: 'differs', ...result };
    if (!dryRun) await writeLast(db, hour);
    if (!dryRun && !(await seal(db, hour, now))) {
      return (await obstacle(db, hour)) ?? { outcome: 'passed', why: 'changing' };
    }
    return { outcome: 'sealed' };
  });
}

async function lockModels(db: Db, hour: Hour): Promise<void> {
  await db.$executeRaw`select pg_advisory_xact_lock(${ordinalOf(hour)}::int, ${MODELS_LOCK}::int)`;
}

/**
 * Models, while there are calls to derive them from, and what the ledger says of the figures: nobody counts them
 * after this. What came late while the hour was sealed before, if it was, is in the figures now.
 */
async function writeLast(db: Db, hour: Hour): Promise<void> {
  await recountHour(db, hour, null);
  await writeModels(db, hour);
  await forgetLate(db, hour);
}

async function seal(db: Db, hour: Hour, now: Now): Promise<boolean> {
  const sealed = await db.$executeRaw`
    update "StatHour" l set "sealedAt" = ${instant(now)}
     where hour = ${startOf(hour)}::timestamptz and state = 'closed' and fence = 0 and "sealedAt" is null
       and exists (select from (${standingsOf({ start: startOf(hour), end: endOf(hour) })}) as standing where final)`;
  return sealed > 0;
}

/** Why an hour cannot be sealed, before its figures are looked at. */
async function obstacle(db: Db, hour: Hour): Promise<Sealing | undefined> {
  const [row] = await db.$queryRaw<[{ sealed: boolean; why: string | null }]>`
    select sealed, ${why} as why from (${standingsOf({ start: startOf(hour), end: endOf(hour) })}) as standing`;
  if (row.sealed) return { outcome: 'already' };
  return row.why === null ? undefined : { outcome: 'passed', why: row.why };
}

/** One reason, without figures: hours are counted by it. */
const why = Sql.sql`case when state <> 'closed' then state when early then 'closed by a clock that was fast'
  when marked > 0 then 'users marked' when "underWay" then 'calls under way'
  when older then 'older transactions' end`;

/**
 * Unseal the hours that a fast clock sealed at a time that is still to come, and ask for them anew: calls that came
 * since are in no figure. If calls of an hour are gone, by retention or by the gateway's own archive, the hour stays
 * sealed, because its figures could not be derived again. Each hour is looked at under the locks of all its buckets.
 *
 * @returns the hours that are open again
 */
export async function unsealEarly(pool: Pool, limit: number): Promise<Hour[]> {
  const sealed = await pool.$queryRaw<{ hour: Date }[]>`
    select hour from "StatHour" where ${isAhead(Sql.sql`"sealedAt"`)} and "bucketsGone" = 0
     order by hour limit ${limit}::int`;
  const unsealed: Hour[] = [];
  for (const hour of sealed.map((row) => hourOf(row.hour))) if (await unseal(pool, hour)) unsealed.push(hour);
  return unsealed;
}

async function unseal(pool: Pool, hour: Hour): Promise<boolean> {
  return pool.$transaction(async (db) => {
    await lockScope(db, { hour, lo: 0, hi: BUCKETS - 1 });
    const unsealed = await db.$executeRaw`
      with counted as materialized (
        select "userDid", count(*) as calls from "ModelCall" where ${calledIn(hour)} group by "userDid"
      )
      update "StatHour" l
         set "sealedAt" = null, state = 'open', wanted = run + 1, fence = null, reason = 'repair',
             "requestedBy" = 'clock', "backfillId" = null, "nextAttemptAt" = null, "auditedAt" = null
       where hour = ${startOf(hour)}::timestamptz and ${isAhead(Sql.sql`"sealedAt"`)} and "bucketsGone" = 0
         and coalesce(l.calls, 0) <= (select coalesce(sum(calls), 0) from counted)
         and not exists (select from "ModelCallStat" s left join counted c using ("userDid")
                          where s."timeType" = 'hour' and s."timestamp" = ${startOf(hour)}::timestamptz
                            and s."totalCalls" > coalesce(c.calls, 0))`;
    if (unsealed > 0) await forgetLate(db, hour); // its next run counts what came late
    return unsealed > 0;
  });
}

/** The sealed hours of a range. */
export async function sealedHours(db: Db, { start, end }: Range): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    select hour from "StatHour"
     where hour >= ${start}::timestamptz and hour < ${end}::timestamptz and "sealedAt" is not null order by hour`;
  return rows.map((row) => hourOf(row.hour));
}

/** The closed hours with figures that ended more than so many days ago and are not sealed, the oldest first. */
export async function hoursToSeal(db: Db, days: number, now?: Now): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    select hour from "StatHour"
     where state = 'closed' and users > 0 and "sealedAt" is null
       and hour + interval '1 hour' <= ${instant(now)} - ${days}::int * interval '24 hours'
     order by hour`;
  return rows.map((row) => hourOf(row.hour));
}
