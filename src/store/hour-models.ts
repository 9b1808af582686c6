// What were an hour's calls of each model?

import { type Hour, hourOf, ordinalOf, startOf } from '../time/hour.ts';
import { type Db, type Pool, Sql } from './db.ts';
import { countOf } from './ledger.ts';
import { calledIn } from './scope.ts';

/** No bucket, so that whoever derives models waits for nobody who rolls up users. */
const MODELS_LOCK = 64;

/** Derive the models of the closed hours that wait for it, the newest first, until there are none or the signal aborts. */
export async function deriveWaiting(pool: Pool, signal: AbortSignal): Promise<void> {
  for (let hours = await underivedHours(pool, SOME); hours.length > 0; hours = await underivedHours(pool, SOME)) {
    for (const hour of hours) {
      if (signal.aborted) return;
      await deriveModels(pool, hour);
    }
    if (hours.length < SOME) return; // one that somebody else derives at this moment is no reason to look again and again
  }
}

const SOME = 100;

async function underivedHours(db: Db, limit: number): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    select hour from "StatHour" l
     where state = 'closed' and ("sealedAt" is null and "modelsAsOf" is distinct from "asOf" or "totalUsage" is null) and ${known}
     order by hour desc limit ${limit}::int`;
  return rows.map((row) => hourOf(row.hour));
}

/** Of a sealed hour the statistics may have been forgotten before anybody wrote down what they come to: then nobody ever will. */
const known = Sql.sql`
  ("sealedAt" is null or exists (select from "ModelCallStat" s where s."timeType" = 'hour' and s."timestamp" = l.hour))`;

/**
 * Derive the models of a closed hour from its calls, and what all its users come to where no run has written that down yet. Not part of
 * the roll-up, which would take longer for it: nothing is decided by them.
 */
async function deriveModels(pool: Pool, hour: Hour): Promise<void> {
  await pool.$transaction(async (db) => {
    const [{ free }] = await db.$queryRaw<[{ free: boolean }]>`
      select pg_try_advisory_xact_lock(${ordinalOf(hour)}::int, ${MODELS_LOCK}::int) as free`;
    if (free) await writeModels(db, hour);
  });
}

/** The same, in a transaction that lets nobody else do it meanwhile. */
export async function writeModels(db: Db, hour: Hour): Promise<void> {
  await db.$executeRaw`
    with closed as materialized (
      select hour, "asOf", users from "StatHour" where hour = ${startOf(hour)}::timestamptz and state = 'closed' and "sealedAt" is null
    ), fresh as materialized (
      select hour, "providerId", model, type, count(*) as calls, count(*) filter (where status = 'success') as success,
             count(*) filter (where status = 'failed') as failed, sum("totalUsage") as usage, sum(credits) as credits
        from "ModelCall", closed where ${calledIn(hour)} group by hour, "providerId", model, type
    ), removed as (
      delete from "StatModel" s using closed
       where s.hour = closed.hour
         and not exists (select from fresh f where (f."providerId", f.model, f.type) = (s."providerId", s.model, s.type))
    ), written as (
      insert into "StatModel" (hour, "providerId", model, type, "totalCalls", "successCalls", "failedCalls", "totalUsage", "totalCredits")
      select * from fresh
      on conflict (hour, "providerId", model, type) do update
         set ("totalCalls", "successCalls", "failedCalls", "totalUsage", "totalCredits")
           = (excluded."totalCalls", excluded."successCalls", excluded."failedCalls", excluded."totalUsage", excluded."totalCredits")
    )
    update "StatHour" l set "modelsAsOf" = closed."asOf"
      from closed where l.hour = closed.hour`;
  await db.$executeRaw`
    update "StatHour" l set (users, calls, "successCalls", "failedCalls", "totalUsage", "totalCredits") = (${countOf(hour)})
     where hour = ${startOf(hour)}::timestamptz and state = 'closed' and "totalUsage" is null and ${known}`;
}
