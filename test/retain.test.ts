// Calls go when they have been kept long enough, and only those that stand in sealed figures.

import { describe, expect, test } from 'vitest';
import { rollUpScope } from '../src/processors/roll-up-scope.ts';
import { type RetainOptions, retain } from '../src/producers/retain.ts';
import { Sql } from '../src/store/db.ts';
import { failHour } from '../src/store/ledger.ts';
import { removeCalls } from '../src/store/retain.ts';
import { sealHour } from '../src/store/seal.ts';
import { storeZeroRows } from '../src/store/stats.ts';
import { startOf } from '../src/time/hour.ts';
import { openWriter } from './support/gateway.ts';
import {
  audited,
  ended,
  type Hourhand,
  h,
  holdUser,
  linesOf,
  startHourhand,
  threeHours,
  until,
} from './support/hourhand.ts';

const hour = h('2026-08-20T13');
const at = '2026-08-20T13:10:00Z';
const hours = [hour, h('2026-08-20T14'), h('2026-08-20T15')];
const span = ['--from', '2026-08-20T13', '--to', '2026-08-20T16'];
const never = new AbortController().signal;

describe('retention', () => {
  test('seals the hours that are right and deletes their calls; their statistics stay, and are told as before', async () => {
    await using hourhand = await threeHours();
    const told = () => hourhand.run(['stats', ...span, '--format', 'csv', '--by', 'type']);
    const before = await told();
    expect(before.stdout.trim().split('\n')).toHaveLength(7);

    const { code, stdout, stderr } = await hourhand.run(['retain', '--calls', '2d']);
    expect([code, stdout]).toEqual([0, '']);
    const [after, verified, refused] = await Promise.all([
      told(),
      hourhand.run(['verify', ...span]),
      hourhand.run(['backfill', ...span]),
    ]);
    expect(stderr).toMatch(/^3\/3 hours of calls$/m);
    expect(stderr).toContain('sealed 3 hours; deleted 6 calls of 3 hours and 0 statistics of 0 hours\n');
    expect(await hourhand.pool.modelCall.count()).toBe(0);
    expect(after).toEqual(before);
    expect(verified.stdout).toBe(hours.map((one) => `${one} sealed\n`).join(''));

    // Nobody brings them back: no mark is left, nothing is owed, and whoever asks is refused.
    expect(await hourhand.pool.statMark.count()).toBe(0);
    expect(await hourhand.tick()).toMatchObject({ enqueued: [], marked: [], settled: [] });
    expect(refused.stderr).toContain(`3 hours are sealed and stay as they are, the first ${hour}`);
    expect(await hourhand.pool.statHour.count({ where: { auditedAt: { not: null } } })).toBe(3);
    expect(await retained(hourhand)).toMatchObject({ sealed: 0, calls: 0, passed: {}, complete: true });
  });

  test('takes whole hours, once they have ended so long ago', async () => {
    await using hourhand = await threeHours();
    expect(await retained(hourhand, { now: new Date('2026-08-22T13:59:59Z') })).toMatchObject({ sealed: 0 });
    expect(await retained(hourhand, { now: new Date('2026-08-22T14:59:59Z') })).toMatchObject({
      sealed: 1,
      calls: 2,
    });
    expect(await retained(hourhand, { now: new Date('2026-08-22T15:00:00Z') })).toMatchObject({
      sealed: 1,
      calls: 2,
    });
    expect(await left(hourhand)).toEqual(['15 ada', '15 bob']);
  });

  test('passes over what is not closed or not final, with all that it has, and says why', async () => {
    await using hourhand = await startHourhand();
    const states = ['missing', 'open', 'running', 'partial', 'unsettled', 'marked', 'under way', 'right'];
    await hourhand.record(
      ...states.map((state, i) => ({
        user: state,
        at: `2026-08-20T1${i}:10:00Z`,
        status: state === 'under way' ? 'processing' : 'success',
      })),
    );
    await hourhand.pool.$executeRaw`delete from "StatMark" where "userDid" <> 'marked'`;
    await hourhand.pool.$executeRaw`
      insert into "StatHour" (hour, state, run, reason, "closedAt", fence)
      select date_trunc('hour', "callTime"), (case when "userDid" in ('open', 'running', 'partial') then "userDid" else 'closed' end)::"HourState",
             1, 'tick', now(), case when "userDid" = 'unsettled' then 1000000000000 else 0 end
        from "ModelCall" where "userDid" <> 'missing'`;
    // Right but for those: each has the row that its call adds up to.
    await hourhand.pool.$executeRaw`
      insert into "ModelCallStat"
      select 'hour', date_trunc('hour', "callTime"), "userDid", 10, 10, 0, 0, credits, 1, (status = 'success')::int, 0, (status = 'processing')::int, 0,
             jsonb_build_object(type, jsonb_build_object('totalUsage', 10, 'totalCredits', credits::text, 'totalCalls', 1, 'successCalls', (status = 'success')::int)),
             1, now()
        from "ModelCall"`;
    const passed = Object.fromEntries(
      ['missing', 'open', 'running', 'partial', 'older transactions', 'users marked', 'calls under way'].map(
        (why, i) => [why, { hours: 1, first: [`2026-08-20T1${i}`] }],
      ),
    );
    const dry = await retained(hourhand, { dryRun: true });
    expect(dry).toMatchObject({ sealed: 1, calls: 1, passed });
    expect(await retained(hourhand)).toEqual(dry);
    expect(await left(hourhand)).toEqual(states.slice(0, -1).map((state, i) => `1${i} ${state}`));
    expect(await hourhand.pool.statHour.count({ where: { sealedAt: { not: null } } })).toBe(1);
  });

  test('does not seal what differs: says it, asks for it, and takes it once it is repaired', async () => {
    await using hourhand = await threeHours();
    await hourhand.silently(
      Sql.sql`update "ModelCall" set credits = 2 where "userDid" = 'ada' and "callTime" = ${new Date(at)}`,
    );
    expect(await retained(hourhand, { dryRun: true })).toMatchObject({ sealed: 2, differing: 1 });
    expect(await hourhand.hour(hour)).toMatchObject({ run: 1, wanted: 1 });

    const { code, stdout, stderr } = await hourhand.run(['retain', '--calls', '2d']);
    expect([code, stdout]).toEqual([
      1,
      expect.stringContaining(`${hour} differs: 1 user-hours differ: ada: totalCredits`),
    ]);
    expect(stderr).toContain(`passed over 1 hours: figures differ (${hour})\n`);
    expect(stderr).toContain('asked for 1 hours whose figures differ: they are repaired first\n');
    expect(await left(hourhand)).toEqual(['13 ada', '13 bob']);
    await until(
      () => hourhand.hour(hour),
      (row) => row?.run === 2 && row.state === 'closed',
    );
    await until(
      () => retained(hourhand),
      ({ sealed }) => sealed === 1,
    );
    expect(await left(hourhand)).toEqual([]);
    expect((await hourhand.stat('ada', hour))?.totalCredits).toBe('2.00000000');
    expect(await hourhand.pool.statChange.findMany()).toMatchObject([{ userDid: 'ada', reason: 'repair' }]);
  });

  test('says beforehand what it would do, and changes nothing then', async () => {
    await using hourhand = await threeHours();
    await hourhand.silently(
      Sql.sql`update "ModelCallStat" set "totalCalls" = 2 where "userDid" = 'ada' and "timestamp" = ${startOf(hour)}`,
    );
    await sealHour(hourhand.pool, h('2026-08-20T14'));
    await hourhand.record({ user: 'bob', at: '2026-08-20T14:20:00Z' });
    const all = () =>
      Promise.all([
        hourhand.pool.statHour.findMany({ orderBy: { hour: 'asc' } }),
        hourhand.pool.modelCallStat.findMany({ orderBy: [{ timestamp: 'asc' }, { userDid: 'asc' }] }),
        left(hourhand),
      ]);
    const before = await all();
    const kept = { calls: 48, stats: 48 };
    const dry = await retained(hourhand, { kept, dryRun: true });
    const said = await hourhand.run(['retain', '--calls', '2d', '--stats', '2d', '--dry-run']);
    expect(said.code).toBe(1);
    expect(said.stderr).toContain(
      'would seal 1 hours; would delete 3 calls of 2 hours and 2 statistics of 1 hours; nothing was changed\n',
    );
    expect(await all()).toEqual(before);
    expect(dry).toEqual({
      sealed: 1,
      detached: [],
      calls: 3,
      callHours: 2,
      stats: 2,
      statHours: 1,
      passed: {
        'figures differ': { hours: 1, first: [hour] },
        'not sealed: their statistics stay': { hours: 1, first: [hour] },
        'calls left: their statistics stay': { hours: 1, first: ['2026-08-20T14'] },
      },
      differing: 1,
      late: { calls: 2, hours: 1, first: [{ hour: '2026-08-20T14', calls: 2, users: ['bob'] }] },
      complete: true,
    });
    expect(await retained(hourhand, { kept })).toEqual(dry);
    expect(await left(hourhand)).toEqual(['13 ada', '13 bob', '14 bob', '14 bob']);
  });

  test('goes on where one was killed, stops between two batches when it is asked to, and two at once take turns', async () => {
    await using hourhand = await threeHours();
    const killed = await held(hourhand, h('2026-08-20T14'));
    expect(await left(hourhand)).toEqual(['14 ada', '14 bob', '15 ada', '15 bob']);
    killed.child.kill('SIGKILL');
    await ended(killed.child);
    await killed.release();

    const stopped = await held(hourhand, h('2026-08-20T14'));
    const lines = linesOf(stopped.child);
    stopped.child.kill('SIGTERM');
    await stopped.release();
    expect(await ended(stopped.child)).toBe(1);
    await until(
      async () => lines,
      (said) => said.some((line) => line.startsWith('stopped: what is done stays done')),
    );
    expect(await left(hourhand)).toEqual(['15 ada', '15 bob']);

    const both = await Promise.all([retained(hourhand), retained(hourhand)]);
    expect(both.reduce((sum, { calls }) => sum + calls, 0)).toBe(2);
    expect(both.reduce((sum, { sealed }) => sum + sealed, 0)).toBe(1);
    expect(await left(hourhand)).toEqual([]);
    expect(await hourhand.pool.modelCallStat.count()).toBe(6);
  });

  test('cuts a large hour into ranges of buckets', async () => {
    await using hourhand = await threeHours();
    const users = Array.from({ length: 40 }, (_, i) => `user-${i}`);
    await hourhand.record(...users.map((user) => ({ user, at })));
    await hourhand.tick();
    await until(
      () => hourhand.hour(hour),
      (row) => row?.calls === 42n,
    );
    await sealHour(hourhand.pool, hour);
    const sizes: number[] = [];
    for (
      let batch = await removeCalls(hourhand.pool, hour, 10);
      batch;
      batch = await removeCalls(hourhand.pool, hour, 10)
    ) {
      sizes.push(batch.calls);
    }
    expect(sizes).toHaveLength(5); // of 15 buckets each, the last of 4
    expect(Math.max(...sizes)).toBeLessThan(30);
    expect(sizes.reduce((sum, calls) => sum + calls)).toBe(42);
  });

  test('deletes the statistics of sealed hours without calls, and their changes; the hours stay sealed', async () => {
    await using hourhand = await threeHours();
    await hourhand.record({ user: 'ada', at });
    await hourhand.tick();
    await until(
      () => hourhand.pool.statChange.count(),
      (n) => n === 1,
    );
    await until(
      () => hourhand.pool.statMark.count(),
      (n) => n === 0,
    );
    // One is not old enough, one has calls left, of one nothing is left; and one never had any.
    const kept = { calls: 48, stats: 72 };
    await hourhand.pool.$executeRaw`
      insert into "ModelCallStat" select 'hour', '2026-08-20T10:00Z', 'idle', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '{}', 1, now()`;
    await hourhand.pool.$executeRaw`
      insert into "StatHour" (hour, state, run, reason, "closedAt", fence) values ('2026-08-20T10:00Z', 'closed', 1, 'tick', now(), 0)`;
    await retained(hourhand, { kept: { calls: 48 }, now: new Date('2026-08-22T15:00:00Z') });
    await hourhand.record({ user: 'bob', at: '2026-08-20T14:20:00Z' });
    expect(await retained(hourhand, { kept: { stats: 72 }, now: new Date('2026-08-23T16:00:00Z') })).toMatchObject({
      sealed: 1,
      stats: 3,
      statHours: 2,
      passed: {
        'calls left: their statistics stay': { hours: 1, first: ['2026-08-20T14'] },
        'not sealed: their statistics stay': { hours: 1, first: ['2026-08-20T15'] },
      },
    });
    const stored = () =>
      hourhand.pool.modelCallStat.findMany({ distinct: ['timestamp'], select: { timestamp: true } });
    expect((await stored()).map(({ timestamp }) => timestamp.getUTCHours()).sort()).toEqual([14, 15]);
    expect(await hourhand.pool.statChange.count()).toBe(0);
    expect(await hourhand.pool.statHour.count({ where: { sealedAt: { not: null } } })).toBe(3);

    expect(await retained(hourhand, { kept, now: new Date('2026-08-23T15:59:00Z') })).toMatchObject({ stats: 0 });
    expect(await retained(hourhand, { kept, now: new Date('2026-08-23T16:00:00Z') })).toMatchObject({ stats: 2 });
    expect((await stored()).map(({ timestamp }) => timestamp.getUTCHours())).toEqual([14]);
  });

  test('is refused where it is not told what is kept, or too little, or statistics less long than calls', async () => {
    await using hourhand = await startHourhand();
    const least = 'expected at least 2d, in hours, days, weeks or years, such as 90d or 2y';
    const asked: [string[], string][] = [
      [[], 'expected --calls or --stats, got neither'],
      [['--dry-run'], 'expected --calls or --stats, got neither'],
      [['--calls', '47h'], `${least}, got "47h"`],
      [['--stats', '2 years'], `${least}, got "2 years"`],
      [
        ['--calls', '90d', '--stats', '12w'],
        'expected statistics to be kept at least as long as calls (2160 hours), got 2016 hours',
      ],
    ];
    await Promise.all(
      asked.map(async ([args, line]) => {
        const { code, stderr } = await hourhand.run(['retain', ...args]);
        expect(code).toBe(2);
        expect(stderr).toContain(line);
        expect(stderr.trim().split('\n')).toHaveLength(1);
      }),
    );
  });
});

describe('a call that comes late for a sealed hour', () => {
  test('is listed, not applied, and not deleted, whether its user had calls there still or none', async () => {
    await using hourhand = await threeHours();
    await sealHour(hourhand.pool, hour);
    await hourhand.record({ user: 'ada', at });
    expect(await retained(hourhand)).toMatchObject({ calls: 5, late: { calls: 2, hours: 1 } });
    expect(await left(hourhand)).toEqual(['13 ada', '13 ada']);
    // The very image of the call that was counted and deleted.
    await hourhand.record({ user: 'bob', at });
    expect(await retained(hourhand, { dryRun: true })).toMatchObject({ calls: 0, late: { calls: 3, hours: 1 } });
    const { code, stdout, stderr } = await hourhand.run(['retain', '--calls', '2d']);
    expect([code, stdout]).toEqual([0, `${hour} 3 late calls, not applied: ada, bob\n`]);
    expect(stderr).toContain('late calls of sealed hours: 3 in 1 hours, not applied, and kept\n');
    expect(await left(hourhand)).toEqual(['13 ada', '13 ada', '13 bob']);
    expect((await hourhand.run(['verify', ...span])).stdout).toContain(
      `${hour} sealed; late, not applied: 2 writes (ada, bob)\n`,
    );
    expect((await hourhand.stat('ada', hour))?.totalCalls).toBe('1');
    expect((await hourhand.stat('bob', hour))?.totalCalls).toBe('1');
    expect(await hourhand.pool.statMark.count()).toBe(0);
  });

  test('also where its transaction was open while the hour was sealed', async () => {
    await using hourhand = await threeHours();
    await using gateway = await openWriter(hourhand);
    await gateway.record({ user: 'ada', at });
    expect(await sealHour(hourhand.pool, hour)).toEqual({ outcome: 'sealed' });
    await gateway.query('commit');
    expect(await hourhand.pool.statMark.count()).toBe(1);
    expect((await hourhand.tick()).marked).toEqual([]);
    expect(await retained(hourhand)).toMatchObject({ late: { first: [{ hour, calls: 2, users: ['ada'] }] } });
    expect(await left(hourhand)).toEqual(['13 ada', '13 ada']);
    expect((await hourhand.stat('ada', hour))?.totalCalls).toBe('1');
    expect(await hourhand.pool.statMark.count()).toBe(0);
  });

  test('also where it is changed while it is being deleted', async () => {
    await using hourhand = await threeHours();
    await sealHour(hourhand.pool, hour);
    await using gateway = await openWriter(hourhand);
    await gateway.query(`update "ModelCall" set credits = 7 where "userDid" = 'ada' and "callTime" = '${at}'`);
    const retaining = retained(hourhand);
    await untilWaiting(hourhand, 'Lock');
    await gateway.query('commit');
    expect(await retaining).toMatchObject({ calls: 5, late: { first: [{ hour, calls: 1, users: ['ada'] }] } });
    expect(await left(hourhand)).toEqual(['13 ada']);
  });
});

describe('a sealed hour', () => {
  test('is not rolled up by an old child that somebody retries, and is not sealed beside one at work', async () => {
    await using hourhand = await threeHours();
    await using straggler = await holdUser(hourhand, 'ada');
    const sealing = sealHour(hourhand.pool, hour);
    await untilWaiting(hourhand, 'Lock');
    expect(await hourhand.pool.statHour.count({ where: { sealedAt: { not: null } } })).toBe(0);
    await straggler.release();
    expect(await sealing).toEqual({ outcome: 'sealed' });

    await retained(hourhand);
    const before = await hourhand.pool.modelCallStat.findMany();
    await expect(rollUpScope(hourhand.pool, { hour, lo: 0, hi: 63 }, never)).rejects.toThrow(
      `hour ${hour} is sealed: its figures stay as they are`,
    );
    // Nor does what else an old job of it may have left to do: a failure that is noted late, or the zeros of idle users.
    await failHour(hourhand.pool, hour, 'too late', hourhand.policy);
    await hourhand.record({ user: 'cleo', at });
    await storeZeroRows(hourhand.pool, hour, 7);
    expect(await hourhand.hour(hour)).toMatchObject({ state: 'closed', error: null });
    expect(await hourhand.pool.modelCallStat.findMany()).toEqual(before);
  });

  test('keeps its statistics when the gateway archives its calls by itself: the audit sealed it', async () => {
    await using hourhand = await threeHours({ AUDIT_WITHIN_DAYS: '1', CALLS_KEPT_DAYS: '2' });
    await hourhand.silently(Sql.sql`update "ModelCall" set credits = 2 where "callTime" = '2026-08-20T15:10:00Z'`);
    await hourhand.backfill(h('2026-08-20T10')); // empty: it has nothing to keep
    const { returnvalue } = await audited(hourhand);
    expect(returnvalue).toMatchObject({ differing: 1 }); // it is repaired at once, and may be sealed by this very audit
    await until(
      () => hourhand.hour(h('2026-08-20T15')),
      (row) => row?.run === 2 && row.state === 'closed',
    );
    await until(
      async () => {
        await audited(hourhand);
        return hourhand.pool.statHour.count({ where: { sealedAt: { not: null } } });
      },
      (sealed) => sealed === 3,
    );
    await hourhand.pool.$executeRaw`delete from "ModelCall"`;
    expect(await hourhand.pool.statMark.count()).toBe(0);
    expect((await audited(hourhand)).returnvalue).toMatchObject({ differing: 0, sealed: 0 });
    expect(await hourhand.pool.modelCallStat.count()).toBe(6);
    expect(await hourhand.pool.statHour.count({ where: { sealedAt: { not: null } } })).toBe(3);
    expect(await hourhand.state(h('2026-08-20T10'))).toBe('closed');
  });
});

test('the scheduler is off by default, and does the same when it is on', async () => {
  await using off = await startHourhand();
  expect(off.config.RETAIN_MODEL_CALLS_CRON_TIME).toBe('off');
  await using hourhand = await threeHours({ RETAIN_MODEL_CALLS_CRON_TIME: '* * * * * *', RETAIN_CALLS: '2d' });
  await until(
    () => left(hourhand),
    (calls) => calls.length === 0,
  );
  const [log] = await until(
    async () => {
      const jobs = await hourhand.queues.retentions.getJobs(['completed'], 0, -1, true);
      const logs = await Promise.all(jobs.map(({ id }) => hourhand.queues.retentions.getJobLogs(id ?? '')));
      return logs
        .flatMap(({ logs }) => logs)
        .filter((line) => line.startsWith('0 ') === false && line.includes('deleted'));
    },
    (lines) => lines.length > 0,
  );
  expect(log).toMatch(/^\d hours sealed; \d calls of \d hours and 0 statistics of 0 hours deleted$/);
  expect(hourhand.logged).toContainEqual(expect.objectContaining({ msg: 'retention', stats: 0 }));
});

/** A retention of calls older than two days. */
function retained({ pool, queues }: Hourhand, options: Partial<RetainOptions> = {}) {
  return retain({ pool, queues }, { kept: { calls: 48 }, requestedBy: 'test', signal: never, ...options });
}

/** The calls that are left, each by its hour of the day and its user. */
async function left({ pool }: Hourhand): Promise<string[]> {
  const calls = await pool.modelCall.findMany({ orderBy: [{ callTime: 'asc' }, { userDid: 'asc' }] });
  return calls.map(({ callTime, userDid }) => `${callTime.getUTCHours()} ${userDid}`);
}

/** The command, held by somebody who reads a call of this hour and keeps it. */
async function held(hourhand: Hourhand, at: string) {
  const reader = await openWriter(hourhand);
  await reader.query(`select from "ModelCall" where date_trunc('hour', "callTime", 'UTC') = '${at}:00Z' for update`);
  const child = hourhand.spawn('retain', '--calls', '2d');
  await untilWaiting(hourhand, 'Lock');
  return { child, release: () => reader[Symbol.asyncDispose]() };
}

/** Wait until somebody waits for a lock. */
async function untilWaiting({ pool }: Hourhand, event: string): Promise<void> {
  await until(
    () => pool.$queryRaw<object[]>`
      select 1 from pg_stat_activity where datname = current_database() and wait_event_type = ${event}`,
    (waiting) => waiting.length > 0,
  );
}
