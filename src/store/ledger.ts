// Which hours are done, and which are owed?

import { endOf, HOUR_MS, type Hour, hourOf, startOf } from '../time/hour.ts';
import { type Db, instant, type Now, type Pool, Sql } from './db.ts';
import { FORMULA } from './figures.ts';
import { isHeld } from './held.ts';
import { isCovered } from './ranges.ts';
import { noteRun, noteRunEnd } from './runs.ts';
import { inPartitionsOf, type Scope, shownName } from './scope.ts';
import { lookable, nextFence, seam } from './seam.ts';
import { storeZeroRows, type Totals } from './stats.ts';

export type Reason = 'tick' | 'backfill' | 'late' | 'repair';

/** An hour that is to be rolled up, and whether it may wait behind the newest one. */
export interface OwedHour {
  readonly hour: Hour;
  readonly backfilled: boolean;
}

/**
 * The hours that are owed: ended by Postgres' clock, covered or asked for, not closed, not in back-off, and not of a backfill that
 * is paused. Holes in the middle too. The newest ended hour first, then the oldest.
 *
 * A range in which as many hours are closed as it has is passed over by that count: of years of hours none is named to find
 * that nothing is owed.
 *
 * @param which `asked for`: only those that stand in the ledger for another reason than a tick
 */
export async function owedHours(
  db: Db,
  limit: number,
  now?: Now,
  which: 'all' | 'asked for' = 'all',
): Promise<OwedHour[]> {
  const rows = await db.$queryRaw<{ hour: Date; backfilled: boolean }[]>`
    with ended as (
      select date_trunc('hour', ${instant(now)}, 'UTC') as until
    ), asked as (
      select hour from ended, "StatRange" r,
             lateral (select count(*) as closed from "StatHour" l
                       where l.hour >= r.start and l.hour < least(r."end", until) and l.state = 'closed') as known,
             generate_series(r.start, least(r."end", until) - interval '1 hour', interval '1 hour') as hour
       where known.closed < extract(epoch from least(r."end", until) - r.start) / 3600
      union
      select hour from ended, "StatHour" where wanted > run and hour < until
    )
    select c.hour, l.reason is not distinct from 'backfill' and c.hour < until - interval '1 hour' as backfilled
      from ended, asked c left join "StatHour" l using (hour)
     where (l.hour is null or (l.state <> 'closed' and (l."nextAttemptAt" is null or l."nextAttemptAt" <= ${instant(now)})
                               and not ${isHeld(Sql.sql`l."backfillId"`)}))
       and (${which === 'all'} or l.reason <> 'tick') and ${lookable(Sql.sql`c.hour`, now)}
     order by c.hour = until - interval '1 hour' desc, c.hour
     limit ${limit}::int`;
  return rows.map((row) => ({ hour: hourOf(row.hour), backfilled: row.backfilled }));
}

/**
 * Close, together, those of the owed hours in which there is nothing to roll up: no call, no row, no mark.
 *
 * An hour that is covered no more, its backfill cancelled since, gets no row. Their rows are locked by a statement of its own before anything is looked at: a call imported and requested in
 * between would otherwise be answered with an emptiness that was seen before it. The fences of all of them are settled in that statement
 * too: what is looked at afterwards was seen after the older transactions had ended.
 *
 * @returns the hours it closed
 */
export async function closeEmptyHours(
  pool: Pool,
  owed: readonly Hour[],
  policy: ClosePolicy,
  now?: Now,
): Promise<Hour[]> {
  if (owed.length === 0) return [];
  const starts = owed.map(startOf);
  const instants = starts.map((start) => start.getTime());
  return pool.$transaction(async (db) => {
    await db.$executeRaw`
      insert into "StatHour" (hour, state, reason)
      select hour, 'open', 'tick' from unnest(${starts}::timestamptz[]) as hour where ${isCovered(Sql.sql`hour`)} order by hour
      on conflict do nothing`;
    const idle = await db.$queryRaw<{ hour: Date }[]>`
      with seam as materialized (${seam}),
      idle as materialized (
        select hour, fence, ${nextFence(Sql.sql`fence`, Sql.sql`hour`, now)} as next from "StatHour", seam
         where hour = any(${starts}::timestamptz[]) and state in ('open', 'partial')
         order by hour for update of "StatHour" skip locked
      ), fenced as (
        update "StatHour" l set fence = next from idle where l.hour = idle.hour and next is distinct from idle.fence
      )
      select hour from idle`;
    const closed = await db.$queryRaw<{ hour: Date }[]>`
      with closed as (
        update "StatHour" l
         set state = 'closed', run = greatest(run + 1, wanted), (${counts}) = (select 0, 0, 0, 0, 0, 0), attempts = 0, "nextAttemptAt" = null,
             formula = ${FORMULA}::smallint,
             "startedAt" = ${instant(now)}, "closedAt" = ${instant(now)}, error = null, "partialSince" = null, "asOf" = ${instant(now)},
             "modelsAsOf" = case when exists (select from "StatModel" m where m.hour = l.hour) then "modelsAsOf" else ${instant(now)} end,
             revision = ${nextRevision}
       where hour = any(${idle.map((row) => row.hour)}::timestamptz[])
         and not exists (select from "ModelCall" where date_trunc('hour', "callTime" at time zone 'UTC') = l.hour at time zone 'UTC'
                            and ${inPartitionsOf({ start: new Date(Math.min(...instants)), end: new Date(Math.max(...instants) + HOUR_MS) })})
         and not exists (select from "ModelCallStat" s where s."timeType" = 'hour' and s."timestamp" = l.hour)
         and not exists (select from "StatMark" m where m.hour = l.hour)
        returning hour
      ), told as (
        delete from "StatUntold" u using closed where u.hour = closed.hour and not u.models
      )
      select hour from closed`;
    await db.$executeRaw`delete from "StatShard" where hour = any(${closed.map((row) => row.hour)}::timestamptz[])`;
    const hours = closed.map((row) => hourOf(row.hour));
    if (policy.storeZeroRows) for (const hour of hours) await storeZeroRows(db, hour, policy.windowDays);
    return hours;
  });
}

/** An hour that was asked for, and the run that it must reach to have answered that. */
export interface RequestedHour extends OwedHour {
  readonly wanted: number;
}

export interface Asked {
  readonly reason: Reason;
  readonly requestedBy: string;
  /** The backfill that asks; whoever else asks takes the hour from its backfill. */
  readonly backfill?: bigint;
}

/**
 * Ask for a new run of those hours that have ended and are not sealed: written down before anything is enqueued, so that no request
 * is lost. An hour that is running keeps running, and goes round once more for having been asked.
 */
export async function requestHours(
  db: Db,
  hours: readonly Hour[],
  { reason, requestedBy, backfill }: Asked,
  now?: Now,
): Promise<RequestedHour[]> {
  const rows = await db.$queryRaw<{ hour: Date; wanted: number; backfilled: boolean }[]>`
    with seam as materialized (${seam})
    insert into "StatHour" as h (hour, state, wanted, reason, "requestedBy", "backfillId", fence)
    select hour, 'open', 1, ${reason}::"HourReason", ${requestedBy}::text, ${backfill ?? null}::bigint,
           ${nextFence(Sql.sql`null::bigint`, Sql.sql`hour`, now)}
      from unnest(${hours.map(startOf)}::timestamptz[]) as hour, seam
     where hour < date_trunc('hour', ${instant(now)}, 'UTC')
     order by hour
    on conflict (hour) do update
       set wanted = h.run + 1, state = case when h.state = 'running' then h.state else 'open' end,
           reason = excluded.reason, "requestedBy" = excluded."requestedBy", "backfillId" = excluded."backfillId",
           attempts = 0, "nextAttemptAt" = null, fence = coalesce(h.fence, excluded.fence)
     where h."sealedAt" is null
    returning hour, wanted, hour < date_trunc('hour', ${instant(now)}, 'UTC') - interval '1 hour' as backfilled`;
  return rows.map((row) => ({ ...row, hour: hourOf(row.hour) }));
}

/** Postgres' idea of the running hour's start: what a range that is asked for must end at. */
export async function startOfRunningHour(db: Db, now?: Now): Promise<Date> {
  const [row] = await db.$queryRaw<[{ start: Date }]>`select date_trunc('hour', ${instant(now)}, 'UTC') as start`;
  return row.start;
}

/** A child's share of a run: the buckets `lo` to `hi`, or one user in one of them. */
export interface Shard extends Omit<Scope, 'users'> {
  readonly shard: number;
  readonly userDid: string | null;
}

/** A run that was allotted. */
export interface Allotted {
  readonly run: number;
  readonly backfilled: boolean;
}

/**
 * Allot the next run of an hour, in a transaction, if the hour is owed: ended, covered or asked for, not sealed, not closed or wanted
 * again, and not of a backfill that is paused. The run's number is burnt with the transaction's commit, even if its holder dies on the next line. Two callers get two
 * runs, and the older one can close nothing any more.
 *
 * The hour's formula is written here and not at the close: a run that an older version began may have rows by its
 * formula.
 *
 * @param job who runs it, for people to find it
 * @param again the hour's back-off is over because somebody says so (a retry by hand)
 * @returns the run, or `undefined`: nothing is owed
 */
export async function allot(
  db: Db,
  hour: Hour,
  { job, again = false, now }: { job?: string; again?: boolean; now?: Now } = {},
): Promise<Allotted | undefined> {
  const start = startOf(hour);
  const fenceAfter = (fence: Sql.Sql) =>
    Sql.sql`(select ${nextFence(fence, Sql.sql`${start}::timestamptz`, now)} from seam)`;
  const [allotted] = await db.$queryRaw<Allotted[]>`
    with seam as materialized (${seam}),
    allotted as (
      insert into "StatHour" as h (hour, state, run, reason, "startedAt", fence, formula)
      select ${start}::timestamptz, 'running', 1, 'tick', ${instant(now)}, ${fenceAfter(Sql.sql`null::bigint`)},
             ${FORMULA}::smallint
       where ${endOf(hour)}::timestamptz <= ${instant(now)}
         and (${isCovered(Sql.sql`${start}::timestamptz`)}
              or exists (select from "StatHour" where hour = ${start}::timestamptz and wanted > run))
      on conflict (hour) do update
         set run = h.run + 1, state = 'running', "startedAt" = ${instant(now)}, "nextAttemptAt" = null,
             formula = excluded.formula, fence = ${fenceAfter(Sql.sql`h.fence`)}
       where h."sealedAt" is null and (h.state <> 'closed' or h.wanted > h.run) and not ${isHeld(Sql.sql`h."backfillId"`)}
         and (${again} or h."nextAttemptAt" is null or h."nextAttemptAt" <= ${instant(now)})
      returning run, reason, "requestedBy", "startedAt"
    ), noted as (
      ${noteRun(hour, job)}
    )
    select run, reason = 'backfill' and ${endOf(hour)}::timestamptz < date_trunc('hour', ${instant(now)}, 'UTC') as backfilled from allotted`;
  return allotted;
}

/** The shards of a run, as they were cut when it was allotted. */
export async function shardsOf(db: Db, hour: Hour, run: number): Promise<Shard[]> {
  const rows = await db.$queryRaw<Omit<Shard, 'hour'>[]>`
    select shard, lo::int, hi::int, "userDid" from "StatShard"
     where hour = ${startOf(hour)}::timestamptz and run = ${run}::int order by shard`;
  return rows.map((row) => ({ ...row, hour }));
}

/** Whether a shard of this run is done already: the run is the current one, and closed, or the shard says so. */
export async function shardIsDone(
  db: Db,
  { hour, run, shard }: Pick<Shard, 'hour' | 'shard'> & { run: number },
): Promise<boolean> {
  const rows = await db.$queryRaw<object[]>`
    select 1 from "StatHour" l
     where hour = ${startOf(hour)}::timestamptz and run = ${run}::int
       and (state = 'closed'
            or exists (select from "StatShard" d where d.hour = l.hour and d.run = l.run and d.shard = ${shard}::int and d.state = 'done'))`;
  return rows.length > 0;
}

type UndoneShard = Omit<Shard, 'hour'> & { error: string | null };

async function undoneShards(db: Db, hour: Hour, run: number, limit: number): Promise<UndoneShard[]> {
  return db.$queryRaw<UndoneShard[]>`
    select shard, lo::int, hi::int, "userDid", error from "StatShard"
     where hour = ${startOf(hour)}::timestamptz and run = ${run}::int and state <> 'done'
     order by shard limit ${limit}::int`;
}

/** Write down why those shards of a run that lie within a scope could not be done. */
export async function failShards(db: Db, { hour, lo, hi, users }: Scope, run: number, error: string): Promise<void> {
  await db.$executeRaw`
    update "StatShard" set state = 'failed', error = ${error}::text
     where hour = ${startOf(hour)}::timestamptz and run = ${run}::int and lo >= ${lo}::int and hi <= ${hi}::int
       and (${users === undefined} or "userDid" = any(${[...(users ?? [])]}::text[])) and state <> 'done'`;
}

export interface ClosePolicy {
  readonly backOffMaxSeconds: number;
  readonly storeZeroRows: boolean;
  readonly windowDays: number;
}

/**
 * What closing came to. `already`: somebody else closed this run. `superseded`: another run is current, nothing was
 * changed. `open`: all done, but wanted again. `unfinished`: a child asked, and others are not done yet; nothing was changed.
 */
export type Closing =
  | { outcome: 'closed'; already: boolean; users: number; calls: bigint }
  | { outcome: 'open' | 'superseded' | 'unfinished' }
  | { outcome: 'partial'; error: string; nextAttemptAt: Date };

/**
 * Close an hour from the ledger, for the caller's run: closed if all its shards are done, else partial, naming the users.
 *
 * The ledger's row is locked first: of two last children one then sees the other's shard done. What children returned is
 * never asked; Redis may have lost, doubled or deleted any of them.
 *
 * @param as the parent comes when its children have settled and says partial where one is not done; a child comes after
 *   its own commit and closes the hour if it was the last (that is how a retry by hand closes it)
 */
export async function closeHour(
  pool: Pool,
  hour: Hour,
  run: number,
  as: 'parent' | 'child',
  policy: ClosePolicy,
  now?: Now,
): Promise<Closing> {
  // Asked after its own commit, so that of two last children the later one sees both done; and without the lock, so that
  // a thousand children do not queue for it.
  if (as === 'child' && (await undoneShards(pool, hour, run, 1)).length > 0) return { outcome: 'unfinished' };
  return pool.$transaction(async (db): Promise<Closing> => {
    const start = startOf(hour);
    const [ledger] = await db.$queryRaw<
      { run: number; wanted: number; state: string; users: number; calls: bigint; untold: boolean }[]
    >`
      select run, wanted, state::text, users, calls, ${isUntold} as untold
        from "StatHour" l where hour = ${start}::timestamptz for update`;
    if (ledger?.run !== run) return { outcome: 'superseded' };
    const { users, calls } = ledger;
    if (ledger.state === 'closed') {
      // By a child of it that somebody retried since.
      if (ledger.untold) await recountHour(db, hour, null);
      return { outcome: 'closed', already: true, users, calls };
    }
    if (ledger.state === 'open') return { outcome: 'open' };
    // A mark that could not be stored made it partial before it ever ran: mended, it is owed as if nothing had been.
    if (run === 0) {
      await reopen(db, hour);
      return { outcome: 'open' };
    }

    const undone = await undoneShards(db, hour, run, 21);
    if (undone.length > 0) {
      if (as === 'child') return { outcome: 'unfinished' };
      return { outcome: 'partial', ...(await setPartial(db, hour, nameShards(undone), policy, now)) };
    }

    const outcome = ledger.wanted > run ? 'open' : 'closed';
    const counted = await endRun(db, hour, outcome, policy, { now });
    return outcome === 'closed' ? { outcome, already: false, ...counted } : { outcome };
  });
}

/**
 * All of an hour's current run is done: say so, in the transaction that holds its row.
 *
 * @param counted what the hour's calls come to, where that transaction has added them all up
 */
export async function endRun(
  db: Db,
  hour: Hour,
  outcome: 'open' | 'closed',
  policy: ClosePolicy,
  { now, counted: known }: { now?: Now; counted?: Totals } = {},
): Promise<{ users: number; calls: bigint }> {
  const start = startOf(hour);
  const count = known
    ? Sql.sql`select ${known.users}::int, ${known.calls}::bigint, ${known.successCalls}::bigint, ${known.failedCalls}::bigint,
                     ${known.totalUsage}::numeric, ${known.totalCredits}::numeric`
    : countOf(hour);
  if (policy.storeZeroRows) await storeZeroRows(db, hour, policy.windowDays);
  await db.$executeRaw`delete from "StatShard" where hour = ${start}::timestamptz`;
  const [counted] = await db.$queryRaw<[{ users: number; calls: bigint }]>`
    with told as (
      ${toldOf(hour)}
    ), models as (
      ${askForModels(hour)}
    ), ended as (
      update "StatHour" l set state = ${outcome}::"HourState", attempts = 0, "nextAttemptAt" = null, error = null, "partialSince" = null,
             "closedAt" = ${instant(now)}, "asOf" = "startedAt", "modelsAsOf" = null, revision = ${nextRevision}, (${counts}) = (${count})
       where hour = ${start}::timestamptz
      returning hour, run, users, calls, state, error, "closedAt" as at
    ), noted as (
      ${noteRunEnd}
    )
    select users, calls from ended`;
  return counted;
}

async function reopen(db: Db, hour: Hour): Promise<void> {
  await db.$executeRaw`
    update "StatHour" set state = 'open', attempts = 0, "nextAttemptAt" = null, error = null, "partialSince" = null
     where hour = ${startOf(hour)}::timestamptz`;
}

/**
 * Derive what the ledger says of a closed hour's figures anew, and its revision, after some of its users were rolled up again; in a
 * transaction. Its row is locked by a statement of its own: whoever counts later counts what was written later.
 *
 * @param asOf every call that left a mark and had been committed by then is in the figures now; null: not known of
 *   all. While older transactions may still bring calls without a mark (the fence is not passed), that says nothing
 *   of all calls: `asOf` stays.
 */
export async function recountHour(db: Db, hour: Hour, asOf: Date | null): Promise<void> {
  await db.$queryRaw`select 1 from "StatHour" where hour = ${startOf(hour)}::timestamptz for update`;
  const closed = Sql.sql`state = 'closed' and "sealedAt" is null`;
  await db.$executeRaw`
    with told as (
      ${toldOf(hour, Sql.sql`exists (select from "StatHour" l where l.hour = u.hour and ${closed})`)}
    ), models as (
      ${askForModels(hour)}
    )
    update "StatHour" l set (${counts}) = (${countOf(hour)}), revision = ${nextRevision},
           "asOf" = case when fence = 0 then greatest("asOf", ${asOf}::timestamptz) else "asOf" end,
           "modelsAsOf" = case when not ${isUnpublished} then "modelsAsOf" end
     where hour = ${startOf(hour)}::timestamptz and ${closed}`;
}

/**
 * Deletes the word that roll-ups of an hour left, as far as this statement sees it: it sees what they wrote as well,
 * and counts it. To be part of the statement that counts, with the hour's row locked.
 */
const toldOf = (hour: Hour, where = Sql.sql`true`) => Sql.sql`
  delete from "StatUntold" u where u.hour = ${startOf(hour)}::timestamptz and not u.models and ${where}
    returning u.seq`;

/**
 * Leaves word that the models of an hour are to be derived, where `told` says that something was rolled up. Appended,
 * not set in the hour's row: somebody who derives them at this moment, from calls as they were before, would
 * overwrite that.
 */
const askForModels = (hour: Hour) => Sql.sql`
  insert into "StatUntold" (hour, models) select ${startOf(hour)}::timestamptz, true where exists (select from told)`;

/** Say of an hour, covered or not, that some of its users could not be stored: it is owed again after a back-off. */
export async function failHour(pool: Pool, hour: Hour, error: string, policy: ClosePolicy, now?: Now): Promise<void> {
  await pool.$transaction(async (db) => {
    await db.$executeRaw`
      insert into "StatHour" (hour, state, reason) values (${startOf(hour)}::timestamptz, 'open', 'backfill') on conflict do nothing`;
    const [ledger] = await db.$queryRaw<[{ state: string; sealed: boolean }]>`
      select state::text, "sealedAt" is not null as sealed from "StatHour" where hour = ${startOf(hour)}::timestamptz for update`;
    // The run that is under way has these users before it, and its own end says more.
    if (ledger.state !== 'running' && !ledger.sealed) await setPartial(db, hour, error, policy, now);
  });
}

/** A partial hour waits 5 s, doubling. Its row is locked by the caller. */
async function setPartial(db: Db, hour: Hour, error: string, { backOffMaxSeconds }: ClosePolicy, now?: Now) {
  const [row] = await db.$queryRaw<{ nextAttemptAt: Date }[]>`
    with ended as (
      update "StatHour"
         set state = 'partial', error = ${error}::text, attempts = attempts + 1, "partialSince" = coalesce("partialSince", ${instant(now)}),
             "nextAttemptAt" = ${instant(now)}
               + least(5 * power(2, least(attempts, 30)), ${backOffMaxSeconds}::int) * interval '1 second'
       where hour = ${startOf(hour)}::timestamptz
      returning hour, run, state, error, ${instant(now)} as at, "nextAttemptAt"
    ), noted as (
      ${noteRunEnd}
    )
    select "nextAttemptAt" from ended`;
  return { error, nextAttemptAt: row?.nextAttemptAt ?? new Date() };
}

/** Whether users of an hour `l` were rolled up since its totals were derived. */
export const isUntold = Sql.sql`exists (select from "StatUntold" u where u.hour = l.hour and not u.models offset 0)`;

/**
 * Whether a figure of an hour `l` has changed since its last revision. By the word that each roll-up leaves: a
 * straggler's change may bear a revision that others have published before it was committed. And by the changes
 * themselves, for processes of 0.6 leave no word. (OFFSET 0: looked up, hour by hour, not hashed.)
 */
const isUnpublished = Sql.sql`(
  exists (select from "StatUntold" u where u.hour = l.hour and u.changed and not u.models offset 0)
  or exists (select from "StatChange" c where c.hour = l.hour and c.revision = l.revision + 1 offset 0))`;

/** 1 with the first close; afterwards one more where a figure has changed since. Derived, so that whoever died before saying so is made up for. */
const nextRevision = Sql.sql`case when revision = 0 then 1 else revision + ${isUnpublished}::int end`;

/** What the ledger says of an hour's figures, all users together. */
export const counts = Sql.sql`users, calls, "successCalls", "failedCalls", "totalUsage", "totalCredits"`;

/** The same, from its rows. */
export function countOf(hour: Hour): Sql.Sql {
  return Sql.sql`
    select count(*) filter (where "totalCalls" > 0), coalesce(sum("totalCalls"), 0), coalesce(sum("successCalls"), 0),
           coalesce(sum("failedCalls"), 0), coalesce(sum("totalUsage"), 0), coalesce(sum("totalCredits"), 0) from "ModelCallStat"
     where "timeType" = 'hour' and "timestamp" = ${startOf(hour)}::timestamptz`;
}

/** What an operator reads in the ledger, on the job and in the log: at most 20 shards, each with its users and its reason. */
function nameShards(undone: readonly UndoneShard[]): string {
  const named = undone
    .slice(0, 20)
    .map(
      ({ lo, hi, userDid, error }) =>
        error ?? `${userDid === null ? `buckets ${lo}–${hi}` : shownName(userDid)}: not done`,
    );
  return named.join('; ') + (undone.length > 20 ? '; and more' : '');
}
