// An hourhand of one's own: a database, a Redis prefix, and the words that the tests speak in.

import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import type { Queue } from 'bullmq';
import pg from 'pg';
import { type Config, home, readConfig } from '../../src/config.ts';
import { type Connections, openConnections } from '../../src/connections.ts';
import { createLogger } from '../../src/logger.ts';
import { backfillHours, backfillUser } from '../../src/producers/backfills.ts';
import { enqueueOwed } from '../../src/producers/hours.ts';
import { Sql } from '../../src/store/db.ts';
import { cover } from '../../src/store/ranges.ts';
import { endOf, type Hour, ordinalOf, startOf } from '../../src/time/hour.ts';
import { startWorker } from '../../src/worker.ts';
import { createDatabase, serverUrl } from './database.ts';

/** A call as a test tells it; the rest is made up. */
export interface TestCall {
  user: string;
  at: string;
  id?: string;
  type?: string;
  tokens?: number | bigint;
  output?: number;
  credits?: string;
  status?: string;
  duration?: string;
  metrics?: object;
}

export interface Ran {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** How long a state is waited for. Some come with the next look, after half a minute, and machines are busy. */
const PATIENCE_MS = Number(process.env.PATIENCE_MS ?? 120_000);

const FAULTS = pathToFileURL(path.join(home, 'test/support/faults.mjs')).href;

export type Hourhand = Awaited<ReturnType<typeof startHourhand>>;

/** Everything is given by the environment, as to a process: `env` adds to it, and may name servers of a test's own. */
export async function startHourhand(env: Record<string, string> = {}, options: { locale?: string } = {}) {
  const database = env.DATABASE_URL === undefined ? await createDatabase(options) : undefined;
  const prefix = env.REDIS_PREFIX ?? `{test-${randomBytes(6).toString('hex')}}`;
  const environment: Record<string, string> & { DATABASE_URL: string } = {
    LOG_LEVEL: 'silent',
    MODEL_CALL_STATS_CRON_TIME: 'off',
    LATE_DATA_SECONDS: '0',
    CLEANUP_STALE_MODEL_CALLS_CRON_TIME: 'off',
    CHECK_MODEL_STATUS_CRON_TIME: 'off',
    AUDIT_MODEL_CALL_STATS_CRON_TIME: 'off',
    FANOUT_MIN_CALLS: '0', // or none of the tests' few calls would ever be fanned out
    REDIS_URL: serverUrl('TEST_REDIS_URL'),
    ...env,
    DATABASE_URL: database?.url ?? env.DATABASE_URL ?? '',
    REDIS_PREFIX: prefix,
    PORT: '0',
  };
  const config: Config = readConfig(environment);
  const logged: Record<string, unknown>[] = [];
  const log = createLogger('info', { write: (line: string) => void logged.push(JSON.parse(line)) });
  const connections: Connections = await openConnections(config, log, { wants: 'change' });
  const { pool, queues, redis } = connections;
  const workers: { stop(): Promise<void> }[] = [];
  const children = new Set<ChildProcess>();

  function spawnIn(env: Record<string, string>, args: string[]): ChildProcess {
    const child = spawn(process.execPath, [path.join(home, 'dist', 'cli.js'), ...args], {
      cwd: home,
      env: { PATH: process.env.PATH, HOME: process.env.HOME, ...environment, ...env },
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    children.add(child);
    child.once('exit', () => children.delete(child));
    return child;
  }

  const hourhand = {
    ...connections,
    environment,
    prefix,
    logged,

    /** Calls as a gateway writes them. */
    async record(...calls: TestCall[]): Promise<void> {
      for (let i = 0; i < calls.length; i += 1_000) {
        const rows = calls.slice(i, i + 1_000).map((call) => {
          const input = BigInt(call.tokens ?? 10);
          const output = BigInt(call.output ?? 0);
          return Sql.sql`(${call.id ?? randomUUID()}, ${call.user}, 'openai', 'gpt', ${call.type ?? 'chatCompletion'}::"ModelCallType",
            ${input + output}, ${input}, ${output}, ${call.credits ?? '0.00000001'}::numeric, ${call.status ?? 'success'}::"ModelCallStatus",
            ${call.duration ?? null}::numeric, ${call.metrics ? JSON.stringify(call.metrics) : null}::jsonb, ${new Date(call.at)}::timestamptz)`;
        });
        await pool.$executeRaw`
          insert into "ModelCall" (id, "userDid", "providerId", model, type, "totalUsage", "inputTokens", "outputTokens", credits,
                                   status, duration, "usageMetrics", "callTime")
          values ${Sql.join(rows)}`;
      }
    },

    /** Change calls with the triggers off, so that no mark tells of it: what a writer of the hour itself leaves, too. */
    async silently(statement: Sql.Sql): Promise<void> {
      await pool.$transaction(async (db) => {
        await db.$executeRaw`set local session_replication_role = replica`;
        await db.$executeRaw(statement);
      });
    },

    /** Have these hours rolled up some day: inside a covered range. */
    async cover(from: Hour, to: Hour): Promise<void> {
      await pool.$transaction((db) => cover(db, { start: startOf(from), end: endOf(to) }));
    },

    /** A worker in this process. */
    async work(): Promise<{ stop(): Promise<void> }> {
      const worker = await startWorker(connections, environment);
      workers.push(worker);
      return worker;
    },

    tick: (now?: Date) => enqueueOwed({ pool, queues, policy: connections.policy }, now),

    backfill: (from: Hour, to: Hour = from) =>
      backfillHours(
        { pool, queues, policy: connections.policy },
        { start: startOf(from), end: endOf(to) },
        { only: 'all', reason: 'backfill', requestedBy: 'test' },
      ),

    backfillUser: (user: string, hour: Hour) =>
      backfillUser({ pool, queues }, user, { start: startOf(hour), end: endOf(hour) }, { requestedBy: 'test' }),

    /** The same with other variables in its environment. */
    spawnIn,

    /** A real process of the built command line. */
    spawn: (...args: string[]): ChildProcess => spawnIn({}, args),

    /** One that goes wrong: FAULT is one of test/support/faults.mjs, CLOCK_MINUTES is how fast its clock is. */
    broken: (how: { FAULT?: string; CLOCK_MINUTES?: string; LOG_LEVEL?: string }, ...args: string[]): ChildProcess =>
      spawnIn(how.FAULT || how.CLOCK_MINUTES ? { ...how, NODE_OPTIONS: `--import=${FAULTS}` } : how, args),

    /** A worker process that has started, and what it says. As a supervisor does: again, where its servers did not answer in time. */
    async startWorker(how: { CLOCK_MINUTES?: string; FAULT?: string } = {}) {
      for (;;) {
        const child = hourhand.broken({ ...how, LOG_LEVEL: 'info' }, 'worker');
        const lines = linesOf(child);
        const started = await until(
          async () => child.exitCode !== 1 && lines.some((line) => line.includes('worker started')),
          (seen) => seen || child.exitCode === 1,
        );
        if (started) return { child, lines };
      }
    },

    /** A worker process that dies of its fault. */
    async dieOf(FAULT: string): Promise<void> {
      while ((await ended(hourhand.broken({ FAULT }, 'worker'))) !== 'SIGKILL');
    },

    /** @param env adds to the environment */
    async run(args: string[], input?: string | Buffer, env: Record<string, string> = {}): Promise<Ran> {
      const child = spawnIn(env, args);
      let [stdout, stderr] = ['', ''];
      child.stdout?.on('data', (chunk) => {
        stdout += chunk;
      });
      child.stderr?.on('data', (chunk) => {
        stderr += chunk;
      });
      child.stdin?.on('error', () => {}); // it may exit without reading
      child.stdin?.end(input);
      const [code] = await once(child, 'close');
      return { code, stdout, stderr };
    },

    /** The ledger's row. */
    async hour(hour: Hour) {
      const [row] = await pool.$queryRaw<
        {
          state: string;
          run: number;
          wanted: number;
          users: number;
          calls: bigint;
          attempts: number;
          error: string | null;
          nextAttemptAt: Date | null;
        }[]
      >`select state::text, run, wanted, users, calls, attempts, error, "nextAttemptAt" from "StatHour" where hour = ${startOf(hour)}::timestamptz`;
      return row;
    },

    state: async (hour: Hour) => (await hourhand.hour(hour))?.state,

    /** Wait until the hour is in this state. */
    reaches: (hour: Hour, state: string) =>
      until(
        () => hourhand.state(hour),
        (seen) => seen === state,
      ),

    /** A user's stored figures, as text. */
    async stat(user: string, hour: Hour) {
      const [row] = await pool.$queryRaw<Record<string, string>[]>`
        select "totalUsage"::text, "inputTokens"::text, "outputTokens"::text, "imageGenerations"::text, "totalCredits"::text,
               "totalCalls"::text, "successCalls"::text, "failedCalls"::text, "processingCalls"::text, "totalDuration"::text,
               "byType"::text, run::text
          from "ModelCallStat" where "timeType" = 'hour' and "userDid" = ${user} and "timestamp" = ${startOf(hour)}::timestamptz`;
      return row;
    },

    /** The user-hours in which what is stored is not what the calls add up to, by an SQL of the tests' own. */
    async wrong(): Promise<string[]> {
      const rows = await pool.$queryRaw<{ who: string }[]>`
        select coalesce(c.u, s."userDid") || ' ' || coalesce(c.h, s."timestamp")::text as who
          from (select "userDid" u, to_timestamp(floor(extract(epoch from "callTime") / 3600) * 3600) h, count(*) n, sum(credits) c,
                       sum("totalUsage") t, count(*) filter (where status = 'success') ok
                  from "ModelCall" group by 1, 2) c
               full join (select * from "ModelCallStat" where "timeType" = 'hour' and "totalCalls" > 0) s
                      on s."userDid" = c.u and s."timestamp" = c.h
         where (c.n, c.c, c.t, c.ok) is distinct from (s."totalCalls"::bigint, s."totalCredits", s."totalUsage"::numeric, s."successCalls"::bigint)
         order by 1`;
      return rows.map((row) => row.who);
    },

    async [Symbol.asyncDispose](): Promise<void> {
      for (const child of children) child.kill('SIGKILL');
      await Promise.all(workers.map((worker) => worker.stop()));
      if (env.REDIS_URL === undefined) await forget(redis, prefix);
      await connections.close();
      await database?.[Symbol.asyncDispose]();
    },
  };
  return hourhand;
}

/** Remove every key under a prefix. */
export async function forget(redis: Hourhand['redis'], prefix: string): Promise<void> {
  for (let cursor = '0'; ; ) {
    const [next, keys] = await redis.scan(cursor, 'MATCH', `${prefix}:*`, 'COUNT', 1_000);
    if (keys.length > 0) await redis.unlink(...keys);
    cursor = next;
    if (cursor === '0') break;
  }
}

/** An hour that was rolled up, with a worker that is still there. */
export async function closedHour(hour: Hour, calls: TestCall[], env?: Record<string, string>): Promise<Hourhand> {
  const hourhand = await startHourhand(env);
  await hourhand.record(...calls);
  await hourhand.work();
  await hourhand.backfill(hour);
  await hourhand.reaches(hour, 'closed');
  return hourhand;
}

/** Three closed hours, final ones, of ada and bob, from 2026-08-20T13 on, and a worker. */
export async function threeHours(env?: Record<string, string>): Promise<Hourhand> {
  const hourhand = await startHourhand(env);
  const times = ['2026-08-20T13:10:00Z', '2026-08-20T14:10:00Z', '2026-08-20T15:10:00Z'];
  await hourhand.record(...times.flatMap((at) => ['ada', 'bob'].map((user) => ({ user, at }))));
  await hourhand.work();
  await hourhand.backfill(h('2026-08-20T13'), h('2026-08-20T15'));
  await until(
    () =>
      hourhand.pool.statHour.count({
        where: { state: 'closed', fence: 0, hour: { lt: new Date('2026-08-20T16:00Z') } },
      }),
    (n) => n === 3,
  );
  await until(
    () => hourhand.pool.statMark.count(),
    (n) => n === 0,
  );
  return hourhand;
}

/** Look, as every few seconds, until no mark is left, and what was rolled up for them is told to the ledger. */
export async function untilSwept(hourhand: Hourhand): Promise<void> {
  await until(
    async () => {
      await hourhand.tick();
      const jobs = await hourhand.queues.marks.getJobCountByTypes('waiting', 'active', 'delayed');
      return (await hourhand.pool.statMark.count()) + jobs;
    },
    (left) => left === 0,
  );
}

/** An audit, asked for as by its tick. */
export async function audited({ queues }: Hourhand) {
  const before = await queues.audits.getCompletedCount();
  await queues.auditTicks.add('tick', {});
  await until(
    () => queues.audits.getCompletedCount(),
    (n) => n === before + 1,
  );
  const [job] = await queues.audits.getJobs(['completed'], 0, 0, false);
  if (!job) throw new Error('no audit');
  return job;
}

/** Wait for a state, never for a duration: look until it holds, or say what was last seen. */
export async function until<T>(look: () => Promise<T>, holds: (seen: T) => boolean, ms = PATIENCE_MS): Promise<T> {
  const begin = Date.now();
  for (;;) {
    const seen = await look();
    if (holds(seen)) return seen;
    const waited = Date.now() - begin;
    if (waited > ms) throw new Error(`still ${JSON.stringify(seen, (_, v) => (typeof v === 'bigint' ? `${v}` : v))}`);
    await sleep(Math.min(100, 10 + waited / 10)); // what takes long need not be looked at so often
  }
}

/** How often each job of a queue was begun, by Redis' own record of the queue's events. */
export async function begun({ redis }: Pick<Hourhand, 'redis'>, queue: Queue): Promise<Record<string, number>> {
  const times: Record<string, number> = {};
  for (const [, fields] of await redis.xrange(queue.toKey('events'), '-', '+')) {
    const job = fields[fields.indexOf('jobId') + 1] ?? '';
    if (fields[fields.indexOf('event') + 1] === 'active') times[job] = (times[job] ?? 0) + 1;
  }
  return times;
}

/** How a process ended: its exit code, or the signal. */
export async function ended(child: ChildProcess): Promise<number | string | null> {
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  return child.exitCode ?? child.signalCode;
}

/** All that a process says, line by line, as it comes. */
export function linesOf(child: ChildProcess): string[] {
  const lines: string[] = [];
  for (const stream of [child.stdout, child.stderr]) {
    if (stream) createInterface(stream).on('line', (line) => lines.push(line));
  }
  return lines;
}

export const h = (text: string) => text as Hour;

/** Keep whoever rolls up this user waiting, as a straggler would, until released: a lock on the user's bucket from outside. */
export async function holdUser({ environment }: Hourhand, user: string, hour = h('2026-08-20T13')) {
  const client = new pg.Client({ connectionString: environment.DATABASE_URL });
  client.on('error', () => {}); // its database may be dropped under it
  await client.connect();
  await client.query('select pg_advisory_lock($1, hashtext($2) & 63)', [ordinalOf(hour), user]);
  const release = () => client.end();
  return { release, [Symbol.asyncDispose]: release };
}

/**
 * The next `times` writes of this user's row take `seconds`, after its figures were read: a straggler. Short delays hide
 * what goes wrong without locks; these hold until everybody else is done.
 */
export async function straggle({ pool }: Hourhand, user: string, seconds: number, times = 1): Promise<void> {
  await pool.$executeRaw`create table if not exists straggler (id serial, "userDid" text, seconds int)`;
  await pool.$executeRawUnsafe(`
    create or replace function straggle() returns trigger language plpgsql as $$
    declare wait int;
    begin
      delete from straggler where id = (select id from straggler where "userDid" = new."userDid" limit 1 for update skip locked)
        returning seconds into wait;
      if wait is not null then perform pg_sleep(wait); end if;
      return new;
    end $$`);
  await pool.$executeRaw`
    create or replace trigger straggle before insert or update on "ModelCallStat" for each row execute function straggle()`;
  await pool.$executeRaw`insert into straggler ("userDid", seconds) select ${user}, ${seconds}::int from generate_series(1, ${times}::int)`;
}

/** How many stragglers are on their way: their figures are read, their rows not yet written. */
export async function straggling({ pool }: Hourhand): Promise<number> {
  const [row] = await pool.$queryRaw<[{ n: number }]>`
    select count(*)::int as n from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'`;
  return row.n;
}
