// A backfill is a thing with an identity: it can be watched, paused, resumed, cancelled and retried, whatever restarts meanwhile.

import { describe, expect, test } from 'vitest';
import {
  backfillHours,
  backfillUser,
  cancelBackfill,
  pauseBackfill,
  resumeBackfill,
  retryBackfill,
} from '../src/producers/backfills.ts';
import { requestHour } from '../src/producers/hours.ts';
import { backfillOf, finishBackfills, listBackfills, WrongStateError } from '../src/store/backfills.ts';
import { allotRun } from '../src/store/cut.ts';
import { Sql } from '../src/store/db.ts';
import { closeEmptyHours, closeHour, failHour, owedHours } from '../src/store/ledger.ts';
import { markedHours, markedScopes } from '../src/store/marks.ts';
import { ledgerStatus } from '../src/store/progress.ts';
import { coverFromNowOn } from '../src/store/ranges.ts';
import { surveyBackfill } from '../src/store/survey.ts';
import { endOf, type Hour, startOf } from '../src/time/hour.ts';
import { closedHour, type Hourhand, h, holdUser, startHourhand, straggling, until } from './support/hourhand.ts';

const hour = h('2026-08-20T13');
const next = h('2026-08-20T14');
const at = '2026-08-20T13:10:00Z';
/** Together they are more than the sum's type holds. */
const unstorable = ['999999999999', '1'].map((credits) => ({ user: 'eve', at, credits }));
const span = ['--from', '2026-08-20T13', '--to', '2026-08-20T15'];

describe('from the command line', () => {
  test('a backfill has a number, and says who asked, from where, and how far it is, after every restart', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', at }, { user: 'ada', at: '2026-08-20T14:10:00Z' });
    const asked = await hourhand.run(['backfill', ...span]);
    expect(asked).toMatchObject({
      code: 0,
      stderr: 'asked for 2 hours of [2026-08-20T13, 2026-08-20T15) (backfill 1)\n',
    });
    const line = {
      id: 1,
      requestedFrom: expect.stringMatching(/^command line on ./),
      start: '2026-08-20T13:00:00.000Z',
      end: '2026-08-20T15:00:00.000Z',
      userDid: null,
      only: 'all',
      hours: 2,
    };
    expect(JSON.parse((await hourhand.run(['backfills', '--json'])).stdout)).toMatchObject([
      { ...line, state: 'running', pending: 2, done: 0 },
    ]);

    await using held = await holdUser(hourhand, 'ada');
    const first = await hourhand.work();
    await hourhand.reaches(next, 'closed');
    await hourhand.reaches(hour, 'running');
    await held.release();
    await first.stop();
    await hourhand.work();
    await hourhand.reaches(hour, 'closed');
    const { stdout } = await hourhand.run(['backfills', 'show', '1', '--json']);
    expect(JSON.parse(stdout)).toMatchObject({ ...line, state: 'finished', pending: 0, done: 2, failures: [] });
    const [table, shown] = await Promise.all([hourhand.run(['backfills']), hourhand.run(['backfills', 'show', '1'])]);
    expect(table.stdout).toMatch(/│ 1 +│ finished │ 2 +│ \[2026-08-20T13, 2026-08-20T15\) │ 2 +│ 0 +│ 0 +│/);
    expect(shown.stdout).toMatch(
      /^backfill 1 {3}finished\nasked for {4}2 hours of .*\n.*\nhours {8}2 done, 0 failed/,
    );
  });

  test('is paused, resumed, cancelled and retried by its number', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', at });
    await hourhand.backfill(hour);
    const ask = async (...args: string[]) => {
      const { code, stderr } = await hourhand.run(['backfills', ...args]);
      return [code, stderr];
    };
    expect(await ask('pause', '1')).toEqual([0, 'backfill 1 is paused: an hour that runs goes to its end\n']);
    expect((await hourhand.run(['status'])).stdout).toMatch(/^held +1 hours, of backfills that are paused$/m);
    expect(await ask('retry', '1')).toEqual([
      1,
      'hourhand: expected a backfill that is running or finished, got paused\n',
    ]);
    expect(await ask('resume', '1')).toEqual([0, 'backfill 1 goes on\n']);
    expect(await ask('retry', '1')).toEqual([0, 'asked for 0 failed hours of backfill 1 again\n']);
    expect(await ask('cancel', '1')).toEqual([0, 'backfill 1 is cancelled: an hour that runs goes to its end\n']);
    expect(await ask('cancel', '1')).toEqual([
      1,
      'hourhand: expected a backfill that is running or paused, got cancelled\n',
    ]);
    const unknown = ['show', 'pause', 'resume', 'cancel', 'retry'].map((command) => ask(command, '7'));
    expect(await Promise.all(unknown)).toEqual(unknown.map(() => [1, 'there is no backfill 7\n']));
    expect(await Promise.all([ask('show', 'seven'), ask('cancel', '0'), ask('shew')])).toEqual([
      [2, expect.stringMatching(/expected the number of a backfill, such as 7, got "seven"\n$/)],
      [2, expect.stringMatching(/expected the number of a backfill, such as 7, got "0"\n$/)],
      [2, "hourhand: unknown command 'shew' (Did you mean show?)\n"],
    ]);
  });

  test('whoever waits is told of a pause, waits on, and is told of the cancelling', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', at });
    const child = hourhand.spawn('backfill', ...span, '--wait');
    let said = '';
    child.stderr?.on('data', (chunk) => {
      said += chunk;
    });
    const says = (text: string) =>
      until(
        async () => said,
        (seen) => seen.includes(text),
      );
    await says('1/2 hours'); // the other was empty
    await pauseBackfill(hourhand, 1, 'bob');
    await says('backfill 1 was paused by bob; it goes on with hourhand backfills resume 1\n');
    await cancelBackfill(hourhand, 1, 'cyd');
    await says('backfill 1 was cancelled by cyd\n');
    await until(
      async () => child.exitCode,
      (code) => code === 1,
    );
  });
});

describe('while it is paused', () => {
  test('its hours are owed by nobody: no tick, no look, no job that is there already', async () => {
    await using hourhand = await startHourhand();
    const { pool, queues, policy } = hourhand;
    await hourhand.record({ user: 'ada', at }, { user: 'ada', at: '2026-08-20T14:10:00Z' });
    await pool.$executeRaw`insert into "StatHour" (hour, state, run, reason, attempts, error, "nextAttemptAt")
                           values (${startOf(next)}::timestamptz, 'partial', 1, 'tick', 3, 'eve: too much', now() - interval '1 hour')`;
    const { backfill } = await hourhand.backfill(hour, next);
    expect((await owedHours(pool, 10)).map(({ hour }) => hour)).toEqual([hour, next]);
    expect(await pauseBackfill(hourhand, backfill, 'bob')).toBe(true);
    expect(await owedHours(pool, 10)).toEqual([]);
    expect(await ledgerStatus(pool, 0)).toMatchObject({ owed: 0, held: 2, oldestOwed: null });
    expect(await backfillOf(pool, backfill)).toMatchObject({ state: 'paused', pending: 2, settledBy: 'bob' });

    await hourhand.work();
    await until(
      () => queues.hours.getJobs(['completed']),
      (jobs) => jobs.length === 2 && jobs.every((job) => job.returnvalue?.nothing === 'owed'),
    );
    expect(await hourhand.tick()).toMatchObject({ enqueued: [], closedEmpty: [] });
    expect(await allotRun(pool, hour, policy, { again: true })).toBeUndefined();
    // Calls that come late for them leave marks, and wait with them.
    await hourhand.record({ user: 'bob', at });
    expect(await hourhand.tick()).toMatchObject({ enqueued: [], marked: [] });
    expect(await Promise.all([hour, next].map(hourhand.state))).toEqual(['open', 'open']);

    expect(await resumeBackfill(hourhand, backfill, 'cyd')).toBe(true);
    await hourhand.reaches(hour, 'closed');
    await hourhand.reaches(next, 'closed');
    expect(await finishBackfills(pool)).toEqual([backfill]);
    expect(await backfillOf(pool, backfill)).toMatchObject({ state: 'finished', done: 2, pausedAt: null });
    expect(await hourhand.wrong()).toEqual([]);
  });

  test('what could not be stored is not tried again', async () => {
    await using hourhand = await startHourhand({ PARTIAL_BACKOFF_MAX_SECONDS: '1' });
    await hourhand.record(...unstorable);
    await hourhand.work();
    const { backfill } = await hourhand.backfill(hour, next);
    await hourhand.reaches(hour, 'partial');
    await hourhand.pool.$executeRaw`update "Backfill" set state = 'paused', "pausedAt" = now()`;
    await hourhand.pool.$executeRaw`update "StatHour" set "nextAttemptAt" = now() where state = 'partial'`;
    expect(await owedHours(hourhand.pool, 10)).toEqual([]);
    expect(await backfillOf(hourhand.pool, backfill)).toMatchObject({ done: 1, failed: 1, pending: 0 });
  });

  test('an hour that runs goes to its end, and does not go round again', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', at });
    await using held = await holdUser(hourhand, 'ada');
    await hourhand.work();
    await hourhand.backfill(hour);
    await hourhand.reaches(hour, 'running');
    const second = await hourhand.backfill(hour);
    await pauseBackfill(hourhand, second.backfill, 'bob');
    await held.release();
    await hourhand.reaches(hour, 'open');
    expect((await listBackfills(hourhand.pool, 5)).map(({ pending, done }) => [pending, done])).toEqual([
      [1, 0],
      [0, 1],
    ]);
    await hourhand.tick();
    expect(await hourhand.hour(hour)).toMatchObject({ state: 'open', run: 1, wanted: 2 });
    await resumeBackfill(hourhand, second.backfill, 'bob');
    await until(
      () => hourhand.hour(hour),
      (row) => row?.state === 'closed' && row.run === 2,
    );
  });

  test('an hour that somebody else asks for is not of it any more', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', at });
    const { backfill } = await hourhand.backfill(hour);
    await pauseBackfill(hourhand, backfill, 'bob');
    await requestHour(hourhand, hour, { reason: 'repair', requestedBy: 'audit' });
    await hourhand.work();
    await hourhand.reaches(hour, 'closed');
    expect(await backfillOf(hourhand.pool, backfill)).toMatchObject({ state: 'paused', pending: 0, done: 1 });

    // Nor one whose older transactions have ended.
    const second = await hourhand.backfill(hour);
    await until(
      () => hourhand.hour(hour),
      (row) => row?.state === 'closed' && row.run === 2,
    );
    await hourhand.pool
      .$executeRaw`update "Backfill" set state = 'paused', "pausedAt" = now() where id = ${second.backfill}::bigint`;
    await hourhand.pool.$executeRaw`update "StatHour" set fence = 1 where hour = ${startOf(hour)}::timestamptz`;
    await hourhand.tick();
    await until(
      () => hourhand.hour(hour),
      (row) => row?.state === 'closed' && row.run === 3,
    );
  });

  test('the marks of a user wait, and those of late data beside them do not', async () => {
    await using hourhand = await closedHour(hour, [
      { user: 'ada', at },
      { user: 'bob', at },
    ]);
    const { pool, queues } = hourhand;
    await hourhand.silently(Sql.sql`update "ModelCall" set credits = 7`);
    const before = await queues.marks.getCompletedCount();
    await queues.marks.pause();
    const { backfill } = await hourhand.backfillUser('ada', hour);
    await pauseBackfill(hourhand, backfill, 'bob');
    await queues.marks.resume();
    await until(
      () => queues.marks.getCompletedCount(),
      (n) => n === before + 1,
    );
    expect(await markedHours(pool, 10)).toEqual([]);
    await hourhand.record({ user: 'bob', at });
    expect(await markedHours(pool, 10)).toEqual([hour]);
    expect((await markedScopes(pool, hour)).scopes).toMatchObject([{ users: ['bob'] }]);
    await until(
      async () => {
        await hourhand.tick(); // what is enqueued in the moment its job ends is picked up by the next look
        return hourhand.stat('bob', hour);
      },
      (stat) => stat?.totalCalls === '2',
    );
    expect((await hourhand.stat('ada', hour))?.totalCredits).toBe('0.00000001');
    expect(await backfillOf(pool, backfill)).toMatchObject({ hours: 1, pending: 1, done: 0 });

    await resumeBackfill(hourhand, backfill, 'bob');
    await until(
      () => hourhand.stat('ada', hour),
      (stat) => stat?.totalCredits === '7.00000000',
    );
    expect(await finishBackfills(pool)).toContain(backfill);
    expect(await backfillOf(pool, backfill)).toMatchObject({ userDid: 'ada', pending: 0, done: 1 });
  });

  test('a tick beside the pause loses nothing', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await hourhand.record(...tenHours.map((hour) => ({ user: 'ada', at: `${hour}:10:00Z` })));
    await hourhand.work();
    const { backfill } = await hourhand.backfill(tenHours[0], tenHours.at(-1));
    await Promise.all([hourhand.tick(), pauseBackfill(hourhand, backfill, 'bob'), hourhand.tick()]);
    await until(
      async () => (await Promise.all(tenHours.map(hourhand.state))).includes('running'),
      (running) => !running,
    );
    expect(await owedHours(pool, 10)).toEqual([]);
    await resumeBackfill(hourhand, backfill, 'bob');
    await until(
      async () => {
        await hourhand.tick(); // what is enqueued in the moment its job ends is picked up by the next look
        return finishBackfills(pool);
      },
      (ids) => ids.includes(backfill),
    );
    expect(await backfillOf(pool, backfill)).toMatchObject({ done: 10 });
    expect(await hourhand.wrong()).toEqual([]);
  });
});

describe('cancelled', () => {
  /** Of an hour: whether it lies in a covered range, and its row. */
  const states = [
    ['missing', false, {}],
    ['missing, and covered', true, {}],
    ['open', true, { state: 'open', reason: 'tick' }],
    ['asked for', true, { state: 'open', run: 2, wanted: 3, reason: 'repair', requestedBy: 'audit' }],
    [
      'partial, in back-off',
      true,
      {
        state: 'partial',
        run: 4,
        wanted: 3,
        attempts: 2,
        error: 'eve: too much',
        nextAttemptAt: '2030-01-01T00:00Z',
      },
    ],
    ['closed', true, { state: 'closed', run: 2, wanted: 1, users: 1, calls: 1, closedAt: '2026-08-21T00:00Z' }],
    ['closed, and not covered', false, { state: 'closed', run: 1, closedAt: '2026-08-21T00:00Z', fence: 0 }],
    ['running', true, { state: 'running', run: 3, wanted: 3, startedAt: '2026-08-21T00:00Z' }],
    ['running, and not covered', false, { state: 'running', run: 1, startedAt: '2026-08-21T00:00Z' }],
    ['sealed', true, { state: 'closed', run: 1, closedAt: '2026-08-21T00:00Z', sealedAt: '2026-08-22T00:00Z' }],
  ] as const;
  const begin = h('2026-08-20T00');
  const hours = states.map((_, i) => h(`2026-08-20T0${i}`));
  const last = hours.at(-1) ?? begin;

  /** An hour of each state, with a call in it, before the live range: nobody is at work. */
  async function everyState(): Promise<Hourhand> {
    const hourhand = await startHourhand();
    const { pool } = hourhand;
    await hourhand.silently(Sql.sql`
      insert into "ModelCall" (id, "userDid", "providerId", model, type, "callTime")
      select h::text, 'ada', 'p', 'm', 'custom', h + interval '10 minutes' from unnest(${hours.map(startOf)}::timestamptz[]) h`);
    for (const [i, [, covered, row]] of states.entries()) {
      const of = hours[i] ?? begin;
      if (covered) await hourhand.cover(of, of);
      if (!('state' in row)) continue;
      const known = { reason: 'tick', hour: startOf(of).toISOString(), ...row };
      await pool.$executeRawUnsafe(
        `insert into "StatHour" (${Object.keys(known).map((name) => `"${name}"`)}) values (${Object.values(known).map((value) => `'${value}'`)})`,
      );
    }
    await pool.$executeRaw`insert into "StatRange" values (${endOf(last)}::timestamptz, null)`;
    await hourhand.cover(last, last);
    return hourhand;
  }

  test('its hours are again what they were, and the live range stays', async () => {
    await using hourhand = await everyState();
    const before = await ledger(hourhand);
    const { backfill, hours: asked, sealed } = await hourhand.backfill(begin, last);
    expect([asked.length, sealed]).toEqual([9, [last]]);
    expect(await hourhand.pool.statRange.findMany()).toEqual([{ start: startOf(begin), end: null }]);
    expect(await cancelBackfill(hourhand, backfill, 'bob')).toBe(true);
    expect(await ledger(hourhand)).toEqual(before);
    expect(await backfillOf(hourhand.pool, backfill)).toMatchObject({
      state: 'cancelled',
      hours: 9,
      givenBack: 9,
      pending: 0,
      done: 0,
    });
  });

  test.each(['missing', 'partial'] as const)(
    'one of %s hours covered no other, and is undone as well',
    async (only) => {
      await using hourhand = await everyState();
      const before = await ledger(hourhand);
      const range = { start: startOf(begin), end: endOf(last) };
      const survey = await surveyBackfill(hourhand.pool, range, { only });
      const { backfill, hours: asked } = await backfillHours(hourhand, range, {
        only,
        reason: 'backfill',
        requestedBy: 'test',
      });
      expect(asked.map(({ hour }) => hour)).toEqual(only === 'missing' ? hours.slice(0, 4) : [hours[4]]);
      expect(survey.asked).toBe(asked.length);
      await cancelBackfill(hourhand, backfill, 'bob');
      expect(await ledger(hourhand)).toEqual(before);
    },
  );

  test.each([
    ['the first of them first', 0],
    ['the second first', 1],
  ])('two that overlap are undone, %s', async (_, which) => {
    await using hourhand = await everyState();
    const { pool } = hourhand;
    const before = await ledger(hourhand);
    const both = [await hourhand.backfill(begin, last), await hourhand.backfill(begin, last)].map(
      ({ backfill }) => backfill,
    );
    const one = both[which] ?? 0;
    const other = both[1 - which] ?? 0;
    await cancelBackfill(hourhand, one, 'bob');
    expect(await backfillOf(pool, other)).toMatchObject({ state: 'running', pending: 9 });
    expect(
      new Set((await pool.statHour.findMany({ where: { sealedAt: null } })).map((row) => row.backfillId)),
    ).toEqual(new Set([BigInt(other)]));
    expect((await owedHours(pool, 20)).length).toBeGreaterThan(7); // and those of the live range
    await cancelBackfill(hourhand, other, 'bob');
    expect(await ledger(hourhand)).toEqual(before);
  });

  test('the middle one of three hands down what it began with', async () => {
    await using hourhand = await everyState();
    const before = await ledger(hourhand);
    const ids: number[] = [];
    for (let i = 0; i < 3; i++) ids.push((await hourhand.backfill(begin, last)).backfill);
    for (const i of [1, 0, 2]) await cancelBackfill(hourhand, ids[i] ?? 0, 'bob');
    expect(await ledger(hourhand)).toEqual(before);
  });

  test.each([false, true])(
    'an hour that was running when it was asked for closes with that run, ended before or after (before: %s)',
    async (before) => {
      await using hourhand = await startHourhand();
      const { pool, policy } = hourhand;
      await hourhand.cover(hour, hour);
      await allotRun(pool, hour, policy);
      await hourhand.record({ user: 'ada', at });
      const first = await hourhand.backfill(hour);
      const second = before ? undefined : await hourhand.backfill(hour);
      if (before) expect(await closeHour(pool, hour, 1, 'parent', policy)).toEqual({ outcome: 'open' });
      await cancelBackfill(hourhand, first.backfill, 'bob');
      if (second) await cancelBackfill(hourhand, second.backfill, 'bob');
      if (!before) {
        expect(await hourhand.hour(hour)).toMatchObject({ state: 'running', run: 1, wanted: 0 });
        expect(await closeHour(pool, hour, 1, 'parent', policy)).toMatchObject({ outcome: 'closed' });
      }
      expect(await hourhand.hour(hour)).toMatchObject({ state: 'closed', run: 1, wanted: 0 });
      expect(await owedHours(pool, 10)).toEqual([]);
    },
  );

  test('an hour that runs for it goes to its end, and what was answered stays', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', at });
    await using held = await holdUser(hourhand, 'ada');
    await hourhand.work();
    const { backfill } = await hourhand.backfill(hour, next);
    await hourhand.reaches(hour, 'running');
    await cancelBackfill(hourhand, backfill, 'bob');
    expect(await backfillOf(hourhand.pool, backfill)).toMatchObject({ state: 'cancelled', pending: 1, done: 1 });
    await held.release();
    await hourhand.reaches(hour, 'closed');
    expect(await hourhand.state(next)).toBe('closed');
    expect(await backfillOf(hourhand.pool, backfill)).toMatchObject({ pending: 0, done: 2, givenBack: 0 });
    expect(await hourhand.wrong()).toEqual([]);
  });

  test('what came between is kept: an hour that was repaired meanwhile, one that the live range covers now', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await hourhand.record({ user: 'ada', at }, { user: 'ada', at: '2026-08-20T14:10:00Z' });
    const { backfill } = await hourhand.backfill(hour, next);
    await requestHour(hourhand, hour, { reason: 'repair', requestedBy: 'audit' });
    await coverFromNowOn(pool, new Date('2026-08-20T15:10:00Z'));
    await cancelBackfill(hourhand, backfill, 'bob');
    expect(await hourhand.hour(hour)).toMatchObject({ state: 'open', wanted: 1 });
    expect(await hourhand.hour(next)).toBeUndefined();
    expect(await pool.statRange.findMany()).toEqual([{ start: startOf(hour), end: null }]);
  });

  test('the marks of a user are gone, and no other', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', at });
    const late = await hourhand.pool.statMark.count();
    const { backfill } = await hourhand.backfillUser('ada', hour);
    expect(await hourhand.pool.statMark.count()).toBe(late + 1);
    await cancelBackfill(hourhand, backfill, 'bob');
    expect(await hourhand.pool.statMark.count()).toBe(late);
    expect(await backfillOf(hourhand.pool, backfill)).toMatchObject({ state: 'cancelled', givenBack: 1, done: 0 });
  });

  test('of a user who could not be stored, an hour that nobody else rolls up is unknown again, and partial for nobody', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await hourhand.record(...unstorable, { user: 'eve', at: '2026-08-20T14:10:00Z' });
    await using held = await holdUser(hourhand, 'eve', next);
    await hourhand.work();
    const range = { start: startOf(hour), end: endOf(next) };
    const { backfill } = await backfillUser(hourhand, 'eve', range, { requestedBy: 'test' });
    await hourhand.reaches(hour, 'partial');
    await cancelBackfill(hourhand, backfill, 'bob');
    expect(await hourhand.hour(hour)).toBeUndefined();
    expect(await backfillOf(pool, backfill)).toMatchObject({ state: 'cancelled', givenBack: 2, failed: 0 });
    await held.release();
  });

  test('an hour that is closed again is not partial for as long as it had been asked for', async () => {
    await using hourhand = await closedHour(hour, [{ user: 'ada', at }]);
    const { pool, policy } = hourhand;
    await hourhand.queues.hours.pause();
    const { backfill } = await hourhand.backfill(hour);
    await failHour(pool, hour, 'eve: too much', policy);
    await cancelBackfill(hourhand, backfill, 'bob');
    expect(await pool.statHour.findMany({ where: { hour: startOf(hour) } })).toMatchObject([
      { state: 'closed', error: null, partialSince: null },
    ]);
  });

  test('whoever would allot a run or close one meanwhile waits, and finds what it became', async () => {
    await using hourhand = await startHourhand();
    const { pool, policy } = hourhand;
    await hourhand.cover(next, next);
    await allotRun(pool, next, policy);
    await hourhand.record({ user: 'ada', at });
    const { backfill } = await hourhand.backfill(hour, next);
    // Slow between what it deletes and its end: what others saw of the ledger before is old by then.
    await pool.$executeRaw`create function slow() returns trigger language plpgsql as 'begin perform pg_sleep(2); return null; end'`;
    await pool.$executeRaw`create trigger slow after delete on "StatHour" for each statement execute function slow()`;
    const cancelling = cancelBackfill(hourhand, backfill, 'bob');
    await until(
      () => straggling(hourhand),
      (n) => n === 1,
    );
    const [allotted, closing] = await Promise.all([
      allotRun(pool, hour, policy),
      closeHour(pool, next, 1, 'parent', policy),
      cancelling,
    ]);
    expect(allotted).toBeUndefined();
    expect(closing).toMatchObject({ outcome: 'closed' });
    // And who had seen it owed before does not make a row for it.
    expect(await closeEmptyHours(pool, [hour], policy)).toEqual([]);
    expect(await hourhand.hour(hour)).toBeUndefined();
  });

  test('at any moment, with workers at it, an hour is done and covered or as if nobody had asked', async () => {
    await using hourhand = await startHourhand();
    const { pool, queues } = hourhand;
    await hourhand.record(...tenHours.map((hour) => ({ user: 'ada', at: `${hour}:10:00Z` })));
    await hourhand.work();
    for (let i = 0; i < 4; i++) {
      const { backfill } = await hourhand.backfill(tenHours[0], tenHours.at(-1));
      await Promise.all([hourhand.tick(), cancelBackfill(hourhand, backfill, 'bob').catch(isOver)]);
    }
    await until(
      () => queues.hours.getJobCountByTypes('active', 'waiting', 'prioritized', 'waiting-children'),
      (n) => n === 0,
    );
    const rows = await pool.$queryRaw<{ state: string | null; covered: boolean; waits: boolean }[]>`
      select state::text, exists (select from "StatRange" r where r.start <= hour and r."end" > hour) as covered,
             coalesce(wanted > run, false) as waits
        from unnest(${tenHours.map(startOf)}::timestamptz[]) as hour left join "StatHour" using (hour)`;
    for (const row of rows)
      expect(row).toEqual({ state: row.covered ? 'closed' : null, covered: row.covered, waits: false });
  });
});

describe('what failed', () => {
  test('is named with its reason, and asked for again under the same number', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await hourhand.record({ user: 'ada', at }, ...unstorable, { user: 'ada', at: '2026-08-20T14:10:00Z' });
    await hourhand.work();
    const { backfill } = await hourhand.backfill(hour, next);
    await until(
      () => finishBackfills(pool),
      (ids) => ids.includes(backfill),
    );
    expect(await backfillOf(pool, backfill)).toMatchObject({
      state: 'finished',
      done: 1,
      failed: 1,
      failures: [{ hour, error: 'eve: numeric field overflow (22003)', nextAttemptAt: expect.any(Date) }],
    });
    await expect(pauseBackfill(hourhand, backfill, 'bob')).rejects.toThrow(
      new WrongStateError('expected a backfill that is running or paused, got finished'),
    );
    await expect(cancelBackfill(hourhand, backfill, 'bob')).rejects.toThrow(WrongStateError);

    await hourhand.pool.$executeRaw`update "ModelCall" set credits = 1 where "userDid" = 'eve'`;
    expect(await retryBackfill(hourhand, backfill, 'bob')).toEqual([hour]);
    await until(
      () => finishBackfills(pool),
      (ids) => ids.includes(backfill),
    );
    expect(await backfillOf(pool, backfill)).toMatchObject({ done: 2, failed: 0, failures: [], settledBy: 'bob' });
    expect(await hourhand.hour(hour)).toMatchObject({ state: 'closed', run: 2 });
    expect((await hourhand.hour(next))?.run).toBe(1);
    expect(await hourhand.wrong()).toEqual([]);
  });

  test('and was asked for again is what it was when that is cancelled', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(...unstorable);
    const worker = await hourhand.work();
    const { backfill } = await hourhand.backfill(hour);
    await hourhand.reaches(hour, 'partial');
    await worker.stop();
    const before = await ledger(hourhand);
    expect(await retryBackfill(hourhand, backfill, 'bob')).toEqual([hour]);
    expect(await backfillOf(hourhand.pool, backfill)).toMatchObject({ state: 'running', pending: 1 });
    await cancelBackfill(hourhand, backfill, 'bob');
    expect(await ledger(hourhand)).toEqual(before);
  });

  test('of one user is tried again without waiting for the back-off', async () => {
    await using hourhand = await closedHour(hour, [{ user: 'ada', at }]);
    const { pool } = hourhand;
    await hourhand.silently(Sql.sql`
      insert into "ModelCall" (id, "userDid", "providerId", model, type, credits, "callTime")
      select i::text, 'eve', 'p', 'm', 'custom', 999999999999, ${new Date(at)}::timestamptz from generate_series(1, 2) i`);
    const { backfill } = await hourhand.backfillUser('eve', hour);
    await until(
      () => finishBackfills(pool),
      (ids) => ids.includes(backfill),
    );
    expect(await backfillOf(pool, backfill)).toMatchObject({ failed: 1, failures: [{ hour }] });
    await hourhand.silently(Sql.sql`update "ModelCall" set credits = 1`);
    await pool.$executeRaw`update "StatHour" set "nextAttemptAt" = now() + interval '1 hour' where hour = ${startOf(hour)}::timestamptz`;
    expect(await retryBackfill(hourhand, backfill, 'bob')).toEqual([hour]);
    await until(
      () => finishBackfills(pool),
      (ids) => ids.includes(backfill),
    );
    expect(await backfillOf(pool, backfill)).toMatchObject({ failed: 0, done: 1, failures: [] });
    await hourhand.reaches(hour, 'closed');
  });
});

test('an hour whose row was deleted meanwhile, and that counts its runs from 1 again, is done when it has closed', async () => {
  await using hourhand = await startHourhand();
  const { pool } = hourhand;
  await hourhand.record({ user: 'ada', at });
  await pool.$executeRaw`insert into "StatHour" (hour, state, run, reason) values (${startOf(hour)}::timestamptz, 'open', 4, 'tick')`;
  const { backfill } = await hourhand.backfill(hour);
  await pool.$executeRaw`delete from "StatHour"`;
  expect(await backfillOf(pool, backfill)).toMatchObject({ state: 'running', pending: 1 });
  await hourhand.work();
  await hourhand.reaches(hour, 'closed');
  expect(await backfillOf(pool, backfill)).toMatchObject({ pending: 0, done: 1 });
  await until(
    async () => [...(await finishBackfills(pool)), (await backfillOf(pool, backfill))?.state],
    (seen) => seen.includes('finished'),
  );
});

test('before it begins, what it would find is told: hours by state, and users', async () => {
  await using hourhand = await closedHour(hour, [
    { user: 'ada', at },
    { user: 'bob', at },
  ]);
  await hourhand.record({ user: 'ada', at: '2026-08-20T14:10:00Z' });
  const range = { start: startOf(hour), end: endOf(h('2026-08-20T15')) };
  expect(await surveyBackfill(hourhand.pool, range, { only: 'missing' })).toEqual({
    hours: 3,
    byState: { closed: 1, missing: 2 },
    closed: 1,
    sealed: 0,
    asked: 2,
    users: 2,
    moreUsers: false,
  });
  expect(await surveyBackfill(hourhand.pool, range, { only: 'all', user: 'bob' })).toMatchObject({ asked: 1 });
  expect(await hourhand.pool.backfill.count()).toBe(1);
});

test('of a number that none has, nothing is known and nothing is done', async () => {
  await using hourhand = await startHourhand();
  expect(await backfillOf(hourhand.pool, 7)).toBeUndefined();
  expect(await pauseBackfill(hourhand, 7, 'bob')).toBe(false);
  expect(await resumeBackfill(hourhand, 7, 'bob')).toBe(false);
  expect(await cancelBackfill(hourhand, 7, 'bob')).toBe(false);
  expect(await retryBackfill(hourhand, 7, 'bob')).toBeUndefined();
  expect(await listBackfills(hourhand.pool, 20)).toEqual([]);
});

const tenHours = Array.from({ length: 10 }, (_, i) => `2026-08-20T1${i}` as Hour) as [Hour, ...Hour[]];

/** It was done before it could be cancelled. */
function isOver(error: unknown): void {
  if (!(error instanceof WrongStateError)) throw error;
}

/** All that is known of every hour, and what is covered; but for the fences, which may be taken at any time. */
async function ledger({ pool }: Hourhand) {
  const hours = await pool.statHour.findMany({ omit: { fence: true }, orderBy: { hour: 'asc' } });
  return { hours, ranges: await pool.statRange.findMany({ orderBy: { start: 'asc' } }) };
}
