// The promises that hold whatever runs twice, late, or beside its own successor.

import { expect, test } from 'vitest';
import { rollUpScope } from '../src/processors/roll-up-scope.ts';
import { allotRun } from '../src/store/cut.ts';
import { closeEmptyHours, closeHour, owedHours, requestHours, shardsOf } from '../src/store/ledger.ts';
import { endOf, startOf } from '../src/time/hour.ts';
import { type Hourhand, h, holdUser, startHourhand, straggle, straggling, until } from './support/hourhand.ts';

const hour = h('2026-08-20T13');
const at = '2026-08-20T13:10:00Z';
const range = { start: startOf(hour), end: endOf(hour) };
const whole = { hour, lo: 0, hi: 63 };
const never = new AbortController().signal;

test('one user rolled up again while a shard of the same hour runs ends on the newer figures', async () => {
  await using hourhand = await startHourhand({ FANOUT_MAX_USER_JOBS: '1' });
  const [first, second] = await neighbours(hourhand);
  await hourhand.record({ user: first, at }, { user: second, at });
  await straggle(hourhand, first, 4);
  await hourhand.work();
  await hourhand.backfill(hour);
  await until(
    () => straggling(hourhand),
    (n) => n === 1,
  );

  await hourhand.record({ user: second, at });
  await hourhand.backfillUser(second, hour);
  await hourhand.reaches(hour, 'closed');
  await until(
    () => marks(hourhand),
    (n) => n === 0,
  );
  expect(await hourhand.wrong()).toEqual([]);
  expect((await hourhand.stat(second, hour))?.totalCalls).toBe('2');
});

test('a zombie that wakes after its successor does not bring the old figures back', async () => {
  await using hourhand = await startHourhand();
  await hourhand.record({ user: 'ada', at }, { user: 'bob', at });
  await straggle(hourhand, 'ada', 4);
  const zombie = rollUpScope(hourhand.pool, whole, never);
  await until(
    () => straggling(hourhand),
    (n) => n === 1,
  );
  await hourhand.record({ user: 'bob', at });
  await Promise.all([zombie, rollUpScope(hourhand.pool, { ...whole, lo: 0, users: ['bob'] }, never)]);
  expect(await hourhand.wrong()).toEqual([]);
});

test('an hour that is asked for while it runs goes round again, on figures read after the request', async () => {
  await using hourhand = await startHourhand();
  await hourhand.record({ user: 'ada', at }, { user: 'bob', at });
  await using held = await holdUser(hourhand, 'bob');
  await hourhand.work();
  await hourhand.backfill(hour);
  await until(
    () => hourhand.stat('ada', hour),
    (stat) => stat !== undefined,
  );

  await hourhand.record({ user: 'ada', at });
  const { hours } = await hourhand.backfill(hour);
  expect(hours).toMatchObject([{ hour, wanted: 2 }]);
  expect(await hourhand.hour(hour)).toMatchObject({ state: 'running', run: 1, wanted: 2 });
  await held.release();
  await until(
    () => hourhand.hour(hour),
    (row) => row?.state === 'closed' && row.run === 2,
  );
  expect(await hourhand.wrong()).toEqual([]);
});

test('a run that was superseded closes nothing, and its late child helps the current one', async () => {
  await using hourhand = await startHourhand();
  const { pool, policy } = hourhand;
  await hourhand.cover(hour, hour);
  await hourhand.record({ user: 'ada', at }, { user: 'bob', at });
  expect(await allotRun(pool, hour, policy)).toMatchObject({ run: 1 });
  expect(await allotRun(pool, hour, policy)).toMatchObject({ run: 2 });
  expect(await closeHour(pool, hour, 1, 'parent', policy)).toEqual({ outcome: 'superseded' });
  expect(await hourhand.hour(hour)).toMatchObject({ state: 'running', run: 2 });

  const late = await rollUpScope(pool, whole, never);
  expect(late.run).toBe(2);
  expect(await closeHour(pool, hour, late.run, 'child', policy)).toMatchObject({ outcome: 'closed', already: false });
  expect(await shardsOf(pool, hour, 1)).toEqual([]);
});

test('a shard is not done for a run that was allotted after its figures were read', async () => {
  await using hourhand = await startHourhand();
  const { pool, policy } = hourhand;
  await hourhand.cover(hour, hour);
  await hourhand.record({ user: 'ada', at });
  await allotRun(pool, hour, policy);
  await straggle(hourhand, 'ada', 3);
  const old = rollUpScope(pool, whole, never);
  await until(
    () => straggling(hourhand),
    (n) => n === 1,
  );
  await hourhand.record({ user: 'ada', at });
  await allotRun(pool, hour, policy);
  expect((await old).run).toBe(1);
  expect(await closeHour(pool, hour, 2, 'child', policy)).toEqual({ outcome: 'unfinished' });
  expect(await hourhand.state(hour)).toBe('running');
});

test('a request that commits while an hour closes is not lost', async () => {
  await using hourhand = await startHourhand();
  const { pool, policy } = hourhand;
  await hourhand.cover(hour, hour);
  await hourhand.record({ user: 'ada', at });
  await allotRun(pool, hour, policy);
  await rollUpScope(pool, whole, never);
  const closing = await pool.$transaction(async (db) => {
    await requestHours(db, [hour], { reason: 'backfill', requestedBy: 'test' });
    const promise = closeHour(pool, hour, 1, 'parent', policy);
    await until(
      () => waiting(hourhand),
      (n) => n === 1,
    );
    return { promise };
  });
  expect(await closing.promise).toEqual({ outcome: 'open' });
  expect(await allotRun(pool, hour, policy)).toMatchObject({ run: 2 });
});

test('an empty hour is not closed over calls that came with a request', async () => {
  await using hourhand = await startHourhand();
  const { pool, policy } = hourhand;
  await hourhand.cover(hour, hour);
  await pool.$executeRaw`insert into "StatHour" (hour, state, reason) values (${range.start}::timestamptz, 'open', 'tick')`;
  // Both begin by writing to the ledger; that they are slow at it lets the one look while the other has not committed.
  await pool.$executeRaw`create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(2); return null; end'`;
  await pool.$executeRaw`create trigger slow after insert on "StatHour" for each statement execute function slow()`;
  const closing = closeEmptyHours(pool, [hour], policy);
  await until(
    () => straggling(hourhand),
    (n) => n === 1,
  );
  await pool.$transaction(async (db) => {
    await requestHours(db, [hour], { reason: 'backfill', requestedBy: 'test' });
    await db.$executeRaw`
      insert into "ModelCall" (id, "userDid", "providerId", model, type, "callTime")
      values ('1', 'ada', 'p', 'm', 'custom', ${new Date(at)}::timestamptz)`;
    const waits = until(
      () => waiting(hourhand),
      (n) => n === 1,
    );
    await Promise.race([closing, waits]);
  });
  expect(await closing).toEqual([]);
  expect(await hourhand.state(hour)).toBe('open');
});

test('nothing is allotted that is not owed: not ended, not covered, closed, sealed, or in back-off', async () => {
  await using hourhand = await startHourhand();
  const { pool, policy } = hourhand;
  const now = new Date('2026-08-20T13:59:59Z');
  expect(await allotRun(pool, hour, policy)).toBeUndefined();
  await hourhand.cover(hour, hour);
  expect(await allotRun(pool, hour, policy, { now })).toBeUndefined();
  expect(await owedHours(pool, 10, now)).toEqual([]);
  expect(await owedHours(pool, 10)).toEqual([{ hour, backfilled: false }]);
  expect(await allotRun(pool, hour, policy)).toMatchObject({ run: 1 });
  expect(await closeHour(pool, hour, 1, 'parent', policy)).toMatchObject({ outcome: 'closed', already: false });
  expect(await allotRun(pool, hour, policy)).toBeUndefined();
  expect(await owedHours(pool, 10)).toEqual([]);

  await pool.$executeRaw`update "StatHour" set state = 'partial', "nextAttemptAt" = now() + interval '1 hour'`;
  expect(await allotRun(pool, hour, policy)).toBeUndefined();
  expect(await owedHours(pool, 10)).toEqual([]);
  expect(await allotRun(pool, hour, policy, { again: true })).toMatchObject({ run: 2 });
  await closeHour(pool, hour, 2, 'parent', policy);

  await pool.$executeRaw`update "StatHour" set "sealedAt" = now()`;
  await hourhand.record({ user: 'ada', at });
  const { hours, sealed } = await hourhand.backfill(hour);
  expect([hours, sealed]).toEqual([[], [hour]]);
  expect(await hourhand.backfillUser('ada', hour)).toMatchObject({ hours: [] });
  expect(await allotRun(pool, hour, policy)).toBeUndefined();
});

test('an hour whose row was deleted begins at run 1 again, whatever is left of its shards', async () => {
  await using hourhand = await startHourhand();
  const { pool, policy } = hourhand;
  await hourhand.cover(hour, hour);
  await hourhand.record({ user: 'ada', at }, { user: 'bob', at });
  await allotRun(pool, hour, policy);
  await pool.$executeRaw`delete from "StatHour"`;
  await hourhand.record({ user: 'cyd', at });
  expect(await allotRun(pool, hour, policy)).toMatchObject({ run: 1 });
  expect((await shardsOf(pool, hour, 1)).map(({ userDid }) => userDid)).toEqual(['ada', 'bob', 'cyd']);
});

test('the newest ended hour comes first, then the oldest; holes in the middle are owed', async () => {
  await using hourhand = await startHourhand();
  const now = new Date('2026-08-20T15:20:00Z');
  await hourhand.cover(h('2026-08-20T09'), h('2026-08-20T14'));
  await hourhand.pool.$executeRaw`
    insert into "StatHour" (hour, state, reason, "closedAt") values ('2026-08-20T10:00Z', 'closed', 'tick', now()), ('2026-08-20T13:00Z', 'closed', 'tick', now())`;
  const owed = await owedHours(hourhand.pool, 3, now);
  expect(owed.map(({ hour }) => hour)).toEqual(['2026-08-20T14', '2026-08-20T09', '2026-08-20T11']);
});

test('a run cut into shards covers every bucket once', async () => {
  await using hourhand = await startHourhand({ FANOUT_MAX_USER_JOBS: '3' });
  const { pool, policy } = hourhand;
  await hourhand.cover(hour, hour);
  const crowd = Array.from({ length: 80_000 }, (_, i) => ({ user: `u${i}`, at }));
  await hourhand.record(...crowd);
  await allotRun(pool, hour, policy);
  const shards = await shardsOf(pool, hour, 1);
  expect(shards.length).toBe(4);
  expect(shards.flatMap(({ lo, hi }) => Array.from({ length: hi - lo + 1 }, (_, i) => lo + i))).toEqual(
    Array.from({ length: 64 }, (_, i) => i),
  );
});

test('an hour that two ticks and two requests ask for at once runs once for each owing', async () => {
  await using hourhand = await startHourhand();
  await hourhand.cover(hour, hour);
  await hourhand.record({ user: 'ada', at });
  await using held = await holdUser(hourhand, 'ada');
  await hourhand.work();
  await Promise.all([hourhand.tick(), hourhand.tick(), hourhand.tick()]);
  await hourhand.reaches(hour, 'running');
  await Promise.all([hourhand.tick(), hourhand.tick()]);
  await held.release();
  await hourhand.reaches(hour, 'closed');
  await hourhand.tick();
  await until(
    () => hourhand.queues.hours.getJobCountByTypes('active', 'waiting'),
    (n) => n === 0,
  );
  expect((await hourhand.hour(hour))?.run).toBe(1);
});

test('a live hour does not wait behind a backfill', async () => {
  await using hourhand = await startHourhand({ WORKER_CONCURRENCY: '1' });
  const past = Array.from(
    { length: 60 },
    (_, i) => `2026-08-${String(1 + Math.floor(i / 24)).padStart(2, '0')}T${String(i % 24).padStart(2, '0')}`,
  );
  await hourhand.record(...past.map((when) => ({ user: 'ada', at: `${when}:10:00Z` })));
  await hourhand.backfill(h('2026-08-01T00'), h('2026-08-03T11'));
  const [{ live }] = await hourhand.pool.$queryRaw<
    [{ live: Date }]
  >`select date_trunc('hour', now(), 'UTC') - interval '1 hour' as live`;
  await hourhand.record({ user: 'ada', at: live.toISOString() });
  await hourhand.work();
  await until(
    () => closedHours(hourhand),
    (n) => n === 61,
  );
  const [{ before }] = await hourhand.pool.$queryRaw<[{ before: number }]>`
    select count(*)::int as before from "StatHour" where "closedAt" < (select "closedAt" from "StatHour" where hour = ${live}::timestamptz)`;
  expect(before).toBeLessThan(15); // of 60, on a busy machine
  expect(await hourhand.wrong()).toEqual([]);
});

test('the live range begins with the hour before the first start; ranges that touch are merged', async () => {
  await using hourhand = await startHourhand();
  await hourhand.cover(h('2026-08-20T01'), h('2026-08-20T02'));
  await hourhand.cover(h('2026-08-20T05'), h('2026-08-20T06'));
  await hourhand.cover(h('2026-08-20T03'), h('2026-08-20T03'));
  await hourhand.cover(h('2026-08-20T06'), h('2026-08-20T08'));
  await hourhand.work();
  const ranges = await hourhand.pool.$queryRaw<{ start: string; end: string; live: boolean }[]>`
    select to_char(start, 'DD HH24') as start, to_char("end", 'DD HH24') as "end",
           "end" is null and start = date_trunc('hour', now(), 'UTC') - interval '1 hour' as live from "StatRange" order by "StatRange".start`;
  expect(ranges).toMatchObject([{ start: '20 01', end: '20 04' }, { start: '20 05', end: '20 09' }, { live: true }]);
});

test('idle users get rows of zeros where they are asked for, and one figure either way', async () => {
  await using hourhand = await startHourhand({ STORE_ZERO_ROWS: 'true' });
  await hourhand.record(
    { user: 'ada', at },
    { user: 'bob', at: '2026-08-18T00:00:00Z' },
    { user: 'old', at: '2026-08-13T13:59:59Z' },
  );
  await hourhand.work();
  await hourhand.backfill(hour);
  await hourhand.reaches(hour, 'closed');
  expect(await hourhand.stat('bob', hour)).toMatchObject({
    totalCalls: '0',
    totalCredits: '0.00000000',
    byType: '{}',
  });
  expect(await hourhand.stat('old', hour)).toBeUndefined();
  expect(await hourhand.hour(hour)).toMatchObject({ users: 1, calls: 1n });
});

/** Two users in the midst of one shard's buckets, the first before the second in the order of writing. */
async function neighbours({ pool }: Hourhand): Promise<[string, string]> {
  const rows = await pool.$queryRaw<{ user: string }[]>`
    select 'u' || i as user from generate_series(10, 60) i where hashtext('u' || i) & 63 between 8 and 24 order by 1 limit 2`;
  return rows.map((row) => row.user) as [string, string];
}

async function marks({ pool }: Hourhand): Promise<number> {
  return pool.statMark.count();
}

async function closedHours({ pool }: Hourhand): Promise<number> {
  return pool.statHour.count({ where: { state: 'closed' } });
}

/** Sessions that wait for a row's lock. */
async function waiting({ pool }: Hourhand): Promise<number> {
  const [row] = await pool.$queryRaw<[{ n: number }]>`
    select count(*)::int as n from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`;
  return row.n;
}
