// What the ledger and the models say of an hour is what its rows and calls add up to, whoever changed them.

import { expect, test } from 'vitest';
import { rollUpScope } from '../src/processors/roll-up-scope.ts';
import { cancelBackfill, pauseBackfill } from '../src/producers/backfills.ts';
import { Sql } from '../src/store/db.ts';
import { deriveWaiting } from '../src/store/hour-models.ts';
import { audited, closedHour, type Hourhand, h, until } from './support/hourhand.ts';

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

test('a roll-up of marks that dies, and loses its job with Redis, is made up for by the audit', async () => {
  await using hourhand = await closedHour(hour, two);
  await derive(hourhand);
  await hourhand.record({ user: 'ada', at, credits: '5' });
  await rollUpScope(hourhand.pool, { hour, lo: 0, hi: 63 }, new AbortController().signal);
  await until(
    async () => {
      await audited(hourhand);
      await derive(hourhand);
      return said(hourhand);
    },
    (seen) => agree(seen),
  );
  expect(await hourhand.pool.statHour.findMany({ where: { users: 2 } })).toMatchObject([{ revision: 2 }]);
});
