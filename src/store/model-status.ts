// What is said of a model, and since when?

import type { EvidenceSource, ModelHealth } from '../generated/prisma/enums.ts';
import { type Db, instant, type Now, Sql } from './db.ts';
import type { ModelError } from './model-errors.ts';
import type { ModelKey } from './models.ts';

/** What a look at a model came to. */
export interface Judgement {
  readonly status: ModelHealth;
  readonly reason: ModelError | null;
  readonly detail: string | null;
  readonly source: EvidenceSource;
  readonly latencyMs: number | null;
  /** Looks in a row that found it failing. */
  readonly failures: number;
  readonly retryAt: Date | null;
}

export interface Known extends ModelKey {
  readonly status: ModelHealth;
  readonly failures: number;
  readonly retryAt: Date | null;
}

/** All models, with their rows locked in order: two checks that end at once judge one after the other. */
export async function lockStatuses(db: Db): Promise<Known[]> {
  return db.$queryRaw<Known[]>`
    select "providerId", model, type::text as type, status::text as status, failures, "retryAt" from "ModelStatus"
     order by "providerId", model, type for update`;
}

/** Models that may be asked now, those that were not looked at for longest first. */
export async function askable(db: Db, now?: Now): Promise<ModelKey[]> {
  return db.$queryRaw<ModelKey[]>`
    select "providerId", model, type::text as type from "ModelStatus"
     where "retryAt" is null or "retryAt" <= ${instant(now)}
     order by "checkedAt" nulls first, "providerId", model, type`;
}

/** When a status expires that nobody has looked at again. */
const expiry = (seconds: number) => Sql.sql`s."checkedAt" + 2 * ${seconds}::int * interval '1 second'`;

/** Say unknown of every model that was not looked at for twice the interval, as of the moment at which it expired. */
export async function expireStatuses(db: Db, interval: number, announce: boolean): Promise<number> {
  return db.$executeRaw`
    with expired as (
      select s.*, ${expiry(interval)} as at from "ModelStatus" s
       where status <> 'unknown' and ${expiry(interval)} <= now()
       order by "providerId", model, type for update
    ), said as (
      insert into "ModelTransition" ("providerId", model, type, "from", "to", detail, at, "announcedAt")
      select "providerId", model, type, status, 'unknown', 'not looked at for twice the interval', at, case when not ${announce} then now() end
        from expired
    )
    update "ModelStatus" s set status = 'unknown', reason = null, detail = null, source = null, since = expired.at
      from expired where (s."providerId", s.model, s.type) = (expired."providerId", expired.model, expired.type)`;
}

/**
 * Write judgements down, and a transition for each model whose status became another.
 *
 * @param announce a webhook is to be told of the transitions
 * @returns how many models became what: `{ down: 2, up: 1 }`
 */
export async function writeJudgements(
  db: Db,
  judgements: readonly (ModelKey & Judgement)[],
  announce: boolean,
): Promise<Partial<Record<ModelHealth, number>>> {
  const rows = await db.$queryRaw<{ to: ModelHealth; n: number }[]>`
    with judged as (
      select * from jsonb_to_recordset(${JSON.stringify(judgements)}::jsonb)
        as j("providerId" text, model text, type "ModelCallType", status "ModelHealth", reason text, detail text,
             source "EvidenceSource", "latencyMs" int, failures int, "retryAt" timestamptz)
    ), said as (
      insert into "ModelTransition" ("providerId", model, type, "from", "to", reason, detail, source, at, "announcedAt")
      select s."providerId", s.model, s.type, s.status, j.status, j.reason, j.detail, j.source, statement_timestamp(), case when not ${announce} then statement_timestamp() end
        from judged j join "ModelStatus" s using ("providerId", model, type)
       where s.status <> j.status order by s."providerId", s.model, s.type
      returning "to"
    ), written as (
      update "ModelStatus" s
         set status = j.status, reason = j.reason, detail = j.detail, source = j.source, "latencyMs" = j."latencyMs",
             failures = j.failures, "retryAt" = j."retryAt", "checkedAt" = statement_timestamp(),
             since = case when s.status = j.status then s.since else statement_timestamp() end
        from judged j where (s."providerId", s.model, s.type) = (j."providerId", j.model, j.type)
    )
    select "to"::text as "to", count(*)::int as n from said group by 1`;
  return Object.fromEntries(rows.map(({ to, n }) => [to, n]));
}

/** Keep the transitions of so many days: what a status was before the first of them stands in it. */
export async function forgetTransitions(db: Db, days: number): Promise<void> {
  await db.$executeRaw`delete from "ModelTransition" where at < now() - ${days}::int * interval '24 hours'`;
}

/** A model as `hourhand models status` and `/api/models` show it. */
export interface StatusLine {
  provider: string;
  model: string;
  type: string;
  status: ModelHealth;
  reason: ModelError | null;
  detail: string | null;
  source: EvidenceSource | null;
  latencyMs: number | null;
  since: Date;
  checkedAt: Date | null;
  retryAt: Date | null;
  /** Of the time in which the status was known, the share in which it was up or degraded, from 0 to 1; null where it never was. */
  uptime: { day: number | null; week: number | null; month: number | null };
}

/**
 * What is known of every model, as of now: a status that nobody has looked at again for twice the interval is unknown, whether or not a
 * check has said so yet. Uptime over 24 hours, 7 days and 30 days comes from the transitions.
 */
export async function statusLines(db: Db, interval: number, now?: Now): Promise<StatusLine[]> {
  const share = (span: string) => {
    const start = Sql.sql`${instant(now)} - ${span}::interval`;
    const seconds = Sql.sql`greatest(0, extract(epoch from until - greatest(at, ${start})))`;
    return Sql.sql`round(coalesce(sum(${seconds}) filter (where status in ('up', 'degraded')), 0)
      / nullif(sum(${seconds}) filter (where status <> 'unknown'), 0), 6)::float8`;
  };
  const rows = await db.$queryRaw<
    (Omit<StatusLine, 'uptime'> & { day: number | null; week: number | null; month: number | null })[]
  >`
    with s as (
      select *, status <> 'unknown' and ${expiry(interval)} <= ${instant(now)} as expired, ${expiry(interval)} as expiry from "ModelStatus" s
    ), spans as (
      select "providerId", model, type, t."to" as status, t.at,
             lead(t.at) over model as until, lag(t.at) over model is null as first, t."from"
        from "ModelTransition" t where t.at > ${instant(now)} - interval '720 hours'
      window model as (partition by "providerId", model, type order by t.at, t.seq)
    ), known as (
      select "providerId", model, type, status, at, until from spans where until is not null
      union all -- what it has been since the last of them
      select s."providerId", s.model, s.type, s.status, coalesce(p.at, '-infinity'), case when s.expired then s.expiry else ${instant(now)} end
        from s left join spans p on p.until is null and (p."providerId", p.model, p.type) = (s."providerId", s.model, s.type)
      union all -- and what it was before the first
      select "providerId", model, type, "from", '-infinity', at from spans where first
    ), uptime as (
      select "providerId", model, type,
             ${share('24 hours')} as day, ${share('168 hours')} as week, ${share('720 hours')} as month
        from known group by 1, 2, 3
    )
    select s."providerId" as provider, s.model, s.type::text as type, (case when expired then 'unknown' else s.status::text end) as status,
           case when not expired then reason end as reason, case when not expired then detail end as detail,
           case when not expired then source::text end as source, case when not expired then "latencyMs" end as "latencyMs", case when expired then expiry else since end as since,
           "checkedAt", case when "retryAt" > ${instant(now)} then "retryAt" end as "retryAt", day, week, month
      from s left join uptime using ("providerId", model, type)
     order by s."providerId" collate "C", s.model collate "C", s.type`;
  return rows.map(({ day, week, month, ...line }) => ({ ...line, uptime: { day, week, month } }));
}

export interface Transition extends ModelKey {
  readonly seq: number;
  readonly from: ModelHealth;
  readonly to: ModelHealth;
  readonly reason: string | null;
  readonly detail: string | null;
  readonly source: EvidenceSource | null;
  readonly at: Date;
  readonly announcedAt: Date | null;
}

export async function transitionOf(db: Db, seq: number): Promise<Transition | undefined> {
  const [transition] = await db.$queryRaw<Transition[]>`
    select seq::int as seq, "providerId", model, type::text as type, "from"::text as "from", "to"::text as "to", reason, detail,
           source::text as source, at, "announcedAt"
      from "ModelTransition" where seq = ${seq}::bigint`;
  return transition;
}

/** Transitions of the last day that the webhook has not taken yet, oldest first. */
export async function unannounced(db: Db, limit: number): Promise<number[]> {
  const rows = await db.$queryRaw<{ seq: number }[]>`
    select seq::int as seq from "ModelTransition"
     where "announcedAt" is null and at > now() - interval '24 hours' order by seq limit ${limit}::int`;
  return rows.map(({ seq }) => seq);
}

export async function markAnnounced(db: Db, seq: number): Promise<void> {
  await db.$executeRaw`update "ModelTransition" set "announcedAt" = now() where seq = ${seq}::bigint`;
}
