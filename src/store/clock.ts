// Looks at PostgreSQL's clock: mends what a step of it left wrong, and says whether the clock may be trusted to
// delete by.

import { type Hour, hourOf } from '../time/hour.ts';
import { type Db, Sql } from './db.ts';
import { CLOCK_STEP_SECONDS } from './seam.ts';

/**
 * After a step nothing is sealed or deleted for this long. Without a look for this long, a step may have been missed.
 */
const SETTLE_MINUTES = 15;
const SETTLE_MS = SETTLE_MINUTES * 60_000;
/** A step back of at most this much does no harm: an hour is first looked at this long after its end. */
export const SLACK_MS = CLOCK_STEP_SECONDS * 1_000;

const settle = Sql.sql`${SETTLE_MINUTES}::int * interval '1 minute'`;
const slack = Sql.sql`${CLOCK_STEP_SECONDS}::int * interval '1 second'`;

/**
 * Whether an hour has ended by PostgreSQL's clock as it is now. A closed hour may not have ended: the clock was fast
 * when the hour was closed. Such an hour is not final.
 */
export const hasEnded = (hour: Sql.Sql) => Sql.sql`(${hour} + interval '1 hour' <= statement_timestamp())`;

/** Whether a stored instant lies in the future, so that a fast clock must have written it. Never null. */
export const isAhead = (at: Sql.Sql) => Sql.sql`(${at} is not null and ${at} > statement_timestamp() + ${slack})`;

/** PostgreSQL's clock, and what the workers' looks have written down about it. */
export interface ClockReading {
  readonly now: Date;
  /** The clock at the last look of any worker; null before the first look. */
  readonly lookedAt: Date | null;
  /** When the step was noticed that is not over yet; null while the clock is trusted. */
  readonly steppedAt: Date | null;
  /** Seconds of that step, negative if the clock went back; null if it is not known whether the clock stepped. */
  readonly step: number | null;
}

/** Read the clock. The statement is light, so its round trip tells closely when the clock was read. */
export async function readClock(db: Db): Promise<ClockReading> {
  const [reading] = await db.$queryRaw<[ClockReading]>`
    select clock_timestamp() as now, "lookedAt", "steppedAt", step
      from (values (1)) as one left join "StatClock" on true`;
  return reading;
}

/** What a worker's look found out about the clock. */
export interface ClockVerdict {
  /** Seconds by which the clock stepped; 0 if it did not. */
  readonly step: number;
  /** The clock went as the worker's own did since its last look. False at a worker's first look. */
  readonly agrees: boolean;
}

/**
 * Write down a look, and what it found. A step is over when a look agrees with the one before it, at least 15 minutes
 * after the step was noticed. If no worker has looked for 15 minutes, a step may have been missed: another 15 minutes
 * begin.
 *
 * @returns what is known of the clock now
 */
export async function noteLook(db: Db, { step, agrees }: ClockVerdict): Promise<ClockReading> {
  const stepped = Sql.sql`(${step !== 0} or (${!agrees} and c."lookedAt" < excluded."lookedAt" - ${settle}))`;
  const over = Sql.sql`(${agrees} and c."steppedAt" + ${settle} <= excluded."lookedAt")`;
  const size = step === 0 ? null : step;
  const [reading] = await db.$queryRaw<[ClockReading]>`
    with now as materialized (select clock_timestamp() as now)
    insert into "StatClock" as c (one, "lookedAt", "steppedAt", step)
    select true, now, case when ${step !== 0} then now end, ${size}::float8 from now
    on conflict (one) do update
       set "lookedAt" = excluded."lookedAt",
           "steppedAt" = case when ${stepped} then excluded."lookedAt" when ${over} then null else c."steppedAt" end,
           step = case when ${stepped} then coalesce(${size}::float8, c.step) when ${over} then null else c.step end
    returning "lookedAt" as now, "lookedAt", "steppedAt", step`;
  return reading;
}

/**
 * Why nothing may be sealed or deleted by this clock at the moment, and until when; `undefined` if the clock is
 * trusted. Before any worker has looked, nothing speaks against the clock.
 */
export function whyHeld({ now, lookedAt, steppedAt, step }: ClockReading): string | undefined {
  if (lookedAt === null) return undefined;
  const ahead = lookedAt.getTime() - now.getTime();
  const later = `again from ${after(now)} on at the earliest, if a worker is there`;
  if (ahead > SLACK_MS) {
    return `PostgreSQL's clock is ${seconds(ahead / 1_000)} behind the last look of a worker: it stepped; ${later}`;
  }
  if (steppedAt !== null) {
    const until = after(steppedAt < now ? steppedAt : now);
    return `${stepInWords(step, steppedAt)}; again from ${until} on, once a worker finds the clock steady`;
  }
  if (ahead < -SETTLE_MS) {
    const missed = `no worker has looked at PostgreSQL's clock since ${lookedAt.toISOString()}`;
    return `${missed}, so it may have stepped: start hourhand worker; ${later}`;
  }
  return undefined;
}

const after = (at: Date) => new Date(at.getTime() + SETTLE_MS).toISOString();

/** @param step its seconds; null if it is only known that no worker had looked */
export function stepInWords(step: number | null, at: Date): string {
  if (step === null) {
    return `no worker had looked at PostgreSQL's clock for ${SETTLE_MINUTES} minutes until ${at.toISOString()}`;
  }
  const direction = step < 0 ? 'back' : 'forward';
  return `PostgreSQL's clock went ${direction} by ${seconds(Math.abs(step))}, seen at ${at.toISOString()}`;
}

const seconds = (count: number) => `${Math.round(count)} seconds`;

/** From where on hours are suspect after a step, by the clock as it is now. */
export interface Suspect {
  /** Hours that were closed since then. */
  readonly closedSince: Date;
  /** Hours that ended since then. */
  readonly endedSince: Date;
}

/**
 * Open the unsealed hours again that a fast clock closed too early, in one statement: those that have not ended,
 * those whose figures are of a time to come, and those that a step makes suspect. (`requestHours` refuses hours to
 * come.)
 *
 * The fence goes: calls that were written without a mark since then have transaction ids above it. An hour that is
 * running goes round again. An hour that is open or partial keeps its request, and loses its fence and its back-off.
 * So does a partial hour whose back-off ends later than any back-off may.
 *
 * The statement waits for locked rows, in the order of their hours: their holder may be closing an hour by the old
 * clock. (`statement_timestamp()`, because the planner can estimate by it, and cannot by `clock_timestamp()`.)
 *
 * @returns the hours that were closed or running
 */
export async function reopenEarly(db: Db, backOffMaxSeconds: number, suspect?: Suspect): Promise<Hour[]> {
  const rows = await db.$queryRaw<{ hour: Date; again: boolean }[]>`
    with early as (
      select hour from "StatHour"
       where hour > statement_timestamp() - interval '1 hour'
         and (state = 'closed' or (state = 'running' and wanted <= run) or fence is not null
              or "nextAttemptAt" is not null)
      union all
      select hour from "StatHour" where state = 'closed' and "sealedAt" is null and ${isAhead(Sql.sql`"asOf"`)}
      union all
      ${suspect ? suspectHours(suspect) : Sql.empty}
      select hour from "StatHour"
       where error is not null
         and "nextAttemptAt" > statement_timestamp() + (${backOffMaxSeconds}::int + 60) * interval '1 second'
    ), locked as materialized (
      select hour, state in ('closed', 'running') as again from "StatHour"
       where hour = any(array(select hour from early)) and "sealedAt" is null
       order by hour for update
    )
    update "StatHour" l
       set state = case when l.state = 'closed' then 'open' else l.state end,
           wanted = case when again then l.run + 1 else l.wanted end,
           reason = case when again then 'repair' else l.reason end,
           "requestedBy" = case when again then 'clock' else l."requestedBy" end,
           "backfillId" = case when again then null else l."backfillId" end,
           fence = null, "nextAttemptAt" = null, "auditedAt" = null
      from locked
     where l.hour = locked.hour
    returning l.hour, again`;
  return rows.filter(({ again }) => again).map(({ hour }) => hourOf(hour));
}

const suspectHours = ({ closedSince, endedSince }: Suspect) => Sql.sql`
  select hour from "StatHour" where "closedAt" >= ${closedSince}::timestamptz
  union all
  select hour from "StatHour" where hour > ${endedSince}::timestamptz - interval '1 hour'
  union all`;

/**
 * Bring to the present what a fast clock put into the future and something waits for: schedulers and their alarms,
 * alarms that are yet to be told, places and budgets of probes, expiry and back-off of models. Only by a clock that
 * is trusted: by a slow clock all of it lies in the future.
 *
 * @returns how many rows were changed
 */
export async function mendInstants(db: Db): Promise<number> {
  const [{ mended }] = await db.$queryRaw<[{ mended: number }]>`
    with clock as materialized (select clock_timestamp() as now, clock_timestamp() + ${slack} as ahead),
    schedules as (
      update "StatSchedule"
         set ("startedAt", "firesSince", "lastAt")
             = row (${atMostNow('startedAt')}, ${atMostNow('firesSince')}, ${atMostNow('lastAt')})
        from clock where greatest("startedAt", "firesSince", "lastAt") > ahead returning 1
    ), alarms as (
      update "Alarm" set "tellAfter" = now from clock where "tellAfter" > ahead + interval '1 minute' returning 1
    ), partials as (
      update "StatHour" set "partialSince" = now from clock
       where "partialSince" > ahead and error is not null returning 1
    ), checks as (
      update "ModelCheck" set "startedAt" = now from clock where "startedAt" > ahead returning 1
    ), probes as (
      update "ModelProbe"
         set ("startedAt", "finishedAt") = row (${atMostNow('startedAt')}, ${atMostNow('finishedAt')})
        from clock where greatest("startedAt", "finishedAt") > ahead returning 1
    ), statuses as (
      update "ModelStatus"
         set (since, "checkedAt", "retryAt")
             = row (${atMostNow('since')}, ${atMostNow('checkedAt')},
                    case when "retryAt" <= ahead + interval '24 hours' then "retryAt" end)
        from clock where greatest(since, "checkedAt", "retryAt" - interval '24 hours') > ahead returning 1
    )
    select count(*)::int as mended
      from (table schedules union all table alarms union all table partials union all table checks
            union all table probes union all table statuses) as mended`;
  return mended;
}

/** A column's instant, or the present if the instant lies in the future; null stays null. */
const atMostNow = (column: string) => Sql.raw(`case when "${column}" > now then now else "${column}" end`);
