// What is stored of a user's hour, and how is it made?

import { endOf, HOUR_MS, type Hour, startOf } from '../time/hour.ts';
import { daysOf, type Range } from '../time/range.ts';
import { type Db, Sql } from './db.ts';
import { asJson, columns, counted, figures, figuresOf } from './figures.ts';
import { calledIn, calledWithin, callHour, type Scope, usersIn } from './scope.ts';
import { standingsOf } from './standing.ts';

/** What calls come to, all their users together. Amounts and token counts are text, for no float can hold them. */
export interface Totals {
  readonly users: number;
  readonly calls: bigint;
  readonly successCalls: bigint;
  readonly failedCalls: bigint;
  readonly totalUsage: string;
  readonly totalCredits: string;
}

export interface RolledUp extends Totals {
  /** The run that the ledger named when the figures were computed; 0 where it does not know the hour. */
  run: number;
  written: number;
  removed: number;
}

/**
 * Derive the scope's rows from the calls, in one statement: read the ledger's current run, take the marks away, add up,
 * remove the rows of users without calls, write what differs, and mark done the current run's shards that lie within the
 * scope. Where the hour had been published before, each change is written down, with what it was and why. One row is
 * appended that tells whoever derives the ledger's totals and the models that something was rolled up; the ledger's
 * row itself is not written, or all shards of an hour would wait for each other. Marks of the whole hour stay: what
 * is rolled up here may be a part of it.
 *
 * Derived, never added to: running it twice leaves what running it once left. Rows that are right already are not
 * touched. To be called under `lockScope`, in the same transaction. All of it is one statement because run, marks, figures
 * and shards must come from one snapshot: a shard marked done by a later statement may be that of a run which began after
 * these figures were read; and of a mark that is seen, the call that left it is seen as well.
 *
 * @throws {Error} where the hour is sealed, and changes nothing: its calls may be gone, and an old child that a retry wakes up would
 *   derive that there never were any. Whoever seals holds the same locks.
 */
export async function rollUp(db: Db, scope: Scope): Promise<RolledUp> {
  const { hour, lo, hi, users } = scope;
  // As it was before the statement that reads it.
  const stored = Sql.sql`select * from "ModelCallStat" where "timeType" = 'hour' and "timestamp" = ${startOf(hour)}::timestamptz and ${usersIn(scope)}`;
  const [row] = await db.$queryRaw<RolledUp[]>`
    with ledger as (
      select coalesce(l.run, 0) as run, coalesce(l.revision, 0) as revision,
             case when l.reason = 'tick' then 'late' else l.reason end as reason
        from (values (1)) as one left join "StatHour" l on l.hour = ${startOf(hour)}::timestamptz
       where l."sealedAt" is null
    ), taken as (
      delete from "StatMark"
       where hour = ${startOf(hour)}::timestamptz and ${usersIn(scope)} and "userDid" <> '' and exists (select
         from ledger)
      returning "userDid", reason
    ), fresh as materialized (
      ${figuresOf(Sql.sql`"userDid"`, Sql.sql`"ModelCall" where ${calledIn(hour)} and ${usersIn(scope)}`)}
       order by "userDid"
    ), removed as (
      delete from "ModelCallStat" s
       where s."timeType" = 'hour' and s."timestamp" = ${startOf(hour)}::timestamptz and ${usersIn(scope)}
         and not exists (select from fresh f where f."userDid" = s."userDid") and exists (select from ledger)
      returning s."userDid", s."totalCalls" > 0 as counted
    ), written as (
      insert into "ModelCallStat" as s ("timeType", "timestamp", "userDid", ${columns()}, run, revision, "computedAt")
      select 'hour', ${startOf(hour)}::timestamptz, f."userDid", ${columns('f')}, ledger.run, ledger.revision + 1, statement_timestamp()
        from fresh f, ledger
      on conflict ("timeType", "timestamp", "userDid") do update
         set (${columns()}, run, revision, "computedAt") = row (${columns('excluded')}, excluded.run, excluded.revision, excluded."computedAt")
       where (${columns('s')}) is distinct from (${columns('excluded')})
      returning s."userDid"
    ), changed as (
      insert into "StatChange" (at, hour, "userDid", revision, reason, before, after)
      select statement_timestamp(), ${startOf(hour)}::timestamptz, "userDid", ledger.revision + 1, coalesce(why.reason, ledger.reason),
             case when s."userDid" is not null then ${asJson('s')} end, case when f."userDid" is not null then ${asJson('f')} end
        from ledger, (select "userDid" from removed union all select "userDid" from written) as c
             left join (select "userDid", max(reason) as reason from taken group by "userDid") as why using ("userDid")
             left join fresh f using ("userDid")
             left join (${stored}) as s using ("userDid")
       where ledger.revision > 0 and (s."totalCalls" > 0 or f."totalCalls" > 0)
    ), untold as (
      insert into "StatUntold" (hour, changed)
      select ${startOf(hour)}::timestamptz, changed
        from (select exists (select from written) or exists (select from removed where counted) as changed) as outcome
       where changed or exists (select from taken)
    ), done as (
      update "StatShard" d set state = 'done', error = null
        from ledger
       where d.hour = ${startOf(hour)}::timestamptz and d.run = ledger.run and d.lo >= ${lo}::int and d.hi <= ${hi}::int
         and (${users === undefined} or d."userDid" = any(${[...(users ?? [])]}::text[]))
         and d.state <> 'done'
    )
    select ledger.run, total.*,
           (select count(*)::int from written) as written, (select count(*)::int from removed) as removed
      from ledger, (select count(*)::int as users, coalesce(sum("totalCalls"), 0)::bigint as calls,
                           coalesce(sum("successCalls"), 0)::bigint as "successCalls", coalesce(sum("failedCalls"), 0)::bigint as "failedCalls",
                           coalesce(sum("totalUsage"), 0)::text as "totalUsage", coalesce(sum("totalCredits"), 0)::text as "totalCredits"
                      from fresh) as total`;
  if (!row) throw new Error(`hour ${hour} is sealed: its figures stay as they are`);
  return row;
}

/** The scope's users that `rollUp` would touch: with a call, a stored row or a mark. In byte order. */
export async function usersOfScope(db: Db, scope: Scope): Promise<string[]> {
  const rows = await db.$queryRaw<{ userDid: string }[]>`
    select "userDid" from (${presentUsers(scope.hour)}) as present
     where ${usersIn(scope)} group by "userDid" order by "userDid" collate "C"`;
  return rows.map((row) => row.userDid);
}

/** `(userDid, calls)`, several rows a user: whoever has a call, a stored row or a mark in the hour. */
export function presentUsers(hour: Hour): Sql.Sql {
  return Sql.sql`
    select "userDid", count(*) as calls from "ModelCall" where ${calledIn(hour)} group by "userDid"
    union all
    select "userDid", 0 from "ModelCallStat" where "timeType" = 'hour' and "timestamp" = ${startOf(hour)}::timestamptz
    union all
    select "userDid", 0 from "StatMark" where hour = ${startOf(hour)}::timestamptz and "userDid" <> ''`;
}

/**
 * Store a row of zeros for each user who had a call in the `days` days before the hour's end and none in it, for readers
 * who go straight to the table. No row and a row of zeros are the same figure.
 */
export async function storeZeroRows(db: Db, hour: Hour, days: number): Promise<number> {
  return db.$executeRaw`
    insert into "ModelCallStat" ("timeType", "timestamp", "userDid", ${columns()}, run, "computedAt")
    select 'hour', h.hour, idle."userDid", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '{}'::jsonb, h.run, statement_timestamp()
      from "StatHour" h,
           lateral (select distinct "userDid" from "ModelCall"
                     where ${calledWithin(windowOf({ start: startOf(hour), end: endOf(hour) }, days))}
                     order by "userDid") idle
     where h.hour = ${startOf(hour)}::timestamptz and h."sealedAt" is null
    on conflict do nothing`;
}

/** In which a call makes a user active at the end of one of the range's hours. */
function windowOf({ start, end }: Range, days: number): Range {
  return { start: new Date(start.getTime() + HOUR_MS - days * 24 * HOUR_MS), end };
}

/** One line of a report; whole numbers and credits as text, for no float can hold them. */
export interface StatLine {
  userDid: string;
  hour: string;
  type?: string;
  totalCalls: string;
  successCalls: string;
  totalUsage: string;
  totalCredits: string;
  /** Of the row: 1, or that of the hour which last changed it. */
  revision: number;
  /** Every call that had been committed by then is in the figures; null before the hour's first close. */
  asOf: string | null;
  /** Whether the hour's figures are to stay as they are: src/store/standing.ts. */
  final: boolean;
}

export interface ReportOptions {
  by: 'user' | 'type';
  /** Also the users who had a call in the window of so many days before the hour's end, with zeros. */
  zerosDays?: number;
}

/**
 * The stored statistics of a range, sorted by user, hour and type in byte order, in batches, all from one snapshot.
 * Users with a call in the hour; with `zerosDays`, the idle users of the window too (by type they have no line).
 */
export async function* statLines(db: Db, range: Range, { by, zerosDays }: ReportOptions): AsyncGenerator<StatLine[]> {
  const { start, end } = range;
  const stored = Sql.sql`"ModelCallStat" s where s."timeType" = 'hour' and s."timestamp" >= ${start}::timestamptz
    and s."timestamp" < ${end}::timestamptz and s."totalCalls" > 0`;
  const spelled = (instant: string) =>
    Sql.raw(`to_char(${instant} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')`);
  const standing = Sql.sql`${spelled('"asOf"')} as "asOf", final`;
  // Once an hour, not once a line.
  const hours = Sql.sql`with h as materialized (${standingsOf(range)})`;
  const idle = Sql.sql`
    union all
    select w."userDid", h."timestamp", 0, 0, 0, 0.00000000, 1
      from (select distinct "userDid", ${callHour} as called from "ModelCall"
             where ${calledWithin(windowOf(range, zerosDays ?? 0))}) w,
           generate_series(${start}::timestamptz, ${end}::timestamptz - interval '1 hour', interval '1 hour') as h("timestamp")
     where w.called > (h."timestamp" at time zone 'UTC') - ${zerosDays ?? 0}::int * interval '1 day'
       and w.called <= h."timestamp" at time zone 'UTC'
       and not exists (select from "ModelCallStat" s where s."timeType" = 'hour' and s."timestamp" = h."timestamp"
                          and s."userDid" = w."userDid" and s."totalCalls" > 0)
     group by 1, 2`;
  const query =
    by === 'user'
      ? Sql.sql`
        ${hours}
        select "userDid", ${spelled('"timestamp"')} as hour, "totalCalls"::text, "successCalls"::text, "totalUsage"::text, "totalCredits"::text,
               line.revision, ${standing}
          from (select "userDid", "timestamp", "totalCalls", "successCalls", "totalUsage", "totalCredits", revision from ${stored}
                ${zerosDays ? idle : Sql.empty}) as line join h on h.hour = "timestamp"
         order by "userDid" collate "C", "timestamp"`
      : Sql.sql`
        ${hours}
        select "userDid", ${spelled('"timestamp"')} as hour, t.key as type, t.value ->> 'totalCalls' as "totalCalls",
               t.value ->> 'successCalls' as "successCalls", t.value ->> 'totalUsage' as "totalUsage",
               t.value ->> 'totalCredits' as "totalCredits", row.revision, ${standing}
          from (select s."userDid", s."timestamp", s."byType", s.revision from ${stored}) as row join h on h.hour = "timestamp",
               jsonb_each(row."byType") t
         order by "userDid" collate "C", "timestamp", t.key collate "C"`;
  yield* batches<StatLine>(db, query);
}

/** A user's hour in which what is stored is not what the calls add up to. */
export interface Difference {
  hour: Date;
  userDid: string;
  /** Each figure that differs, for instance `totalCalls: stored 3, counted 4`. */
  differing: string[];
  /** The user has a mark in this hour: the difference is known, and will be rolled up. */
  pending: boolean;
}

/**
 * Recount the range from the calls and compare every figure with what is stored, in batches, from one snapshot.
 * An hour that has never closed is compared only where it has rows: that it is not closed says the rest. Sealed hours
 * have lost their calls, and are passed over. Day by day: what a day's users add up to fits into memory, and a long range
 * costs no more than its days.
 */
export async function* differences(db: Db, range: Range): AsyncGenerator<Difference[]> {
  for (const day of daysOf(range)) yield* differencesWithin(db, day);
}

async function* differencesWithin(db: Db, { start, end }: Range): AsyncGenerator<Difference[]> {
  const calls = Sql.sql`(select ${callHour} as hour, call.* from "ModelCall" call
    where ${calledWithin({ start, end })}) as call`;
  const differing = figures.map((figure) => {
    const zero = Sql.raw(figure === 'byType' ? `'{}'::jsonb` : '0');
    const [was, is] = [
      Sql.sql`coalesce(${Sql.raw(`s."${figure}"`)}, ${zero})`,
      Sql.sql`coalesce(${counted(figure)}, ${zero})`,
    ];
    return Sql.sql`case when ${was} <> ${is}
      then ${Sql.raw(`'${figure}: stored '`)} || (${was})::text || ', counted ' || (${is})::text end`;
  });
  yield* batches<Difference>(
    db,
    Sql.sql`
    with recount as (
      ${figuresOf(Sql.sql`hour, "userDid"`, calls, { formerly: true })}
    ), c as (
      select hour at time zone 'UTC' as hour, "userDid", ${columns()}, "formerImages" from recount
    ), s as (
      select "timestamp" as hour, "userDid", ${columns()} from "ModelCallStat"
       where "timeType" = 'hour' and "timestamp" >= ${start}::timestamptz and "timestamp" < ${end}::timestamptz
    ), compared as (
      select j.hour, j."userDid", array_remove(array[${Sql.join(differing)}], null) as differing
        from s full join c using (hour, "userDid") as j left join "StatHour" l on l.hour = j.hour
       where l."sealedAt" is null and (l.state in ('closed', 'partial') or s."userDid" is not null)
    )
    select hour, "userDid", differing,
           exists (select from "StatMark" m where m.hour = d.hour and m."userDid" in (d."userDid", '')) as pending
      from compared d where differing <> '{}' order by hour, "userDid" collate "C"`,
  );
}

/** Read a query through a cursor: one snapshot, and never more than one batch in memory. Needs a transaction. */
export async function* batches<Row>(db: Db, query: Sql.Sql): AsyncGenerator<Row[]> {
  await db.$executeRaw`declare batches no scroll cursor for ${query}`;
  for (;;) {
    const rows = await db.$queryRaw<Row[]>`fetch 2000 from batches`;
    if (rows.length > 0) yield rows;
    if (rows.length < 2000) break;
  }
  await db.$executeRaw`close batches`;
}
