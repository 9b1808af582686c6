// Triggers and indexes of ModelCall that are not as the migrations made them: found, told with the remedy, and ended by it.

import { describe, expect, test } from 'vitest';
import { startDashboard } from '../src/dashboard/server.ts';
import { lookForWarnings } from '../src/processors/look-for-warnings.ts';
import { faultsOfCalls } from '../src/store/call-parts.ts';
import { openWarnings } from '../src/store/warnings.ts';
import { HOUR_MS, hourOf } from '../src/time/hour.ts';
import { type Hourhand, h, startHourhand, threeHours, until } from './support/hourhand.ts';
import { inPartitions } from './support/partitions.ts';

const look = async ({ pool, log, callParts }: Hourhand) => {
  await lookForWarnings({ pool, log, callParts });
  return (await openWarnings(pool)).map(({ kind, subject, detail, remedy }) => ({ kind, subject, detail, remedy }));
};

/** What a remedy says to type. */
const typed = (remedy = '') => remedy.replace(/^type in psql: /, '');

/** The remedy's statements, one by one: `$$` keeps the semicolons of a function. */
async function type({ pool }: Hourhand, remedy?: string): Promise<void> {
  const statements = typed(remedy)
    .split('$$')
    .map((text, i) => (i % 2 === 0 ? text.replaceAll(';', '\0') : text))
    .join('$$')
    .split('\0');
  for (const statement of statements.filter((text) => text.trim() !== '')) await pool.$executeRawUnsafe(statement);
}

describe.each([
  ['in one table', async () => {}],
  ['in partitions', (hourhand: Hourhand) => inPartitions(hourhand)],
])('%s', (layout, prepare) => {
  test.each([
    ['disabled', 'alter table "ModelCall" disable trigger "ModelCall_late_update"', 'ModelCall_late_update'],
    [
      'for replicas alone',
      'alter table "ModelCall" enable replica trigger "ModelCall_late_delete"',
      'ModelCall_late_delete',
    ],
    ['dropped', 'drop trigger "ModelCall_late_insert" on "ModelCall"', 'ModelCall_late_insert'],
    [
      'another',
      `create or replace trigger "ModelCall_late_insert" after insert on "ModelCall" for each row
         when (false) execute function "markLateCall"()`,
      'ModelCall_late_insert',
    ],
    [
      'a function of somebody else',
      `create or replace function "markLateCall"() returns trigger language plpgsql as $$ begin return null; end $$`,
      'markLateCall',
    ],
    [
      'a function that looks into another schema',
      'alter function "markLateCall"() set search_path = elsewhere, pg_temp',
      'markLateCall',
    ],
    ['an index dropped', 'drop index "ModelCall_hour_bucket_idx"', 'ModelCall_hour_bucket_idx'],
  ])('%s: found with what to type, which ends it', async (_, harm, subject) => {
    await using hourhand = await startHourhand();
    await prepare(hourhand);
    expect(await look(hourhand)).toEqual([]);
    await hourhand.pool.$executeRawUnsafe(harm);
    const [warning, ...others] = await look(hourhand);
    expect(warning).toMatchObject({ kind: 'triggers', subject });
    expect(others).toEqual([]);
    await type(hourhand, warning?.remedy);
    expect((await look(hourhand)).filter(({ kind }) => kind === 'triggers')).toEqual([]);
  });

  test('without the function nothing can be made but the function: it is told first', async () => {
    await using hourhand = await startHourhand();
    const { pool, callParts } = hourhand;
    await prepare(hourhand);
    await pool.$executeRaw`drop function "markLateCall"() cascade`;
    const faults = await faultsOfCalls(pool, callParts);
    expect(faults.map(({ subject }) => subject)).toEqual([
      'markLateCall',
      'ModelCall_late_insert',
      'ModelCall_late_update',
      'ModelCall_late_delete',
    ]);
    for (const { remedy } of faults) await type(hourhand, remedy);
    expect(await faultsOfCalls(pool, callParts)).toEqual([]);
    await hourhand.record({ user: 'ada', at: '2026-08-20T13:10:00Z' });
    expect(await pool.statMark.count()).toBe(1);
  });

  test.runIf(layout === 'in partitions')("one partition's trigger that is disabled is found", async () => {
    await using hourhand = await startHourhand();
    await prepare(hourhand);
    await hourhand.pool.$executeRaw`alter table "ModelCall_20260821" disable trigger "ModelCall_late_insert"`;
    const [warning] = await look(hourhand);
    expect(warning?.detail).toContain('The trigger ModelCall_late_insert of "ModelCall_20260821" is disabled');
    await type(hourhand, warning?.remedy);
    expect(await look(hourhand)).toEqual([]);
  });
});

test('a disabled trigger is told by status, page, /readyz, metrics and log, and does not make anything unready', async () => {
  await using hourhand = await startHourhand();
  await hourhand.work();
  const { url, close } = await startDashboard(hourhand);
  await using _ = { [Symbol.asyncDispose]: close };
  await hourhand.pool.$executeRaw`alter table "ModelCall" disable trigger user`;
  const told = 'The trigger ModelCall_late_insert of ModelCall is disabled';
  const remedy = 'ALTER TABLE "ModelCall" ENABLE TRIGGER "ModelCall_late_insert";';
  const [line] = (await hourhand.run(['status'])).stdout.split('\n');
  expect(line).toContain(told);
  expect(line).toContain(`${remedy}; 2 other things want attention. `);
  expect(await (await fetch(url)).text()).toContain(`<strong>${told}`);
  const ready = await fetch(`${url}/readyz`);
  expect({ status: ready.status, body: await ready.json() }).toMatchObject({
    status: 200,
    body: {
      checks: expect.arrayContaining([
        expect.objectContaining({
          name: 'warning triggers ModelCall_late_insert',
          ok: true,
          warn: true,
          found: expect.stringContaining(remedy),
        }),
      ]),
    },
  });
  expect(await (await fetch(`${url}/metrics`)).text()).toContain('hourhand_warnings{kind="triggers"} 3');
  await look(hourhand);
  await look(hourhand);
  const raised = hourhand.logged.filter(({ msg, kind }) => msg === 'warning raised' && kind === 'triggers');
  expect(raised.map(({ level, subject }) => ({ level, subject }))).toEqual(
    ['delete', 'insert', 'update'].map((event) => ({ level: 50, subject: `ModelCall_late_${event}` })),
  );
});

test('after a trigger was mended, the hours since it was found are to be audited, and that warning ends with the audit', async () => {
  await using hourhand = await startHourhand();
  const { pool } = hourhand;
  await hourhand.work();
  const last = new Date(Math.floor(Date.now() / HOUR_MS) * HOUR_MS - HOUR_MS);
  await hourhand.reaches(hourOf(last), 'closed');
  await until(
    () => pool.statHour.count({ where: { hour: last, fence: 0 } }),
    (n) => n === 1,
  );
  await pool.$executeRaw`alter table "ModelCall" disable trigger "ModelCall_late_insert"`;
  await look(hourhand);
  await hourhand.record({ user: 'ada', at: new Date(last.getTime() + 60_000).toISOString() });
  await pool.$executeRaw`alter table "ModelCall" enable trigger "ModelCall_late_insert"`;
  const [warning] = await look(hourhand);
  expect(warning).toMatchObject({
    kind: 'unaudited',
    remedy: expect.stringMatching(/^type hourhand audit --from \S+ --to \S+$/),
  });
  const words = warning?.remedy.replace('type hourhand ', '').split(' ') ?? [];
  const audit = await hourhand.run(words);
  expect(audit).toMatchObject({
    code: 1,
    stdout: expect.stringContaining(`${hourOf(last)} 1 user-hours differ: ada`),
  });
  await until(
    async () => (await hourhand.run(words)).code,
    (code) => code === 0,
  );
  expect(await hourhand.stat('ada', hourOf(last))).toMatchObject({ totalCalls: '1' });
  expect(await look(hourhand)).toEqual([]);
});

test('an audit by hand recounts the closed hours of its range, repairs what differs, and says what it left out', async () => {
  await using hourhand = await threeHours();
  const { pool } = hourhand;
  const range = ['--from', '2026-08-20T13', '--to', '2026-08-20T17'];
  expect(await hourhand.run(['audit', ...range])).toMatchObject({
    code: 0,
    stdout: '',
    stderr: expect.stringContaining('3 of 4 hours recounted, none differs; 1 are not closed or still provisional'),
  });
  await pool.$executeRaw`
    update "ModelCallStat" set "totalCalls" = 7 where "userDid" = 'ada' and "timestamp" = '2026-08-20T14:00Z'`;
  await pool.$executeRaw`update "StatHour" set "sealedAt" = now() where hour = '2026-08-20T15:00Z'`;
  expect(await hourhand.run(['audit', ...range])).toMatchObject({
    code: 1,
    stdout: expect.stringMatching(/^2026-08-20T14 1 user-hours differ: ada: /),
    stderr: expect.stringContaining(
      '2 of 4 hours recounted, 1 differ and are rolled up again; 1 sealed ones stay as they are',
    ),
  });
  await until(
    async () => (await hourhand.stat('ada', h('2026-08-20T14')))?.totalCalls,
    (calls) => calls === '1',
  );
});
