// What were an hour's calls of each model?

import { type Hour, hourOf, ordinalOf, startOf } from '../time/hour.ts';
import { type Db, type Pool, Sql } from './db.ts';
import { countOf, counts } from './ledger.ts';
import { calledIn, MODELS_LOCK } from './scope.ts';

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
    select hour from "StatHour"
     where state = 'closed' and (("sealedAt" is null and "modelsAsOf" is distinct from "asOf") or "totalUsage" is null)
       and ("sealedAt" is null or ${hasRows})
    union
    select hour from "StatUntold" u join "StatHour" l using (hour)
     where u.models and l.state = 'closed' and l."sealedAt" is null
     order by hour desc limit ${limit}::int`;
  return rows.map((row) => hourOf(row.hour));
}

/** A sealed hour whose statistics are forgotten keeps what the ledger says of it. */
const hasRows = Sql.sql`exists (select from "ModelCallStat" s where s."timeType" = 'hour' and s."timestamp" = hour)`;

/**
 * Derive the models of a closed hour from its calls, and from its rows what all its users come to: an older version, beside this one or
 * before it, closes hours without that. Not part of the roll-up, which would take longer for models: nothing is decided by them.
 */
async function deriveModels(pool: Pool, hour: Hour): Promise<void> {
  await pool.$transaction(async (db) => {
    const [{ free }] = await db.$queryRaw<[{ free: boolean }]>`
      select pg_try_advisory_xact_lock(${ordinalOf(hour)}::int, ${MODELS_LOCK}::int) as free`;
    if (free) await writeModels(db, hour);
  });
}

/** So many letters of a provider's or a model's name are kept: names are the callers', of any length, and an index's row is not. */
export const NAME = 200;

/**
 * The same, in a transaction that lets nobody else do it meanwhile: it holds MODELS_LOCK. That lock comes before the
 * lock of the hour's row, here and wherever else both are taken (src/store/seal.ts), or two could wait for each
 * other.
 */
export async function writeModels(db: Db, hour: Hour): Promise<void> {
  await db.$executeRaw`
    with closed as materialized (
      select hour, "asOf", users from "StatHour" where hour = ${startOf(hour)}::timestamptz and state = 'closed' and "sealedAt" is null
    ), fresh as materialized (
      select hour, left("providerId", ${NAME}::int) as "providerId", left(model, ${NAME}::int) as model, type, count(*) as calls,
             count(*) filter (where status = 'success') as success, count(*) filter (where status = 'failed') as failed,
             sum("totalUsage") as usage, sum(credits) as credits
        from "ModelCall", closed where ${calledIn(hour)} group by 1, 2, 3, 4
    ), told as (
      delete from "StatUntold" u using closed where u.hour = closed.hour and u.models
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
  // Locked by a statement of its own, as in a recount: of two that count at once, the later one writes the later counts.
  await db.$queryRaw`select 1 from "StatHour" where hour = ${startOf(hour)}::timestamptz for update`;
  await db.$executeRaw`
    update "StatHour" set (${counts}) = (${countOf(hour)})
     where hour = ${startOf(hour)}::timestamptz and state = 'closed' and ("sealedAt" is null or ("totalUsage" is null and ${hasRows}))`;
}
