// Which backfills are there, and how far is each?

import { type Hour, hourOf } from '../time/hour.ts';
import type { Range } from '../time/range.ts';
import { type Db, instant, type Now, type Pool, Sql, sqlState } from './db.ts';
import type { Only } from './survey.ts';

/** The SQLSTATE of a write to a database that takes none. */
const READ_ONLY = '25006';

/** For which hours of its range a backfill asked; `uncovered`: for those that were in no figure. */
export type BackfillOnly = Only | 'uncovered';

export type BackfillState = 'running' | 'paused' | 'cancelled' | 'finished';

/** Who asks for a backfill, from where, and for what. */
export interface NewBackfill {
  readonly requestedBy: string;
  readonly requestedFrom: string;
  readonly only: BackfillOnly;
  readonly userDid?: string;
}

/** A backfill, and how far it is: each of its hours is pending, failed, done, or was given back when it was cancelled. */
export interface Backfill extends Range {
  readonly id: number;
  readonly requestedBy: string;
  readonly requestedFrom: string;
  readonly requestedAt: Date;
  /** The one user that it is for. */
  readonly userDid: string | null;
  readonly only: BackfillOnly;
  readonly state: BackfillState;
  readonly hours: number;
  readonly pending: number;
  readonly failed: number;
  readonly done: number;
  readonly givenBack: number;
  readonly pausedAt: Date | null;
  readonly finishedAt: Date | null;
  /** Who paused, resumed, cancelled or retried it last. */
  readonly settledBy: string | null;
}

export interface FailedHour {
  readonly hour: Hour;
  readonly error: string;
  readonly nextAttemptAt: Date | null;
}

/** Of a backfill's failed hours so many are named. */
const NAMED = 100;

/** What is asked of a backfill does not go with the state that it is in. */
export class WrongStateError extends Error {}

/** Write a backfill down, in the transaction that asks for its hours. */
export async function insertBackfill(
  db: Db,
  { start, end }: Range,
  { requestedBy, requestedFrom, only, userDid }: NewBackfill,
  now?: Now,
): Promise<bigint> {
  const [{ id }] = await db.$queryRaw<[{ id: bigint }]>`
    insert into "Backfill" ("requestedBy", "requestedFrom", "requestedAt", start, "end", "userDid", "only", hours)
    values (${requestedBy}::text, ${requestedFrom}::text, ${instant(now)}, ${start}::timestamptz, ${end}::timestamptz, ${userDid ?? null}::text,
            ${only}::"BackfillOnly", 0)
    returning id`;
  return id;
}

/** Write down how many hours it asked for. */
export async function countHours(db: Db, id: bigint, hours: number): Promise<void> {
  await db.$executeRaw`update "Backfill" set hours = ${hours}::int where id = ${id}::bigint`;
}

/** Tell the planner of many new hours: it would look each up, where reading all is three times as fast. Nothing where the role may not. */
export async function analyzeHours(db: Db): Promise<void> {
  await db.$executeRaw`analyze "BackfillHour"`;
}

/**
 * What has become of the hours of some backfills: `(id, hour, pending, error, "nextAttemptAt")`, an error where it failed. Pending: the run that
 * answers it has not ended; what is closed is answered, though its row was deleted meanwhile and counts its runs from 1 again. Failed: it has, and some users could not be stored, nor by any run since. Of one user's, both are told by the mark.
 *
 * Of those that are over, the many hours that nothing is to be said of are not visited.
 *
 * @param which a condition on the backfill `b`
 */
const standing = (which: Sql.Sql) => Sql.sql`
  select h."backfillId" as id, hour,
         l.hour is null or (l.run < h.wanted and l.state <> 'closed') or (l.run = h.wanted and l.state = 'running') as pending, l.error, l."nextAttemptAt"
    from "BackfillHour" h left join "StatHour" l using (hour)
   where h."backfillId" = any(array(select id from "Backfill" b where ${which} and state <> 'finished'))
  union all
  select h."backfillId", hour, false, l.error, l."nextAttemptAt"
    from "StatHour" l join "BackfillHour" h using (hour)
   where l.error is not null and h."backfillId" = any(array(select id from "Backfill" b where ${which} and state = 'finished'))
  union all
  select b.id, hour, l."nextAttemptAt" is null or coalesce(strpos(l.error, b."userDid"), 0) = 0, l.error, l."nextAttemptAt"
    from "Backfill" b join (select distinct "backfillId" as id, hour from "StatMark" where "backfillId" is not null) as m using (id)
         left join "StatHour" l using (hour)
   where ${which}`;

/** The backfills with their progress, the newest first. */
async function linesOf(db: Db, which: Sql.Sql): Promise<Backfill[]> {
  return db.$queryRaw<Backfill[]>`
    with progress as (
      select id, count(*) filter (where pending)::int as pending, count(*) filter (where not pending and error is not null)::int as failed
        from (${standing(which)}) as hours group by id
    )
    select id::float8, "requestedBy", "requestedFrom", "requestedAt", start, "end", "userDid", "only"::text, state::text, hours,
           coalesce(pending, 0) as pending, coalesce(failed, 0) as failed,
           hours - coalesce(pending, 0) - coalesce(failed, 0) - "givenBack" as done, "givenBack", "pausedAt", "finishedAt", "settledBy"
      from "Backfill" b left join progress using (id)
     where ${which} order by b.id desc`;
}

const withId = (id: number) => Sql.sql`b.id = ${id}::bigint`;

/** The newest backfills. */
export async function listBackfills(db: Db, limit: number): Promise<Backfill[]> {
  return linesOf(db, Sql.sql`b.id = any(array(select id from "Backfill" order by id desc limit ${limit}::int))`);
}

/** A backfill and its failed hours, the oldest hundred of them; `undefined` where there is none of this id. */
export async function backfillOf(db: Db, id: number): Promise<(Backfill & { failures: FailedHour[] }) | undefined> {
  const [line] = await linesOf(db, withId(id));
  return line && { ...line, failures: line.failed > 0 ? await failuresOf(db, id) : [] };
}

async function failuresOf(db: Db, id: number): Promise<FailedHour[]> {
  const rows = await db.$queryRaw<(Omit<FailedHour, 'hour'> & { hour: Date })[]>`
    select hour, error, "nextAttemptAt" from (${standing(withId(id))}) as hours
     where not pending and error is not null order by hour limit ${NAMED}::int`;
  return rows.map((row) => ({ ...row, hour: hourOf(row.hour) }));
}

/**
 * Write down of the running backfills which have nothing pending any more; cheap where none is running, and nothing where the database
 * takes no writes. Their rows are locked by a statement of its own: what is pending is asked after whoever has just asked for more.
 *
 * @returns their ids
 */
export async function finishBackfills(pool: Pool, now?: Now): Promise<number[]> {
  const finishing = pool.$transaction(async (db) => {
    const running = await db.$queryRaw<{ id: bigint }[]>`
      select id from "Backfill" where state = 'running' order by id for update skip locked`;
    if (running.length === 0) return [];
    const ids = running.map(({ id }) => id);
    return finish(db, ids, now);
  });
  return finishing.catch((error: unknown) => {
    if (sqlState(error) === READ_ONLY) return []; // whoever looks at a standby sees them all the same
    throw error;
  });
}

async function finish(db: Db, ids: bigint[], now: Now): Promise<number[]> {
  const which = Sql.sql`b.id = any(${ids}::bigint[]) and b.state = 'running'`;
  const finished = await db.$queryRaw<{ id: number }[]>`
    update "Backfill" b set state = 'finished', "finishedAt" = ${instant(now)}
     where ${which} and id <> all(array(select distinct id from (${standing(which)}) as hours where pending))
    returning id::float8`;
  return finished.map(({ id }) => id);
}

/**
 * Lock a backfill's row and see that it is in one of these states.
 *
 * @returns the user that it is for; `undefined` where there is none of this id
 * @throws {WrongStateError} saying what was expected and what was found
 */
export async function lockBackfill(
  db: Db,
  id: number,
  expected: readonly BackfillState[],
  now?: Now,
): Promise<{ userDid: string | null } | undefined> {
  await db.$queryRaw`select 1 from "Backfill" where id = ${id}::bigint for update`;
  await finish(db, [BigInt(id)], now);
  const [found] = await db.$queryRaw<{ state: BackfillState; userDid: string | null }[]>`
    select state::text, "userDid" from "Backfill" where id = ${id}::bigint`;
  if (found && !expected.includes(found.state)) {
    throw new WrongStateError(`expected a backfill that is ${expected.join(' or ')}, got ${found.state}`);
  }
  return found;
}

/** Change the state of a backfill whose row is locked; what was so already stays as it is. */
export async function settle(db: Db, id: number, state: BackfillState, by: string, now?: Now): Promise<void> {
  await db.$executeRaw`
    update "Backfill" set state = ${state}::"BackfillState", "settledBy" = ${by}::text,
           "pausedAt" = case when ${state}::text = 'paused' then ${instant(now)} end,
           "finishedAt" = case when ${state}::text in ('cancelled', 'finished') then ${instant(now)} end
     where id = ${id}::bigint and state <> ${state}::"BackfillState"`;
}

/** The hours of a backfill that are pending, as they are enqueued; of one user's, those with a mark of it. */
export async function pendingHours(db: Db, id: number, now?: Now): Promise<{ hour: Hour; backfilled: boolean }[]> {
  const rows = await db.$queryRaw<{ hour: Date; backfilled: boolean }[]>`
    select hour, hour < date_trunc('hour', ${instant(now)}, 'UTC') - interval '1 hour' as backfilled
      from (${standing(withId(id))}) as hours
     where pending order by hour`;
  return rows.map((row) => ({ ...row, hour: hourOf(row.hour) }));
}
