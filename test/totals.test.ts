// What the ledger and the models say of an hour is what its rows and calls add up to, whoever changed them.

import { expect, test } from 'vitest';
import { rollUpScope } from '../src/processors/roll-up-scope.ts';
import { cancelBackfill, pauseBackfill } from '../src/producers/backfills.ts';
import { Sql } from '../src/store/db.ts';
import { deriveWaiting } from '../src/store/hour-models.ts';
import { MODELS_LOCK } from '../src/store/scope.ts';
import { sealHour } from '../src/store/seal.ts';
import { ordinalOf } from '../src/time/hour.ts';
import { closedHour, type Hourhand, h, startHourhand, threeHours, until } from './support/hourhand.ts';

const hour = h('2026-08-20T13');
const at = '2026-08-20T13:10:00Z';
const two = ['ada', 'bob'].map((user) => ({ user, at }));

const derive = ({ pool }: Hourhand) => deriveWaiting(pool, AbortSignal.timeout(30_000));

/** What is said of the hours together: by the ledger, by their rows, and by their models. */
async function said({ pool }: Hourhand): Promise<Record<string, string>> {
  const [row] = await pool.$queryRaw<[Record<string, string>]>`
    select (select (sum(users), sum(calls), sum("successCalls"), sum("failedCalls"), sum("totalUsage"), sum("totalCredits"))::text
              from "StatHour") as ledger,
           (select (count(*) filter (where "totalCalls" > 0), sum("totalCalls"), sum("successCalls"), sum("failedCalls"), sum("totalUsage"),
                    sum("totalCredits"))::text from "ModelCallStat") as rows,
           (select (sum("totalCalls"), sum("totalCredits"))::text from "StatModel") as models,
           (select (sum("totalCalls"), sum("totalCredits"))::text from "ModelCallStat") as "ofRows"`;
  return row;
}

const agree = ({ ledger, rows, models, ofRows }: Record<string, string>) => ledger === rows && models === ofRows;

/** It has closed, a user's call came late, and the one job that is begun by hand is a child of the run that closed it. */
test("a child that is retried after its hour has closed leaves the ledger's figures as the rows', and another revision", async () => {
  await using hourhand = await closedHour(hour, two);
  await derive(hourhand);
  await hourhand.record({ user: 'ada', at, credits: '5' });
  const jobs = await hourhand.queues.users.getJobs(['completed']);
  await jobs.find((job) => job.data.userDid === 'ada')?.retry('completed');
  await until(
    () => said(hourhand),
    ({ ledger, rows }) => rows?.includes('5.00000002') === true && ledger === rows,
  );
  await derive(hourhand);
  expect(await said(hourhand)).toSatisfy(agree);
  expect(await hourhand.pool.statHour.findMany({ where: { users: 2 } })).toMatchObject([{ revision: 2, calls: 3n }]);
});

test('users who are rolled up while a paused backfill holds their hour are in its figures when that is cancelled', async () => {
  await using hourhand = await closedHour(hour, two);
  await derive(hourhand);
  await hourhand.queues.hours.pause();
  const { backfill } = await hourhand.backfill(hour);
  await pauseBackfill(hourhand, backfill, 'bob');
  await hourhand.silently(Sql.sql`update "ModelCall" set credits = 5 where "userDid" = 'ada'`);
  await hourhand.backfillUser('ada', hour);
  await until(
    () => hourhand.queues.marks.getCompletedCount(),
    (n) => n === 1,
  );
  expect(await hourhand.state(hour)).toBe('open');
  await cancelBackfill(hourhand, backfill, 'bob');
  await derive(hourhand);
  expect(await said(hourhand)).toSatisfy(agree);
  expect(await hourhand.pool.statHour.findMany({ where: { users: 2 } })).toMatchObject([
    { state: 'closed', revision: 2 },
  ]);
});

test('a roll-up of marks that dies, and loses its job with Redis, is made up for by the next look', async () => {
  await using hourhand = await closedHour(hour, two);
  await derive(hourhand);
  await hourhand.record({ user: 'ada', at, credits: '5' });
  await rollUpScope(hourhand.pool, { hour, lo: 0, hi: 63 }, new AbortController().signal);
  await hourhand.work(); // looks when it starts
  await until(
    async () => {
      await derive(hourhand);
      return said(hourhand);
    },
    (seen) => agree(seen),
  );
  expect(await hourhand.pool.statHour.findMany({ where: { users: 2 } })).toMatchObject([{ revision: 2 }]);
});

test('an hour that a mended mark closes, without another run, has its models derived again', async () => {
  await using hourhand = await closedHour(hour, two);
  await derive(hourhand);
  await hourhand.record(...['999999999999', '1'].map((credits) => ({ user: 'eve', at, credits })));
  await hourhand.tick();
  await hourhand.reaches(hour, 'partial');
  await hourhand.pool.$executeRaw`update "ModelCall" set credits = 1 where "userDid" = 'eve'`;
  await hourhand.backfillUser('eve', hour);
  await hourhand.reaches(hour, 'closed');
  expect((await hourhand.hour(hour))?.run).toBe(1);
  await derive(hourhand);
  expect(await said(hourhand)).toSatisfy(agree);
});

test('what an older version closes beside this one gets its totals', async () => {
  await using hourhand = await closedHour(hour, two);
  await derive(hourhand);
  await hourhand.record({ user: 'ada', at, credits: '5' });
  // What 0.5 does of it: neither totals nor models.
  await hourhand.pool.$transaction([
    hourhand.pool.$executeRaw`delete from "StatMark"`,
    hourhand.pool
      .$executeRaw`update "ModelCallStat" set "totalCredits" = 5.00000001, "totalCalls" = 2, "totalUsage" = 20, "successCalls" = 2 where "userDid" = 'ada'`,
    hourhand.pool
      .$executeRaw`update "StatHour" set run = 2, users = 2, calls = 3, "closedAt" = now(), "asOf" = now(), revision = 2 where users > 0`,
  ]);
  await derive(hourhand);
  expect(await said(hourhand)).toSatisfy(agree);
});

test('hours that were sealed before there were totals get them, and keep what they know where their rows are gone', async () => {
  await using hourhand = await threeHours();
  const hours = ['2026-08-20T13', '2026-08-20T14', '2026-08-20T15'].map(h);
  for (const hour of hours) await sealHour(hourhand.pool, hour);
  const before = await said(hourhand);
  const forget = Sql.sql`"successCalls" = null, "failedCalls" = null, "totalUsage" = null, "totalCredits" = null, "modelsAsOf" = null`;
  await hourhand.pool.$executeRaw`update "StatHour" set ${forget}`;
  await derive(hourhand);
  expect(await said(hourhand)).toEqual(before);

  await hourhand.pool.$executeRaw`update "StatHour" set ${forget}`;
  await hourhand.pool.$executeRaw`delete from "ModelCallStat"`;
  await derive(hourhand);
  expect(await hourhand.pool.statHour.findMany({ where: { sealedAt: { not: null } } })).toMatchObject(
    hours.map(() => ({ users: 2, calls: 2n, totalUsage: null })),
  );
});

test('a model of any name is counted, and keeps no other hour from it, nor its own from being sealed', async () => {
  await using hourhand = await startHourhand();
  await hourhand.record(...two, { user: 'cyd', at: '2026-08-20T12:10:00Z' });
  await hourhand.pool.$executeRaw`
    update "ModelCall" set model = (select string_agg(md5(i::text), '') from generate_series(1, 300) i),
                           "providerId" = (select string_agg('😀' || md5(i::text), '') from generate_series(1, 300) i) where "userDid" = 'ada'`;
  await hourhand.work();
  await hourhand.backfill(h('2026-08-20T12'), hour);
  await hourhand.reaches(hour, 'closed');
  await hourhand.reaches(h('2026-08-20T12'), 'closed');
  await derive(hourhand);
  expect(await said(hourhand)).toSatisfy(agree);
  await until(
    () => sealHour(hourhand.pool, hour),
    ({ outcome }) => outcome === 'sealed',
  );
});

test('an hour is not sealed beside somebody who derives its models, from calls as they were', async () => {
  await using hourhand = await threeHours();
  const { pool } = hourhand;
  let sealing: ReturnType<typeof sealHour> | undefined;
  await pool.$transaction(async (db) => {
    await db.$executeRaw`select pg_advisory_xact_lock(${ordinalOf(hour)}::int, ${MODELS_LOCK}::int)`;
    sealing = sealHour(pool, hour);
    await until(
      () => pool.$queryRaw<object[]>`select 1 from pg_locks where locktype = 'advisory' and not granted`,
      (waiting) => waiting.length === 1,
    );
    expect(await pool.statHour.count({ where: { sealedAt: { not: null } } })).toBe(0);
  });
  expect(await sealing).toEqual({ outcome: 'sealed' });
});
