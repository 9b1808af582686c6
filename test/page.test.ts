// Does one page say whether every figure is complete and what is wrong, and can it be mended there?

import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { type Browser, chromium, type Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { remembering } from '../src/dashboard/remembered.ts';
import { startDashboard } from '../src/dashboard/server.ts';
import { pauseBackfill } from '../src/producers/backfills.ts';
import { pauseScheduler } from '../src/producers/schedules.ts';
import { recentActions } from '../src/store/actions.ts';
import { auditHour } from '../src/store/audit.ts';
import { barsOf, topModels, topUsers } from '../src/store/charts.ts';
import { coverageByDay, coverageOf } from '../src/store/coverage.ts';
import { deriveWaiting } from '../src/store/hour-models.ts';
import { runsOf } from '../src/store/runs.ts';
import { askAt, ownHeaders } from './support/board.ts';
import { type Hourhand, h, holdUser, startHourhand, until } from './support/hourhand.ts';
import { ownServers } from './support/servers.ts';

const DAY = { start: new Date('2026-08-20T00:00:00Z'), end: new Date('2026-08-21T00:00:00Z') };
const shown = '/?from=2026-08-20&to=2026-08-20';

let hourhand: Hourhand;
let dashboard: { url: string; close(): Promise<void> };
let port: number;
let close = async () => {};

async function open(env?: Record<string, string>): Promise<void> {
  hourhand = await startHourhand(env);
  dashboard = await startDashboard(hourhand);
  port = Number(new URL(dashboard.url).port);
  close = async () => {
    await dashboard.close();
    await hourhand[Symbol.asyncDispose]();
  };
}

afterEach(async () => {
  await close();
  close = async () => {};
});

/** What a page of ours asks for. */
const get = async (path: string) => {
  const { status, text } = await askAt(port, 'get', path, { Accept: 'text/html' });
  return { status, text };
};

/** What a form of ours sends. */
async function post(path: string, fields: Record<string, string> = {}, as: Record<string, string> = {}) {
  const own = await ownHeaders(port, as);
  const headers = { ...own, 'Content-Type': 'application/x-www-form-urlencoded' };
  return askAt(port, 'post', path, headers, new URLSearchParams(fields).toString());
}

/** Hours 00 to 05 of the day, each with a call of ada and bob; rolled up by a worker. */
async function sixHours(): Promise<void> {
  await hourhand.record(
    ...Array.from({ length: 6 }, (_, i) => `2026-08-20T0${i}:10:00Z`).flatMap((at) => [
      { user: 'ada', at, credits: '0.25' },
      { user: 'bob', at, credits: '0.00000001', status: 'failed' },
    ]),
  );
  await hourhand.work();
  await hourhand.backfill(h('2026-08-20T00'), h('2026-08-20T05'));
  await until(
    () => hourhand.pool.statHour.count({ where: { state: 'closed', hour: { lt: DAY.end, gte: DAY.start } } }),
    (n) => n === 6,
  );
}

describe('what it says', () => {
  beforeEach(() => open());

  test('each hour is shown as what it is, with its figures and its error', async () => {
    await sixHours();
    await hourhand.cover(h('2026-08-20T05'), h('2026-08-20T06'));
    await hourhand.pool.$executeRaw`
      update "StatHour" set state = 'partial', error = 'eve: numeric field overflow', "nextAttemptAt" = now() + interval '1 hour' where hour = '2026-08-20T01:00Z'`;
    await hourhand.pool.$executeRaw`update "StatHour" set state = 'running' where hour = '2026-08-20T02:00Z'`;
    await hourhand.pool.$executeRaw`
      update "StatHour" set state = 'open', "nextAttemptAt" = now() + interval '1 hour' where hour = '2026-08-20T03:00Z'`;
    const hours = await coverageOf(hourhand.pool, DAY, new Date('2026-08-20T22:30:00Z'));
    expect(Object.fromEntries(hours.map(({ hour, cell }) => [hour.slice(11), cell]))).toEqual({
      ...Object.fromEntries(Array.from({ length: 24 }, (_, i) => [String(i).padStart(2, '0'), 'before'])),
      '00': 'closed',
      '01': 'partial',
      '02': 'running',
      '03': 'reopened',
      '04': 'closed',
      '05': 'closed',
      '06': 'owed',
      22: 'ahead',
      23: 'ahead',
    });
    const { status, text } = await get(shown);
    expect(status).toBe(200);
    expect(text).toContain('aria-label="2026-08-20T00 closed, 2 users, 2 calls, 0.25000001 credits"');
    expect(text).toContain(
      'aria-label="2026-08-20T01 partial, 2 users, 2 calls, 0.25000001 credits, eve: numeric field overflow"',
    );
    expect(text).toContain('1 hour is partial');
    const [day] = await coverageByDay(hourhand.pool, DAY, new Date('2026-08-20T22:30:00Z'));
    expect(day).toEqual({
      day: DAY.start,
      cells: { closed: 3, partial: 1, running: 1, reopened: 1, owed: 1, before: 15, ahead: 2 },
      calls: 12n,
      credits: '1.50000006',
    });
  });

  test('an hour shows its runs, its shards with the users that fail, and leads to their jobs', async () => {
    await hourhand.record({ user: 'ada', at: '2026-08-20T00:10:00Z' });
    await hourhand.record(
      ...[1, 2].map(() => ({ user: 'zoe', at: '2026-08-20T00:20:00Z', tokens: 9_000_000_000_000_000_000n })),
    );
    await hourhand.work();
    await hourhand.backfill(h('2026-08-20T00'));
    await hourhand.reaches(h('2026-08-20T00'), 'partial');
    const { text } = await get('/hours/2026-08-20T00');
    expect(text).toContain('It is partial');
    expect(text).toMatch(/zoe: bigint out of range/);
    const links = [...text.matchAll(/href="(\/queues\/queue\/[^"]+)"/g)].map(([, link]) => link ?? '');
    const [run] = await runsOf(hourhand.pool, h('2026-08-20T00'), 1);
    expect(run).toMatchObject({ run: 1, reason: 'backfill', requestedBy: 'test', outcome: 'partial' });
    expect(links).toContain(`/queues/queue/stats-hour/${run?.job}`);
    const child =
      links
        .find((link) => link.includes('/stats-users/'))
        ?.split('/')
        .at(-1) ?? '';
    const job = await hourhand.queues.users.getJob(decodeURIComponent(child));
    expect(job?.data).toMatchObject({ userDid: 'zoe' });
    await job?.remove();
    expect((await get('/hours/2026-08-20T00')).text).not.toContain(`/stats-users/${child}`);
  });

  test('of many hours that run none hides that others are partial', async () => {
    await hourhand.pool.$executeRaw`
      insert into "StatHour" (hour, state, reason) select '2026-08-20T00:00Z'::timestamptz + i * interval '1 hour',
             (case when i < 22 then 'partial' else 'running' end)::"HourState", 'tick' from generate_series(0, 46) as i`;
    const { text } = await get(shown);
    expect(text).toContain('22 hours are partial');
    expect(text).toContain('partial, run 0');
  });

  test('an hour of a backfill that is paused is held, and not owed', async () => {
    await hourhand.record({ user: 'ada', at: '2026-08-20T04:10:00Z' });
    const { backfill } = await hourhand.backfill(h('2026-08-20T04'));
    expect((await get(shown)).text).toContain('aria-label="2026-08-20T04 owed');
    await pauseBackfill(hourhand, backfill, 'otto');
    expect((await get(shown)).text).toContain('aria-label="2026-08-20T04 held');
    expect((await get('/hours/2026-08-20T04')).text).toContain('its backfill is paused');
  });

  test('who paused a scheduler or a queue is no secret of tables further down, and when an audit was last is said', async () => {
    await sixHours();
    await until(
      async () => {
        await auditHour(hourhand.pool, h('2026-08-20T04'));
        return hourhand.pool.statHour.count({ where: { auditedAt: { not: null } } });
      },
      (audited) => audited === 1,
    );
    await pauseScheduler(hourhand, 'model.call.stats', 'otto');
    await hourhand.queues.hours.pause();
    const { text } = await until(
      () => get('/parts/now'),
      ({ text }) => text.includes('Queue stats-hour is paused'),
    );
    expect(text).toContain('Scheduler model.call.stats is paused by otto');
    expect(text).toMatch(/<dt>Audit<\/dt><dd>the last at \d{4}-/);
  });

  test('a run that closed has closed, though a late call in its hour cannot be stored', async () => {
    await sixHours();
    await hourhand.record(
      ...[1, 2].map(() => ({ user: 'zoe', at: '2026-08-20T04:20:00Z', tokens: 9_000_000_000_000_000_000n })),
    );
    await until(
      async () => {
        await hourhand.tick();
        return hourhand.hour(h('2026-08-20T04'));
      },
      (hour) => hour?.state === 'partial',
    );
    expect((await runsOf(hourhand.pool, h('2026-08-20T04'), 9)).at(-1)).toMatchObject({
      run: 1,
      outcome: 'closed',
      error: null,
    });
  });

  test('what an hour, a backfill or a range cannot be is said, and nothing dies of it', async () => {
    for (const path of [
      '/hours/yesterday',
      '/hours/2026-02-30T00',
      '/backfills/9',
      '/backfills/x',
      '/parts/backfills/9',
    ]) {
      expect([path, (await get(path)).status]).toEqual([path, 404]);
    }
    for (const query of [
      'from=x&to=y',
      'from=2026-08-20&to=2026-08-01',
      'last=0',
      'last=99999',
      'from=1970-01-01&to=2026-01-01',
    ]) {
      const { status, text } = await get(`/?${query}`);
      expect([query, status, /role="alert">[^<]*expected/.test(text)]).toEqual([query, 200, true]);
      expect([query, (await get(`/parts/coverage?${query}`)).status]).toEqual([query, 400]);
    }
    expect((await get('/?from=2026-08-20&from=2026-08-19&to[]=x')).status).toBe(200);
    expect((await get('/actions?before=x')).status).toBe(400);
    expect((await get('/assets/../package.json')).status).toBe(403);
    expect((await get('/')).status).toBe(200);
  });

  test('a part that shows what is answers nothing, and one that does not answers itself', async () => {
    await sixHours();
    const { text } = await get(shown);
    const part = /hx-get="(\/parts\/coverage[^"]*)"/.exec(text)?.[1]?.replaceAll('&amp;', '&') ?? '';
    expect(await get(part)).toEqual({ status: 204, text: '' });
    await hourhand.record({ user: 'cleo', at: '2026-08-20T04:30:00Z' });
    await hourhand.backfill(h('2026-08-20T04'));
    await until(
      () => hourhand.hour(h('2026-08-20T04')),
      (hour) => hour?.state === 'closed' && hour.users === 3,
    );
    const again = await get(part);
    expect([again.status, again.text]).toEqual([
      200,
      expect.stringContaining('2026-08-20T04 closed, 3 users, 3 calls'),
    ]);
  });

  test('charts and tops are what the statistics add up to, exactly', async () => {
    await sixHours();
    await deriveWaiting(hourhand.pool, AbortSignal.timeout(10_000));
    const [bar, ...others] = await barsOf(hourhand.pool, DAY, 'day');
    expect(others).toEqual([]);
    expect(bar).toEqual({
      ...DAY,
      at: DAY.start,
      calls: 12n,
      successCalls: 6n,
      failedCalls: 6n,
      totalUsage: '120',
      totalCredits: '1.50000006',
    });
    expect(await barsOf(hourhand.pool, DAY, 'hour')).toHaveLength(24);
    const whole = { successCalls: 6n, failedCalls: 0n, calls: 6n, totalUsage: '60' };
    expect(await topUsers(hourhand.pool, DAY, 10)).toEqual([
      { name: 'ada', ...whole, totalCredits: '1.50000000' },
      { name: 'bob', ...whole, successCalls: 0n, failedCalls: 6n, totalCredits: '0.00000006' },
    ]);
    expect(await topModels(hourhand.pool, DAY, 10)).toEqual([
      {
        name: 'openai/gpt',
        calls: 12n,
        successCalls: 6n,
        failedCalls: 6n,
        totalUsage: '120',
        totalCredits: '1.50000006',
      },
    ]);
    // A call that goes takes its share of the model's figures with it.
    await hourhand.pool.$executeRaw`delete from "ModelCall" where "callTime" >= '2026-08-20T05:00Z'`;
    await until(
      async () => {
        await hourhand.tick();
        await deriveWaiting(hourhand.pool, AbortSignal.timeout(10_000));
        return topModels(hourhand.pool, DAY, 10);
      },
      ([line]) => line?.calls === 10n,
    );
  });
});

describe('what is added up', () => {
  beforeEach(() => open());

  test('a call that changes its model takes its share to the other', async () => {
    await sixHours();
    await deriveWaiting(hourhand.pool, AbortSignal.timeout(10_000));
    await hourhand.pool.$executeRaw`
      update "ModelCall" set model = 'gpt-next' where "userDid" = 'ada' and "callTime" < '2026-08-20T02:00Z'`;
    await until(
      async () => {
        await hourhand.tick();
        await deriveWaiting(hourhand.pool, AbortSignal.timeout(10_000));
        return topModels(hourhand.pool, DAY, 10);
      },
      (lines) => lines.map(({ name, calls }) => `${calls} ${name}`).join() === '10 openai/gpt,2 openai/gpt-next',
    );
  });

  test('hours that an older hourhand closed are added up too, sealed ones as well, and until then nothing is made up', async () => {
    await sixHours();
    const [before] = await barsOf(hourhand.pool, DAY, 'day');
    await hourhand.pool.$executeRaw`
      update "StatHour" set ("successCalls", "failedCalls", "totalUsage", "totalCredits", "modelsAsOf") = (null, null, null, null, null),
             "sealedAt" = case when hour >= '2026-08-20T04:00Z' then now() end`;
    expect((await get(shown)).text).toContain('aria-label="2026-08-20T04 closed, 2 users, 2 calls, sealed"');
    await deriveWaiting(hourhand.pool, AbortSignal.timeout(10_000));
    expect(await barsOf(hourhand.pool, DAY, 'day')).toEqual([before]);
    // Of what was forgotten before, nobody can say it any more.
    await hourhand.pool
      .$executeRaw`update "StatHour" set "totalUsage" = null, "totalCredits" = null where hour = '2026-08-20T05:00Z'`;
    await hourhand.pool.$executeRaw`delete from "ModelCallStat" where "timestamp" = '2026-08-20T05:00Z'`;
    await deriveWaiting(hourhand.pool, AbortSignal.timeout(10_000));
    expect((await get(shown)).text).toContain('aria-label="2026-08-20T05 closed, 2 users, 2 calls, sealed"');
  });

  test('a week that began before the range is not shown as if it were whole', async () => {
    const { text } = await get('/?from=2026-05-13&to=2026-09-01');
    expect(text).toContain('[2026-05-13T00, 2026-05-18T00): 0');
    expect(text).toContain('[2026-05-18T00, 2026-05-25T00): 0');
    expect(text).toContain('[2026-08-31T00, 2026-09-02T00): 0');
    expect(text).not.toContain('<span>0</span><span>0</span>');
    const day = await get('/?from=2026-08-10T06&to=2026-08-20');
    expect(day.text).toContain('[2026-08-10T06, 2026-08-11T00): 0');
    expect(day.text).toContain('2026-08-11: 0');
  });
});

test('while Redis is away the page says so, and shows what the ledger knows', async () => {
  await using servers = await ownServers('page', 'redis');
  await open(servers.env);
  await sixHours();
  await servers.kill('redis');
  const { status, text } = await get(shown);
  expect(status).toBe(200);
  expect(text).toContain('nothing is rolled up until it answers; what is owed stays owed');
  expect(text).toContain('aria-label="2026-08-20T00 closed, 2 users, 2 calls, 0.25000001 credits"');
});

describe('what is done there', () => {
  beforeEach(() => open());

  test('an hour is run again, and that is written down', async () => {
    await sixHours();
    const { status, headers } = await post('/hours/2026-08-20T04/run');
    expect([status, headers.location]).toEqual([303, '/hours/2026-08-20T04']);
    await until(
      () => hourhand.hour(h('2026-08-20T04')),
      (hour) => hour?.run === 2 && hour.state === 'closed',
    );
    expect((await runsOf(hourhand.pool, h('2026-08-20T04'), 1))[0]).toMatchObject({
      run: 2,
      requestedBy: 'anonymous',
    });
    await until(
      () => recentActions(hourhand.pool, { limit: 1 }),
      ([line]) => line?.outcome === '303',
    );
    expect(await recentActions(hourhand.pool, { limit: 9 })).toMatchObject([
      { who: 'anonymous', role: 'operator', what: 'run again', subject: '2026-08-20T04', from: '127.0.0.1' },
    ]);
    expect((await get('/actions')).text).toContain('run again 2026-08-20T04');
  });

  test('a backfill is surveyed, begun, paused, resumed and cancelled, each written down', async () => {
    await sixHours();
    const survey = await get('/backfills/new?from=2026-08-20T04&to=2026-08-20T08&user=&only=all');
    expect(survey.text).toContain('4 hours');
    expect(survey.text).toContain('2 closed, 2 missing');
    expect(survey.text).toContain('2 hours are closed already');
    expect(survey.text).toContain('2 users with calls in them');
    await using _ = await holdUser(hourhand, 'ada', h('2026-08-20T05'));
    const begun = await post('/backfills', { from: '2026-08-20T04', to: '2026-08-20T08', user: '', only: 'all' });
    expect(begun.status).toBe(303);
    const at = String(begun.headers.location);
    await until(
      () => get(at),
      ({ text }) => text.includes('3 of 4 hours'),
    );
    for (const [verb, state] of [
      ['pause', 'paused'],
      ['resume', 'running'],
      ['cancel', 'cancelled'],
    ]) {
      expect([verb, (await post(`${at}/${verb}`)).status]).toEqual([verb, 303]);
      expect((await get(at)).text).toContain(`[2026-08-20T04, 2026-08-20T08): ${state}`);
    }
    const late = await post(`${at}/pause`, {}, { Accept: 'application/json' });
    expect([late.status, late.text]).toEqual([409, expect.stringContaining('expected a backfill that is')]);
    const lines = await recentActions(hourhand.pool, { limit: 9 });
    const id = at.split('/').at(-1);
    expect(lines.map(({ what, subject }) => `${what} ${subject}`)).toEqual([
      `pause backfill ${id}`,
      `cancel backfill ${id}`,
      `resume backfill ${id}`,
      `pause backfill ${id}`,
      'backfill [2026-08-20T04, 2026-08-20T08)',
    ]);
  });

  test('hours that have not ended, and wishes that cannot be read, are refused in words and ask for nothing', async () => {
    for (const fields of [
      { from: '2026-08-20', to: '2026-08-19' },
      { from: 'soon', to: 'later' },
      { from: '2999-01-01', to: '2999-01-02' },
      { from: '1971-01-01', to: '2026-01-01' },
      { from: '2026-08-20', to: '2026-08-21', only: 'some' },
      { from: '2026-08-20', to: '2026-08-21', user: 'ada', only: 'missing' },
    ]) {
      const { status, text } = await post(
        '/backfills',
        { user: '', only: 'all', ...fields },
        { Accept: 'application/json' },
      );
      expect([fields, status, text]).toEqual([fields, 400, expect.stringContaining('expected')]);
      const query = new URLSearchParams({ user: '', only: 'all', ...fields });
      expect((await get(`/backfills/new?${query}`)).status).toBe(400);
    }
    expect(await hourhand.pool.backfill.count()).toBe(0);
    expect(await recentActions(hourhand.pool, { limit: 9 })).toEqual([]);
  });

  test('a scheduler is paused, resumed and run now', async () => {
    await hourhand.work();
    for (const [verb, word] of [
      ['pause', 'paused by anonymous'],
      ['resume', 'off, off'],
      ['run', 'off, off'],
    ]) {
      expect([verb, (await post(`/schedulers/audit.model.call.stats/${verb}`)).status]).toEqual([verb, 303]);
      expect((await get('/parts/machinery')).text).toContain(word);
    }
    await until(
      () => hourhand.queues.audits.getCompletedCount(),
      (n) => n === 1,
    );
    const { status, text } = await post('/schedulers/tea.time/run', {}, { Accept: 'application/json' });
    expect([status, text]).toEqual([404, expect.stringContaining('expected model.call.stats, ')]);
  });
});

describe('who may', () => {
  const CHANGES = [
    '/hours/2026-08-20T04/run',
    '/backfills',
    ...['pause', 'resume', 'cancel', 'retry'].map((verb) => `/backfills/1/${verb}`),
    ...['pause', 'resume', 'run'].map((verb) => `/schedulers/model.call.stats/${verb}`),
  ];
  const LOOKS = [
    '/',
    '/hours/2026-08-20T04',
    '/backfills/1',
    '/backfills/new',
    '/actions',
    '/parts/now',
    '/parts/coverage',
  ];
  const as = { vera: { 'X-Forwarded-User': 'vera' }, otto: { 'X-Forwarded-User': 'otto' } };

  beforeEach(async () => {
    await open({ PROXY_ADDRESSES: '127.0.0.1', PROXY_OPERATORS: 'otto' });
    await hourhand.backfill(h('2026-08-20T04'));
  });

  test('nobody sees anything, a viewer sees and changes nothing, an operator does', async () => {
    for (const path of LOOKS) {
      expect([path, (await askAt(port, 'get', path)).status]).toEqual([path, 401]);
      const { status, text } = await askAt(port, 'get', path, as.vera);
      expect([path, status, /<button[^>]*>(Pause|Run|Cancel|Resume)/.test(text)]).toEqual([path, 200, false]);
    }
    const before = await hourhand.hour(h('2026-08-20T04'));
    for (const path of CHANGES) {
      expect([path, (await post(path)).status]).toEqual([path, 401]);
      const { status, text } = await post(path, {}, as.vera);
      expect([path, status, text]).toEqual([
        path,
        403,
        expect.stringContaining('expected an operator, got viewer vera'),
      ]);
    }
    expect(await hourhand.hour(h('2026-08-20T04'))).toEqual(before);
    expect(await recentActions(hourhand.pool, { limit: 9 })).toEqual([]);
    expect((await askAt(port, 'get', '/', as.otto)).text).toMatch(/<button[^>]*>Pause/);
    expect((await post('/hours/2026-08-20T04/run', {}, as.otto)).status).toBe(303);
  });

  test('without the token of its own page nothing is changed, and the page is nobody else’s to frame or to feed', async () => {
    for (const path of CHANGES) {
      const headers = { ...as.otto, Origin: dashboard.url, 'Content-Type': 'application/x-www-form-urlencoded' };
      expect([path, (await askAt(port, 'post', path, headers, 'x=1')).status]).toEqual([path, 403]);
    }
    const { headers } = await askAt(port, 'get', '/', as.otto);
    expect(headers['content-security-policy']).toContain("script-src 'self'");
    expect(headers['content-security-policy']).not.toContain('unsafe');
    expect(headers['cache-control']).toBe('no-store');
  });

  test('what somebody wrote into a name stays text', async () => {
    const evil = '<img src=x onerror=alert(1)>"\'&';
    await hourhand.record({ user: evil, at: '2026-08-20T07:10:00Z' });
    await hourhand.work();
    await hourhand.backfill(h('2026-08-20T07'));
    await hourhand.reaches(h('2026-08-20T07'), 'closed');
    await hourhand.pool.$executeRaw`update "StatHour" set error = ${evil} where hour = '2026-08-20T07:00Z'`;
    const pages = [
      '/hours/2026-08-20T07',
      shown,
      `/backfills/new?from=${encodeURIComponent(evil)}&to=x&user=${encodeURIComponent(evil)}`,
    ];
    for (const path of pages) {
      const { text } = await askAt(port, 'get', path, as.otto);
      expect([path, text.includes('<img')]).toEqual([path, false]);
      expect([path, text.includes('&lt;img src=x')]).toEqual([path, true]);
    }
    await until(
      async () => (await askAt(port, 'get', '/parts/charts?from=2026-08-20&to=2026-08-20', as.otto)).text,
      (text) => text.includes('&lt;img src=x') && !text.includes('<img'),
    );
  });
});

describe('what takes long to add up', () => {
  test('is looked for once however many ask, shown when it is there, and its failure said', async () => {
    const remembered = remembering<number>((error) => String(error));
    let asked = 0;
    let release = (_: number) => {};
    const slow = () => {
      asked += 1;
      return new Promise<number>((resolve) => {
        release = resolve;
      });
    };
    expect(await Promise.all([1, 2, 3].map(() => remembered('a', slow)))).toEqual(
      [1, 2, 3].map(() => ({ busy: true })),
    );
    release(7);
    const found = await until(
      () => remembered('a', slow),
      (seen) => 'found' in seen,
    );
    expect([found, asked]).toEqual([{ found: 7, at: expect.any(Date) }, 1]);
    expect(await remembered('b', () => Promise.reject(new Error('too long')))).toEqual({ error: 'Error: too long' });
  });

  test('is no longer looked for once many others were asked for since, however many wait', async () => {
    const remembered = remembering<number>(String);
    const asked: number[] = [];
    let release = () => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    const look = (i: number) => async () => {
      asked.push(i);
      await held;
      return i;
    };
    await Promise.all(Array.from({ length: 1_000 }, (_, i) => remembered(String(i), look(i))));
    release();
    await until(
      () => remembered('999', look(999)),
      (seen) => 'found' in seen,
    );
    expect(asked).toEqual(Array.from({ length: 50 }, (_, i) => 950 + i));
  });
});

const CHROMIUM = '/usr/bin/chromium';
const there = existsSync(CHROMIUM);

describe.skipIf(!there)(there ? 'in a browser' : `in a browser (SKIPPED: ${CHROMIUM} is not there)`, () => {
  const axe = readFileSync(fileURLToPath(import.meta.resolve('axe-core/axe.min.js')), 'utf8');
  let browser: Browser;

  beforeAll(async () => {
    const flags =
      '--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync';
    browser = await chromium.launch({ executablePath: CHROMIUM, args: flags.split(' ') });
  });
  afterAll(() => browser.close());
  beforeEach(() => open());

  /** Somebody at a window of this size, who sees whatever goes wrong in it. */
  async function visit(path: string, { width = 1280, dark = false, context = {} } = {}) {
    const page = await browser.newPage({
      viewport: { width, height: 800 },
      colorScheme: dark ? 'dark' : 'light',
      ...context,
    });
    const wrong: string[] = [];
    page.on('console', (message) => message.type() === 'error' && wrong.push(message.text()));
    page.on('pageerror', (error) => wrong.push(String(error)));
    page.on('request', (asked) => asked.url().startsWith(dashboard.url) || wrong.push(asked.url()));
    let bytes = 0;
    page.on('response', async (answer) => {
      bytes += (await answer.body().catch(() => Buffer.alloc(0))).length;
    });
    await page.goto(`${dashboard.url}${path}`);
    return { page, wrong, weight: () => bytes };
  }

  /** What the checker finds that is serious or worse; of what is right it need make no list. */
  async function serious(page: Page): Promise<string[]> {
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() =>
      (globalThis as unknown as { axe: Axe }).axe.run({ resultTypes: ['violations'] }),
    );
    return violations
      .filter(({ impact }) => impact === 'serious' || impact === 'critical')
      .map(({ id, nodes }) => `${id}: ${nodes[0]?.html}`);
  }
  interface Axe {
    run(options: { resultTypes: ['violations'] }): Promise<{ violations: Violation[] }>;
  }
  interface Violation {
    id: string;
    impact: string;
    nodes: { html: string }[];
  }

  test('every page is right at three sizes, light and dark, to an accessibility checker too, and weighs little', async () => {
    await sixHours();
    await hourhand.record({ user: 'eve', at: '2026-08-20T06:20:00Z', tokens: 9_000_000_000_000_000_000n });
    await hourhand.record({ user: 'eve', at: '2026-08-20T06:20:00Z', tokens: 9_000_000_000_000_000_000n });
    const { backfill } = await hourhand.backfill(h('2026-08-20T06'));
    await hourhand.reaches(h('2026-08-20T06'), 'partial');
    const paths = [
      shown,
      '/',
      '/?last=730',
      '/hours/2026-08-20T06',
      `/backfills/${backfill}`,
      '/backfills/new?from=2026-08-20&to=2026-08-21',
      '/actions',
      '/nowhere',
    ];
    for (const path of paths) {
      for (const [width, dark] of [
        [1280, false],
        [768, false],
        [360, true],
      ] as const) {
        const { page, wrong, weight } = await visit(path, { width, dark });
        const overflow = await page.evaluate(
          () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
        );
        const found = [path, width, overflow, await serious(page), wrong.filter((what) => !what.includes('404'))];
        expect(found).toEqual([path, width, 0, [], []]);
        expect(weight()).toBeLessThan(200_000);
        await page.close();
      }
    }
  });

  test.each([
    ['closed', 200_000],
    ['partial', 220_000],
  ])('a full month weighs little too, of hours that are %s', async (state, limit) => {
    await hourhand.pool.$executeRaw`
      insert into "StatHour" (hour, state, run, reason, users, calls, "totalCredits", "totalUsage", "successCalls", "failedCalls",
                              "startedAt", "closedAt", "asOf", revision, error)
      select hour, ${state}::"HourState", 1, 'tick', 98765, 12345678, 123456.12345678, 98765432109, 12345000, 678, hour, hour, hour, 1,
             case ${state} when 'partial' then repeat('did:abt:z1abcdefghijklmnopqrstuvwxyz: numeric field overflow; ', 20) end
        from generate_series(0, 743) as i, lateral (select date_trunc('hour', now(), 'UTC') - i * interval '1 hour' as hour) as past`;
    await hourhand.pool
      .$executeRaw`insert into "ModelProvider" values ('openrouter', 'https://openrouter.ai/api/v1', 'KEY', 1)`;
    await hourhand.pool.$executeRaw`
      insert into "ModelStatus" ("providerId", model, type, status, reason, detail, "checkedAt")
      select 'openrouter', 'anthropic/claude-sonnet-' || i, 'chatCompletion', 'degraded', 'rate limited', '429 from its provider, 12 of 40 calls', now()
        from generate_series(1, 100) as i`;
    await hourhand.pool.$executeRaw`
      insert into "Backfill" ("requestedBy", "requestedFrom", "requestedAt", start, "end", "only", state, hours, "finishedAt")
      select 'on-call', 'page, 10.0.0.5', now(), '2026-08-01', '2026-08-31', 'all', 'finished', 720, now() from generate_series(1, 30)`;
    const { page, wrong } = await visit('/');
    const loaded = await page.evaluate(() =>
      performance
        .getEntriesByType('resource')
        .map(({ name }) => new URL(name).pathname)
        .filter((path) => path.startsWith('/assets/')),
    );
    const sizes = await Promise.all(['/', ...loaded].map(async (path) => Buffer.byteLength((await get(path)).text)));
    expect(sizes.length).toBeGreaterThan(3);
    expect(sizes.reduce((sum, size) => sum + size)).toBeLessThan(limit);
    expect(wrong).toEqual([]);
    await page.close();
  });

  test('the page stays true without being loaded again, and keeps what somebody is doing', async () => {
    await sixHours();
    const { page, wrong } = await visit(shown);
    await page.evaluate(() => Object.assign(globalThis, { mine: true }));
    const summary = page.getByText('The same as a table');
    await summary.click();
    const cell = page.getByRole('link', { name: /^2026-08-20T04 closed/ });
    await cell.focus();
    await page.getByLabel('one user alone').fill('half a na');
    await hourhand.record({ user: 'cleo', at: '2026-08-20T04:30:00Z' });
    await hourhand.backfill(h('2026-08-20T04'));
    await page.getByRole('link', { name: /^2026-08-20T04 closed, 3 users/ }).waitFor();
    expect(await page.evaluate(() => Object(globalThis).mine)).toBe(true);
    expect(await page.getByLabel('one user alone').inputValue()).toBe('half a na');
    expect(
      await page
        .locator('details')
        .first()
        .evaluate((details) => (details as HTMLDetailsElement).open),
    ).toBe(true);
    expect(wrong).toEqual([]);
    await page.close();
  });

  test('a part that cannot be looked at stays as it is, and that it may be old is said until it can be again', async () => {
    await sixHours();
    const { page } = await visit(shown);
    const old = page.getByRole('alert').getByText(/may be old: hourhand has not answered since/);
    const now = page.getByRole('region', { name: 'Now', exact: true });
    const cell = page.getByRole('link', { name: /^2026-08-20T04 closed/ });
    await hourhand.pool.$executeRaw`alter table "StatMark" rename to "away"`;
    await old.waitFor();
    expect([await now.count(), await cell.count()]).toEqual([1, 1]);
    await hourhand.pool.$executeRaw`alter table "away" rename to "StatMark"`;
    await old.waitFor({ state: 'detached' });
    await dashboard.close();
    await old.waitFor();
    expect([await now.count(), await cell.count()]).toEqual([1, 1]);
    dashboard = await startDashboard({ ...hourhand, config: { ...hourhand.config, PORT: port } });
    await old.waitFor({ state: 'detached' });
    await page.close();
  });

  test('whoever presses a button by the keyboard stays where it is, or where it was', async () => {
    await hourhand.record({ user: 'ada', at: '2026-08-20T04:10:00Z' });
    const { backfill } = await hourhand.backfill(h('2026-08-20T04'));
    const { page, wrong } = await visit(`/backfills/${backfill}`);
    page.on('dialog', (dialog) => dialog.accept());
    const focused = () =>
      page.evaluate(() => document.activeElement?.getAttribute('aria-label') ?? document.activeElement?.id);
    for (const [label, state, next] of [
      ['Pause', 'paused', 'Resume'],
      ['Resume', 'running', 'Pause'],
    ]) {
      await page.getByRole('button', { name: `${label} backfill ${backfill}` }).focus();
      await page.keyboard.press('Enter');
      await page.getByRole('heading', { name: `: ${state}` }).waitFor();
      expect(await focused()).toBe(`${next} backfill ${backfill}`);
    }
    await page.getByRole('button', { name: `Cancel backfill ${backfill}` }).focus();
    await page.keyboard.press('Enter');
    await page.getByRole('heading', { name: ': cancelled' }).waitFor();
    await until(focused, (where) => where === 'backfill');
    expect(wrong).toEqual([]);
    await page.close();
  });

  test('a calendar of days is one stop of the Tab key as well, and what is done elsewhere is seen without loading', async () => {
    const { page, wrong } = await visit('/?from=2026-01-01&to=2026-06-30');
    const focused = () => page.evaluate(() => document.activeElement?.getAttribute('aria-label'));
    await page.getByRole('link', { name: 'Last 30 days' }).focus();
    await page.keyboard.press('Tab');
    expect(await focused()).toMatch(/^2026-01-01/);
    await page.keyboard.press('ArrowRight');
    expect(await focused()).toMatch(/^2026-01-02/);
    await page.keyboard.press('End');
    expect(await focused()).toMatch(/^2026-06-30/);
    await page.keyboard.press('Tab');
    expect(await focused()).toBeNull();
    await post('/hours/2026-08-20T04/run');
    await page.getByRole('cell', { name: 'run again 2026-08-20T04' }).waitFor();
    expect(wrong).toEqual([]);
    await page.close();
  });

  test('by keyboard alone an hour is found in the calendar and run again', async () => {
    await sixHours();
    const { page, wrong } = await visit(shown);
    await page.getByRole('link', { name: 'Last 30 days' }).focus();
    await page.keyboard.press('Tab');
    const focused = () =>
      page.evaluate(() => document.activeElement?.getAttribute('aria-label') ?? document.activeElement?.textContent);
    expect(await focused()).toMatch(/^2026-08-20T00 closed/);
    for (const key of ['ArrowRight', 'ArrowRight', 'ArrowRight', 'ArrowLeft']) await page.keyboard.press(key);
    expect(await focused()).toMatch(/^2026-08-20T02 closed/);
    await page.keyboard.press('End');
    expect(await focused()).toMatch(/^2026-08-20T23/);
    await page.keyboard.press('Home');
    await page.keyboard.press('Tab');
    expect(await focused()).not.toMatch(/^2026-08-20T/); // one stop for the whole calendar
    await page.keyboard.press('Shift+Tab');
    expect(await focused()).toMatch(/^2026-08-20T00/);
    await page.keyboard.press('Enter');
    await page.getByRole('heading', { name: 'Hour 2026-08-20T00' }).waitFor();
    for (let i = 0; i < 20 && (await focused()) !== 'Run it again hour 2026-08-20T00'; i += 1)
      await page.keyboard.press('Tab');
    await page.keyboard.press('Enter');
    await page.getByText('Hour 2026-08-20T00 is asked for.').waitFor();
    await page.getByRole('rowheader', { name: '2', exact: true }).waitFor();
    expect((await runsOf(hourhand.pool, h('2026-08-20T00'), 1))[0]).toMatchObject({
      run: 2,
      requestedBy: 'anonymous',
    });
    expect(wrong).toEqual([]);
    await page.close();
  });

  test('a backfill of thirty days is seen before it begins, watched to its end, paused and cancelled', async () => {
    await close();
    await open({ FANOUT_MAX_USER_JOBS: '0', FANOUT_MIN_CALLS: '20000' }); // the page shows hours, however they are rolled up
    const start = Date.parse('2026-08-01T00:00:00Z');
    await hourhand.record(
      ...Array.from({ length: 720 }, (_, i) => ({
        user: `u${i % 3}`,
        at: new Date(start + i * 3_600_000 + 60_000).toISOString(),
      })),
    );
    const { page, wrong } = await visit('/');
    await page.getByLabel('From', { exact: true }).last().fill('2026-08-01');
    await page.getByLabel('to, not included').fill('2026-08-31');
    await page.getByRole('button', { name: 'See what that would be' }).click();
    await page.getByText('720 missing').waitFor();
    await page.getByText('3 users with calls in them').waitFor();
    await page.getByRole('button', { name: 'Ask for 720 hours' }).click();
    await page.getByRole('heading', { name: '[2026-08-01T00, 2026-08-31T00): running' }).waitFor();
    await page.getByText('0 of 720 hours').waitFor();
    await page.getByRole('button', { name: /^Pause/ }).click();
    await page.getByRole('heading', { name: ': paused' }).waitFor();
    await hourhand.work();
    await hourhand.tick();
    await page.getByRole('button', { name: /^Resume/ }).click();
    await page.getByRole('heading', { name: ': finished' }).waitFor({ timeout: 240_000 });
    await page.getByText('720 of 720 hours').waitFor();
    expect(await hourhand.wrong()).toEqual([]);

    await using _ = await holdUser(hourhand, 'u0', h('2026-08-01T00'));
    const { backfill } = await hourhand.backfill(h('2026-08-01T00'), h('2026-08-01T02'));
    await page.goto(`${dashboard.url}/backfills/${backfill}`);
    page.on('dialog', (dialog) => dialog.accept());
    await page.getByRole('button', { name: /^Cancel/ }).click();
    await page.getByRole('heading', { name: ': cancelled' }).waitFor();
    expect(wrong).toEqual([]);
    await page.close();
  });

  test('it works where no script runs', async () => {
    await sixHours();
    const { page } = await visit(shown, { context: { javaScriptEnabled: false } });
    await page.getByRole('link', { name: /^2026-08-20T04 closed/ }).click();
    await page.getByRole('button', { name: 'Run it again' }).click();
    await page.getByRole('heading', { name: 'Hour 2026-08-20T04' }).waitFor();
    await until(
      () => hourhand.hour(h('2026-08-20T04')),
      (hour) => hour?.run === 2 && hour.state === 'closed',
    );
    await page.close();
  });
});
