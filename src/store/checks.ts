// What does a check look at, what may it cost, and what did its probes find?

import { type Db, instant, type Now, type Pool, Sql } from './db.ts';
import type { ModelError } from './model-errors.ts';
import type { ModelKey } from './models.ts';

export interface Check {
  readonly id: number;
  readonly requestedBy: string | null;
  /** The models to look at, as `provider/model`; none: all that are known. */
  readonly models: readonly string[];
  /** Probe them whatever their calls say. */
  readonly probe: boolean;
  readonly startedAt: Date;
  /** Seconds: the calls before the start that count; after twice as many a status expires. */
  readonly interval: number;
  readonly finishedAt: Date | null;
  readonly outcome: unknown;
}

/** Write a check down, before any job of it is there. */
export async function beginCheck(
  db: Db,
  asked: Pick<Check, 'models' | 'probe' | 'interval'> & { requestedBy?: string },
  now?: Now,
): Promise<number> {
  const [{ id }] = await db.$queryRaw<[{ id: number }]>`
    insert into "ModelCheck" ("requestedBy", models, probe, interval, "startedAt")
    values (${asked.requestedBy ?? null}::text, ${[...asked.models]}::text[], ${asked.probe}, ${asked.interval}::int, ${instant(now)})
    returning id::int as id`;
  return id;
}

export async function checkOf(db: Db, id: number): Promise<Check | undefined> {
  const [check] = await db.$queryRaw<Check[]>`
    select id::int as id, "requestedBy", models, probe, "startedAt", interval, "finishedAt", outcome from "ModelCheck" where id = ${id}::bigint`;
  return check;
}

/** What probes may cost: in any hour, and in any 24 hours. Amounts are exact decimals, as text. */
export interface ProbeBudget {
  readonly probesPerHour: number;
  readonly creditsPerDay: string;
  /** Of a model whose `probeCredits` nobody has given. */
  readonly defaultCredits: string;
}

/** A model that is to be probed; `free` where it is its record that is asked for. */
export interface Candidate extends ModelKey {
  readonly free: boolean;
}

/** Any process that reserves a probe holds this lock: two that read the same budget at once would both spend the rest of it. */
const BUDGET_LOCK = 1_869_443_705; // no other advisory lock of hourhand has one key alone, but for Prisma's

/**
 * Reserve probes for a check, in the candidates' order, as far as the budget reaches; one that is too dear leaves room for
 * a cheaper one behind it. A reservation is spent from then on, until its probe is one hour (one day) old; one that is never
 * begun is given back when its check ends. Done once for a check: a repetition reserves nothing more.
 *
 * @returns how many the hour, and how many the day left unprobed
 */
export async function reserveProbes(
  pool: Pool,
  check: number,
  candidates: readonly Candidate[],
  budget: ProbeBudget,
): Promise<{ reserved: number; unpaid: number }> {
  return pool.$transaction(async (db) => {
    await db.$executeRaw`select pg_advisory_xact_lock(${BUDGET_LOCK}::bigint)`;
    const before = await probesOf(db, check);
    if (before.length > 0) return { reserved: before.length, unpaid: candidates.length - before.length };
    let left = budget.probesPerHour - (await probesOfLastHour(db));
    let reserved = 0;
    for (const candidate of candidates) {
      if (left <= 0) break;
      const done = await reserveProbe(db, check, candidate, budget);
      left -= done;
      reserved += done;
    }
    return { reserved, unpaid: candidates.length - reserved };
  });
}

/** Those that went out, or are to. */
const sent = Sql.sql`p.reason is distinct from 'no credentials'`;
/** When a probe counts from: its start, or until then its check's. */
const spentAt = Sql.sql`coalesce(p."startedAt", (select c."startedAt" from "ModelCheck" c where c.id = p."checkId"))`;

async function probesOfLastHour(db: Db): Promise<number> {
  const [{ n }] = await db.$queryRaw<[{ n: number }]>`
    select count(*)::int as n from "ModelProbe" p where ${sent} and ${spentAt} > clock_timestamp() - interval '1 hour'`;
  return n;
}

async function reserveProbe(db: Db, check: number, model: Candidate, budget: ProbeBudget): Promise<number> {
  return db.$executeRaw`
    with cost as (
      select case when ${model.free} then 0 else coalesce(s."probeCredits", ${budget.defaultCredits}::numeric) end as credits
        from "ModelStatus" s
       where s."providerId" = ${model.providerId}::text and s.model = ${model.model}::text and s.type = ${model.type}::"ModelCallType"
    )
    insert into "ModelProbe" ("checkId", "providerId", model, type, credits)
    select ${check}::bigint, ${model.providerId}::text, ${model.model}::text, ${model.type}::"ModelCallType", cost.credits
      from cost
     where cost.credits + (select coalesce(sum(p.credits), 0) from "ModelProbe" p
                            where ${spentAt} > clock_timestamp() - interval '24 hours') <= ${budget.creditsPerDay}::numeric`;
}

export interface Probe extends ModelKey {
  readonly id: number;
}

/** A check's probes, in the order in which they were reserved. */
export async function probesOf(db: Db, check: number): Promise<Probe[]> {
  return db.$queryRaw<Probe[]>`
    select id::int as id, "providerId", model, type::text as type from "ModelProbe" where "checkId" = ${check}::bigint order by id`;
}

/**
 * What came of asking to begin a probe. `busy`: its provider has as many under way as it may; `ahead` more of this check wait
 * before it. `over`: it was begun before, by an attempt that died or a zombie that lives, and is not asked twice; or its check is over, or its model forgotten.
 */
export type Beginning =
  | (Probe & { state: 'begun'; baseUrl: string; apiKeyEnv: string })
  | { state: 'busy'; ahead: number; since: Date }
  | { state: 'over' };

/**
 * Begin a probe if its provider has a place free, counted over all processes under the provider's row lock. A place is
 * free again `timeoutSeconds` after its probe began, whatever became of the process.
 */
export async function beginProbe(pool: Pool, id: number, timeoutSeconds: number): Promise<Beginning> {
  return pool.$transaction(async (db): Promise<Beginning> => {
    const [provider] = await db.$queryRaw<{ id: string; baseUrl: string; apiKeyEnv: string; concurrency: number }[]>`
      select id, "baseUrl", "apiKeyEnv", concurrency from "ModelProvider"
       where id = (select "providerId" from "ModelProbe" where id = ${id}::bigint) for update`;
    if (!provider) return { state: 'over' };
    const { baseUrl, apiKeyEnv, concurrency } = provider;
    const [begun] = await db.$queryRaw<Probe[]>`
      update "ModelProbe" p set "startedAt" = clock_timestamp()
       where id = ${id}::bigint and "startedAt" is null
         and exists (select from "ModelStatus" s where s."providerId" = p."providerId" and s.model = p.model and s.type = p.type)
         and (select count(*) from "ModelProbe" other
               where other."providerId" = ${provider.id}::text and other."finishedAt" is null
                 and other."startedAt" > clock_timestamp() - ${timeoutSeconds}::int * interval '1 second') < ${concurrency}::int
      returning id::int as id, "providerId", model, type::text as type`;
    if (begun) return { state: 'begun', ...begun, baseUrl, apiKeyEnv };
    const [waiting] = await db.$queryRaw<{ ahead: number; since: Date }[]>`
      select (select count(*)::int from "ModelProbe" other
               where other."checkId" = p."checkId" and other."providerId" = p."providerId" and other."startedAt" is null and other.id < p.id) as ahead,
             c."startedAt" as since
        from "ModelProbe" p join "ModelCheck" c on c.id = p."checkId" join "ModelStatus" s using ("providerId", model, type)
       where p.id = ${id}::bigint and p."startedAt" is null and c."finishedAt" is null`;
    return waiting ? { state: 'busy', ...waiting } : { state: 'over' };
  });
}

/** What a probe found. */
export interface ProbeResult {
  readonly ok: boolean;
  readonly latencyMs: number;
  readonly reason?: ModelError;
  readonly detail?: string;
  /** The provider asks not to be asked before. */
  readonly retryAt?: Date;
}

/** Write down what a probe found; one that never went out, for want of a key, costs nothing. */
export async function endProbe(db: Db, id: number, result: ProbeResult): Promise<void> {
  await db.$executeRaw`
    update "ModelProbe" set "finishedAt" = clock_timestamp(), ok = ${result.ok}, credits = case when ${result.reason === 'no credentials'} then 0 else credits end, "latencyMs" = ${result.latencyMs}::int,
           reason = ${result.reason ?? null}::text, detail = ${result.detail ?? null}::text, "retryAt" = ${result.retryAt ?? null}::timestamptz
     where id = ${id}::bigint`;
}

/**
 * End a check, in a transaction: whoever is first may judge it, and nobody a second time. Probes that were never begun are
 * given back to the budget.
 *
 * @returns what its probes found, how many were sent, and how many were not, for want of a key; `undefined` if the check
 * was ended before
 */
export async function endCheck(
  db: Db,
  id: number,
): Promise<{ sent: number; unsent: number; found: (ModelKey & ProbeResult)[] } | undefined> {
  const ended = await db.$executeRaw`
    update "ModelCheck" set "finishedAt" = now() where id = ${id}::bigint and "finishedAt" is null`;
  if (ended === 0) return undefined;
  await db.$executeRaw`delete from "ModelProbe" where "checkId" = ${id}::bigint and "startedAt" is null`;
  const rows = await db.$queryRaw<(ModelKey & ProbeResult & { ended: boolean })[]>`
    select "providerId", model, type::text as type, "finishedAt" is not null as ended, ok, reason, detail, "latencyMs", "retryAt"
      from "ModelProbe" where "checkId" = ${id}::bigint order by id`;
  const unsent = rows.filter(({ reason }) => reason === 'no credentials').length;
  return { sent: rows.length - unsent, unsent, found: rows.filter((row) => row.ended) };
}

/** The checks of more than so many seconds ago that are not ended, the oldest hundred of them. */
export async function unendedChecks(db: Db, seconds: number): Promise<number[]> {
  const rows = await db.$queryRaw<{ id: number }[]>`
    select id::int as id from "ModelCheck"
     where "finishedAt" is null and "startedAt" < now() - ${seconds}::int * interval '1 second'
     order by id limit 100`;
  return rows.map(({ id }) => id);
}

/**
 * End a check that nobody will judge; the probes that it never began are given back to the budget.
 *
 * @returns whether it was not ended before
 */
export async function expireCheck(pool: Pool, id: number, why: string): Promise<boolean> {
  return pool.$transaction(async (db) => {
    if ((await endCheck(db, id)) === undefined) return false;
    await writeOutcome(db, id, { expired: why });
    return true;
  });
}

/** What each provider's newest probe of the seconds before a check found, where this check has asked it nothing. */
export async function foundBefore(db: Db, { id, startedAt, interval }: Check): Promise<(ModelKey & ProbeResult)[]> {
  return db.$queryRaw<(ModelKey & ProbeResult)[]>`
    select distinct on ("providerId") "providerId", model, type::text as type, ok, reason, detail, "latencyMs", "retryAt"
      from "ModelProbe" p
     where "finishedAt" > ${startedAt}::timestamptz - ${interval}::int * interval '1 second' and "finishedAt" is not null
       and not exists (select from "ModelProbe" own where own."checkId" = ${id}::bigint and own."providerId" = p."providerId")
     order by "providerId", "finishedAt" desc`;
}

export async function writeOutcome(db: Db, id: number, outcome: object): Promise<void> {
  await db.$executeRaw`update "ModelCheck" set outcome = ${JSON.stringify(outcome)}::jsonb where id = ${id}::bigint`;
}

/** What probes have cost so far: of the last hour, and of the last 24. */
export async function probesSpent(db: Db): Promise<{ lastHour: number; lastDayCredits: string }> {
  const [spent] = await db.$queryRaw<[{ lastHour: number; lastDayCredits: string }]>`
    select count(*) filter (where ${sent} and ${spentAt} > clock_timestamp() - interval '1 hour')::int as "lastHour",
           coalesce(sum(credits), 0)::numeric(20, 8)::text as "lastDayCredits"
      from "ModelProbe" p where ${spentAt} > clock_timestamp() - interval '24 hours'`;
  return spent;
}

/** Forget checks and probes of more than so many days ago. */
export async function forgetChecks(db: Db, days: number): Promise<void> {
  const before = Sql.sql`now() - ${days}::int * interval '24 hours'`;
  await db.$executeRaw`delete from "ModelProbe" where "startedAt" < ${before}`;
  await db.$executeRaw`delete from "ModelCheck" where "startedAt" < ${before}`;
}

/** How far a check has come: its probes, and those that have an answer. */
export async function probesAnswered(db: Db, check: number): Promise<{ probes: number; answered: number }> {
  const [row] = await db.$queryRaw<[{ probes: number; answered: number }]>`
    select count(*)::int as probes, count("finishedAt")::int as answered from "ModelProbe" where "checkId" = ${check}::bigint`;
  return row;
}
