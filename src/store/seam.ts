// Which transactions began before an hour ended, and may still bring calls for it that no mark tells of?

import { type Hour, hourOf, startOf } from '../time/hour.ts';
import { type Db, instant, type Now, Sql } from './db.ts';

/**
 * A mark is left by whoever writes after the hour's end, by Postgres' clock. Whoever wrote before it left none and may commit much
 * later; but it had its transaction id by then, so that id lies below every id that is given after the end. The first of these that
 * we take is the hour's fence: once all transactions of this database below it have ended, a run that begins sees all that
 * came without a mark. (Not `pg_snapshot_xmax`: of the newest transactions that still run, that one may lie below.) Why it is
 * airtight: docs/decisions/0007-late-data.md.
 *
 * The first look waits for so many seconds, lest a clock that is set back a little lets somebody write "before the end" after it.
 */
export const CLOCK_STEP_SECONDS = 5;

/** Whether an hour's end is past, and the seconds by which the clock may be set back. */
export const lookable = (hour: Sql.Sql, now: Now) =>
  Sql.sql`${hour} + interval '1 hour' + ${CLOCK_STEP_SECONDS}::int * interval '1 second' <= ${instant(now)}`;

/** An id of 32 bits, as sessions show it, in the 64 bits of the others: both ages count from one id. */
function whole(xid: Sql.Sql): Sql.Sql {
  const any = Sql.sql`pg_snapshot_xmax(pg_current_snapshot())::text::bigint`;
  return Sql.sql`(${any} + age((${any} & 4294967295)::text::xid) - age(${xid}))`;
}

/**
 * The transactions of other sessions in this database that have an id, and so perhaps have written calls; prepared ones too. Postgres
 * remembers sessions from its first look in a transaction: to be asked once in each, and what it allows to be read by a later statement.
 */
const running = Sql.sql`
  select ${whole(Sql.sql`backend_xid`)} as xid, pid::text, usename::text as role, application_name as application, xact_start as since, state
    from pg_stat_activity where datname = current_database() and backend_xid is not null and pid <> pg_backend_pid()
  union all
  select ${whole(Sql.sql`transaction`)}, null, owner::text, 'prepared as ' || gid, prepared, 'prepared'
    from pg_prepared_xacts where database = current_database()`;

/** `(own, oldest)`: our own id, which is a fence for every hour that has ended, and the oldest id of the others; null where there is none. */
export const seam = Sql.sql`
  select pg_current_xact_id()::text::bigint as own, (select min(xid) from (${running}) as running) as oldest`;

/**
 * The fence that an hour's next run begins with, from the one that it has and a row of `seam`. One that lies ahead of ours is of another
 * server's life (a restored dump), and is taken anew.
 */
export function nextFence(fence: Sql.Sql, hour: Sql.Sql, now: Now): Sql.Sql {
  const known = Sql.sql`case when ${fence} <= own then ${fence} else own end`;
  return Sql.sql`case when ${fence} = 0 then 0 when not (${lookable(hour, now)}) then null
    when oldest < ${known} then ${known} else 0 end`;
}

/**
 * Ask again for those closed hours whose older transactions have ended since the run that closed them began: it may have missed
 * what they brought. Where no fence is known yet, it is taken now.
 *
 * @returns the hours that are to run once more
 */
export async function reopenSettled(db: Db, now?: Now): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date; settled: boolean }[]>`
    with seam as materialized (${seam}),
    unsettled as materialized (
      select hour, ${nextFence(Sql.sql`fence`, Sql.sql`hour`, now)} as next from "StatHour", seam
       where fence is distinct from 0 and state = 'closed' and "sealedAt" is null and ${lookable(Sql.sql`hour`, now)}
       order by hour for update of "StatHour" skip locked
    )
    update "StatHour" l
       set fence = case when next = 0 then l.fence else next end,
           state = case when next = 0 then 'open' else l.state end, wanted = case when next = 0 then run + 1 else wanted end,
           reason = case when next = 0 then 'late' else reason end, "requestedBy" = case when next = 0 then 'older transactions' else "requestedBy" end,
           "backfillId" = case when next = 0 then null else "backfillId" end
      from unsettled u
     where l.hour = u.hour and (next = 0 or next is distinct from l.fence)
    returning l.hour, next = 0 as settled`;
  return rows.filter((row) => row.settled).map((row) => hourOf(row.hour));
}

/** Whether transactions older than the hour's fence are still open; not where none is known yet. */
export async function waitsForOlder(db: Db, hour: Hour): Promise<boolean> {
  const rows = await db.$queryRaw<object[]>`
    select 1 from "StatHour"
     where hour = ${startOf(hour)}::timestamptz and fence > (select min(xid) from (${running}) as running)`;
  return rows.length > 0;
}

/** A transaction that keeps hours provisional. What its session's role does not let us see is null. */
export interface OlderTransaction {
  readonly pid: string | null;
  readonly role: string | null;
  readonly application: string | null;
  readonly state: string | null;
  readonly since: Date | null;
}

/** The transactions that a closed hour still waits for, the oldest first; at most ten. */
export async function olderTransactions(db: Db): Promise<OlderTransaction[]> {
  return db.$queryRaw<OlderTransaction[]>`
    select pid, role, application, state, since from (${running}) as running
     where xid < (select max(fence) from "StatHour" where fence is distinct from 0 and state = 'closed' and "sealedAt" is null)
     order by xid limit 10`;
}
