// What is each scheduler to be?

import type { Db } from './db.ts';

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
}

/**
 * Say what a scheduler is to be, and learn what it is to be: the greatest (version, start) has the word, so that two
 * deploys that run side by side do not take turns; a release is greater than its preview (`1.2.0-rc.1`). Kept here because Redis may forget, and because a scheduler that is
 * `off` leaves no trace there for an older replica to respect.
 */
export async function settleSchedule(db: Db, id: string, pattern: string, deploy: Deploy): Promise<Schedule> {
  const { version, startedAt } = deploy;
  await db.$executeRaw`
    insert into "StatSchedule" as s (id, pattern, version, "startedAt")
    values (${id}::text, ${pattern}::text, ${version}::text, ${startedAt}::timestamptz)
    on conflict (id) do update
       set pattern = excluded.pattern, version = excluded.version, "startedAt" = excluded."startedAt"
     where (string_to_array(split_part(s.version, '-', 1), '.')::int[], s.version not like '%-%', s."startedAt")
         < (string_to_array(split_part(excluded.version, '-', 1), '.')::int[], excluded.version not like '%-%', excluded."startedAt")`;
  // The row is there now, whoever wrote it.
  return (await scheduleOf(db, id)) as Schedule;
}

/** What a scheduler is to be, if any deploy has said so yet. */
export async function scheduleOf(db: Db, id: string): Promise<Schedule | undefined> {
  const [schedule] = await db.$queryRaw<Schedule[]>`
    select id, pattern, version, "startedAt" from "StatSchedule" where id = ${id}::text`;
  return schedule;
}
