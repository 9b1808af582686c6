import { expect, test } from 'vitest';
import { Sql } from '../src/store/db.ts';
import { markedScopes } from '../src/store/marks.ts';
import { runsOf } from '../src/store/runs.ts';
import { endOf, startOf } from '../src/time/hour.ts';
import { closedHour, h, startHourhand, until } from './support/hourhand.ts';

const hour = h('2026-08-20T13');
const at = '2026-08-20T13:10:00Z';
/** A partial hour is tried again soon. */
const impatient = { PARTIAL_BACKOFF_MAX_SECONDS: '1' };
const range = { start: startOf(hour), end: endOf(hour) };
/** Together they are more than the sum's type holds. */
const unstorable = ['999999999999', '1'].map((credits) => ({ user: 'ada', at, credits }));

test('a marked user is rolled up alone, and the ledger counts anew', async () => {
  await using hourhand = await closedHour(
    hour,
    [
      { user: 'ada', at },
      { user: 'bob', at },
    ],
    impatient,
  );
  await hourhand.silently(Sql.sql`update "ModelCall" set credits = 7`);
  expect((await hourhand.backfillUser('ada', hour)).hours).toEqual([hour]);
  await until(
    () => hourhand.pool.statMark.count(),
    (n) => n === 0,
  );
  await until(
    () => hourhand.stat('ada', hour),
    (stat) => stat?.totalCredits === '7.00000000',
  );
  expect((await hourhand.stat('bob', hour))?.totalCredits).toBe('0.00000001');
  expect(await hourhand.hour(hour)).toMatchObject({ state: 'closed', run: 1, users: 2 });
});

test('a user whose calls are all gone loses the row', async () => {
  await using hourhand = await closedHour(
    hour,
    [
      { user: 'ada', at },
      { user: 'bob', at },
    ],
    impatient,
  );
  await hourhand.pool.$executeRaw`delete from "ModelCall" where "userDid" = 'ada'`;
  await hourhand.backfillUser('ada', hour);
  await until(
    () => hourhand.stat('ada', hour),
    (stat) => stat === undefined,
  );
  await until(
    () => hourhand.hour(hour),
    (row) => row?.users === 1,
  );
});

test('a user who is neither in the calls nor in the rows leaves no mark', async () => {
  await using hourhand = await closedHour(hour, [{ user: 'ada', at }], impatient);
  expect(await hourhand.backfillUser('nobody', hour)).toMatchObject({ hours: [] });
});

test('a marked user who cannot be stored leaves the hour partial and the mark; mended, both are settled', async () => {
  await using hourhand = await closedHour(
    hour,
    [
      { user: 'ada', at },
      { user: 'bob', at },
    ],
    impatient,
  );
  await hourhand.record(...unstorable, { user: 'bob', at });
  await hourhand.backfillUser('ada', hour);
  const partial = await until(
    () => hourhand.hour(hour),
    (row) => row?.state === 'partial',
  );
  expect(partial).toMatchObject({ run: 1, error: 'ada: numeric field overflow (22003)' });
  expect(partial?.nextAttemptAt).not.toBeNull();
  await until(
    () => hourhand.stat('bob', hour),
    (stat) => stat?.totalCalls === '2',
  );
  expect(await hourhand.pool.statMark.findMany({ distinct: 'userDid', select: { userDid: true } })).toEqual([
    { userDid: 'ada' },
  ]);

  await hourhand.pool.$executeRaw`update "ModelCall" set credits = 1 where "userDid" = 'ada'`;
  await until(
    async () => {
      await hourhand.tick();
      return hourhand.state(hour);
    },
    (state) => state === 'closed',
  );
  expect(await hourhand.pool.statMark.count()).toBe(0);
  expect(await hourhand.wrong()).toEqual([]);
});

test('a mended user closes the partial hour that waited for nobody else', async () => {
  await using hourhand = await startHourhand();
  await hourhand.record(...unstorable, { user: 'bob', at });
  await hourhand.work();
  await hourhand.backfill(hour);
  await hourhand.reaches(hour, 'partial');
  await hourhand.pool.$executeRaw`update "ModelCall" set credits = 1 where "userDid" = 'ada'`;
  await hourhand.backfillUser('ada', hour);
  await hourhand.reaches(hour, 'closed');
  expect((await hourhand.hour(hour))?.run).toBe(1);
  expect(await hourhand.wrong()).toEqual([]);
});

test('an hour that never ran is not closed by a mended mark', async () => {
  await using hourhand = await startHourhand();
  await hourhand.record(...unstorable, { user: 'bob', at });
  await hourhand.work();
  await hourhand.backfillUser('ada', hour);
  await hourhand.reaches(hour, 'partial');
  await hourhand.pool.$executeRaw`update "ModelCall" set credits = 1 where "userDid" = 'ada'`;
  await hourhand.backfillUser('ada', hour);
  await until(
    () => hourhand.stat('ada', hour),
    (stat) => stat !== undefined,
  );
  await until(
    () => hourhand.hour(hour),
    (row) => row?.state === 'open' && row.error === null,
  );
  expect(await hourhand.wrong()).toEqual(['bob 2026-08-20 13:00:00+00']);
});

test('a user who is rolled up alone keeps the row of zeros where zeros are stored', async () => {
  await using hourhand = await startHourhand({ STORE_ZERO_ROWS: 'true' });
  await hourhand.record({ user: 'ada', at }, { user: 'bob', at }, { user: 'bob', at: '2026-08-20T12:10:00Z' });
  await hourhand.work();
  await hourhand.backfill(hour);
  await hourhand.reaches(hour, 'closed');
  await hourhand.pool
    .$executeRaw`delete from "ModelCall" where "userDid" = 'bob' and "callTime" >= ${range.start}::timestamptz`;
  await hourhand.backfillUser('bob', hour);
  await until(
    () => hourhand.stat('bob', hour),
    (stat) => stat?.totalCalls === '0',
  );
});

test('above a thousand marked users the whole hour is asked for', async () => {
  await using hourhand = await closedHour(hour, [{ user: 'ada', at }], impatient);
  await hourhand.record(...Array.from({ length: 1_001 }, (_, i) => ({ user: `u${i}`, at })));
  await hourhand.pool
    .$executeRaw`insert into "StatMark" (hour, "userDid", reason) select ${range.start}::timestamptz, 'u' || i, 'late' from generate_series(0, 1000) i`;
  await hourhand.tick();
  await until(
    () => hourhand.hour(hour),
    (row) => row?.run === 2 && row.state === 'closed',
  );
  expect(await hourhand.pool.statMark.count()).toBe(0);
  expect(await hourhand.wrong()).toEqual([]);
});

test('above a thousand marked users of an hour that nobody rolls up otherwise, each of them is rolled up', async () => {
  await using hourhand = await startHourhand();
  await hourhand.record(...unstorable);
  await hourhand.work();
  await hourhand.backfillUser('ada', hour);
  await hourhand.reaches(hour, 'partial'); // known, and not covered
  await hourhand.pool.$executeRaw`update "ModelCall" set credits = 1`;
  await hourhand.record(...Array.from({ length: 1_001 }, (_, i) => ({ user: `u${i}`, at })));
  await hourhand.backfillUser('ada', hour);
  await until(
    async () => {
      await hourhand.tick();
      return hourhand.wrong();
    },
    (wrong) => wrong.length === 0,
  );
  await until(
    () => hourhand.pool.statMark.count(),
    (n) => n === 0,
  );
});

test('a mark that cannot be stored does not change what is on record of the run that closed its hour', async () => {
  await using hourhand = await closedHour(hour, [{ user: 'bob', at }]);
  const before = await runsOf(hourhand.pool, hour, 10);
  expect(before).toMatchObject([{ run: 1, outcome: 'closed', error: null }]);
  await hourhand.record(...unstorable);
  await hourhand.tick();
  await hourhand.reaches(hour, 'partial');
  expect(await runsOf(hourhand.pool, hour, 10)).toEqual(before);
});

test('while the whole hour is marked, no moment is known up to which a roll-up of marked users has every call', async () => {
  await using hourhand = await startHourhand();
  const { pool } = hourhand;
  const mark = (user: string) =>
    pool.$executeRaw`insert into "StatMark" (hour, "userDid", reason) values (${startOf(hour)}::timestamptz, ${user}, 'backfill')`;
  await mark('ada');
  expect((await markedScopes(pool, hour)).asOf).toBeInstanceOf(Date);
  await mark('');
  expect(await markedScopes(pool, hour)).toMatchObject({ scopes: [{ users: ['ada'] }], asOf: null });
});
