// Which calls hang, and what becomes of them?

import type { Hour } from '../time/hour.ts';
import { type Limit, type Limits, shortestOf } from '../time/limits.ts';
import { type Db, instant, type Now, Sql } from './db.ts';

/** Calls of one model and type that exceeded one limit. */
export interface StaleCalls {
  readonly provider: string;
  readonly model: string;
  readonly type: string;
  readonly limitMinutes: number;
  readonly calls: number;
}

/** A place in the order in which calls are looked at. The instant is Postgres' own text: a Date loses its microseconds. */
export interface Place {
  readonly callTime: string;
  readonly id: string;
}
const FIRST: Place = { callTime: '-infinity', id: '' };

export interface Batch {
  /** Calls failed. */
  readonly calls: number;
  readonly models: StaleCalls[];
  readonly hours: { hour: Hour; calls: number }[];
  /** Where the next batch begins; `null` after the last. */
  readonly next: Place | null;
}

/**
 * Fail those of the next `size` unfinished calls that have been processing for longer than their limit, in one statement. In
 * hours that have ended each leaves a mark, as whatever changes a call does.
 *
 * A call that somebody else holds is passed over, and not waited for. One that ended after the statement began is looked
 * at again when its lock is taken, and passed over too: nothing that the gateway says is ever overwritten. Calls within
 * their own, longer limit count towards `size`, so that no batch takes longer than another for them. (The cast in the
 * UPDATE keeps the planner from looking for the batch's ids in the whole index of unfinished calls: it takes that for
 * short, which it is until something breaks. Its instants are for the partitioned layout: they spare all other partitions, and there
a repeated id may name a call that is not stale.)
 */
export async function failBatch(
  db: Db,
  limits: Limits,
  { after, size, now }: { after?: Place | null | undefined; size: number; now?: Now },
): Promise<Batch> {
  const minutes = minutesOf(limits);
  const { callTime, id } = after ?? FIRST;
  const unfinished = Sql.sql`${mayBeStale(limits, now)} and ("callTime", id) > (${callTime}::timestamptz, ${id}::text)`;
  const [row] = await db.$queryRaw<[Batch]>`
    with last as materialized (
      select "callTime", id from "ModelCall" where ${unfinished} order by "callTime", id offset ${size - 1}::int limit 1
    ), stale as materialized (
      select id, "callTime" from "ModelCall"
       where ${unfinished} and ${isStale(limits, now)}
         and ("callTime", id) <= (coalesce((select "callTime" from last), 'infinity'), coalesce((select id from last), ''))
       order by "callTime", id limit ${size}::int
       for update skip locked
    ), failed as (
      update "ModelCall"
         set status = 'failed', "errorReason" = 'Timeout: Processing exceeded ' || ${minutes} || ' minutes',
             duration = extract(epoch from ${instant(now)} - "callTime"), "updatedAt" = ${instant(now)}
       where id = any(array(select id from stale)) and status::text = 'processing'
         and "callTime" >= (select min("callTime") from stale) and "callTime" <= (select max("callTime") from stale) and ${isStale(limits, now)}
      returning "providerId", model, type, ${minutes} as minutes, date_trunc('hour', "callTime", 'UTC') as hour
    ), hours as (
      select hour, count(*) as calls from failed group by hour
    ), models as (
      select "providerId" as provider, model, type, minutes as "limitMinutes", count(*) as calls
        from failed group by 1, 2, 3, 4 order by calls desc, 1, 2, 3
    )
    select (select count(*)::int from failed) as calls,
           (select coalesce(jsonb_agg(models), '[]') from models) as models,
           (select coalesce(jsonb_agg(jsonb_build_object('hour', ${spelled}, 'calls', calls) order by hour), '[]') from hours) as hours,
           (select jsonb_build_object('callTime', "callTime", 'id', id) from last) as next`;
  return row;
}

/** At most so many unfinished calls are to be looked at: those beyond the shortest limit. */
export async function countUnfinished(db: Db, limits: Limits, now?: Now): Promise<number> {
  const [row] = await db.$queryRaw<[{ calls: number }]>`
    select count(*)::int as calls from "ModelCall" where ${mayBeStale(limits, now)}`;
  return row.calls;
}

/** What would be failed at this moment, by model, the most calls first; at most `limit` lines. */
export async function staleCalls(db: Db, limits: Limits, limit: number, now?: Now) {
  return db.$queryRaw<(StaleCalls & { oldest: Date })[]>`
    select "providerId" as provider, model, type::text, ${minutesOf(limits)} as "limitMinutes", count(*)::int as calls,
           min("callTime") as oldest
      from "ModelCall" where ${mayBeStale(limits, now)} and ${isStale(limits, now)}
     group by 1, 2, 3, 4 order by calls desc, 1, 2, 3 limit ${limit}::int`;
}

/** Write a batch down, in its own transaction; forget those of more than 30 days ago. */
export async function recordBatch(
  db: Db,
  { calls, models, hours }: Pick<Batch, 'calls' | 'models' | 'hours'>,
  { cleanup, requestedBy }: { cleanup: string; requestedBy: string | null },
  now?: Now,
): Promise<void> {
  await db.$executeRaw`
    with forgotten as (
      delete from "StaleBatch" where at < ${instant(now)} - interval '720 hours'
    )
    insert into "StaleBatch" (cleanup, "requestedBy", at, calls, models, hours)
    values (${cleanup}::text, ${requestedBy}::text, ${instant(now)}, ${calls}::bigint, ${JSON.stringify(models)}::jsonb, ${JSON.stringify(hours)}::jsonb)`;
}

/** What a clean-up did, all its attempts together. At most so many models and hours are named; `other…`: the calls of the others. */
export interface CleanUp {
  readonly calls: number;
  readonly models: StaleCalls[];
  readonly hours: Record<Hour, number>;
  readonly otherModels?: number;
  readonly otherHours?: number;
}

const MAX_MODELS = 100;
const MAX_HOURS = 200;

/** Add the batches of a clean-up up: the models with the most calls, and the oldest hours. */
export async function accountOf(db: Db, cleanup: string): Promise<CleanUp> {
  const models = await db.$queryRaw<(StaleCalls & { all: number })[]>`
    select m.provider, m.model, m.type, m."limitMinutes", sum(m.calls)::int as calls, (sum(sum(m.calls)) over ())::int as all
      from "StaleBatch" b, jsonb_to_recordset(b.models) as m(provider text, model text, type text, "limitMinutes" int, calls int)
     where b.cleanup = ${cleanup}::text
     group by 1, 2, 3, 4 order by calls desc, 1, 2, 3 limit ${MAX_MODELS}::int`;
  const hours = await db.$queryRaw<{ hour: Hour; calls: number }[]>`
    select h.hour, sum(h.calls)::int as calls
      from "StaleBatch" b, jsonb_to_recordset(b.hours) as h(hour text, calls int)
     where b.cleanup = ${cleanup}::text
     group by h.hour order by h.hour limit ${MAX_HOURS}::int`;
  const calls = models[0]?.all ?? 0;
  const [otherModels, otherHours] = [models, hours].map(
    (named) => calls - named.reduce((sum, line) => sum + line.calls, 0),
  );
  return {
    calls,
    models: models.map(({ all: _, ...line }) => line),
    hours: Object.fromEntries(hours.map(({ hour, calls }) => [hour, calls])),
    ...(otherModels ? { otherModels } : {}),
    ...(otherHours ? { otherHours } : {}),
  };
}

/** The calls that other clean-ups failed in the day before. */
export async function failedInADay(db: Db, cleanup: string, now?: Now): Promise<number> {
  const [row] = await db.$queryRaw<[{ calls: number }]>`
    select coalesce(sum(calls), 0)::int as calls from "StaleBatch"
     where at >= ${instant(now)} - interval '24 hours' and at <= ${instant(now)} and cleanup <> ${cleanup}::text`;
  return row.calls;
}

/** The calls that were failed in the last 24 hours, and when the last of them was. */
export async function failedLately(db: Db): Promise<{ calls: number; at: Date | null }> {
  const [row] = await db.$queryRaw<[{ calls: number; at: Date | null }]>`
    select coalesce(sum(calls), 0)::int as calls, max(at) as at
      from "StaleBatch" where at >= now() - interval '24 hours'`;
  return row;
}

const spelled = Sql.sql`to_char(hour at time zone 'UTC', 'YYYY-MM-DD"T"HH24')`;

/** By the letter of `ModelCall_processing_idx`, and cheap: all that can be stale, and what has a longer limit of its own. */
function mayBeStale(limits: Limits, now: Now): Sql.Sql {
  return Sql.sql`status = 'processing' and "callTime" < ${instant(now)} - ${shortestOf(limits)}::int * interval '1 minute'`;
}

function isStale(limits: Limits, now: Now): Sql.Sql {
  return Sql.sql`"callTime" < ${instant(now)} - ${minutesOf(limits)} * interval '1 minute'`;
}

/** The limit of a row of `ModelCall`: its model's, else its type's, else that of all. */
function minutesOf({ minutes, others }: Limits): Sql.Sql {
  if (others.length === 0) return Sql.sql`${minutes}::int`;
  const own = (limit: Limit) =>
    'model' in limit
      ? Sql.sql`when "providerId" = ${limit.provider}::text and model = ${limit.model}::text then ${limit.minutes}::int`
      : Sql.sql`when type = ${limit.type}::"ModelCallType" then ${limit.minutes}::int`;
  const models = others.filter((limit) => 'model' in limit);
  const types = others.filter((limit) => 'type' in limit);
  return Sql.sql`case ${Sql.join([...models, ...types].map(own), ' ')} else ${minutes}::int end`;
}
