// What is each scheduler to be?

import { type Db, Sql } from './db.ts';

/** Who says what a scheduler is to be: hourhand's version, then when the process started, by Postgres' clock. */
export interface Deploy {
  readonly version: string;
  readonly startedAt: Date;
}

/** This process as a deploy. */
export async function deployOf(db: Db, version: string): Promise<Deploy> {
  const [{ now }] = await db.$queryRaw<[{ now: Date }]>`select clock_timestamp() as now`;
  return { version, startedAt: now };
}

export interface Schedule extends Deploy {
  readonly id: string;
  readonly pattern: string;
  /** When its pattern became what it is, or it was resumed: from then on its firings count. */
  readonly firesSince: Date;
  /** When its last tick was done. */
  readonly lastAt: Date | null;
  /** An operator paused it, and nobody has resumed it. */
  readonly pausedAt: Date | null;
  readonly pausedBy: string | null;
}

const columns = Sql.sql`id, pattern, version, "startedAt", "firesSince", "lastAt", "pausedAt", "pausedBy"`;

/**
 * Say what a scheduler is to be, and learn what it is to be: the greatest (version, start) has the word, so that two
 * deploys that run side by side do not take turns; a release is greater than its preview (`1.2.0-rc.1`). Kept here because Redis may forget, and because a scheduler that is
 * `off` leaves no trace there for an older replica to respect. A pause is an operator's word, which no deploy takes back.
 */
export async function settleSchedule(db: Db, id: string, pattern: string, deploy: Deploy): Promise<Schedule> {
  const { version, startedAt } = deploy;
  await db.$executeRaw`
    insert into "StatSchedule" as s (id, pattern, version, "startedAt")
    values (${id}::text, ${pattern}::text, ${version}::text, ${startedAt}::timestamptz)
    on conflict (id) do update
       set pattern = excluded.pattern, version = excluded.version, "startedAt" = excluded."startedAt",
           "firesSince" = case when s.pattern = excluded.pattern then s."firesSince" else now() end
     where (string_to_array(split_part(s.version, '-', 1), '.')::int[], s.version not like '%-%', s."startedAt")
         < (string_to_array(split_part(excluded.version, '-', 1), '.')::int[], excluded.version not like '%-%', excluded."startedAt")`;
  // The row is there now, whoever wrote it.
  return (await scheduleOf(db, id)) as Schedule;
}

/** What a scheduler is to be, if any deploy has said so yet. */
export async function scheduleOf(db: Db, id: string): Promise<Schedule | undefined> {
  const [schedule] = await db.$queryRaw<Schedule[]>`
    select ${columns} from "StatSchedule" where id = ${id}::text`;
  return schedule;
}

/** What every scheduler is to be of which a deploy or an operator has said so yet. */
export async function allSchedules(db: Db): Promise<Schedule[]> {
  return db.$queryRaw<Schedule[]>`select ${columns} from "StatSchedule" order by id`;
}

/**
 * Pause a scheduler, whatever any deploy says of it. One that is paused already stays as it is; one of which no deploy has said
 * anything yet is off until one does.
 */
export async function markPaused(db: Db, id: string, by: string): Promise<void> {
  await db.$executeRaw`
    insert into "StatSchedule" as s (id, pattern, version, "startedAt", "pausedAt", "pausedBy")
    values (${id}::text, 'off', '0.0.0', to_timestamp(0), now(), ${by}::text)
    on conflict (id) do update set "pausedAt" = now(), "pausedBy" = excluded."pausedBy" where s."pausedAt" is null`;
}

/** @returns whether it was paused */
export async function markResumed(db: Db, id: string, by: string): Promise<boolean> {
  const resumed = await db.$executeRaw`
    update "StatSchedule" set "pausedAt" = null, "pausedBy" = null, "resumedBy" = ${by}::text, "firesSince" = now()
     where id = ${id}::text and "pausedAt" is not null`;
  return resumed > 0;
}

/** A tick is done, by Postgres' clock; it may have been set back since the last. */
export async function markTicked(db: Db, id: string): Promise<void> {
  await db.$executeRaw`
    update "StatSchedule" set "lastAt" = clock_timestamp() where id = ${id}::text`;
}
