// Hours that hold calls and that nobody rolls up: known, told everywhere, and covered by one command or one click.

import { describe, expect, test } from 'vitest';
import { startDashboard } from '../src/dashboard/server.ts';
import { statusOf } from '../src/dashboard/status.ts';
import { backfillUncovered, cancelBackfill, pauseBackfill } from '../src/producers/backfills.ts';
import { recentActions } from '../src/store/actions.ts';
import { coverageOf } from '../src/store/coverage.ts';
import { Sql } from '../src/store/db.ts';
import { beginWalk, uncoveredHours, uncoveredNow, walkOf, walkOn } from '../src/store/gaps.ts';
import { startOfRunningHour } from '../src/store/ledger.ts';
import { sweepMarks, waitingMarks } from '../src/store/marks.ts';
import { endOf, HOUR_MS, hourOf, startOf } from '../src/time/hour.ts';
import { askAt, ownHeaders } from './support/board.ts';
import { audited, ended, type Hourhand, h, startHourhand, until } from './support/hourhand.ts';
import { inPartitions } from './support/partitions.ts';

const DAY_MS = 24 * HOUR_MS;
/** More hours than the calls of the tests lie in. */
const DAYS = 70;

/** As many hours, and calls in them, as a loaded machine rolls up in seconds. */
const [HOURS, CALLS] = [120, 2_000];

const oneTable = async () => {};
/** A partition for each day of the past, as if somebody had asked for them then. */
const inDays = (hourhand: Hourhand) =>
  inPartitions(hourhand, { by: 'day', ahead: DAYS + 5, now: new Date(Date.now() - DAYS * DAY_MS) });

/**
 * `calls` calls in the `hours` hours that ended before the last two, oldest hour first; `silently`, so that no mark
 * tells of them.
 */
async function fillPast(
  { pool, silently }: Hourhand,
  { hours, calls, leaveMarks = true }: { hours: number; calls: number; leaveMarks?: boolean },
): Promise<void> {
  const running = await startOfRunningHour(pool);
  const insert = Sql.sql`
    insert into "ModelCall" (id, "userDid", "providerId", model, type, "totalUsage", credits, status, "callTime")
    select 'past-' || i, 'user-' || i % 13, 'openai', 'gpt', 'chatCompletion', 10, 0.001, 'success',
           ${running}::timestamptz - (2 + i % ${hours}::int) * interval '1 hour' + interval '7 minutes'
      from generate_series(0, ${calls}::int - 1) i`;
  if (leaveMarks) await pool.$executeRaw(insert);
  else await silently(insert);
}

const firstLine = async (hourhand: Hourhand) => (await hourhand.run(['status'])).stdout.split('\n')[0] ?? '';

/** The range of the past that `fillPast` fills, as options. */
async function rangeOf({ pool }: Hourhand, hours: number): Promise<string[]> {
  const running = await startOfRunningHour(pool);
  const from = new Date(running.getTime() - (hours + 1) * HOUR_MS);
  return ['--from', from.toISOString(), '--to', new Date(running.getTime() - HOUR_MS).toISOString()];
}

/** The dashboard, and what it answers. */
async function openPage(hourhand: Hourhand) {
  const { url, close } = await startDashboard(hourhand);
  return {
    get: async (path: string) => {
      const response = await fetch(`${url}${path}`);
      return { status: response.status, text: await response.text() };
    },
    /** What a script of the page's own sends that asks for a change. */
    post: async (path: string) => {
      const port = Number(new URL(url).port);
      return askAt(port, 'post', path, { ...(await ownHeaders(port)), Accept: 'application/json' });
    },
    [Symbol.asyncDispose]: close,
  };
}

describe.each([
  ['in one table', oneTable],
  ['in a partition a day', inDays],
])('%s', (_, prepare) => {
  test('imported calls of past hours are told everywhere, and covered by one command', async () => {
    await using hourhand = await startHourhand({
      LATE_DATA_SECONDS: '1',
      FANOUT_MIN_CALLS: '20000',
      FANOUT_MAX_USER_JOBS: '1',
    });
    await prepare(hourhand);
    await using board = await openPage(hourhand);
    await hourhand.work();
    await fillPast(hourhand, { hours: HOURS, calls: CALLS });
    const [from, , to] = (await rangeOf(hourhand, HOURS)).filter((word) => word !== '--from');
    const told = `120 hours with 2,000 calls are in no figure, from ${from?.slice(0, 13)} to ${to?.slice(0, 13)}`;
    const range = await rangeOf(hourhand, HOURS);

    // Before any worker has looked, and after the marks were swept.
    const sentence = new RegExp(`^${told}: type hourhand backfill --uncovered. Complete from `);
    expect((await statusOf(hourhand)).state.state).toMatch(sentence);
    await until(
      () => hourhand.pool.statMark.count(),
      (marks) => marks === 0,
    );
    expect(await firstLine(hourhand)).toMatch(sentence);
    expect(hourhand.logged.filter(({ hours }) => hours === HOURS)).toContainEqual(
      expect.objectContaining({ marks: CALLS, fresh: HOURS, level: 40, first: from?.slice(0, 13) }),
    );
    expect(await hourhand.run(['verify', ...range])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('120 of the open hours hold calls and are in no figure'),
    });

    const page = await board.get('/');
    expect(page.text).toContain(`<strong>${told}: type hourhand backfill --uncovered. Complete from `);
    expect(page.text).toContain('action="/uncovered/cover"');
    expect(page.text).toContain('0 marks waiting');
    const { status, text } = await board.get('/readyz');
    const { checks } = JSON.parse(text) as { checks: { name: string }[] }; // as health.ts answers
    expect({ status, check: checks.find(({ name }) => name === 'warning uncovered') }).toEqual({
      status: 200,
      check: {
        name: 'warning uncovered',
        ok: true,
        warn: true,
        expected: 'none',
        found: expect.stringContaining('120 hours are in no figure'),
      },
    });
    const metrics = (await board.get('/metrics')).text;
    expect(metrics).toContain('hourhand_uncovered_hours 120');
    expect(metrics).toContain('hourhand_warnings{kind="uncovered"} 1');
    const asJson = JSON.parse((await hourhand.run(['status', '--json'])).stdout);
    expect(asJson).toMatchObject({
      ok: false,
      state: expect.stringContaining(told),
      uncovered: { hours: HOURS, calls: CALLS },
    });

    expect(await hourhand.run(['backfill', '--uncovered', '--wait'])).toMatchObject({
      code: 0,
      stderr: expect.stringMatching(/^asked for 120 hours of .*all closed\n$/s),
    });
    expect(await hourhand.run(['verify', ...range])).toMatchObject({ code: 0 });
    const { state } = await until(
      () => statusOf(hourhand),
      ({ state }) => state.ok,
    );
    expect(state.state).toMatch(new RegExp(`^OK: complete from ${from?.slice(0, 13)} to `));
  }, 180_000);

  test('a first start on a database that holds calls already says so, and still looks while it has not seen all', async () => {
    await using hourhand = await startHourhand();
    await prepare(hourhand);
    await fillPast(hourhand, { hours: 50, calls: 100, leaveMarks: false });
    expect(await walkOf(hourhand.pool)).toEqual({ lookingBefore: await startOfRunningHour(hourhand.pool) });
    await beginWalk(hourhand.pool, { again: false });
    expect(await walkOn(hourhand.pool, { hours: 20 })).toBe(false);
    const { lookingBefore } = await walkOf(hourhand.pool);
    expect(await firstLine(hourhand)).toContain(`still looking before ${lookingBefore && hourOf(lookingBefore)} `);
    expect(await uncoveredNow(hourhand.pool)).toMatchObject({ hours: 20, calls: 40 });
    await hourhand.work();
    expect(await uncoveredNow(hourhand.pool)).toMatchObject({ hours: 50, calls: 100, moreCalls: false });
    expect(await firstLine(hourhand)).not.toContain('still looking');
    expect(hourhand.logged).toContainEqual(
      expect.objectContaining({
        msg: expect.stringMatching(/^first start: .*hourhand backfill --uncovered/),
        hours: 50,
        level: 40,
      }),
    );
    expect(hourhand.logged).toContainEqual(
      expect.objectContaining({
        msg: expect.stringMatching(/^50 hours with 100 calls are in no figure/),
        ok: false,
        level: 40,
      }),
    );
  });

  test('the walk passes over covered and closed hours, and forgets hours without a call', async () => {
    await using hourhand = await startHourhand();
    await prepare(hourhand);
    const { pool } = hourhand;
    await fillPast(hourhand, { hours: 60, calls: 60, leaveMarks: false });
    const running = (await startOfRunningHour(pool)).getTime();
    const ago = (hours: number) => hourOf(new Date(running - hours * HOUR_MS));
    await hourhand.cover(ago(30), ago(11));
    await pool.$executeRaw`
      insert into "StatHour" (hour, state, reason, run, "startedAt", "closedAt", users, calls)
      values (${new Date(running - 5 * HOUR_MS)}::timestamptz, 'closed', 'tick', 1, now(), now(), 1, 1)`;
    await pool.$executeRaw`insert into "StatGap" values (${new Date(running - 3_000 * HOUR_MS)}::timestamptz)`;
    await beginWalk(pool, { again: false });
    for (let steps = 0; !(await walkOn(pool, { hours: 7 })); steps++) expect(steps).toBeLessThan(10);
    const expected = Array.from({ length: 60 }, (_, i) => i + 2).filter((i) => i !== 5 && (i < 11 || i > 30));
    expect(await uncoveredHours(pool)).toEqual(expected.map(ago).sort());
  });

  test('an hour is uncovered no more once its last call is deleted, and again with the next', async () => {
    await using hourhand = await startHourhand();
    await prepare(hourhand);
    const { pool } = hourhand;
    await fillPast(hourhand, { hours: 3, calls: 6 });
    await sweepMarks(pool, 100);
    expect(await uncoveredNow(pool)).toMatchObject({ hours: 3 });
    await pool.$executeRaw`delete from "ModelCall" where id in ('past-0', 'past-3')`;
    expect(await sweepMarks(pool, 100)).toMatchObject({ marks: 2, hours: 0 });
    expect(await uncoveredNow(pool)).toMatchObject({ hours: 2, calls: 4 });
    const at = new Date((await startOfRunningHour(pool)).getTime() - 2 * HOUR_MS);
    await hourhand.record({ user: 'ada', at: at.toISOString() });
    expect(await sweepMarks(pool, 100)).toMatchObject({ marks: 1, uncovered: 1, hours: 1, fresh: 1 });
    expect(await uncoveredNow(pool)).toMatchObject({ hours: 3, calls: 5 });
  });

  test('what a cancelled backfill gives back is uncovered again; what waits for a paused one is not', async () => {
    await using hourhand = await startHourhand();
    await prepare(hourhand);
    const { pool } = hourhand;
    await fillPast(hourhand, { hours: 10, calls: 20 });
    const asked = { requestedBy: 'test', requestedFrom: 'test' };
    const request = await backfillUncovered(hourhand, asked);
    expect(request?.hours).toHaveLength(10);
    expect(await backfillUncovered(hourhand, asked)).toBeUndefined();
    expect(await uncoveredNow(pool)).toMatchObject({ hours: 0 });
    await pauseBackfill(hourhand, request?.backfill ?? 0, 'test');
    expect(await uncoveredNow(pool)).toMatchObject({ hours: 0 });
    expect(await firstLine(hourhand)).not.toMatch(/^OK/);
    // Half of it is done: these hours stay closed.
    await pool.$executeRaw`
      update "StatHour" set state = 'closed', run = 1, fence = 0, "startedAt" = now(), "closedAt" = now(), users = 1, calls = 2
       where hour in (select hour from "StatHour" order by hour limit 4)`;
    await cancelBackfill(hourhand, request?.backfill ?? 0, 'test');
    expect(await uncoveredNow(pool)).toMatchObject({ hours: 6, calls: 12 });
  });
});

test('one click covers the uncovered hours, and is written down; a second one finds none', async () => {
  await using hourhand = await startHourhand();
  await using page = await openPage(hourhand);
  await fillPast(hourhand, { hours: 5, calls: 5 });
  const asked = await page.post('/uncovered/cover');
  expect(asked).toMatchObject({ status: 200, text: expect.stringContaining('Backfill 1 has begun.') });
  expect(await page.post('/uncovered/cover')).toMatchObject({
    status: 200,
    text: expect.stringContaining('No hour is'),
  });
  const [, action] = await recentActions(hourhand.pool, { limit: 5 });
  expect(action).toMatchObject({ what: 'backfill', subject: 'uncovered hours', outcome: '200' });
  expect(await hourhand.pool.backfill.findMany()).toMatchObject([{ only: 'uncovered', hours: 5 }]);
});

test('many processes that cover at once ask once', async () => {
  await using hourhand = await startHourhand();
  await fillPast(hourhand, { hours: 20, calls: 40 });
  const asked = { requestedBy: 'test', requestedFrom: 'test' };
  const requests = await Promise.all(Array.from({ length: 4 }, () => backfillUncovered(hourhand, asked)));
  expect(requests.filter((request) => request !== undefined)).toHaveLength(1);
  expect(await hourhand.pool.backfillHour.count()).toBe(20);
});

test('--uncovered says first what it would be, and goes with no range, user or choice', async () => {
  await using hourhand = await startHourhand();
  await fillPast(hourhand, { hours: 2, calls: 4 });
  const dry = await hourhand.run(['backfill', '--uncovered', '--dry-run']);
  expect(dry).toMatchObject({
    code: 0,
    stderr: expect.stringMatching(/^2 hours with 4 calls are in no figure.*nothing was changed\n$/s),
  });
  expect(await hourhand.pool.statRange.count()).toBe(0);
  for (const [option, value] of [
    ['--from', '2026-08-20'],
    ['--user', 'ada'],
    ['--only', 'missing'],
  ] as const) {
    expect(await hourhand.run(['backfill', '--uncovered', option, value])).toMatchObject({
      code: 2,
      stderr: `hourhand: expected --uncovered or ${option}, got both\n`,
    });
  }
});

test('a worker killed in the middle of the walk leaves it where it was, and the next one ends it', async () => {
  await using hourhand = await startHourhand();
  const { pool } = hourhand;
  await fillPast(hourhand, { hours: 2_500, calls: 2_500, leaveMarks: false });
  const killed = await hourhand.startWorker();
  killed.child.kill('SIGKILL');
  await ended(killed.child);
  const { lookingBefore } = await walkOf(pool);
  expect(lookingBefore).toEqual(new Date((await startOfRunningHour(pool)).getTime() - 2_001 * HOUR_MS));
  expect(await uncoveredNow(pool)).toMatchObject({ hours: 2_000 });
  await hourhand.work();
  expect(await walkOf(pool)).toEqual({ lookingBefore: null });
  expect(await uncoveredNow(pool)).toMatchObject({ hours: 2_500 });
});

test('each audit walks again: it finds what came past the triggers', async () => {
  await using hourhand = await startHourhand();
  await hourhand.work();
  expect(await uncoveredNow(hourhand.pool)).toMatchObject({ hours: 0 });
  await fillPast(hourhand, { hours: 3, calls: 3, leaveMarks: false });
  await audited(hourhand);
  while (!(await walkOn(hourhand.pool)));
  expect(await uncoveredNow(hourhand.pool)).toMatchObject({ hours: 3 });
});

test('marks that nobody will take do not wait', async () => {
  await using hourhand = await startHourhand();
  await fillPast(hourhand, { hours: 3, calls: 30 });
  expect(await hourhand.pool.statMark.count()).toBe(30);
  expect(await waitingMarks(hourhand.pool)).toBe(0);
  const at = new Date((await startOfRunningHour(hourhand.pool)).getTime() - 2 * HOUR_MS);
  await hourhand.cover(hourOf(at), hourOf(at));
  expect(await waitingMarks(hourhand.pool)).toBe(10);
});

test('a user who is rolled up alone in an uncovered hour leaves it uncovered', async () => {
  await using hourhand = await startHourhand();
  const { pool } = hourhand;
  const hour = h('2026-08-20T13');
  await hourhand.record({ user: 'ada', at: '2026-08-20T13:10:00Z' }, { user: 'bob', at: '2026-08-20T13:20:00Z' });
  await hourhand.work();
  await hourhand.backfillUser('ada', hour);
  await until(
    () => hourhand.stat('ada', hour),
    (stat) => stat?.totalCalls === '1',
  );
  expect(await uncoveredHours(pool)).toEqual([hour]);
  const [cell] = await coverageOf(pool, { start: startOf(hour), end: endOf(hour) });
  expect(cell).toMatchObject({ cell: 'uncovered' });
});
