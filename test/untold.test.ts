// The ledger and the models of a closed hour are derived anew after each roll-up, whatever dies in between.

import { describe, expect, test } from 'vitest';
import { rollUpScope } from '../src/processors/roll-up-scope.ts';
import { allotRun } from '../src/store/cut.ts';
import { type Db, Sql } from '../src/store/db.ts';
import { deriveWaiting } from '../src/store/hour-models.ts';
import { closeHour, recountHour } from '../src/store/ledger.ts';
import { lockScope } from '../src/store/scope.ts';
import { sealHour } from '../src/store/seal.ts';
import { rollUp } from '../src/store/stats.ts';
import { startOf } from '../src/time/hour.ts';
import { connected, openWriter } from './support/gateway.ts';
import { audited, closedHour, type Hourhand, h, startHourhand, threeHours, until } from './support/hourhand.ts';

const hour = h('2026-08-20T13');
const at = '2026-08-20T13:10:00Z';
const span = ['--from', '2026-08-20T13', '--to', '2026-08-20T14'];
const two = ['ada', 'bob'].map((user) => ({ user, at }));
const never = new AbortController().signal;
const whole = { hour, lo: 0, hi: 63 };

const derive = ({ pool }: Hourhand) => deriveWaiting(pool, AbortSignal.timeout(30_000));
const ledger = ({ pool }: Hourhand) => pool.statHour.findUniqueOrThrow({ where: { hour: startOf(hour) } });
const models = async ({ pool }: Hourhand) =>
  (await pool.statModel.findMany({ where: { hour: startOf(hour) }, orderBy: { model: 'asc' } })).map(
    ({ model, totalCalls }) => `${model} ${totalCalls}`,
  );

/** Roll one user up, in the caller's transaction: a straggler as long as that is open. */
async function rollUpUser(db: Db, user: string): Promise<void> {
  const [{ bucket }] = await db.$queryRaw<[{ bucket: number }]>`select hashtext(${user}::text) & 63 as bucket`;
  const scope = { hour, lo: bucket, hi: bucket, users: [user] };
  await lockScope(db, scope);
  await rollUp(db, scope);
}

/** Wait until so many wait for a lock. */
async function untilWaiting({ pool }: Hourhand, many = 1): Promise<void> {
  await until(
    () => pool.$queryRaw<object[]>`
      select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`,
    (waiting) => waiting.length === many,
  );
}

describe('a roll-up of late calls', () => {
  test('of which only the model changed has the models derived again, though it dies at once', async () => {
    await using hourhand = await closedHour(hour, two);
    await derive(hourhand);
    expect(await models(hourhand)).toEqual(['gpt 2']);
    await hourhand.pool.$executeRaw`update "ModelCall" set model = 'other' where "userDid" = 'ada'`;
    await rollUpScope(hourhand.pool, whole, never); // and nothing after it: the worker was killed
    await hourhand.work(); // it looks when it starts
    await until(
      async () => {
        await derive(hourhand);
        return models(hourhand);
      },
      (seen) => seen.join() === 'gpt 1,other 1',
    );
    expect(await ledger(hourhand)).toMatchObject({ revision: 1 });
  });

  test('of which only the model changed is seen in an hour that is still provisional', async () => {
    await using hourhand = await closedHour(hour, two);
    await hourhand.pool.$executeRaw`update "StatHour" set fence = null`;
    await derive(hourhand);
    await hourhand.pool.$executeRaw`update "ModelCall" set model = 'other' where "userDid" = 'ada'`;
    await hourhand.pool.$executeRaw`update "StatHour" set fence = 1000000000 where hour = ${startOf(hour)}`;
    const { asOf } = await ledger(hourhand);
    await rollUpScope(hourhand.pool, whole, never);
    await hourhand.pool.$transaction((db) => recountHour(db, hour, new Date()));
    await derive(hourhand);
    expect(await models(hourhand)).toEqual(['gpt 1', 'other 1']);
    expect((await ledger(hourhand)).asOf).toEqual(asOf);
  });

  test('that commits after a close which published the same revision raises it once more', async () => {
    await using hourhand = await closedHour(hour, two);
    await hourhand.record(...two);
    await hourhand.pool.$transaction(async (straggler) => {
      await rollUpUser(straggler, 'ada');
      await hourhand.pool.$transaction((db) => rollUpUser(db, 'bob'));
      await hourhand.pool.$transaction((db) => recountHour(db, hour, null));
      expect(await ledger(hourhand)).toMatchObject({ revision: 2, calls: 3n });
    });
    await hourhand.pool.$transaction((db) => recountHour(db, hour, null));
    expect(await ledger(hourhand)).toMatchObject({ revision: 3, calls: 4n });
    await hourhand.pool.$transaction((db) => recountHour(db, hour, null));
    expect(await ledger(hourhand)).toMatchObject({ revision: 3 });
  });

  test('that began before the first close, and commits after it, raises the revision too', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await hourhand.cover(hour, hour);
    await hourhand.record(...two);
    const run = (await allotRun(pool, hour, { maxUserJobs: 64, minCalls: 0 }))?.run ?? 0;
    await hourhand.record({ user: 'cy', at });
    await pool.$transaction(async (straggler) => {
      await rollUpUser(straggler, 'cy');
      for (const user of ['ada', 'bob']) await pool.$transaction((db) => rollUpUser(db, user));
      expect(await closeHour(pool, hour, run, 'parent', hourhand.policy)).toMatchObject({ outcome: 'closed' });
      expect(await ledger(hourhand)).toMatchObject({ revision: 1, calls: 2n });
    });
    await hourhand.work();
    await until(
      () => ledger(hourhand),
      ({ revision, calls }) => revision === 2 && calls === 3n,
    );
  });

  test('leaves asOf as it was while an older transaction may still bring calls', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', at });
    await using writer = await openWriter(hourhand);
    await writer.beforeTheEnd({ user: 'bob', at });
    await hourhand.work();
    await hourhand.backfill(hour);
    await hourhand.reaches(hour, 'closed');
    const { asOf } = await ledger(hourhand);
    // Committed, without a mark, and in no figure until the hour runs once more.
    await writer.query('commit');
    await hourhand.queues.hours.pause();
    await hourhand.record({ user: 'ada', at });
    await hourhand.pool.$transaction((db) => recountHour(db, hour, new Date()));
    expect((await ledger(hourhand)).asOf).toEqual(asOf);
  });
});

test('sealing an hour and deriving its models take their locks in one order', async () => {
  await using hourhand = await threeHours();
  await derive(hourhand);
  await hourhand.pool.$executeRaw`update "StatHour" set "modelsAsOf" = null where hour = ${startOf(hour)}`;
  await using holder = await connected(hourhand);
  await holder.query('begin; lock table "StatModel" in access exclusive mode');
  const deriving = derive(hourhand);
  await untilWaiting(hourhand);
  const sealing = sealHour(hourhand.pool, hour);
  await untilWaiting(hourhand, 2);
  await holder.query('rollback');
  await deriving;
  expect(await sealing).toEqual({ outcome: 'sealed' });
});

describe('the totals of the ledger and of the models', () => {
  test('are compared by verify, which says what was meddled with', async () => {
    await using hourhand = await threeHours();
    await derive(hourhand);
    expect((await hourhand.run(['verify', ...span])).code).toBe(0);
    await hourhand.pool.$executeRaw`update "StatHour" set "totalCredits" = 7 where hour = ${startOf(hour)}`;
    await hourhand.pool.$executeRaw`update "StatModel" set "totalCalls" = 5 where hour = ${startOf(hour)}`;
    const { code, stdout } = await hourhand.run(['verify', ...span]);
    expect(code).toBe(1);
    expect(stdout).toContain(`${hour} ledger: totalCredits: stored 7.00000000, counted 0.00000002\n`);
    expect(stdout).toContain(`${hour} model openai/gpt chatCompletion: totalCalls: stored 5, counted 2\n`);
    // A sealed hour keeps its figures, and is compared with its rows.
    await hourhand.pool.$executeRaw`update "StatHour" set "sealedAt" = now() where hour = ${startOf(hour)}`;
    await hourhand.silently(Sql.sql`delete from "ModelCall"`);
    const sealed = await hourhand.run(['verify', ...span]);
    expect(sealed.code).toBe(1);
    expect(sealed.stdout).toContain(`${hour} ledger: totalCredits: stored 7.00000000, counted 0.00000002\n`);
    expect(sealed.stdout).toContain(`${hour} models: totalCalls: stored 5, counted 2\n`);
  });

  test('are compared by the audit, which says so and repairs them', async () => {
    await using hourhand = await threeHours({ AUDIT_WITHIN_DAYS: '1' });
    await derive(hourhand);
    await hourhand.pool.$executeRaw`update "StatHour" set "totalCredits" = 7 where hour = ${startOf(hour)}`;
    await hourhand.pool
      .$executeRaw`update "StatModel" set model = 'forged' where hour = ${startOf(h('2026-08-20T14'))}`;
    expect((await audited(hourhand)).returnvalue).toMatchObject({ differing: 2 });
    const errors = hourhand.logged.filter(({ level }) => level === 50);
    expect(errors.map(({ found }) => found)).toEqual([
      expect.stringContaining('ledger: totalCredits: stored 7.00000000, counted 0.00000002'),
      expect.stringContaining('model openai/gpt chatCompletion'),
    ]);
    await until(
      () => hourhand.pool.statHour.count({ where: { state: 'closed', run: 2 } }),
      (n) => n === 2,
    );
    await derive(hourhand);
    expect(Number((await ledger(hourhand)).totalCredits)).toBe(0.00000002);
    expect((await audited(hourhand)).returnvalue).toMatchObject({ differing: 0 });
  });
});
