// What were the hours of a backfill before it asked for them, and how do they become that again?

import { type Hour, hourOf, startOf } from '../time/hour.ts';
import type { Range } from '../time/range.ts';
import { type Db, instant, type Now, Sql } from './db.ts';
import { lockGaps, noteGivenBack } from './gaps.ts';
import { isUntold, recountHour } from './ledger.ts';
import { coverAsked, isCovered, lockRanges, uncover } from './ranges.ts';
import { isAsked, type Only } from './survey.ts';

/**
 * Write down what the hours of a range that a backfill asks for are, and lock them until it has asked; then cover them. Who else writes
 * down, cancels or retries waits meanwhile.
 *
 * An hour without a row gets one first, for there must be something to lock: what is written down was not seen by anybody else.
 *
 * @returns the hours
 */
export async function noteHours(db: Db, id: bigint, { start, end }: Range, only: Only, now?: Now): Promise<Hour[]> {
  await lockRanges(db);
  const ended = Sql.sql`least(${end}::timestamptz, date_trunc('hour', ${instant(now)}, 'UTC'))`;
  if (only !== 'partial') {
    await db.$executeRaw`
      insert into "StatHour" (hour, state, reason)
      select hour, 'open', 'backfill' from generate_series(${start}::timestamptz, ${ended} - interval '1 hour', interval '1 hour') as hour
       order by hour
      on conflict do nothing`;
  }
  const hours = await note(
    db,
    id,
    Sql.sql`l.hour >= ${start}::timestamptz and l.hour < ${ended} and ${isAsked(only)}`,
  );
  await coverAsked(db, id);
  return hours;
}

/** The same for these hours alone, which the caller has found after `lockRanges`. */
export async function noteThese(db: Db, id: bigint, hours: readonly Hour[]): Promise<Hour[]> {
  const starts = hours.map(startOf);
  await db.$executeRaw`
    insert into "StatHour" (hour, state, reason)
    select hour, 'open', 'backfill' from unnest(${starts}::timestamptz[]) as hour order by hour
    on conflict do nothing`;
  const noted = await note(db, id, Sql.sql`l.hour = any(${starts}::timestamptz[])`);
  await coverAsked(db, id);
  return noted;
}

/** Write down anew what the failed hours of a backfill are, as `noteHours` does. */
export async function noteFailed(db: Db, id: bigint): Promise<Hour[]> {
  await lockRanges(db);
  return note(
    db,
    id,
    Sql.sql`l.state = 'partial' and exists (select from "BackfillHour" h where h."backfillId" = ${id}::bigint and h.hour = l.hour and h.wanted <= l.run)`,
  );
}

/** A row that this transaction has made itself is none that was there before. */
async function note(db: Db, id: bigint, which: Sql.Sql): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    with ledger as materialized (
      select xmin = pg_current_xact_id()::xid as made, l.* from "StatHour" l where ${which} and "sealedAt" is null order by hour for update
    )
    insert into "BackfillHour" as h ("backfillId", hour, wanted, covered, state, "priorRun", "priorWanted", reason, "requestedBy", attempts,
                                     "nextAttemptAt", error, "priorBackfillId")
    select ${id}::bigint, hour, run + 1, ${isCovered(Sql.sql`hour`)}, case when not made then state end, run, wanted, reason, "requestedBy",
           attempts, "nextAttemptAt", error, "backfillId"
      from ledger order by hour
    on conflict ("backfillId", hour) do update
       set (wanted, covered, state, "priorRun", "priorWanted", reason, "requestedBy", attempts, "nextAttemptAt", error, "priorBackfillId") =
           row (excluded.wanted, excluded.covered, excluded.state, excluded."priorRun", excluded."priorWanted", excluded.reason,
                excluded."requestedBy", excluded.attempts, excluded."nextAttemptAt", excluded.error, excluded."priorBackfillId")
    returning hour`;
  return rows.map((row) => hourOf(row.hour)).sort();
}

/**
 * Give the hours of a backfill back that nothing has answered: each becomes what it was before, as if nobody had asked. One that runs
 * for it goes to its end. Where a later backfill has asked for the hour since, what it was is handed down: to be given back by that one.
 *
 * Nobody else writes to the ledger meanwhile: whoever would allot a run, and had seen the hour covered, would bring back a row that is
 * gone. Who reads it, the gateway's triggers among them, does not wait.
 *
 * @returns how many hours are no longer this backfill's
 */
export async function giveBack(db: Db, id: number): Promise<number> {
  await lockGaps(db);
  await lockRanges(db);
  await db.$executeRaw`lock table "StatHour" in exclusive mode`;
  await handDown(db, id);
  await uncover(
    db,
    Sql.sql`select hour from "BackfillHour" h join "StatHour" l using (hour) where ${isOurs(id)} and not h.covered`,
  );
  await db.$executeRaw`delete from "StatHour" l using "BackfillHour" h where l.hour = h.hour and ${isOurs(id)} and h.state is null`;
  await db.$executeRaw`
    update "StatHour" l
       set (state, wanted, reason, "requestedBy", attempts, "nextAttemptAt", error, "backfillId") = ${unasked(Sql.sql`l`)},
           "partialSince" = case when ${stateBefore(Sql.sql`l`)} <> 'closed' then "partialSince" end
      from "BackfillHour" h where l.hour = h.hour and ${isOurs(id)}`;
  await publish(db, id);
  const marks = await db.$queryRaw<{ hour: Date }[]>`
    with gone as (delete from "StatMark" where "backfillId" = ${id}::bigint returning hour) select distinct hour from gone`;
  await forgetUnasked(
    db,
    marks.map(({ hour }) => hour),
  );
  await noteGivenBack(db, id);
  const hours = await db.$executeRaw`
    delete from "BackfillHour" h
     where "backfillId" = ${id}::bigint and not exists (select from "StatHour" l where l.hour = h.hour and l.run >= h.wanted)`;
  await db.$executeRaw`update "Backfill" set "givenBack" = ${marks.length + hours}::int where id = ${id}::bigint`;
  return marks.length + hours;
}

/** Whether an hour `h` of the backfill, `l` in the ledger, is held by nobody else's request, and no run was allotted since its own. */
const isOurs = (id: number) =>
  Sql.sql`h."backfillId" = ${id}::bigint and l."backfillId" = h."backfillId" and l.run = h."priorRun"`;

/**
 * What is known of an hour, without the request of `h`: what was before it; but the end of a run that was under way then is kept. That run
 * left the hour open only because it was wanted again: without that it is closed.
 */
const unasked = (known: Sql.Sql) => Sql.sql`row (
  ${stateBefore(known)}, h."priorWanted", h.reason, h."requestedBy",
  case when h.state = 'running' then ${known}.attempts else h.attempts end,
  case when h.state = 'running' then ${known}."nextAttemptAt" else h."nextAttemptAt" end,
  case when h.state = 'running' then ${known}.error else h.error end,
  h."priorBackfillId")`;

function stateBefore(known: Sql.Sql): Sql.Sql {
  return Sql.sql`
    case when h.state is distinct from 'running' then h.state
         when ${known}.state = 'open' and h."priorWanted" <= h."priorRun" then 'closed' else ${known}.state end`;
}

/** Hours that nobody rolls up are known to the ledger only for a mark that could not be stored: without one they are not. */
async function forgetUnasked(db: Db, hours: readonly Date[]): Promise<void> {
  await db.$executeRaw`
    delete from "StatHour" l
     where hour = any(${[...hours]}::timestamptz[]) and run = 0 and wanted = 0 and not ${isCovered(Sql.sql`l.hour`)}
       and not exists (select from "StatMark" m where m.hour = l.hour and m.reason <> 'late')`;
}

/** While its hours were open, users of them may have been rolled up alone: nobody counts that anew but whoever closes them again. */
async function publish(db: Db, id: number): Promise<void> {
  const rows = await db.$queryRaw<{ hour: Date }[]>`
    select hour from "StatHour" l join "BackfillHour" h using (hour)
     where h."backfillId" = ${id}::bigint and l.state = 'closed' and l.run < h.wanted and ${isUntold}`;
  for (const { hour } of rows) await recountHour(db, hourOf(hour), null);
}

/** Where a later backfill asked for an hour that was still waiting for this one, it began with what this one began with. */
async function handDown(db: Db, id: number): Promise<void> {
  await db.$executeRaw`
    update "BackfillHour" later
       set covered = h.covered,
           (state, "priorWanted", reason, "requestedBy", attempts, "nextAttemptAt", error, "priorBackfillId") = ${unasked(Sql.sql`later`)}
      from "BackfillHour" h
     where h."backfillId" = ${id}::bigint and later.hour = h.hour and later."backfillId" <> h."backfillId"
       and later."priorBackfillId" = h."backfillId" and later."priorRun" = h."priorRun"`;
}
