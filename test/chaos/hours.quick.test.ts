// Hours with a user that cannot be stored, and what an operator's buttons do to them.

import { describe, expect, test } from 'vitest';
import { openBoard } from '../support/board.ts';
import { type Hourhand, h, holdUser, startHourhand, until } from '../support/hourhand.ts';

const hour = h('2026-08-20T13');
const at = '2026-08-20T13:10:00Z';
/** Together they are more than a row's type holds. */
const overflowing = [1, 2].map(() => ({ user: 'eve', at, credits: '999999999999' }));
const mend = ({ pool }: Hourhand) => pool.$executeRaw`update "ModelCall" set credits = 1 where "userDid" = 'eve'`;

describe('16: a failed child is retried in the board after the cause is gone: the row is right, and the hour closes by itself', () => {
  test.each([
    ['of one user', { FANOUT_MAX_USER_JOBS: '64' }],
    ['of a range of buckets', { FANOUT_MAX_USER_JOBS: '1' }],
  ])('%s', async (_, env) => {
    await using hourhand = await startHourhand(env);
    await using board = await openBoard(hourhand);
    const users = Array.from({ length: 30 }, (_, i) => ({ user: `user-${i}`, at }));
    await hourhand.record(...users, ...overflowing);
    await hourhand.work();
    await hourhand.backfill(hour);
    const partial = await until(
      () => hourhand.hour(hour),
      (row) => row?.state === 'partial',
    );
    expect(partial).toMatchObject({ error: 'eve: numeric field overflow (22003)', attempts: 1 });
    expect(await hourhand.wrong()).toEqual(['eve 2026-08-20 13:00:00+00']);
    const [parent] = await until(
      () => hourhand.queues.hours.getFailed(),
      (failed) => failed.length === 1,
    );
    expect(parent?.failedReason).toContain('hour 2026-08-20T13 is partial: eve:');

    await mend(hourhand);
    const [child] = await hourhand.queues.users.getFailed();
    expect(await board.put(`/stats-users/${child?.id}/retry`)).toBe(204);
    await hourhand.reaches(hour, 'closed');
    expect(await hourhand.wrong()).toEqual([]);
    expect((await hourhand.hour(hour))?.run).toBe(1);
  });
});

describe('17: a child that is gone never lets the hour close without its rows; it is owed again', () => {
  test.each([
    ['a failed one, deleted in the board', (id: string) => `/stats-users/${id}/clean`],
    ['a failed one, cleaned away in the board', () => '/stats-users/clean/failed'],
  ])('%s', async (_, path) => {
    await using hourhand = await startHourhand();
    await using board = await openBoard(hourhand);
    const { users } = hourhand.queues;
    await hourhand.record({ user: 'ada', at }, { user: 'bob', at }, ...overflowing);
    await using held = await holdUser(hourhand, 'bob');
    await hourhand.work();
    await hourhand.backfill(hour);
    const [child] = await until(
      () => users.getFailed(),
      (failed) => failed.length === 1,
    );
    const id = child?.id ?? '';
    await hourhand.redis.zadd(users.toKey('failed'), Date.now() - 60_000, id); // cleaning spares what is younger than 5 s
    expect(await board.put(path(id))).toBeLessThan(300);
    expect(await users.getJobState(id)).toBe('unknown');
    expect(await hourhand.state(hour)).toBe('running');

    await held.release();
    await hourhand.reaches(hour, 'partial');
    expect((await hourhand.hour(hour))?.error).toMatch(/^eve: /);
    await closesOnceMended(hourhand);
  });

  test('one that waits, deleted', async () => {
    await using hourhand = await startHourhand();
    await using board = await openBoard(hourhand);
    const { users } = hourhand.queues;
    await hourhand.record({ user: 'ada', at }, { user: 'bob', at });
    await users.pause();
    await hourhand.work();
    await hourhand.backfill(hour);
    const waiting = await until(
      () => users.getJobs(['waiting', 'prioritized']),
      (jobs) => jobs.length === 2,
    );
    expect(await board.put(`/stats-users/${waiting[0]?.id}/clean`)).toBe(204);
    await users.resume();
    await hourhand.reaches(hour, 'partial');
    expect((await hourhand.hour(hour))?.error).toMatch(/^(ada|bob): not done$/);
    await closesOnceMended(hourhand);
  });
});

test('21: a failed hour is retried in the board while a tick enqueues it again: right rows, and one close', async () => {
  await using hourhand = await startHourhand({ WORKER_CONCURRENCY: '2' });
  await using board = await openBoard(hourhand);
  const { hours } = hourhand.queues;
  await hourhand.record({ user: 'ada', at }, ...overflowing);
  await hourhand.work();
  await hourhand.backfill(hour);
  const [failed] = await until(
    () => hours.getFailed(),
    (jobs) => jobs.length === 1,
  );

  await mend(hourhand);
  await using eve = await holdUser(hourhand, 'eve');
  expect(await board.put(`/stats-hour/${failed?.id}/retry`)).toBe(204);
  await until(
    () => hours.getWaitingChildrenCount(),
    (n) => n === 1,
  );
  // The retried job knows nothing of this user; the tick's does, and is slower.
  await hourhand.record({ user: 'fay', at });
  await using fay = await holdUser(hourhand, 'fay');
  await hourhand.tick();
  await until(
    () => hours.getWaitingChildrenCount(),
    (n) => n === 2,
  );
  await eve.release();
  await until(
    () => hours.getCompletedCount(),
    (n) => n === 1,
  );
  expect(await hourhand.hour(hour)).toMatchObject({ state: 'running', run: 3 });
  await fay.release();
  await until(
    () => hours.getCompletedCount(),
    (n) => n === 2,
  );
  expect(await hourhand.hour(hour)).toMatchObject({ state: 'closed', run: 3 });
  expect(await hourhand.wrong()).toEqual([]);
  expect(hourhand.logged.filter(({ msg }) => msg === 'hour closed')).toHaveLength(1);
});

async function endBackOff({ pool }: Hourhand): Promise<void> {
  await pool.$executeRaw`update "StatHour" set "nextAttemptAt" = null`;
}

/** It is owed again: a new run, or the mark of the mended call, closes it. */
async function closesOnceMended(hourhand: Hourhand): Promise<void> {
  await mend(hourhand);
  await endBackOff(hourhand);
  expect((await hourhand.tick()).enqueued).toEqual([hour]);
  await hourhand.reaches(hour, 'closed');
  expect(await hourhand.wrong()).toEqual([]);
}
