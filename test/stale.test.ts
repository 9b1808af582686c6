// Calls that hang are failed; what the gateway says of them wins, before and after.

import { once } from 'node:events';
import { describe, expect, test } from 'vitest';
import { cleanUp } from '../src/producers/stale.ts';
import { addJobs, jobOf } from '../src/queues/define-job.ts';
import { failStaleCalls } from '../src/queues/stale.ts';
import { Sql } from '../src/store/db.ts';
import { failBatch, recordBatch } from '../src/store/stale.ts';
import { parseLimits } from '../src/time/limits.ts';
import { connected } from './support/gateway.ts';
import { closedHour, type Hourhand, h, startHourhand, type TestCall, until } from './support/hourhand.ts';

const hour = h('2026-08-20T13');
const at = '2026-08-20T13:10:00Z';
const now = new Date('2026-08-20T14:10:00Z');
const half = { minutes: 30, others: [] };
const never = new AbortController().signal;

describe('a call that hangs', () => {
  test('becomes failed, with the reason and the time it took, and is otherwise as it was', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(hanging('ada', { id: 'a', tokens: 7, credits: '0.5', at: '2026-08-20T13:10:00.5Z' }));
    const before = await hourhand.pool.modelCall.findUnique({ where: { id: 'a' } });
    await clean(hourhand);
    const after = await hourhand.pool.modelCall.findUnique({ where: { id: 'a' } });
    expect(after).toEqual({
      ...before,
      status: 'failed',
      errorReason: 'Timeout: Processing exceeded 30 minutes',
      duration: after?.duration,
      updatedAt: now,
    });
    expect(after?.duration?.toString()).toBe('3599.5');
  });

  test('is failed once it has taken longer than the limit, and not at the limit', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(
      hanging('ada', { id: 'at', at: '2026-08-20T13:40:00Z' }),
      hanging('ada', { id: 'over', at: '2026-08-20T13:39:59.999Z' }),
      { user: 'ada', id: 'done', at },
      { user: 'ada', id: 'refused', at, status: 'failed' },
    );
    expect((await clean(hourhand)).done.calls).toBe(1);
    expect(await statuses(hourhand)).toEqual({
      at: 'processing',
      over: 'failed',
      done: 'success',
      refused: 'failed',
    });
  });

  test("has its model's limit, else its type's, else that of all; and says which", async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(
      ...['chat', 'video', 'own', 'own-video', 'patient'].map((id) =>
        hanging('ada', { id, type: id.endsWith('video') ? 'video' : 'chatCompletion' }),
      ),
    );
    await hourhand.pool.$executeRaw`
      update "ModelCall" set "providerId" = 'p', model = 'some/model=1' where id in ('own', 'own-video')`;
    await hourhand.pool.$executeRaw`update "ModelCall" set model = 'slow' where id = 'patient'`;
    const others = parseLimits('video=50,p/some/model=1=40,openai/slow=60', ['video']);
    const { done } = await clean(hourhand, { limits: { minutes: 30, others } });
    expect(await reasons(hourhand)).toEqual({
      chat: 'Timeout: Processing exceeded 30 minutes',
      video: 'Timeout: Processing exceeded 50 minutes',
      own: 'Timeout: Processing exceeded 40 minutes',
      'own-video': 'Timeout: Processing exceeded 40 minutes',
      patient: null,
    });
    expect(done.models.sort((a, b) => a.limitMinutes - b.limitMinutes || (a.type < b.type ? -1 : 1))).toEqual([
      { provider: 'openai', model: 'gpt', type: 'chatCompletion', limitMinutes: 30, calls: 1 },
      { provider: 'p', model: 'some/model=1', type: 'chatCompletion', limitMinutes: 40, calls: 1 },
      { provider: 'p', model: 'some/model=1', type: 'video', limitMinutes: 40, calls: 1 },
      { provider: 'openai', model: 'gpt', type: 'video', limitMinutes: 50, calls: 1 },
    ]);
  });

  test('is failed where a limit of its own is shorter than that of all', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(
      hanging('ada', { id: 'quick', type: 'embedding', at: '2026-08-20T14:08:59Z' }),
      hanging('ada', { id: 'chat' }),
    );
    await clean(hourhand, { limits: { minutes: 90, others: [{ type: 'embedding', minutes: 1 }] } });
    expect(await reasons(hourhand)).toEqual({ quick: 'Timeout: Processing exceeded 1 minutes', chat: null });
  });
});

describe('of two who want the same call', () => {
  test('the gateway that has not committed yet is not waited for, and what it says stays', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(hanging('ada', { id: 'a' }), hanging('bob', { id: 'b' }));
    await using gateway = await connected(hourhand);
    await gateway.query('begin');
    await gateway.query(success, ['a']);
    expect((await clean(hourhand)).done.calls).toBe(1);
    await gateway.query('commit');
    await clean(hourhand);
    expect(await statuses(hourhand)).toEqual({ a: 'success', b: 'failed' });
  });

  test('the gateway that gave up in the end leaves the call to the next clean-up', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(hanging('ada', { id: 'a' }));
    await using gateway = await connected(hourhand);
    await gateway.query('begin');
    await gateway.query(success, ['a']);
    expect((await clean(hourhand)).done.calls).toBe(0);
    await gateway.query('rollback');
    expect((await clean(hourhand)).done.calls).toBe(1);
  });

  test('the gateway that commits after the batch has begun, and before it reaches the call, is not overwritten', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(hanging('ada', { id: 'a' }), hanging('bob', { id: 'b' }), hanging('cyd', { id: 'c' }));
    await using gateway = await connected(hourhand);
    // Each call is read as soon as this lock is free; the statement has begun long before.
    await gateway.query('select pg_advisory_lock(42)');
    await readSlowly(hourhand);
    const cleaning = clean(hourhand);
    await until(
      () => waitingFor(hourhand, 'advisory'),
      (n) => n === 1,
    );
    await gateway.query(success, ['a']);
    await gateway.query(`update "ModelCall" set ttfb = 1 where id = 'b'`);
    await gateway.query('select pg_advisory_unlock(42)');
    expect((await cleaning).done.calls).toBe(2);
    expect(await statuses(hourhand)).toEqual({ a: 'success', b: 'failed', c: 'failed' });
    expect((await hourhand.pool.modelCall.findUnique({ where: { id: 'b' } }))?.ttfb?.toString()).toBe('1');
  });

  test('the gateway that comes while the batch is being written waits for it, is accepted, and shows in the statistics', async () => {
    await using hourhand = await closedHour(hour, [hanging('ada', { id: 'a' }), { user: 'bob', at }]);
    await using gateway = await connected(hourhand);
    let late: Promise<unknown> = Promise.resolve();
    await hourhand.pool.$transaction(async (db) => {
      expect((await failBatch(db, half, { size: 10, now })).calls).toBe(1);
      late = gateway.query(success, ['a']);
      await until(
        () => waitingFor(hourhand, 'transactionid'),
        (n) => n === 1,
      );
    });
    await late;
    expect(await statuses(hourhand)).toMatchObject({ a: 'success' });
    await untilStat(hourhand, 'ada', { successCalls: '1', failedCalls: '0', processingCalls: '0', totalUsage: '99' });
    expect(await hourhand.wrong()).toEqual([]);
  });

  test('a success long after the clean-up is accepted and shows in the statistics', async () => {
    await using hourhand = await closedHour(hour, [hanging('ada', { id: 'a' })]);
    await clean(hourhand);
    await untilStat(hourhand, 'ada', { failedCalls: '1', processingCalls: '0', successCalls: '0' });
    await using gateway = await connected(hourhand);
    await gateway.query(success, ['a']);
    await untilStat(hourhand, 'ada', { failedCalls: '0', successCalls: '1', totalUsage: '99' });
  });

  test('a failure that the gateway reports late, with its own cost, shows as well', async () => {
    await using hourhand = await closedHour(hour, [hanging('ada', { id: 'a', credits: '0' })]);
    await clean(hourhand);
    await untilStat(hourhand, 'ada', { failedCalls: '1' });
    await hourhand.pool.$executeRaw`update "ModelCall" set credits = 3, "errorReason" = 'upstream' where id = 'a'`;
    await untilStat(hourhand, 'ada', { totalCredits: '3.00000000', failedCalls: '1' });
  });

  test('a second clean-up fails what the first has not: each call is failed once', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(...Array.from({ length: 500 }, (_, i) => hanging(`u${i % 20}`, { id: `c${i}` })));
    const both = await Promise.all([clean(hourhand, { size: 7 }), clean(hourhand, { size: 11 })]);
    // What each passed over because the other held it, the other failed.
    expect(both.reduce((sum, { done }) => sum + done.calls, 0)).toBe(500);
    expect(await hourhand.pool.modelCall.count({ where: { status: 'processing' } })).toBe(0);
  });
});

describe('a clean-up', () => {
  test('goes on from batch to batch, also where calls of one instant lie on both sides', async () => {
    await using hourhand = await startHourhand();
    const ids = Array.from({ length: 10 }, (_, i) => `c${i}`);
    await hourhand.record(...ids.map((id) => hanging('ada', { id })));
    // To the microsecond: the same millisecond, and not the same instant.
    await hourhand.pool
      .$executeRaw`update "ModelCall" set "callTime" = "callTime" + interval '1 microsecond' where id < 'c5'`;
    const seen: number[] = [];
    const { done, complete } = await clean(hourhand, {
      size: 3,
      onProgress: async (looked) => void seen.push(looked),
    });
    expect({ calls: done.calls, complete, seen }).toEqual({ calls: 10, complete: true, seen: [3, 6, 9, 10] });
    expect(Object.values(await statuses(hourhand))).toEqual(ids.map(() => 'failed'));
  });

  test('passes calls with a longer limit of their own by, a batch at a time', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(
      ...Array.from({ length: 10 }, (_, i) => hanging('ada', { id: `v${i}`, type: 'video' })),
      hanging('ada', { id: 'z' }),
    );
    const limits = { minutes: 30, others: [{ type: 'video', minutes: 180 }] };
    // Its place is told to the microsecond: to the millisecond, the next batch would be the same.
    await hourhand.pool.$executeRaw`update "ModelCall" set "callTime" = "callTime" + interval '1 microsecond'`;
    const batch = await hourhand.pool.$transaction((db) => failBatch(db, limits, { size: 4, now }));
    const next = { callTime: '2026-08-20T13:10:00.000001+00:00', id: 'v3' };
    expect(batch).toEqual({ calls: 0, models: [], hours: [], next });
    expect((await clean(hourhand, { limits, size: 4 })).done.calls).toBe(1);
  });

  test('that finds nothing writes nothing down', async () => {
    await using hourhand = await startHourhand();
    expect(await clean(hourhand)).toEqual({
      done: { calls: 0, models: [], hours: {} },
      complete: true,
      usual: 0,
      rise: false,
    });
    expect(await hourhand.pool.staleBatch.count()).toBe(0);
  });

  test('that is stopped keeps what it did, and says that it is not complete', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(...Array.from({ length: 10 }, (_, i) => hanging('ada', { id: `c${i}` })));
    const stopping = new AbortController();
    const { done, complete } = await clean(hourhand, {
      size: 4,
      signal: stopping.signal,
      onProgress: async () => stopping.abort(),
    });
    expect({ calls: done.calls, complete }).toEqual({ calls: 4, complete: false });
    expect(await hourhand.pool.modelCall.count({ where: { status: 'failed' } })).toBe(4);
    expect(await hourhand.pool.staleBatch.findMany({ select: { calls: true } })).toEqual([{ calls: 4n }]);
  });

  test('that dies keeps its account: the attempt after it goes on with it', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(...Array.from({ length: 10 }, () => hanging('ada')));
    const died = new AbortController();
    const first = { cleanup: 'one', size: 4, signal: died.signal, onProgress: async () => died.abort() };
    expect((await clean(hourhand, first)).done.calls).toBe(4);
    const { done } = await clean(hourhand, { cleanup: 'one' });
    expect(done).toMatchObject({ calls: 10, models: [{ model: 'gpt', calls: 10 }] });
    expect(Object.values(done.hours)).toEqual([10]);
  });

  test('asked for again by the same job, as after a crash, tells what all its attempts did, and nothing of others', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(hanging('ada'));
    const line = { provider: 'openai', model: 'gpt', type: 'chatCompletion', limitMinutes: 30, calls: 4 };
    const batch = { calls: 4, models: [line], hours: [{ hour, calls: 4 }] };
    for (const cleanup of ['one', 'another']) {
      await recordBatch(hourhand.pool, batch, { cleanup, requestedBy: null }, new Date());
    }
    await hourhand.work();
    await addJobs(hourhand.queues.stale, [jobOf(failStaleCalls, { cleanup: 'one' })]);
    const job = await finished(hourhand);
    expect(job?.returnvalue).toMatchObject({ calls: 5, models: [{ ...line, calls: 5 }] });
  });

  test('names at most 100 models and 200 hours, and counts the others', async () => {
    await using hourhand = await startHourhand();
    await hourhand.pool.$executeRaw`
      insert into "ModelCall" (id, "userDid", "providerId", model, type, "callTime")
      select 'c' || i, 'ada', 'openai', 'm' || i, 'custom', ${now}::timestamptz - i * interval '1 hour' from generate_series(1, 250) i`;
    const { done } = await clean(hourhand, { size: 60 });
    expect(done).toMatchObject({ calls: 250, otherModels: 150, otherHours: 50 });
    expect(done.models).toHaveLength(100);
    expect(Object.keys(done.hours)).toHaveLength(200);
  });

  test('asked for by a tick returns counts by model and hour; what it failed is rolled up again', async () => {
    await using hourhand = await closedHour(hour, [hanging('ada', { id: 'a' }), hanging('bob'), { user: 'bob', at }]);
    await hourhand.queues.staleTicks.add('tick', {});
    const job = await finished(hourhand);
    expect(job?.returnvalue).toEqual({
      calls: 2,
      models: [{ provider: 'openai', model: 'gpt', type: 'chatCompletion', limitMinutes: 30, calls: 2 }],
      hours: { [hour]: 2 },
    });
    expect(job?.progress).toBe(100);
    expect((await hourhand.queues.stale.getJobLogs(job?.id ?? '')).logs).toEqual([
      'openai/gpt chatCompletion: 2 calls exceeded 30 minutes',
    ]);
    await untilStat(hourhand, 'ada', { failedCalls: '1', processingCalls: '0' });
    await untilStat(hourhand, 'bob', { failedCalls: '1', successCalls: '1' });
    expect(hourhand.logged.filter(({ msg }) => msg === 'stale calls failed')).toMatchObject([{ calls: 2, hours: 1 }]);
    expect(hourhand.logged.filter(({ msg }) => msg === rise)).toEqual([]);
    expect(await hourhand.pool.staleBatch.findMany()).toMatchObject([{ calls: 2n, requestedBy: null }]);
  });

  test('of many more calls than usual is a warning', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(...Array.from({ length: 21 }, () => hanging('ada')));
    await failedBefore(hourhand, 6, new Date());
    await hourhand.work();
    await addJobs(hourhand.queues.stale, [jobOf(failStaleCalls, {})]);
    await finished(hourhand);
    expect(hourhand.logged.filter(({ msg }) => msg === rise)).toMatchObject([
      { level: 40, calls: 21, usual: 6, hours: 1, provider: 'openai', model: 'gpt' },
    ]);
    expect(hourhand.logged.filter(({ msg }) => msg === 'stale calls failed')).toEqual([]);
  });

  test.each([
    ['nineteen calls are none, though none are usual', 19, [], false],
    ['twenty calls are one, where none are usual', 20, [], true],
    ['three times the usual is none', 30, [['2026-08-20T13:00:00Z', 1_440]], false],
    ['more than that is one', 31, [['2026-08-20T13:00:00Z', 1_440]], true],
    ['what is older than a day is not usual any more', 20, [['2026-08-19T14:00:00Z', 1_440]], true],
  ] as const)('is a rise or not: %s', async (_, calls, history, expected) => {
    await using hourhand = await startHourhand();
    await hourhand.record(...Array.from({ length: calls }, () => hanging('ada')));
    for (const [finishedAt, n] of history) {
      await failedBefore(hourhand, n, new Date(finishedAt));
    }
    // A day's 1,440 calls are 10 in ten minutes.
    expect((await clean(hourhand, { everySeconds: 600 })).rise).toBe(expected);
  });

  test('of more than 30 days ago is forgotten when the next one is written down', async () => {
    await using hourhand = await startHourhand();
    for (const finishedAt of ['2026-07-21T14:09:59Z', '2026-07-21T14:10:00Z']) {
      await failedBefore(hourhand, 1, new Date(finishedAt));
    }
    await hourhand.record(hanging('ada'));
    await clean(hourhand);
    expect((await hourhand.pool.staleBatch.findMany()).map((row) => row.at.toISOString()).sort()).toEqual([
      '2026-07-21T14:10:00.000Z',
      now.toISOString(),
    ]);
  });
});

describe('hourhand stale', () => {
  test('--dry-run shows what would be failed, by model, and changes nothing', async () => {
    await using hourhand = await startHourhand({ STALE_MODEL_CALL_TIMEOUTS: 'video=525600' });
    await hourhand.record(hanging('ada', { id: 'a' }), hanging('bob', { id: 'b', at: '2026-08-20T11:10:00Z' }), {
      user: 'ada',
      id: 'done',
      at,
    });
    await hourhand.pool.$executeRaw`
      insert into "ModelCall" (id, "userDid", "providerId", model, type) values ('v', 'ada', 'openai', 'gpt', 'video')`;
    const { code, stdout, stderr } = await hourhand.run(['stale', '--dry-run']);
    expect({ code, stderr }).toEqual({ code: 0, stderr: 'would fail 2 calls; nothing was changed\n' });
    expect(cells(stdout)).toEqual([
      ['provider', 'model', 'type', 'limit', 'calls', 'oldest'],
      ['openai', 'gpt', 'chatCompletion', '30 minutes', '2', '2026-08-20T11:10:00.000Z'],
    ]);
    expect(await statuses(hourhand)).toEqual({ a: 'processing', b: 'processing', done: 'success', v: 'processing' });
  });

  test('fails them, says which and in which hours, and writes down who asked', async () => {
    await using hourhand = await startHourhand();
    await hourhand.cover(hour, hour);
    await hourhand.record(hanging('ada'), hanging('bob'), hanging('bob', { at: '2026-08-20T11:10:00Z' }));
    const { code, stdout, stderr } = await hourhand.run(['stale']);
    expect(code).toBe(0);
    expect(stderr).toMatch(/^3\/3 calls\n3 calls failed\n$/);
    expect(cells(stdout)).toEqual([
      ['provider', 'model', 'type', 'limit', 'calls'],
      ['openai', 'gpt', 'chatCompletion', '30 minutes', '3'],
    ]);
    expect(stdout).toMatch(/\n2026-08-20T11 {2}1\n2026-08-20T13 {2}2\n$/);
    expect(await hourhand.pool.staleBatch.findMany()).toMatchObject([{ calls: 3n, requestedBy: expect.any(String) }]);
    expect(await hourhand.pool.statMark.count()).toBe(3 + 3);
    const again = await hourhand.run(['stale']);
    expect(again).toEqual({ code: 0, stdout: '', stderr: '0 calls failed\n' });
  });

  test('ends between two batches when it is told to, says so, and keeps what it did', async () => {
    await using hourhand = await startHourhand();
    await hourhand.pool.$executeRaw`
      insert into "ModelCall" (id, "userDid", "providerId", model, type, "callTime")
      select 'c' || i, 'ada', 'openai', 'gpt', 'custom', ${new Date(at)}::timestamptz from generate_series(1, 5000) i`;
    await using gateway = await connected(hourhand);
    await gateway.query('select pg_advisory_lock(42)');
    await readSlowly(hourhand);
    const child = hourhand.spawn('stale');
    let said = '';
    child.stderr?.on('data', (chunk) => {
      said += chunk;
    });
    await until(
      () => waitingFor(hourhand, 'advisory'),
      (n) => n === 1,
    );
    child.kill('SIGTERM');
    // It is asked before the batch is let go, and has heard by the time that it ends.
    await gateway.query('select pg_advisory_unlock(42)');
    expect(await once(child, 'close')).toEqual([1, null]);
    expect(said).toContain(
      '2000 calls failed\nstopped: what is failed stays failed; the rest waits for the next clean-up\n',
    );
    expect(await hourhand.pool.modelCall.count({ where: { status: 'failed' } })).toBe(2_000);
  });
});

const rise = 'many more calls hang than usual';
const success = `update "ModelCall" set status = 'success', "totalUsage" = 99, "inputTokens" = 99, "errorReason" = null where id = $1`;

function hanging(user: string, more: Partial<TestCall> = {}): TestCall {
  return { user, at, status: 'processing', ...more };
}

/** One clean-up in this process, at ten past two. */
function clean(
  { pool }: Hourhand,
  {
    limits = half,
    everySeconds = 600,
    ...more
  }: {
    limits?: Parameters<typeof failBatch>[1];
    everySeconds?: number;
  } & Partial<Parameters<typeof cleanUp>[1]> = {},
) {
  const options = { requestedBy: null, signal: never, now, ...more };
  return cleanUp({ pool, policy: { limits, everySeconds } }, options);
}

/** Wait until a user's stored figures are these, looking at the ledger as the tick does. */
async function untilStat(hourhand: Hourhand, user: string, figures: Record<string, string>): Promise<void> {
  await until(
    async () => {
      await hourhand.tick();
      return hourhand.stat(user, hour);
    },
    (stat) => Object.entries(figures).every(([name, figure]) => stat?.[name] === figure),
  );
}

async function statuses({ pool }: Hourhand): Promise<Record<string, string>> {
  const rows = await pool.modelCall.findMany({ select: { id: true, status: true }, orderBy: { id: 'asc' } });
  return Object.fromEntries(rows.map(({ id, status }) => [id, status]));
}

async function reasons({ pool }: Hourhand): Promise<Record<string, string | null>> {
  const rows = await pool.modelCall.findMany({ select: { id: true, errorReason: true } });
  return Object.fromEntries(rows.map(({ id, errorReason }) => [id, errorReason]));
}

/**
 * Put a view in the place of the calls, in which a batch reads nothing while somebody holds the advisory lock 42: it waits
 * there, after its statement has begun and before it has locked anything. The gateway writes to the view as to the table.
 */
async function readSlowly({ pool }: Hourhand): Promise<void> {
  for (const statement of [
    Sql.sql`
      create function readable(id text) returns boolean language plpgsql volatile cost 1000000 as $$
      begin
        if current_query() like '%skip locked%' then
          perform pg_advisory_lock_shared(42);
          perform pg_advisory_unlock_shared(42);
        end if;
        return true;
      end $$`,
    Sql.sql`alter table "ModelCall" rename to "Call"`,
    Sql.sql`create view "ModelCall" as select * from "Call" where readable(id)`,
  ])
    await pool.$executeRaw(statement);
}

/** How many sessions wait for such a lock. */
async function waitingFor({ pool }: Hourhand, event: string): Promise<number> {
  const [row] = await pool.$queryRaw<[{ n: number }]>`
    select count(*)::int as n from pg_stat_activity
     where datname = current_database() and wait_event_type = 'Lock' and wait_event = ${event}`;
  return row.n;
}

/** The clean-up's job, once it has ended. */
async function finished({ queues }: Hourhand) {
  const [job] = await until(
    () => queues.stale.getJobs(['completed', 'failed']),
    (jobs) => jobs.length === 1,
  );
  return job;
}

/** What stands in a printed table. */
function cells(table: string): string[][] {
  return table
    .split('\n')
    .filter((line) => line.startsWith('│'))
    .map((line) =>
      line
        .split('│')
        .slice(1, -1)
        .map((cell) => cell.trim()),
    );
}

/** Another clean-up has failed so many calls. */
function failedBefore({ pool }: Hourhand, calls: number, at: Date): Promise<void> {
  return recordBatch(pool, { calls, models: [], hours: [] }, { cleanup: 'another', requestedBy: null }, at);
}
