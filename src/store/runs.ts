// Which runs has an hour had, and what did they come to?

import { type Hour, startOf } from '../time/hour.ts';
import { type Db, instant, type Now, Sql } from './db.ts';

/** A run of an hour. `outcome` is null while it is under way, and for ever where another run took its place. */
export interface Run {
  readonly run: number;
  readonly reason: string;
  readonly requestedBy: string | null;
  readonly job: string | null;
  readonly startedAt: Date;
  readonly endedAt: Date | null;
  readonly outcome: string | null;
  readonly error: string | null;
}

/** Note the run that `allotted` tells of. (An hour whose ledger row was deleted counts its runs from 1 again.) */
export function noteRun(hour: Hour, job: string | undefined): Sql.Sql {
  return Sql.sql`
    insert into "StatRun" as r (hour, run, reason, "requestedBy", job, "startedAt")
    select ${startOf(hour)}::timestamptz, run, reason, "requestedBy", ${job ?? null}::text, "startedAt" from allotted
    on conflict (hour, run) do update
       set (reason, "requestedBy", job, "startedAt", "endedAt", outcome, error)
         = (excluded.reason, excluded."requestedBy", excluded.job, excluded."startedAt", null, null, null)`;
}

/** Note what the run of `ended` came to. One that had closed did so, whatever becomes of its hour without another run. */
export const noteRunEnd = Sql.sql`
  update "StatRun" r set "endedAt" = ended.at, outcome = ended.state, error = ended.error
    from ended where (r.hour, r.run) = (ended.hour, ended.run) and (r.outcome is null or r.outcome = 'partial')`;

/** The newest runs of an hour, the newest first. */
export async function runsOf(db: Db, hour: Hour, limit: number): Promise<Run[]> {
  return db.$queryRaw<Run[]>`
    select run, reason::text, "requestedBy", job, "startedAt", "endedAt", outcome::text, error from "StatRun"
     where hour = ${startOf(hour)}::timestamptz order by run desc limit ${limit}::int`;
}

/** Forget the runs of more than so many days ago. */
export async function forgetRuns(db: Db, days: number, now?: Now): Promise<void> {
  await db.$executeRaw`
    delete from "StatRun" where "startedAt" < ${instant(now)} - ${days}::int * interval '24 hours'`;
}
