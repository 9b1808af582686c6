// What is wrong for too long, and who has been told of it?

import { type Hour, hourOf } from '../time/hour.ts';
import { firingAfter, nextRun } from '../time/pattern.ts';
import { type Db, instant, type Now, type Pool, Sql } from './db.ts';
import { allSchedules, type Schedule } from './schedules.ts';

/** How long is too long; 0: that is never an alarm. */
export interface AlarmPolicy {
  readonly noHourClosedMinutes: number;
  readonly tickMissedSeconds: number;
  readonly hourPartialMinutes: number;
}

export type AlarmKind = 'no-hour-closed' | 'tick-missed' | 'hour-partial';

/** Something that is wrong at this moment. */
export interface Wrong {
  readonly kind: AlarmKind;
  /** The scheduler's id, or the hour; nothing where all hours are meant. */
  readonly subject: string;
  readonly since: Date;
  readonly expected: string;
  readonly found: string;
}

/** What is wrong for too long, by Postgres' clock. Changes nothing. */
export async function wrongNow(db: Db, policy: AlarmPolicy, now?: Now): Promise<Wrong[]> {
  const [{ at }] = await db.$queryRaw<[{ at: Date }]>`select ${instant(now)} as at`;
  const schedules = await allSchedules(db);
  const missed = schedules.flatMap((schedule) => missedTick(schedule, policy.tickMissedSeconds, at));
  const stalled = await lastClose(db, policy.noHourClosedMinutes, now);
  const partial = await longPartial(db, policy.hourPartialMinutes, now);
  return [
    ...stalled.map(({ since }) => ({
      kind: 'no-hour-closed' as const,
      subject: '',
      since,
      expected: `an hour of the live range to close within ${policy.noHourClosedMinutes} minutes`,
      found: `none since ${since.toISOString()}`,
    })),
    ...missed,
    ...partial.map(({ hour, since, error }) => ({
      kind: 'hour-partial' as const,
      subject: hour,
      since,
      expected: `it to close within ${policy.hourPartialMinutes} minutes`,
      found: `partial since ${since.toISOString()}: ${error}`,
    })),
  ];
}

/** A moment in which a scheduler may fire in Redis before, by Postgres' clock, it was set. */
const CLOCK_SLACK_MS = 5_000;

/** The first firing of which no tick is known: all those after the last tick, and after the scheduler was set or resumed. */
function missedTick({ id, pattern, pausedAt, firesSince, lastAt }: Schedule, seconds: number, at: Date): Wrong[] {
  if (seconds === 0 || pattern === 'off' || pausedAt) return [];
  const first = nextRun(pattern, new Date(firesSince.getTime() + CLOCK_SLACK_MS));
  const next = lastAt ? firingAfter(pattern, lastAt) : first;
  const since = next > first ? next : first;
  if (at.getTime() - since.getTime() <= seconds * 1_000) return [];
  const expected = `a tick at ${since.toISOString()}, and at most ${seconds} s later`;
  const found = lastAt ? `the last was done at ${lastAt.toISOString()}` : 'none was ever done';
  return [{ kind: 'tick-missed', subject: id, since, expected, found }];
}

/** Since when no hour of the live range has closed (by a clock that was set back since, one may have in time to come), if that is longer than so many minutes, and the roll-up is neither paused nor off. */
async function lastClose(db: Db, minutes: number, now: Now): Promise<{ since: Date }[]> {
  return db.$queryRaw<{ since: Date }[]>`
    select since
      from "StatRange" r join "StatSchedule" s on s.id = 'model.call.stats' and s.pattern <> 'off' and s."pausedAt" is null,
           lateral (select greatest(coalesce(max(l."closedAt"), r.start + interval '1 hour'), s."firesSince") as since
                      from "StatHour" l where l.hour >= r.start and l."closedAt" <= ${instant(now)}) as last
     where r."end" is null and ${minutes}::int > 0 and since < ${instant(now)} - ${minutes}::int * interval '1 minute'`;
}

/** As many are named, the oldest first: one that is open is thereby never left out for another. */
const NAMED = 100;
/** What is said of an hour's error. */
const ERROR_LENGTH = 500;

async function longPartial(db: Db, minutes: number, now: Now): Promise<{ hour: Hour; since: Date; error: string }[]> {
  const rows = await db.$queryRaw<{ hour: Date; since: Date; error: string }[]>`
    select hour, "partialSince" as since, coalesce(left(error, ${ERROR_LENGTH}::int), 'runs again') as error from "StatHour"
     where "partialSince" < ${instant(now)} - ${minutes}::int * interval '1 minute' and state <> 'closed' and ${minutes}::int > 0
     order by "partialSince", hour limit ${NAMED}::int`;
  return rows.map((row) => ({ ...row, hour: hourOf(row.hour) }));
}

/** An alarm that was raised. */
export interface Alarm {
  readonly seq: number;
  readonly kind: AlarmKind;
  readonly subject: string;
  readonly since: Date;
  readonly detail: string;
  readonly raisedAt: Date;
  readonly endedAt: Date | null;
  /** When the webhook took that it was raised, and that it ended. */
  readonly toldAt: Date | null;
  readonly endToldAt: Date | null;
}

const columns = Sql.sql`seq::int, kind, subject, since, detail, "raisedAt", "endedAt", "toldAt", "endToldAt"`;

const ALARM_LOCK = 1_869_443_706; // another than the budget's in checks.ts

/**
 * Raise what is wrong and has no open alarm, and end the open ones of what is no longer wrong: each once, whoever looks and however
 * often. Where somebody else is at it at this moment, it is left to them.
 *
 * @returns what this very look raised and ended
 */
export async function settleAlarms(
  pool: Pool,
  policy: AlarmPolicy,
  now?: Now,
): Promise<{ raised: Alarm[]; ended: Alarm[] }> {
  return pool.$transaction(async (db) => {
    const [lock] = await db.$queryRaw<[{ taken: boolean }]>`
      select pg_try_advisory_xact_lock(${ALARM_LOCK}::bigint) as taken`;
    if (!lock.taken) return { raised: [], ended: [] };
    const wrong = await wrongNow(db, policy, now);
    return { ended: await endAlarms(db, wrong, now), raised: await raiseAlarms(db, wrong, now) };
  });
}

async function raiseAlarms(db: Db, wrong: readonly Wrong[], now: Now): Promise<Alarm[]> {
  return db.$queryRaw<Alarm[]>`
    insert into "Alarm" (kind, subject, since, detail, "raisedAt", "tellAfter")
    select kind, subject, since, detail, ${instant(now)}, ${instant(now)}
      from unnest(${wrong.map(({ kind }) => kind)}::text[], ${wrong.map(({ subject }) => subject)}::text[],
                  ${wrong.map(({ since }) => since)}::timestamptz[],
                  ${wrong.map(({ expected, found }) => `expected ${expected}, found ${found}`)}::text[]) as w(kind, subject, since, detail)
    on conflict (kind, subject) where "endedAt" is null do nothing
    returning ${columns}`;
}

async function endAlarms(db: Db, wrong: readonly Wrong[], now: Now): Promise<Alarm[]> {
  return db.$queryRaw<Alarm[]>`
    update "Alarm" set "endedAt" = ${instant(now)}
     where "endedAt" is null
       and (kind, subject) not in (select * from unnest(${wrong.map(({ kind }) => kind)}::text[], ${wrong.map(({ subject }) => subject)}::text[]))
    returning ${columns}`;
}

/** What is told of an alarm is told by one at a time, who has so long for it. */
const TELLING_SECONDS = 20;

/**
 * Take alarms of which something is still to be told, oldest first: nobody else gets them for 20 seconds. Of those that have ended
 * more than a day ago nobody wants to hear any more.
 */
export async function takeUntold(db: Db, limit: number, now?: Now): Promise<Alarm[]> {
  return db.$queryRaw<Alarm[]>`
    update "Alarm" set "tellAfter" = ${instant(now)} + ${TELLING_SECONDS}::int * interval '1 second'
     where seq in (select seq from "Alarm"
                    where ("toldAt" is null or ("endedAt" is not null and "endToldAt" is null)) and "tellAfter" <= ${instant(now)}
                      and coalesce("endedAt", 'infinity') > ${instant(now)} - interval '24 hours'
                    order by seq limit ${limit}::int for update skip locked)
    returning ${columns}`;
}

/** The webhook took that an alarm was raised, or that it ended. */
export async function markTold(db: Db, seq: number, what: 'raised' | 'ended', now?: Now): Promise<void> {
  await db.$executeRaw`
    update "Alarm" set "toldAt" = coalesce("toldAt", ${instant(now)}), "tellAfter" = ${instant(now)},
           "endToldAt" = case when ${what === 'ended'} then ${instant(now)} else "endToldAt" end
     where seq = ${seq}::bigint`;
}

/** The alarms that were raised and have not ended, the oldest first. */
export async function openAlarms(db: Db): Promise<Alarm[]> {
  return db.$queryRaw<Alarm[]>`select ${columns} from "Alarm" where "endedAt" is null order by seq`;
}

/** Forget the alarms that ended more than so many days ago. */
export async function forgetAlarms(db: Db, days: number, now?: Now): Promise<void> {
  await db.$executeRaw`delete from "Alarm" where "endedAt" < ${instant(now)} - ${days}::int * interval '24 hours'`;
}
