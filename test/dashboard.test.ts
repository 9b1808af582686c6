// What may be seen and changed through the dashboard, by whom, and does it tell the truth about itself?

import { existsSync } from 'node:fs';
import { Agent, createServer, request } from 'node:http';
import net from 'node:net';
import { hashSync } from 'bcryptjs';
import { type Job, type Queue, Worker } from 'bullmq';
import { type Browser, chromium, type Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { readConfig, version } from '../src/config.ts';
import type { Connections } from '../src/connections.ts';
import { startDashboard } from '../src/dashboard/server.ts';
import { ensureScheduler, pauseScheduler, resumeScheduler, wishes } from '../src/producers/schedules.ts';
import { openQueues, producerConnection, untilReady, workerConnection } from '../src/queues/redis.ts';
import { connect } from '../src/store/db.ts';
import { giveProviders } from '../src/store/models.ts';
import { deployOf } from '../src/store/schedules.ts';
import { between } from './support/between.ts';
import { askAt, everythingOf, ownHeaders, WRITES } from './support/board.ts';
import { type Hourhand, startHourhand, until } from './support/hourhand.ts';

/** The contract: every change that the board may make. */
const MAY = [
  'put /api/queues/pause',
  'put /api/queues/resume',
  'put /api/queues/:queueName/retry/:queueStatus',
  'put /api/queues/:queueName/promote',
  'put /api/queues/:queueName/clean/:queueStatus',
  'put /api/queues/:queueName/pause',
  'put /api/queues/:queueName/resume',
  'put /api/queues/:queueName/:jobId/retry',
  'put /api/queues/:queueName/:jobId/clean',
  'put /api/queues/:queueName/:jobId/promote',
];

let hourhand: Hourhand;
let dashboard: { url: string; close(): Promise<void> };
let port: number;
let pageHeaders: Record<string, string>;
let jobs: { failed: Job; waiting: Job; delayed: Job };

beforeAll(async () => {
  hourhand = await startHourhand();
  dashboard = await startDashboard(hourhand);
  port = Number(new URL(dashboard.url).port);
  pageHeaders = await ownHeaders(port);
});

afterAll(async () => {
  await dashboard.close();
  await hourhand[Symbol.asyncDispose]();
});

/** One job of each state that a change could spoil, so that nothing passes for want of something to change. */
beforeEach(async () => {
  const { hours } = hourhand.queues;
  await hours.obliterate({ force: true });
  await hours.resume();
  const failed = await hours.add('hour 2026-08-20T13', { hour: '2026-08-20T13' });
  await workOnce(hours, async (job) => {
    await job.log('cut into 3 shards of 412 users');
    throw new Error('partial: user z16c cannot be stored');
  });
  await until(
    () => failed.getState(),
    (state) => state === 'failed',
  );
  const minuteAgo = Date.now() - 60_000; // the board spares what is younger than five seconds
  await hourhand.redis.hset(`${hourhand.prefix}:stats-hour:${failed.id}`, 'finishedOn', minuteAgo);
  await hourhand.redis.zadd(`${hourhand.prefix}:stats-hour:failed`, minuteAgo, `${failed.id}`);
  const waiting = await hours.add('hour 2026-08-20T14', { hour: '2026-08-20T14' }, { timestamp: minuteAgo });
  const delayed = await hours.add('hour 2026-08-20T15', { hour: '2026-08-20T15' }, { delay: 3_600_000 });
  jobs = { failed, waiting, delayed };
});

afterEach(() => {
  vi.unstubAllEnvs();
});

const ask = (method: string, path: string, headers?: Record<string, string>, body?: string) =>
  askAt(port, method, path, headers, body);

/** What the board's own page sends. */
const own = () => pageHeaders;
const json = { 'Content-Type': 'application/json' };

function pathOf(route: string): string {
  const filled = route
    .replace(/^\w+ /, '')
    .replace(':queueName', 'stats-hour')
    .replace(':jobId', `${jobs.failed.id}`)
    .replace(':queueStatus', 'failed')
    .replace(':schedulerId', 'model.call.stats');
  return `/queues${filled}`;
}

const methodOf = (route: string) => route.replace(/ .*/, '');
const change = (path: string) => ask('put', `/queues/api/queues${path}`, own());

const everything = () => everythingOf(hourhand);

async function workOnce(queue: Queue, process: (job: Job) => Promise<unknown>): Promise<void> {
  const connection = workerConnection({ url: hourhand.config.REDIS_URL, prefix: hourhand.prefix }, () => {});
  const worker = new Worker(queue.name, process, { connection, prefix: hourhand.prefix });
  try {
    const job = await new Promise<Job | undefined>((resolve) => {
      worker.on('completed', (done) => resolve(done));
      worker.on('failed', (done) => resolve(done));
    });
    expect(job).toBeDefined();
  } finally {
    await worker.close();
    connection.disconnect();
  }
}

describe('who may ask', () => {
  test('it answers under the names of this machine, with its own port', async () => {
    for (const host of [`127.0.0.1:${port}`, `localhost:${port}`, `LOCALHOST:${port}`, `[::1]:${port}`]) {
      expect([host, (await ask('get', '/queues/api/queues', { Host: host })).status]).toEqual([host, 200]);
    }
  });

  test('on another address of this machine it answers under that as well', async () => {
    const config = { ...hourhand.config, HOST: '127.0.0.2', PORT: 0 };
    const there = await startDashboard({ ...hourhand, config });
    try {
      expect((await fetch(`${there.url}/healthz`)).status).toBe(200);
    } finally {
      await there.close();
    }
  });

  test('under any other name it answers nothing but 403, so that a name that resolves to 127.0.0.1 reads nothing', async () => {
    const foreign = ['evil.example', `evil.example:${port}`, `localhost.:${port}`, `127.0.0.1.evil.example:${port}`];
    const near = [
      '127.0.0.1',
      'localhost',
      `127.0.0.1:${port + 1}`,
      `0.0.0.0:${port}`,
      `127.1:${port}`,
      `localhost:${port}@evil`,
    ];
    for (const host of [...foreign, ...near]) {
      for (const path of [
        '/',
        '/healthz',
        '/readyz',
        '/queues',
        '/queues/api/queues',
        '/queues/static/favicon.ico',
      ]) {
        const { status, text } = await ask('get', path, { Host: host });
        expect([host, path, status]).toEqual([host, path, 403]);
        expect(JSON.parse(text).message).toContain(`expected 127.0.0.1:${port}`);
      }
    }
  });

  test('a page of another origin changes nothing, on no route, with no body', async () => {
    const before = await everything();
    const origins = [
      `http://localhost:${port}`,
      `http://127.0.0.1:${port + 1}`,
      `https://127.0.0.1:${port}`,
      'null',
      'https://evil.example',
    ];
    const foreign: Record<string, string>[] = [
      ...origins.map((origin) => ({ Origin: origin })),
      ...['cross-site', 'same-site', 'none, cross-site'].map((site) => ({ 'Sec-Fetch-Site': site })),
      { ...own(), 'Sec-Fetch-Site': 'cross-site' },
    ];
    for (const route of WRITES) {
      for (const headers of foreign) {
        for (const body of [{}, json]) {
          const { status } = await ask(
            methodOf(route),
            pathOf(route),
            { ...headers, ...body },
            body === json ? '{"name":"x"}' : undefined,
          );
          expect([route, headers, status]).toEqual([route, headers, 403]);
        }
      }
    }
    expect(await everything()).toEqual(before);
  });
});

describe('/api/models', () => {
  const model = { model: 'gpt', type: 'chatCompletion' as const };
  const provider = {
    id: 'acme',
    baseUrl: 'https://acme.example/v1',
    apiKeyEnv: 'KEY',
    concurrency: 1,
    models: [model],
  };
  const post = (body: unknown, headers: Record<string, string> = own()) =>
    ask('post', '/api/models/check', { 'Content-Type': 'application/json', ...headers }, JSON.stringify(body));

  test('says of every model what is known, as hourhand models status --json does', async () => {
    await giveProviders(hourhand.pool, [provider]);
    const [{ text, status }, ran] = await Promise.all([
      ask('get', '/api/models'),
      hourhand.run(['models', 'status', '--json']),
    ]);
    expect(status).toBe(200);
    expect(JSON.parse(text)).toEqual([
      expect.objectContaining({ provider: 'acme', model: 'gpt', type: 'chatCompletion', status: 'unknown' }),
    ]);
    expect(JSON.parse(ran.stdout)).toEqual(JSON.parse(text));
  });

  test('takes a wish for a check, and tells what has come of it', async () => {
    await giveProviders(hourhand.pool, [provider]);
    const { status, text } = await post({ models: ['acme/gpt'], probe: true });
    expect(status).toBe(202);
    const { check } = JSON.parse(text);
    expect(JSON.parse((await ask('get', `/api/models/checks/${check}`)).text)).toMatchObject({
      id: check,
      models: ['acme/gpt'],
      probe: true,
      finishedAt: null,
      requestedBy: 'dashboard',
    });
    expect(await hourhand.queues.checks.getWaitingCount()).toBe(1);
    await hourhand.queues.checks.obliterate({ force: true });
  });

  test('refuses what it does not know or cannot read, and whoever comes from elsewhere, and then asks for nothing', async () => {
    await giveProviders(hourhand.pool, [provider]);
    const statuses = [
      await post({ models: ['nobody'] }),
      await post({ models: 'gpt' }),
      await post({ more: 1 }),
      await post({ models: ['x'.repeat(70_000)] }),
      await post({}, { Origin: 'https://evil.example' }),
      await ask('post', '/api/models/check', { ...own(), 'Content-Type': 'text/plain' }, '{}'),
      await ask('put', '/api/models/check', own()),
      await ask('get', '/api/models/checks/99999'),
      await ask('get', '/api/models/checks/x'),
      await ask('get', `/api/models/checks/${'9'.repeat(20)}`),
    ].map(({ status }) => status);
    expect(statuses).toEqual([404, 400, 400, 413, 403, 403, 403, 404, 404, 404]);
    expect(await hourhand.queues.checks.getWaitingCount()).toBe(0);
  });
});

describe('what may be changed', () => {
  test('exactly what the contract says, of all that this version of the board can do', async () => {
    expect(WRITES).toEqual(
      expect.arrayContaining([...MAY, 'post /api/queues/:queueName/add', 'post /api/metrics/history/purge']),
    );
    const refused = WRITES.filter((route) => !MAY.includes(route));
    const before = await everything();
    for (const route of refused) {
      const { status, text, headers } = await ask(
        methodOf(route),
        pathOf(route),
        { ...own(), ...json },
        '{"name":"x","data":{},"concurrency":5}',
      );
      expect([route, status]).toEqual([route, 403]);
      expect(headers['content-type']).toContain('application/json');
      expect(JSON.parse(text)).toEqual({ error: 'Refused', message: expect.stringContaining('retries, promotes') });
    }
    for (const route of MAY) {
      for (const method of ['post', 'patch', 'delete'])
        expect([route, (await ask(method, pathOf(route), own())).status]).toEqual([route, 403]);
    }
    expect(await everything()).toEqual(before);
    for (const route of MAY) {
      const { status } = await ask(methodOf(route), pathOf(route).replace(`${jobs.failed.id}`, 'nobody'), own());
      expect([route, status]).toEqual([route, route.includes(':jobId') ? 404 : 200]);
    }
  });

  test('no spelling of a path and no header brings anything else through', async () => {
    const before = await everything();
    const encoded = (path: string) =>
      path.replace(/[a-z](?=[^/]*$)/, (letter) => `%${letter.charCodeAt(0).toString(16)}`);
    const spellings: ((path: string) => string)[] = [
      (path) => path,
      (path) => `${path}/`,
      (path) => `${path}//`,
      (path) => `/${path}`,
      (path) => path.replaceAll('/', '//'),
      (path) => path.toUpperCase(),
      (path) => path.replace('queues/api', 'Queues/Api'),
      encoded,
      (path) => encoded(path).replace('/api', '/%61pi'),
      (path) => path.replace('/queues', '/%71ueues'),
      (path) => path.replace(/\/([^/]*)$/, '%2F$1'),
      (path) => path.replace(/\/([^/]*)$/, '\\$1'),
      (path) => `/queues/static/..${path.slice('/queues'.length)}`,
      (path) => `/queues/.${path.slice('/queues'.length)}`,
      (path) => `/queues/%2e%2e${path}`,
      (path) => `${path}?_method=put&x=/retry`,
      (path) => `${path};x`,
      (path) => `${path}%00`,
      (path) => `${path}#/1/retry`,
      (path) => `http://127.0.0.1:${port}${path}`,
      (path) => `http://evil.example${path}`,
    ];
    const override = { 'X-HTTP-Method-Override': 'PUT', 'X-HTTP-Method': 'PUT', 'X-Method-Override': 'PUT' };
    const headers = { ...own(), ...json, ...override, 'X-Original-URL': '/queues/api/queues/pause' };
    for (const route of WRITES.filter((route) => !MAY.includes(route))) {
      for (const method of new Set([methodOf(route), 'put', 'post', 'delete'])) {
        const paths = spellings.map((spell) => spell(pathOf(route)));
        const answers = await Promise.all(
          paths.map((path) => ask(method, path, headers, '{"name":"x","data":{},"concurrency":5}')),
        );
        expect(answers.map(({ status }, i) => [status, method, paths[i]])).toEqual(
          paths.map((path) => [403, method, path]),
        );
      }
    }
    // A read stays a read, whatever it says that it is.
    for (const route of WRITES) {
      for (const method of ['get', 'head', 'options'])
        await ask(method, pathOf(route), { ...own(), ...override, ...json });
    }
    expect(await everything()).toEqual(before);
  });

  test('a write to a place that does not exist is refused like any other', async () => {
    for (const path of [
      '/',
      '/queues',
      '/healthz',
      '/readyz',
      '/queues/static/favicon.ico',
      '/elsewhere',
      '/queues/api/queues',
    ]) {
      for (const method of ['post', 'put', 'patch', 'delete'])
        expect((await ask(method, path, own())).status).toBe(403);
    }
  });

  test('retry runs a failed job again', async () => {
    expect((await change(`/stats-hour/${jobs.failed.id}/retry`)).status).toBe(204);
    expect(await jobs.failed.getState()).toBe('waiting');
    await jobs.waiting.remove();
    await workOnce(hourhand.queues.hours, async (job) => job.data);
    expect(await jobs.failed.getState()).toBe('completed');
  });

  test('retry of all takes every job of a status', async () => {
    const { status, text } = await change('/stats-hour/retry/failed');
    expect([status, JSON.parse(text)]).toEqual([200, { retried: 1, skipped: 0 }]);
    expect(await jobs.failed.getState()).toBe('waiting');
    await jobs.waiting.remove();
    await workOnce(hourhand.queues.hours, async () => 'done');
    expect(JSON.parse((await change('/stats-hour/retry/completed')).text)).toEqual({ retried: 1, skipped: 0 });
    expect(await hourhand.queues.hours.getCompletedCount()).toBe(0);
  });

  test('promote makes a delayed job wait no longer, one or all', async () => {
    expect((await change(`/stats-hour/${jobs.delayed.id}/promote`)).status).toBe(204);
    expect(await jobs.delayed.getState()).toBe('waiting');
    const other = await hourhand.queues.hours.add('hour 2026-08-20T16', {}, { delay: 3_600_000 });
    expect((await change('/stats-hour/promote')).status).toBe(200);
    expect(await other.getState()).toBe('waiting');
  });

  test('clean removes one job, or all of a status', async () => {
    expect((await change(`/stats-hour/${jobs.delayed.id}/clean`)).status).toBe(204);
    expect(await jobs.delayed.getState()).toBe('unknown');
    expect((await change('/stats-hour/clean/failed')).status).toBe(200);
    expect(await jobs.failed.getState()).toBe('unknown');
    expect((await change('/stats-hour/clean/wait')).status).toBe(200);
    expect(await jobs.waiting.getState()).toBe('unknown');
  });

  test('pause and resume hold one queue or all of them', async () => {
    const paused = async () => {
      const found = await Promise.all(
        Object.values(hourhand.queues).map(async (queue) => ((await queue.isPaused()) ? queue.name : '')),
      );
      return found.filter((name) => name !== '');
    };
    const all = Object.values(hourhand.queues).map(({ name }) => name);
    await change('/stats-hour/pause');
    expect(await paused()).toEqual(['stats-hour']);
    await change('/stats-hour/resume');
    expect(await paused()).toEqual([]);
    await change('/pause');
    expect(await paused()).toEqual(all);
    await change('/resume');
    expect(await paused()).toEqual([]);
  });

  test('a change that is asked for leaves a line in the log, a refused one none', async () => {
    hourhand.logged.length = 0;
    await change(`/stats-hour/${jobs.failed.id}/retry`);
    await change('/stats-hour/obliterate');
    const path = `/queues/api/queues/stats-hour/${jobs.failed.id}/retry`;
    expect(hourhand.logged).toEqual([expect.objectContaining({ path, status: 204, msg: 'asked of the board' })]);
  });

  test("a job's log lines are there to read", async () => {
    const { text } = await ask('get', `/queues/api/queues/stats-hour/${jobs.failed.id}/logs`);
    expect(JSON.parse(text)).toEqual(['cut into 3 shards of 412 users']);
  });
});

describe('what an answer says', () => {
  test('no stack, not even where NODE_ENV is development', async () => {
    vi.stubEnv('NODE_ENV', 'development');
    const retry = `/queues/api/queues/stats-hour/${jobs.failed.id}/retry`;
    const broken = await ask('put', retry, { ...own(), ...json }, '{"name":');
    const large = await ask('put', retry, { ...own(), ...json }, JSON.stringify('x'.repeat(200_000)));
    const path = await ask('get', '/queues/api/queues/%E0%A4%A/workers');
    const early = await ask('put', '/queues/api/queues/%E0%A4%A/pause', own());
    await hourhand.redis.set(`${hourhand.prefix}:stats-hour:odd`, 'no hash');
    const failed = await ask('put', '/queues/api/queues/stats-hour/odd/retry', own());
    expect([broken, large, path, early, failed].map(({ status }) => status)).toEqual([400, 413, 400, 400, 500]);
    expect(JSON.parse(failed.text)).toEqual({
      error: 'hourhand could not do this',
      message: expect.stringContaining('WRONGTYPE'),
    });
    for (const { text } of [broken, large, path, early, failed]) {
      expect(Object.keys(JSON.parse(text))).toEqual(['error', 'message']);
      expect(text).not.toMatch(/\bat |node_modules|\.ts:|\.js:/);
    }
    expect(await jobs.failed.getState()).toBe('failed');
  });

  test("helmet's headers stand, and nothing may be loaded from another machine, nor by Bull Board alone from its page", async () => {
    for (const path of ['/queues', '/queues/api/queues', '/healthz', '/elsewhere', '/sign-in']) {
      const { headers, text } = await ask('get', path);
      expect(headers).toMatchObject({
        'x-content-type-options': 'nosniff',
        'x-frame-options': 'DENY',
        'cache-control': 'no-store',
      });
      const csp = `${headers['content-security-policy']}`;
      const board = path.startsWith('/queues');
      expect(csp).toMatch(
        board ? /^default-src 'self';script-src 'self';/ : /^default-src 'none';script-src 'self';/,
      );
      expect(csp).toContain("form-action 'self'");
      expect(csp).toContain("frame-ancestors 'none'");
      expect(csp).not.toMatch(/https:|upgrade-insecure-requests|unsafe-eval/);
      expect(csp.includes('unsafe-inline')).toBe(board);
      expect(headers['x-powered-by']).toBeUndefined();
      expect(text).not.toContain('googleapis');
    }
    const asset = (await ask('get', '/queues')).text.match(/static\/[^"]+\.js/)?.[0];
    expect((await ask('get', `/queues/${asset}`)).headers['cache-control']).not.toContain('no-store');
  });

  test('the page says when its data is a sample', async () => {
    const sample = await startDashboard(hourhand, { sample: true });
    try {
      const titleAt = async (url: string) => /<title>(.*?)<\/title>/.exec(await (await fetch(url)).text())?.[1];
      expect(await titleAt(`${sample.url}/queues`)).toBe('hourhand: sample data');
      expect(await titleAt(`${dashboard.url}/queues`)).toBe('hourhand');
      const says = async (url: string) =>
        (await (await fetch(url)).text()).includes('<strong class="sample">sample data');
      expect([await says(`${sample.url}/`), await says(`${dashboard.url}/`)]).toEqual([true, false]);
    } finally {
      await sample.close();
    }
  });
});

describe('health', () => {
  const found = (text: string) =>
    Object.fromEntries(
      (JSON.parse(text).checks as { name: string; ok: boolean; found: string }[]).map(({ name, ok, found }) => [
        name,
        `${ok}: ${found}`,
      ]),
    );

  async function ensure(pattern = '0 7 * * * *'): Promise<void> {
    for (const one of wishes(hourhand.queues, { ...hourhand.config, MODEL_CALL_STATS_CRON_TIME: pattern })) {
      await ensureScheduler(hourhand.pool, one, await deployOf(hourhand.pool, version));
    }
  }

  async function serve(connections: Connections) {
    const { url, close } = await startDashboard(connections);
    const get = async (path: string) => {
      const began = performance.now();
      const response = await fetch(url + path);
      return { status: response.status, text: await response.text(), ms: performance.now() - began };
    };
    return { get, [Symbol.asyncDispose]: close };
  }

  test('it is ready when Redis, PostgreSQL and the schedulers are as they must be, and says what it found', async () => {
    await ensure();
    const { status, text, headers } = await ask('get', '/readyz');
    expect([status, JSON.parse(text).status]).toEqual([200, 'ok']);
    expect(headers['cache-control']).toBe('no-store');
    expect(found(text)).toEqual({
      redis: 'true: an answer',
      'redis maxmemory-policy': 'true: noeviction',
      postgres: 'true: an answer',
      migrations: 'true: all applied',
      'scheduler model.call.stats': expect.stringMatching(/^true: live, next \d{4}-.*:07:00/),
      'scheduler late.model.calls': 'true: off',
      'scheduler cleanup.stale.model.calls': 'true: off',
      'scheduler check.model.status': 'true: off',
      'scheduler audit.model.call.stats': 'true: off',
      'scheduler retain.model.calls': 'true: off',
      alarms: 'true: none',
      warnings: 'true: none',
    });
  });

  test('it is not ready while a scheduler is missing, changed or without a next job, and names it', async () => {
    const { ticks } = hourhand.queues;
    const look = async () => {
      const { status, text } = await ask('get', '/readyz');
      return `${status} ${found(text)['scheduler model.call.stats']}`;
    };
    await ensure();
    await ticks.removeJobScheduler('model.call.stats');
    expect(await look()).toBe('503 false: missing');

    await ticks.upsertJobScheduler('model.call.stats', { pattern: '0 8 * * * *', tz: 'UTC' });
    expect(await look()).toMatch(/^503 false: changed/);

    await ensure();
    expect(await look()).toMatch(/^200 true: live/);
    for (const job of await ticks.getDelayed()) {
      await hourhand.redis.zrem(`${hourhand.prefix}:stats-tick:delayed`, `${job.id}`);
      await hourhand.redis.del(`${hourhand.prefix}:stats-tick:${job.id}`);
    }
    expect(await look()).toMatch(/^503 false: broken/);

    await ensure('off');
    expect(await look()).toBe('200 true: off');

    await pauseScheduler(hourhand, 'model.call.stats', 'ada');
    expect(await look()).toMatch(/^200 true: paused by ada since 20/);
    await resumeScheduler(hourhand, 'model.call.stats', 'ada');
  });

  test('it is not ready while something is wrong for too long, and names each such thing, raised or not', async () => {
    await ensure();
    const [{ since }] = await hourhand.pool.$queryRaw<[{ since: Date }]>`
      update "StatSchedule" set "lastAt" = now() - interval '5 hours', "firesSince" = now() - interval '1 day'
       where id = 'model.call.stats' returning "lastAt" as since`;
    try {
      const { status, text } = await ask('get', '/readyz');
      expect([status, found(text)]).toMatchObject([
        503,
        { 'alarm tick-missed model.call.stats': `false: the last was done at ${since.toISOString()}` },
      ]);
      expect(await hourhand.pool.alarm.count()).toBe(0);
    } finally {
      await hourhand.pool.$executeRaw`update "StatSchedule" set "lastAt" = null, "firesSince" = now()`;
    }
  });

  test('it is not ready before every migration is applied, and names what is missing', async () => {
    await ensure();
    const [{ name }] = await hourhand.pool.$queryRaw<[{ name: string }]>`
      update _prisma_migrations set finished_at = null
       where migration_name = (select max(migration_name) from _prisma_migrations) returning migration_name as name`;
    try {
      const { status, text } = await ask('get', '/readyz');
      expect([status, found(text).migrations]).toEqual([503, `false: not applied: ${name}`]);
    } finally {
      await hourhand.pool.$executeRaw`update _prisma_migrations set finished_at = now() where finished_at is null`;
    }
  });

  test('it is not ready where Redis may evict jobs; where Redis does not say, that is unknown and no fault', async () => {
    await ensure();
    const [, policy = ''] = (await hourhand.redis.config('GET', 'maxmemory-policy')) as string[];
    await hourhand.redis.config('SET', 'maxmemory-policy', 'allkeys-lru'); // the tests' own server, and never full
    try {
      const evicting = await ask('get', '/readyz');
      expect([evicting.status, found(evicting.text)['redis maxmemory-policy']]).toEqual([503, 'false: allkeys-lru']);
    } finally {
      await hourhand.redis.config('SET', 'maxmemory-policy', policy);
    }
    const user = `silent-${hourhand.prefix.slice(1, -1)}`;
    await hourhand.redis.acl('SETUSER', user, 'on', '>secret', '~*', '&*', '+@all', '-info');
    const url = Object.assign(new URL(hourhand.config.REDIS_URL), { username: user, password: 'secret' }).href;
    const redis = producerConnection({ url, prefix: hourhand.prefix }, () => {});
    try {
      await untilReady(redis, 5_000);
      await using silent = await serve({ ...hourhand, redis });
      const { status, text } = await silent.get('/readyz');
      expect(status).toBe(200);
      expect(found(text)['redis maxmemory-policy']).toMatch(/^true: unknown: NOPERM/);
    } finally {
      redis.disconnect();
      await hourhand.redis.acl('DELUSER', user);
    }
  });

  test('with both servers gone it says so in seconds, and lives', async () => {
    const redis = producerConnection({ url: 'redis://127.0.0.1:1', prefix: hourhand.prefix }, () => {});
    const pool = connect('postgresql://nobody@127.0.0.1:1/none', { connections: 2, onError: () => {} });
    const queues = openQueues(redis, hourhand.prefix);
    await using alone = await serve({ ...hourhand, redis, queues, pool });
    const ready = await alone.get('/readyz');
    expect([ready.status, ready.ms < 4_000]).toEqual([503, true]);
    const { warnings, ...others } = found(ready.text);
    expect(Object.values(others).every((text) => text.startsWith('false'))).toBe(true);
    expect(warnings).toMatch(/^true: /); // they never decide
    expect((await alone.get('/healthz')).text).toBe(JSON.stringify({ status: 'ok', version }));
    redis.disconnect();
    await pool.$disconnect();
  });

  test('with both servers silent it says so in seconds, and is ready again when they answer', async () => {
    await ensure();
    await using silent = await between(hourhand.config.REDIS_URL);
    await using mute = await between(hourhand.config.DATABASE_URL);
    const redis = producerConnection({ url: silent.url, prefix: hourhand.prefix }, () => {});
    const pool = connect(mute.url, { connections: 2, onError: () => {} });
    await using alone = await serve({ ...hourhand, redis, queues: openQueues(redis, hourhand.prefix), pool });
    await until(
      () => alone.get('/readyz'),
      ({ status }) => status === 200,
    );
    silent.hold();
    mute.hold();
    const [held, lives] = await Promise.all([alone.get('/readyz'), alone.get('/healthz')]);
    expect([held.status, held.ms < 4_000, lives.status, lives.ms < 2_000]).toEqual([503, true, 200, true]);
    const { warnings, ...others } = found(held.text);
    expect(Object.values(others)).toEqual(Array(11).fill('false: no answer within 2 s'));
    expect(warnings).toBe('true: no answer within 2 s');
    silent.release();
    mute.release();
    await until(
      () => alone.get('/readyz'),
      ({ status }) => status === 200,
    );
    redis.disconnect();
    await pool.$disconnect();
  });
});

describe('its start and its end', () => {
  test('a port that is taken is said so, by the name of its variable', async () => {
    const taken = { ...hourhand, config: { ...hourhand.config, PORT: port } };
    await expect(startDashboard(taken)).rejects.toThrow(
      `PORT ${port} is taken on 127.0.0.1: free it, or set PORT to another`,
    );
  });

  test('it ends within a second while somebody is connected', async () => {
    const { url, close } = await startDashboard(hourhand);
    const agent = new Agent({ keepAlive: true });
    await new Promise((resolve) =>
      request(`${url}/healthz`, { agent }, (response) => response.resume().on('end', resolve)).end(),
    );
    const half = net.connect(Number(new URL(url).port), '127.0.0.1');
    half.on('error', () => {}); // it is cut off
    await new Promise((resolve) => half.write('GET /healthz HTTP/1.1\r\n', resolve));
    const began = performance.now();
    await close();
    expect(performance.now() - began).toBeLessThan(1_500);
    await expect(fetch(`${url}/healthz`)).rejects.toThrow('fetch failed');
    agent.destroy();
  });
});

const CHROMIUM = '/usr/bin/chromium';
const there = existsSync(CHROMIUM);

describe.skipIf(!there)(there ? 'in a browser' : `in a browser (SKIPPED: ${CHROMIUM} is not there)`, () => {
  const flags =
    '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync';
  let browser: Browser;

  beforeAll(async () => {
    const rebinding = '--host-resolver-rules=MAP evil.example 127.0.0.1';
    browser = await chromium.launch({ executablePath: CHROMIUM, args: [...flags.split(' '), rebinding] });
  });
  afterAll(() => browser.close());

  async function open(): Promise<{ page: Page; errors: string[]; elsewhere: string[] }> {
    const page = await browser.newPage();
    const [errors, elsewhere]: [string[], string[]] = [[], []];
    page.on('console', (message) => message.type() === 'error' && errors.push(message.text()));
    page.on('pageerror', (error) => errors.push(String(error)));
    page.on(
      'request',
      (asked) =>
        asked.url().startsWith(dashboard.url) || asked.url().startsWith('data:') || elsewhere.push(asked.url()),
    );
    return { page, errors, elsewhere };
  }

  test('an operator sees the queues, reads a job and its log, and retries it', async () => {
    const { page, errors, elsewhere } = await open();
    await page.goto(dashboard.url);
    for (const { name } of Object.values(hourhand.queues))
      await page.locator('main').getByRole('link', { name, exact: true }).waitFor();
    await page.locator('main').getByRole('link', { name: 'stats-hour', exact: true }).click();
    await page.getByRole('link', { name: /^FAILED/ }).click();
    await page.getByRole('link', { name: 'hour 2026-08-20T13' }).click();
    await page.getByRole('tab', { name: 'Logs' }).click();
    await page.getByText('cut into 3 shards of 412 users').waitFor();
    await page.locator('main li button').first().click();
    await page.getByRole('button', { name: 'Confirm' }).click();
    await until(
      () => jobs.failed.getState(),
      (state) => state === 'waiting',
    );
    expect({ errors, elsewhere }).toEqual({ errors: [], elsewhere: [] });
    await page.close();
  });

  test('a button of what is refused says so, and does nothing', async () => {
    const before = await everything();
    const { page } = await open();
    await page.goto(`${dashboard.url}/queues/queue/stats-hour`);
    await page.locator('main > button, main div > button').first().click();
    await page.getByRole('menuitem', { name: 'Obliterate' }).click();
    await page.getByRole('button', { name: 'Confirm' }).click();
    await page.getByText('hourhand decides everything else.').waitFor();
    expect(await everything()).toEqual(before);
    await page.close();
  });

  test('somebody signs in, changes something with the buttons, and signs out', async () => {
    const { DASHBOARD_CREDENTIALS } = readConfig({
      ...hourhand.environment,
      DASHBOARD_CREDENTIALS: `otto:operator:${hashSync('may-change-2', 4)};vera:viewer:${hashSync('only-looks-1', 4)}`,
    });
    const known = await startDashboard({ ...hourhand, config: { ...hourhand.config, DASHBOARD_CREDENTIALS } });
    const context = await browser.newContext();
    const page = await context.newPage();
    const errors: string[] = [];
    page.on('console', (message) => message.type() === 'error' && errors.push(message.text()));
    page.on('pageerror', (error) => errors.push(String(error)));
    const signIn = async (name: string, password: string) => {
      await page.getByLabel('Name').fill(name);
      await page.getByLabel('Password').fill(password);
      await page.getByRole('button', { name: 'Sign in' }).click();
    };
    try {
      await page.goto(`${known.url}/queues/queue/stats-hour`);
      expect(new URL(page.url()).pathname).toBe('/sign-in');
      await signIn('otto', 'may-change-2');
      await page.waitForURL(`${known.url}/queues/queue/stats-hour`);
      await page.locator('main > button, main div > button').first().click();
      await page.getByRole('menuitem', { name: 'Pause' }).click();
      await page.getByRole('button', { name: 'Confirm' }).click();
      await until(
        () => hourhand.queues.hours.isPaused(),
        (paused) => paused,
      );
      const { httpOnly, sameSite } = (await context.cookies()).find(({ name }) => name === 'hourhand.sid') ?? {};
      expect({ httpOnly, sameSite }).toEqual({ httpOnly: true, sameSite: 'Strict' });
      await page.evaluate(() => {
        const form = Object.assign(document.createElement('form'), { method: 'post', action: '/sign-out' });
        const value = document.cookie.replace(/.*XSRF-TOKEN=([^;]*).*/, '$1');
        form.append(Object.assign(document.createElement('input'), { name: '_csrf', value }));
        document.body.append(form);
        form.submit();
      });
      await page.waitForURL(`${known.url}/sign-in`);
      await page.goto(`${known.url}/queues/queue/stats-hour`);
      await signIn('vera', 'only-looks-1');
      await page.waitForURL(`${known.url}/queues/queue/stats-hour`);
      await page.getByRole('link', { name: /^FAILED/ }).click();
      await page.getByRole('link', { name: 'hour 2026-08-20T13' }).waitFor();
      expect(await page.locator('main li button').count()).toBe(0); // a viewer is shown no button that changes
      expect(errors).toEqual([]);
    } finally {
      await context.close();
      await known.close();
    }
  });

  test('a page of another site, open in the same browser, adds nothing and reads nothing', async () => {
    const before = await everything();
    const other = createServer((_req, res) => res.setHeader('Content-Type', 'text/html').end('<p>hello')).listen(
      0,
      '127.0.0.1',
    );
    await until(
      async () => other.address(),
      (address) => address !== null,
    );
    const page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${(other.address() as net.AddressInfo).port}/`);
    await page.evaluate(async (add) => {
      const body = JSON.stringify({ name: 'x', data: {} });
      await fetch(add, { method: 'POST', mode: 'no-cors', body }).catch(() => {});
      await fetch(add.replace('/add', '/pause'), { method: 'PUT' }).catch(() => {});
    }, `${dashboard.url}/queues/api/queues/stats-hour/add`);
    expect(await everything()).toEqual(before);
    const rebound = await page.goto(`http://evil.example:${port}/queues/api/queues`);
    expect([rebound?.status(), await rebound?.text()]).toEqual([403, expect.not.stringContaining('stats-hour')]);
    await page.close();
    other.close();
  });
});
