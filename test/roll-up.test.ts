import { describe, expect, test } from 'vitest';
import { Sql } from '../src/store/db.ts';
import type { Hour } from '../src/time/hour.ts';
import { type Hourhand, h, holdUser, startHourhand, until } from './support/hourhand.ts';

const hour = h('2026-08-20T13');

test('an hour is rolled up per user, and closed', async () => {
  await using hourhand = await startHourhand();
  await hourhand.record(
    { user: 'ada', at: '2026-08-20T13:00:00Z', tokens: 10, output: 5, credits: '0.10000000', duration: '1.5' },
    {
      user: 'ada',
      at: '2026-08-20T13:59:59.999999Z',
      tokens: 1,
      credits: '0.20000001',
      status: 'failed',
      type: 'embedding',
    },
    { user: 'bob', at: '2026-08-20T13:30:00Z', tokens: 7, status: 'processing' },
    { user: 'bob', at: '2026-08-20T14:00:00Z', tokens: 1_000 },
    { user: 'bob', at: '2026-08-20T12:59:59.999Z', tokens: 1_000 },
  );
  await hourhand.work();
  await hourhand.backfill(hour);
  await hourhand.reaches(hour, 'closed');

  expect(await hourhand.stat('ada', hour)).toMatchObject({
    totalUsage: '16',
    inputTokens: '11',
    outputTokens: '5',
    totalCredits: '0.30000001',
    totalCalls: '2',
    successCalls: '1',
    failedCalls: '1',
    processingCalls: '0',
    totalDuration: '1.500000',
    imageGenerations: '0',
  });
  expect(JSON.parse((await hourhand.stat('ada', hour))?.byType ?? '')).toEqual({
    chatCompletion: { totalUsage: 15, totalCredits: '0.10000000', totalCalls: 1, successCalls: 1 },
    embedding: { totalUsage: 1, totalCredits: '0.20000001', totalCalls: 1, successCalls: 0 },
  });
  expect(await hourhand.stat('bob', hour)).toMatchObject({ totalUsage: '7', processingCalls: '1' });
  expect(await hourhand.hour(hour)).toMatchObject({ run: 1, wanted: 1, users: 2, calls: 3n, error: null });
});

test('images are counted by what the call says, else one for each that succeeded', async () => {
  await using hourhand = await startHourhand();
  const image = { user: 'ada', at: '2026-08-20T13:10:00Z', type: 'imageGeneration' };
  await hourhand.record(
    { ...image, metrics: { numberOfImages: 4 } },
    { ...image },
    { ...image, status: 'failed' },
    { ...image, metrics: { numberOfImages: 'many' } },
    { ...image, type: 'chatCompletion', metrics: { numberOfImages: 9 } },
  );
  await rolledUp(hourhand, hour);
  expect((await hourhand.stat('ada', hour))?.imageGenerations).toBe('6');
});

test('sums are exact where floats are not', async () => {
  await using hourhand = await startHourhand();
  const calls = Array.from({ length: 1_000 }, () => ({
    user: 'ada',
    at: '2026-08-20T13:10:00Z',
    tokens: 9_007_199_254_740_993n,
    credits: '123456789.00000001',
  }));
  await hourhand.record(...calls);
  await rolledUp(hourhand, hour);
  expect(await hourhand.stat('ada', hour)).toMatchObject({
    totalUsage: '9007199254740993000',
    totalCredits: '123456789000.00001000',
  });
});

test('rolling an hour up again leaves its rows as they are, and rewrites those that differ', async () => {
  await using hourhand = await startHourhand();
  await hourhand.record(
    { user: 'ada', at: '2026-08-20T13:10:00Z' },
    { user: 'bob', at: '2026-08-20T13:10:00Z' },
    { user: 'cyd', at: '2026-08-20T13:10:00Z' },
  );
  await rolledUp(hourhand, hour);
  await hourhand.pool
    .$executeRaw`update "ModelCallStat" set "totalCalls" = 7, "byType" = '{}' where "userDid" = 'bob'`;
  await hourhand.pool.$executeRaw`delete from "ModelCall" where "userDid" = 'cyd'`;
  await hourhand.backfill(hour);
  await until(
    () => hourhand.hour(hour),
    (row) => row?.run === 2 && row.state === 'closed',
  );

  expect(await hourhand.wrong()).toEqual([]);
  expect((await hourhand.stat('ada', hour))?.run).toBe('1');
  expect((await hourhand.stat('bob', hour))?.run).toBe('2');
  expect(await hourhand.stat('cyd', hour)).toBeUndefined();
  expect(await hourhand.hour(hour)).toMatchObject({ users: 2, calls: 2n });
});

test.each([
  ['a child for each user', { FANOUT_MAX_USER_JOBS: '200' }, 100],
  ['ranges of buckets', { FANOUT_MAX_USER_JOBS: '64' }, 2],
  ['ranges of buckets even for two users', { FANOUT_MAX_USER_JOBS: '1' }, 2],
])('a hundred users are rolled up in %s', async (_, env, children) => {
  await using hourhand = await startHourhand(env);
  await hourhand.record(...crowd(100));
  await rolledUp(hourhand, hour);
  expect(await hourhand.wrong()).toEqual([]);
  // The last child closes the hour, and is completed after that.
  await until(
    () => hourhand.queues.hours.getJobCountByTypes('completed'),
    (count) => count === 1,
  );
  expect(await hourhand.queues.users.getJobCountByTypes('completed')).toBe(children);
  const names = (await hourhand.queues.users.getJobs(['completed'])).map((job) => job.name);
  expect(names).toContain(children === 100 ? 'user user-7 2026-08-20T13' : 'buckets 0–31 2026-08-20T13');
});

describe('an hour of few calls', () => {
  const few = { FANOUT_MIN_CALLS: '1000' };

  test('is rolled up by one statement where it has more users than would have a child each', async () => {
    await using hourhand = await startHourhand(few);
    await hourhand.record(...crowd(100));
    await rolledUp(hourhand, hour);
    expect(await hourhand.wrong()).toEqual([]);
    expect(await hourhand.hour(hour)).toMatchObject({ run: 1, users: 100, calls: 100n });
    await until(
      () => hourhand.queues.hours.getJobCountByTypes('completed'),
      (count) => count === 1,
    );
    expect(await hourhand.queues.users.getJobCountByTypes('completed')).toBe(0);
    await rolledUp(hourhand, hour); // once more, as a request
    expect(await hourhand.hour(hour)).toMatchObject({ run: 2, users: 100 });
  });

  test('is fanned out all the same where it has more calls than that', async () => {
    await using hourhand = await startHourhand({ FANOUT_MIN_CALLS: '99' });
    await hourhand.record(...crowd(100));
    await rolledUp(hourhand, hour);
    expect(await hourhand.wrong()).toEqual([]);
    expect(await hourhand.queues.users.getJobCountByTypes('completed', 'active')).toBe(2);
  });

  test('is fanned out where one of its users cannot be stored, and names that one alone', async () => {
    await using hourhand = await startHourhand(few);
    await hourhand.record(
      ...crowd(100),
      ...['1', '2'].map((id) => ({ id, user: 'zoe', at: '2026-08-20T13:30:00Z', credits: '999999999999' })),
    );
    await hourhand.work();
    await hourhand.backfill(hour);
    await hourhand.reaches(hour, 'partial');
    expect((await hourhand.hour(hour))?.error).toMatch(/^zoe: numeric field overflow/);
    expect(await hourhand.wrong()).toEqual([expect.stringContaining('zoe')]);
  });

  test('does not wait at once for a user that somebody else is at, but for that one alone', async () => {
    await using hourhand = await startHourhand(few);
    await hourhand.record(...crowd(100));
    await using held = await holdUser(hourhand, 'user-7');
    await hourhand.work();
    await hourhand.backfill(hour);
    await closesWith(hourhand, held);
  });

  test("is rolled up by one of its users' children where each has one, and a retry of another rolls that user up again", async () => {
    await using hourhand = await startHourhand(few);
    await hourhand.record(...crowd(10));
    await rolledUp(hourhand, hour);
    await until(
      () => hourhand.queues.users.getJobCountByTypes('completed'),
      (count) => count === 10,
    );
    expect(await hourhand.wrong()).toEqual([]);
    const jobs = await hourhand.queues.users.getJobs(['completed']);
    const together = jobs.find((job) => Object(job.returnvalue).together);
    expect(together).toBeDefined();
    const user = together?.data.userDid;
    await hourhand.silently(Sql.sql`update "ModelCall" set credits = 5 where "userDid" = ${user}`);
    expect(await hourhand.wrong()).toHaveLength(1);
    await together?.retry('completed');
    await until(
      () => hourhand.wrong(),
      (wrong) => wrong.length === 0,
    );
  });
});

test('an hour stays open until its last user is done', async () => {
  await using hourhand = await startHourhand();
  await hourhand.record({ user: 'ada', at: '2026-08-20T13:10:00Z' }, { user: 'bob', at: '2026-08-20T13:20:00Z' });
  await using held = await holdUser(hourhand, 'bob');
  await hourhand.work();
  await hourhand.backfill(hour);
  await until(
    () => hourhand.stat('ada', hour),
    (stat) => stat !== undefined,
  );
  await closesWith(hourhand, held);
});

describe('a user whose figures cannot be stored', () => {
  const overflowing = [1, 2].map(() => ({ user: 'eve', at: '2026-08-20T13:30:00Z', credits: '999999999999' }));

  test('is owed again after its back-off, and closes by itself once mended', async () => {
    await using hourhand = await startHourhand({ PARTIAL_BACKOFF_MAX_SECONDS: '1' });
    await hourhand.record({ user: 'ada', at: '2026-08-20T13:10:00Z' }, ...overflowing);
    await hourhand.work();
    await hourhand.backfill(hour);
    await hourhand.reaches(hour, 'partial');
    await hourhand.pool.$executeRaw`update "ModelCall" set credits = 1 where "userDid" = 'eve'`;
    await until(
      async () => {
        await hourhand.tick();
        return hourhand.state(hour);
      },
      (state) => state === 'closed',
    );
    expect(await hourhand.hour(hour)).toMatchObject({ attempts: 0, error: null });
    expect(await hourhand.wrong()).toEqual([]);
  });

  test('keeps the row that was stored before', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(
      { user: 'eve', at: '2026-08-20T13:10:00Z', credits: '5' },
      { user: 'ada', at: '2026-08-20T13:10:00Z' },
    );
    await rolledUp(hourhand, hour);
    await hourhand.record(...overflowing, { user: 'ada', at: '2026-08-20T13:10:00Z' });
    await hourhand.backfill(hour);
    await hourhand.reaches(hour, 'partial');
    expect((await hourhand.stat('eve', hour))?.totalCredits).toBe('5.00000000');
    expect((await hourhand.stat('ada', hour))?.totalCalls).toBe('2');
  });

  test('is retried by hand through its hour, as a new run, without waiting for the back-off', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(...overflowing);
    await hourhand.work();
    await hourhand.backfill(hour);
    const [parent] = await until(
      () => hourhand.queues.hours.getJobs(['failed']),
      (jobs) => jobs.length === 1,
    );
    await hourhand.tick();
    expect((await hourhand.hour(hour))?.run).toBe(1);
    await hourhand.pool.$executeRaw`update "ModelCall" set credits = 1`;
    await parent?.retry('failed');
    await hourhand.reaches(hour, 'closed');
    expect((await hourhand.hour(hour))?.run).toBe(2);
  });

  test('is logged once for each job that failed, with its name, hour, attempt and error', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(...overflowing);
    await hourhand.work();
    await hourhand.backfill(hour);
    await until(
      async () => hourhand.logged.filter((line) => line.msg === 'job failed'),
      (lines) => lines.length >= 2,
    );
    expect(hourhand.logged.filter((line) => line.msg === 'job failed')).toMatchObject([
      {
        job: 'user eve 2026-08-20T13',
        hour,
        attempt: 1,
        final: true,
        reason: expect.stringContaining('numeric field overflow'),
      },
      {
        job: 'hour 2026-08-20T13',
        hour,
        attempt: 1,
        final: true,
        reason: expect.stringContaining('is partial: eve'),
      },
    ]);
  });
});

test('hours taken out of the middle of the ledger are owed, and rolled up again by the next tick', async () => {
  await using hourhand = await startHourhand();
  const hours = ['10', '11', '12', '13'].map((hh) => h(`2026-08-20T${hh}`));
  await hourhand.record(...hours.map((hh) => ({ user: 'ada', at: `${hh}:10:00Z` })));
  await hourhand.work();
  await hourhand.backfill(h('2026-08-20T10'), h('2026-08-20T13'));
  await until(
    () => Promise.all(hours.map(hourhand.state)),
    (states) => states.every((state) => state === 'closed'),
  );

  await hourhand.pool.$executeRaw`delete from "StatHour" where hour in ('2026-08-20T11:00Z', '2026-08-20T12:00Z')`;
  await hourhand.pool.$executeRaw`delete from "ModelCallStat" where "timestamp" = '2026-08-20T12:00Z'`;
  await hourhand.tick();
  await until(
    () => Promise.all(hours.map(hourhand.state)),
    (states) => states.every((state) => state === 'closed'),
  );
  expect(await hourhand.wrong()).toEqual([]);
  expect((await hourhand.hour(h('2026-08-20T10')))?.run).toBe(1);
});

async function rolledUp(hourhand: Hourhand, which: Hour): Promise<void> {
  await hourhand.work();
  await hourhand.backfill(which);
  await hourhand.reaches(which, 'closed');
}

function crowd(users: number) {
  return Array.from({ length: users }, (_, i) => ({
    user: `user-${i}`,
    at: `2026-08-20T13:${String(i % 60).padStart(2, '0')}:00Z`,
    tokens: i,
  }));
}

/** The hour stays open until the held user is done, though all others are. */
async function closesWith(hourhand: Hourhand, held: Awaited<ReturnType<typeof holdUser>>): Promise<void> {
  await until(
    () => hourhand.queues.users.getJobCountByTypes('completed'),
    (count) => count === 1,
  );
  expect(await hourhand.state(hour)).toBe('running');
  await held.release();
  await hourhand.reaches(hour, 'closed');
  expect(await hourhand.wrong()).toEqual([]);
}
