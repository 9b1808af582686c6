// What comes late for a sealed hour is in no figure: it is listed, said until somebody accepts it, and waited for by
// nobody.

import { describe, expect, test } from 'vitest';
import { retain } from '../src/producers/retain.ts';
import { Sql } from '../src/store/db.ts';
import { sweepMarks } from '../src/store/marks.ts';
import { sealHour } from '../src/store/seal.ts';
import { standingOf } from '../src/store/standing.ts';
import { openWarnings } from '../src/store/warnings.ts';
import { endOf, startOf } from '../src/time/hour.ts';
import { openWriter } from './support/gateway.ts';
import { audited, type Hourhand, h, startHourhand, threeHours, until, untilSwept } from './support/hourhand.ts';
import { inPartitions } from './support/partitions.ts';

const hour = h('2026-08-20T13');
const next = h('2026-08-20T14');
const at = '2026-08-20T13:10:00Z';
const range = { start: startOf(hour), end: endOf(hour) };
const span = ['--from', '2026-08-20T13', '--to', '2026-08-20T14'];
const both = ['--from', '2026-08-20T13', '--to', '2026-08-20T16'];
const never = new AbortController().signal;
const layouts: [string, (hourhand: Hourhand) => Promise<void>][] = [
  ['one table', async () => {}],
  // The first partition reaches to the 21st.
  ['partitions', (hourhand) => inPartitions(hourhand, { now: new Date('2026-08-19T12:00:00Z') })],
];

describe.each(layouts)('in %s', (layout, inLayout) => {
  test('an insert and a change are listed, and said by verify until they are accepted; a delete is not', async () => {
    await using hourhand = await threeHours({ AUDIT_WITHIN_DAYS: '1', CALLS_KEPT_DAYS: '2' });
    await inLayout(hourhand);
    expect((await audited(hourhand)).returnvalue).toMatchObject({ sealed: 3 });
    expect((await hourhand.run(['verify', ...both])).code).toBe(0);

    await hourhand.record({ user: 'cy', id: 'cy', at });
    await hourhand.pool.$executeRaw`update "ModelCall" set credits = 3 where id = 'cy'`;
    await hourhand.pool.$executeRaw`delete from "ModelCall" where "userDid" = 'bob'`;
    // Before any look, and after it.
    const said = `${hour} sealed; late, not applied: 2 writes (cy)\n`;
    const [before, listed] = await Promise.all([hourhand.run(['verify', ...both]), hourhand.run(['late', 'list'])]);
    expect(before).toMatchObject({ code: 1, stdout: `${said}${next} sealed\n2026-08-20T15 sealed\n` });
    expect(before.stderr).toContain('late, not applied: for 1 sealed hours');
    expect(listed.stdout).toBe(`${hour} late, not applied: 2 writes (cy)\n`);
    await untilSwept(hourhand);
    expect(await late(hourhand)).toEqual(['13 cy 2']);
    expect((await hourhand.run(['verify', ...span])).stdout).toBe(said);
    expect((await standingOf(hourhand.pool, range)).final).toBe(1);
    expect(await hourhand.stat('cy', hour)).toBeUndefined();

    const accepted = await hourhand.run(['late', 'accept', hour, next]);
    expect(accepted).toMatchObject({ code: 0, stdout: `${hour} accepted: 2 writes of 1 users stay unapplied\n` });
    expect(accepted.stderr).toContain(`nothing to accept of ${next}`);
    expect(await hourhand.run(['verify', ...span])).toMatchObject({
      code: 0,
      stdout: `${hour} sealed; late, accepted: 2 writes\n`,
    });
    expect(await hourhand.pool.operatorAction.findMany()).toMatchObject([
      { what: 'accept late', subject: `${hour}, ${next}`, outcome: 'exit 0' },
    ]);
    // What comes afterwards is another matter.
    await hourhand.record({ user: 'cy', at });
    expect((await hourhand.run(['verify', ...span])).stdout).toBe(
      `${hour} sealed; late, not applied: 1 writes (cy); late, accepted: 2 writes\n`,
    );
  });

  test.each([
    ['another hour', '2026-08-20T14:30:00Z'],
    ['another partition', '2026-08-21T14:30:00Z'],
  ])('a call that moves out into %s is late in the hour that it left, and rolled up in the other', async (_, to) => {
    await using hourhand = await threeHours();
    await inLayout(hourhand);
    const other = h(to.slice(0, 13));
    await hourhand.backfill(other);
    await until(
      () => standingOf(hourhand.pool, { start: startOf(other), end: endOf(other) }),
      ({ final }) => final === 1,
    );
    await seal(hourhand);
    await hourhand.pool.$executeRaw`
      update "ModelCall" set "callTime" = ${new Date(to)}::timestamptz
       where "userDid" = 'ada' and "callTime" < ${startOf(next)}::timestamptz`;
    await untilSwept(hourhand);
    expect(await late(hourhand)).toEqual(['13 ada 1']);
    await until(
      () => hourhand.stat('ada', other),
      (stat) => stat?.totalCalls === (other === next ? '2' : '1'),
    );
    expect(await hourhand.run(['verify', ...span])).toMatchObject({
      code: 1,
      stdout: `${hour} sealed; late, not applied: 1 writes (ada)\n`,
    });
  });

  test('a call that moves out into the hour that runs is late in the hour that it left', async () => {
    await using hourhand = await threeHours();
    await inLayout(hourhand);
    await seal(hourhand);
    await hourhand.pool.$executeRaw`
      update "ModelCall" set "callTime" = clock_timestamp()
       where "userDid" = 'ada' and "callTime" < ${startOf(next)}::timestamptz`;
    await untilSwept(hourhand);
    expect(await late(hourhand)).toEqual(['13 ada 1']);
  });

  test('a call that moves in is late in the sealed hour, and gone from the other', async () => {
    await using hourhand = await threeHours();
    await inLayout(hourhand);
    await seal(hourhand);
    await hourhand.pool.$executeRaw`
      update "ModelCall" set "callTime" = ${new Date(at)}::timestamptz
       where "userDid" = 'ada' and "callTime" > ${startOf(h('2026-08-20T15'))}::timestamptz`;
    await untilSwept(hourhand);
    expect(await late(hourhand)).toEqual(['13 ada 1']);
    await until(
      () => hourhand.stat('ada', h('2026-08-20T15')),
      (stat) => stat === undefined,
    );
  });

  test('a retention lists before it deletes or detaches, also what is older than the seal', async () => {
    await using hourhand = await threeHours();
    await inLayout(hourhand);
    await using writer = await openWriter(hourhand, 'repeatable read');
    await writer.query('select 1'); // its snapshot knows of no seal
    await using sooner = await openWriter(hourhand);
    await sooner.record({ user: 'dan', at });
    await seal(hourhand);
    await sooner.query('commit');
    await writer.record({ user: 'eve', at });
    await writer.query('commit');
    await hourhand.record({ user: 'ada', at }, { user: 'cy', id: 'cy', at });
    await hourhand.pool.$executeRaw`delete from "ModelCall" where id = 'cy'`; // its mark alone tells of it
    // Nobody else looks: the retention counts them itself.
    await hourhand.queues.marks.pause();
    const { late: said } = await retain(
      { pool: hourhand.pool, queues: hourhand.queues },
      { kept: { calls: 48 }, requestedBy: 'test', signal: never },
    );
    expect(said.first).toMatchObject([{ hour, users: expect.arrayContaining(['ada', 'dan', 'eve']) }]);
    expect(await late(hourhand)).toEqual(['13 ada 1', '13 cy 1', '13 dan 1', '13 eve 1']);
    const detached = await hourhand.pool.$queryRaw<object[]>`
      select 1 from pg_class where relname = 'ModelCall_before_20260821' and not relispartition`;
    expect(detached).toHaveLength(layout === 'partitions' ? 1 : 0);
    expect((await hourhand.run(['verify', ...span])).code).toBe(1);
    expect((await hourhand.stat('ada', hour))?.totalCalls).toBe('1');
    const { code } = await hourhand.run(['late', 'accept', hour]);
    expect([code, (await hourhand.run(['verify', ...span])).code]).toEqual([0, 0]);
  });

  test('what came past the triggers is said while all calls are there, and listed before they go', async () => {
    await using hourhand = await threeHours();
    await inLayout(hourhand);
    await seal(hourhand);
    await hourhand.silently(Sql.sql`
      insert into "ModelCall" (id, "userDid", "providerId", model, type, "callTime")
      values ('x', 'cy', 'p', 'm', 'custom', ${new Date(at)}::timestamptz)`);
    expect(await hourhand.run(['verify', ...span])).toMatchObject({
      code: 1,
      stdout: `${hour} sealed; late, not applied: 1 calls that left no mark (cy)\n`,
    });
    // Where calls have been archived, nobody can tell.
    await hourhand.pool.$executeRaw`delete from "ModelCall" where "userDid" in ('ada', 'bob')`;
    expect((await hourhand.run(['verify', ...span])).code).toBe(0);
    const { late: said } = await retain(
      { pool: hourhand.pool, queues: hourhand.queues },
      { kept: { calls: 48 }, requestedBy: 'test', signal: never, now: new Date('2026-08-22T14:00:00Z') },
    );
    expect(said).toMatchObject({ calls: 1, hours: 1 });
    expect(await late(hourhand)).toEqual(['13 cy 1']);
  });
});

test('a late call of a sealed hour is warned of and said in the log, and an import counts it', async () => {
  await using hourhand = await threeHours();
  await seal(hourhand);
  const csv = `call_time,user_did,app_did,provider,model,type,input_tokens,output_tokens,credits,status,duration_s
${at},ada,,p,m,chatCompletion,1,1,0.1,success,1
${at},ada,,p,m,chatCompletion,1,1,0.2,success,1
2026-08-20T14:10:00Z,ada,,p,m,chatCompletion,1,1,0.1,success,1
`;
  const imported = await hourhand.run(['import', '-'], csv);
  expect(imported.code).toBe(0);
  expect(imported.stderr).toContain('3 calls of 1 users imported');
  expect(imported.stderr).toContain('late, not applied: 2 of them fell into 1 sealed hours');
  await untilSwept(hourhand);
  await hourhand.work(); // it looks when it starts
  expect(await openWarnings(hourhand.pool)).toMatchObject([
    {
      kind: 'sealed-late',
      detail: `1 writes came late for 1 sealed hours (${hour})`,
      remedy: expect.stringContaining('hourhand late list'),
    },
  ]);
  expect(hourhand.logged).toContainEqual(expect.objectContaining({ level: 40, hours: 1, writes: 1 }));
  await hourhand.run(['late', 'accept', hour]);
  await hourhand.work();
  expect(await openWarnings(hourhand.pool)).toEqual([]);
});

test('an hour that is not sealed has nothing to accept, and nothing is half accepted', async () => {
  await using hourhand = await threeHours();
  await seal(hourhand);
  await hourhand.record({ user: 'ada', at });
  const { code, stderr } = await hourhand.run(['late', 'accept', hour, next]);
  expect([code, stderr]).toEqual([1, expect.stringContaining(`expected sealed hours, got ${next}`)]);
  expect((await hourhand.run(['verify', ...span])).code).toBe(1);
  const wrong = await hourhand.run(['late', 'accept', '2026-08-20']);
  expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringContaining('expected hours such as 2026-08-20T13')]);
});

test('a mark just before the seal keeps the hour from it, and sweeps at once count a write once', async () => {
  await using hourhand = await threeHours();
  await hourhand.queues.marks.pause();
  await hourhand.record({ user: 'ada', at });
  expect(await sealHour(hourhand.pool, hour)).toEqual({ outcome: 'passed', why: 'users marked' });
  await hourhand.pool.$executeRaw`update "StatHour" set "sealedAt" = now() where hour = ${startOf(hour)}`;
  await hourhand.record(...Array.from({ length: 200 }, () => ({ user: 'ada', at })));
  await Promise.all(Array.from({ length: 4 }, () => sweepMarks(hourhand.pool, 60)));
  await sweepMarks(hourhand.pool, 1_000);
  expect(await late(hourhand)).toEqual(['13 ada 201']);
});

describe('a user whose name is too long for a mark', () => {
  const long = `did:abt:${Array.from({ length: 400 }, (_, i) => `${(i * 7919) ** 2}-`).join('')}`;

  test('has the whole hour marked; it is partial, and names the user, shortened', async () => {
    await using hourhand = await threeHours();
    await hourhand.pool.$executeRaw`update "ModelCall" set credits = 2 where "userDid" = 'ada'`;
    await hourhand.record({ user: long, at });
    expect(await hourhand.pool.statMark.count({ where: { userDid: '' } })).toBe(1);
    await hourhand.tick();
    const partial = await until(
      () => hourhand.hour(hour),
      (row) => row?.state === 'partial',
    );
    expect(partial?.error).toContain(`${long.slice(0, 200)}…: index row`);
    expect(partial?.error?.length).toBeLessThan(500);
    // Everybody else is stored, and once the call is gone all is well.
    expect((await hourhand.stat('ada', hour))?.totalCredits).toBe('2.00000000');
    await hourhand.pool.$executeRaw`delete from "ModelCall" where "userDid" = ${long}`;
    await until(
      async () => {
        await hourhand.tick();
        return hourhand.state(hour);
      },
      (state) => state === 'closed',
    );
    await untilSwept(hourhand);
    expect(await hourhand.wrong()).toEqual([]);
    expect((await hourhand.run(['verify', ...both])).code).toBe(0);
  });

  test('is in the account of a sealed hour, and no roll-up takes the mark of the whole hour', async () => {
    await using hourhand = await threeHours();
    await hourhand.queues.marks.pause();
    await seal(hourhand);
    await hourhand.record({ user: long, at }, { user: long, at: '2026-08-20T14:10:00Z' });
    await hourhand.tick();
    expect(await late(hourhand)).toEqual(['13  1']);
    expect((await hourhand.run(['late', 'list'])).stdout).toContain('1 writes (a user with a very long name)');
    // A run of the other hour that began before: its shards are of some users each.
    await hourhand.backfill(next);
    await until(
      () => hourhand.hour(next),
      (row) => row?.state === 'partial',
    );
    expect(await hourhand.pool.statMark.count({ where: { userDid: '' } })).toBe(1);
  });
});

test('a mark of a sealed hour keeps nobody waiting: no look, no other hour, and no retention', async () => {
  await using hourhand = await startHourhand();
  await hourhand.pool.$executeRaw`
    insert into "StatHour" (hour, state, run, reason, "closedAt", fence, "sealedAt")
    values (${startOf(hour)}::timestamptz, 'closed', 1, 'tick', now(), 0, now())`;
  await hourhand.record({ user: 'ada', at });
  expect((await standingOf(hourhand.pool, range)).final).toBe(1);
  expect(await hourhand.tick()).toMatchObject({ marked: [], enqueued: [], settled: [] });
  expect(await hourhand.pool.statMark.count()).toBe(0);
});

async function seal({ pool }: Hourhand): Promise<void> {
  expect(await sealHour(pool, hour)).toEqual({ outcome: 'sealed' });
}

/** The account, as `13 ada 2`. */
async function late({ pool }: Hourhand): Promise<string[]> {
  const rows = await pool.statLate.findMany({ orderBy: [{ hour: 'asc' }, { userDid: 'asc' }] });
  return rows.map(({ hour, userDid, writes }) => `${hour.getUTCHours()} ${userDid} ${writes}`);
}
