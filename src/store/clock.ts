// Looks at PostgreSQL's clock: mends what a step of it left wrong, and says whether it may be trusted to delete by.

import { type Hour, hourOf } from '../time/hour.ts';
import { type Db, Sql } from './db.ts';
import { CLOCK_STEP_SECONDS } from './seam.ts';

/** After a step nothing is sealed or deleted for this long. Workers that do not look for this long may have missed one. */
const SETTLE_MINUTES = 15;
const SETTLE_MS = SETTLE_MINUTES * 60_000;
/** Two clocks of one cluster, read one after the other, may differ by as much without a step. */
const SLACK_MS = CLOCK_STEP_SECONDS * 1_000;

const slack = Sql.sql`${CLOCK_STEP_SECONDS}::int * interval '1 second'`;

/**
 * Whether an hour has ended by PostgreSQL's clock as it is now. An hour may be closed and not have ended: the clock was
 * fast then. Nothing about such an hour is final.
 */
export const hasEnded = (hour: Sql.Sql) => Sql.sql`(${hour} + interval '1 hour' <= statement_timestamp())`;

/** Whether an hour's figures, by their `asOf`, are of a time to come: of a run that began while the clock was fast. */
export const isAhead = (asOf: Sql.Sql) => Sql.sql`(${asOf} is not null and ${isAheadOfClock(asOf)})`;

/** Whether an instant that was written down lies in the future. */
export const isAheadOfClock = (at: Sql.Sql) => Sql.sql`(${at} > statement_timestamp() + ${slack})`;

/** PostgreSQL's clock, and what the workers' looks have written down of it. */
export interface ClockReading {
  readonly now: Date;
  /** The clock at the last look of any worker; null before the first. */
  readonly lookedAt: Date | null;
  /** When a step was noticed that is not over yet; null while the clock is trusted. */
  readonly steppedAt: Date | null;
  /** Seconds of that step, negative if the clock went back; null if it is not known whether there was one. */
  readonly step: number | null;
}

/** Read the clock: a statement so light that its round trip bounds when it was read. */
export async function readClock(db: Db): Promise<ClockReading> {
  const [reading] = await db.$queryRaw<[ClockReading]>`
    select clock_timestamp() as now, "lookedAt", "steppedAt", step from (values (1)) as one left join "StatClock" on true`;
  return reading;
}

/** What a worker's look made of the clock. */
export interface ClockVerdict {
  /** Seconds by which the clock stepped; 0 if it did not. */
  readonly step: number;
  /** The clock went as the worker's own did since its last look. False at a worker's first look. */
  readonly agrees: boolean;
}

/**
 * Write down a look, and what it found. A step is over once a look, 15 minutes after it was noticed or later, agrees with the
 * one before. If nobody has looked for 15 minutes, it is not known whether there was a step: the same 15 minutes begin.
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

const settle = Sql.sql`${SETTLE_MINUTES}::int * interval '1 minute'`;

/**
 * Why nothing may be sealed or deleted by this clock at the moment, and until when; `undefined` if it is trusted. Before any worker
 * has ever looked, nothing speaks against it.
 */
export function whyHeld({ now, lookedAt, steppedAt, step }: ClockReading): string | undefined {
  if (lookedAt === null) return undefined;
  const later = `at the earliest at ${new Date(now.getTime() + SETTLE_MS).toISOString()}, if a worker is there`;
  const ahead = lookedAt.getTime() - now.getTime();
  if (ahead > SLACK_MS) {
    return `PostgreSQL's clock is ${seconds(ahead / 1_000)} behind the last look of a worker: it stepped; again ${later}`;
  }
  if (steppedAt !== null) {
    const what =
      step === null
        ? `no worker had looked at PostgreSQL's clock for ${SETTLE_MINUTES} minutes or more until ${steppedAt.toISOString()}`
        : saidOfStep(step, steppedAt);
    const until = new Date(Math.min(steppedAt.getTime(), now.getTime()) + SETTLE_MS);
    return `${what}; again from ${until.toISOString()} on, once a worker finds the clock steady`;
  }
  if (ahead < -SETTLE_MS) {
    return (
      `no worker has looked at PostgreSQL's clock since ${lookedAt.toISOString()}, so it may have stepped: ` +
      `start hourhand worker; again ${later}`
    );
  }
  return undefined;
}

/** A step in words. */
export function saidOfStep(step: number, at: Date): string {
  return `PostgreSQL's clock went ${step < 0 ? 'back' : 'forward'} by ${seconds(Math.abs(step))}, seen at ${at.toISOString()}`;
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
 * Open the hours again that a clock which was fast closed too early, in one statement: unsealed hours that have not ended, or whose
 * figures are of a time to come; after a step, those that are suspect too. A partial hour whose back-off lies further ahead than any
 * back-off is long need not wait for it either.
 *
 * The fence goes with it: calls that were written without a mark since then have transaction ids above it. (`requestHours` will
 * not do, which refuses hours to come.) An hour whose run is under way goes round again; one that was not closed keeps its request.
 * Their rows are waited for, in the order of their hours: whoever holds one may be closing it by the clock as it was.
 *
 * @returns those that were closed or running
 */
export async function reopenEarly(
  db: Db,
  backOffMaxSeconds: number,
  suspect?: Suspect,
): Promise<{ hour: Hour; ended: boolean }[]> {
  const { closedSince = null, endedSince = null } = suspect ?? {};
  const rows = await db.$queryRaw<{ hour: Date; again: boolean; ended: boolean }[]>`
    with clock as materialized (select clock_timestamp() as now),
    early as (
      select hour from "StatHour"
       where hour > (select now - interval '1 hour' from clock)
         and (state = 'closed' or (state = 'running' and wanted <= run) or fence is not null or "nextAttemptAt" is not null)
      union all
      select hour from "StatHour"
       where state = 'closed' and "sealedAt" is null and "asOf" > (select now + ${slack} from clock)
      union all
      select hour from "StatHour" where "closedAt" >= ${closedSince}::timestamptz
      union all
      select hour from "StatHour" where hour > ${endedSince}::timestamptz - interval '1 hour'
      union all
      select hour from "StatHour"
       where error is not null
         and "nextAttemptAt" > (select now + (${backOffMaxSeconds}::int + 60) * interval '1 second' from clock)
    ), locked as materialized (
      select hour, state in ('closed', 'running') as again from "StatHour"
       where hour = any(array(select hour from early)) and "sealedAt" is null
       order by hour for update
    )
    update "StatHour" l
       set state = case when l.state = 'closed' then 'open' else l.state end,
           wanted = case when ${isAnswered} then l.run + 1 else l.wanted end,
           reason = case when ${isAnswered} then 'repair' else l.reason end,
           "requestedBy" = case when ${isAnswered} then 'clock' else l."requestedBy" end,
           "backfillId" = case when ${isAnswered} then null else l."backfillId" end,
           fence = null, "nextAttemptAt" = null, "auditedAt" = null
      from locked, clock
     where l.hour = locked.hour
    returning l.hour, locked.again, l.hour + interval '1 hour' <= clock.now as ended`;
  return rows.filter(({ again }) => again).map(({ hour, ended }) => ({ hour: hourOf(hour), ended }));
}

/** Whether a run has read the hour's calls by the old clock, or reads them at this moment. */
const isAnswered = Sql.sql`(l.state in ('closed', 'running'))`;

/**
 * Bring to the present what a fast clock put into the future and something waits for: schedulers and their alarms, alarms that are to
 * be told, places and budgets of probes, expiry and back-off of models. Only to be done by a clock that is trusted: by one that is slow
 * all of it lies in the future.
 *
 * @returns how many rows
 */
export async function mendInstants(db: Db): Promise<number> {
  const [{ mended }] = await db.$queryRaw<[{ mended: number }]>`
    with clock as materialized (select clock_timestamp() as now, clock_timestamp() + ${slack} as ahead),
    schedules as (
      update "StatSchedule" set ("startedAt", "firesSince", "lastAt") = row (${past('startedAt')}, ${past('firesSince')}, ${past('lastAt')})
        from clock where greatest("startedAt", "firesSince", "lastAt") > ahead returning 1
    ), alarms as (
      update "Alarm" set "tellAfter" = now from clock where "tellAfter" > ahead + interval '1 minute' returning 1
    ), partials as (
      update "StatHour" set "partialSince" = now from clock where "partialSince" > ahead and error is not null returning 1
    ), checks as (
      update "ModelCheck" set "startedAt" = now from clock where "startedAt" > ahead returning 1
    ), probes as (
      update "ModelProbe" set ("startedAt", "finishedAt") = row (${past('startedAt')}, ${past('finishedAt')})
        from clock where greatest("startedAt", "finishedAt") > ahead returning 1
    ), statuses as (
      update "ModelStatus"
         set (since, "checkedAt", "retryAt")
             = row (${past('since')}, ${past('checkedAt')}, case when "retryAt" <= ahead + interval '24 hours' then "retryAt" end)
        from clock where greatest(since, "checkedAt", "retryAt" - interval '24 hours') > ahead returning 1
    )
    select count(*)::int as mended
      from (table schedules union all table alarms union all table partials union all table checks
            union all table probes union all table statuses) as mended`;
  return mended;
}

/** A column's instant, or the present if that lies in the future; null stays null. */
const past = (column: string) => Sql.raw(`case when "${column}" > now then now else "${column}" end`);
