// Who may see the dashboard, who may change something there, and what is written down of it?

import { hashSync } from 'bcryptjs';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type Config, ConfigError, readConfig } from '../src/config.ts';
import type { Connections } from '../src/connections.ts';
import { parseCredentials, tokenHash } from '../src/dashboard/credentials.ts';
import { startDashboard } from '../src/dashboard/server.ts';
import { localPath } from '../src/dashboard/sign-in.tsx';
import { backfillHours } from '../src/producers/backfills.ts';
import { openQueues, producerConnection } from '../src/queues/redis.ts';
import { forgetActions, recentActions, recordAction } from '../src/store/actions.ts';
import { connect } from '../src/store/db.ts';
import { giveProviders } from '../src/store/models.ts';
import { type Answer, askAt, cookiesOf, everythingOf, ownHeaders, WRITES } from './support/board.ts';
import { type Hourhand, startHourhand, until } from './support/hourhand.ts';

const PASSWORDS: Record<string, string> = { vera: 'only-looks-1', otto: 'may-change-2', rosa: 'another-3-one' };
const TOKENS = { reader: 'r'.repeat(43), writer: 'w'.repeat(43) };
const line = (name: string, role: string) => `${name}:${role}:${hashSync(PASSWORDS[name] ?? '', 4)}`;
const CREDENTIALS = [
  line('vera', 'viewer'),
  line('otto', 'operator'),
  line('rosa', 'operator'),
  `reader:viewer:${tokenHash(TOKENS.reader)}`,
  `writer:operator:${tokenHash(TOKENS.writer)}`,
].join('\n');
const SECRETS = [
  ...Object.values(PASSWORDS),
  ...Object.values(TOKENS),
  ...CREDENTIALS.split('\n').map((l) => l.slice(15)),
];

let hourhand: Hourhand;
/** Where everybody is asked who they are; the tests' own requests come from a proxy that it knows. */
let desk: Awaited<ReturnType<typeof open>>;

beforeAll(async () => {
  hourhand = await startHourhand({
    DASHBOARD_CREDENTIALS: CREDENTIALS,
    DASHBOARD_SECRET: 's'.repeat(32),
    PROXY_ADDRESSES: '127.0.0.1',
    PROXY_OPERATORS: 'on-call',
  });
  const model = { model: 'gpt', type: 'chatCompletion' as const };
  await giveProviders(hourhand.pool, [
    { id: 'acme', baseUrl: 'https://acme.example/v1', apiKeyEnv: 'KEY', concurrency: 1, models: [model] },
  ]);
  desk = await open();
});

afterAll(async () => {
  await desk[Symbol.asyncDispose]();
  await hourhand[Symbol.asyncDispose]();
});

beforeEach(async () => {
  await hourhand.pool.$executeRaw`delete from "OperatorAction"`;
  const { hours } = hourhand.queues;
  await hours.obliterate({ force: true });
  await hours.resume();
  await hours.add('hour 2026-08-20T14', { hour: '2026-08-20T14' }, { jobId: 'h-1', delay: 3_600_000 });
});

/** A dashboard of its own, with these variables besides or instead, and with other connections where they are given. */
async function open(env: Record<string, string> = {}, connections: Partial<Connections> = {}) {
  const config: Config = { ...readConfig({ ...hourhand.environment, ...env }), PORT: 0 };
  const { url, close } = await startDashboard({ ...hourhand, ...connections, config });
  const port = Number(new URL(url).port);
  const ask = (method: string, path: string, headers?: Record<string, string>, body?: string) =>
    askAt(port, method, path, headers, body);
  return {
    url,
    port,
    ask,
    /** Sends the form of the sign-in page, as its browser would; each time from an address of its own, if none is given. */
    async signIn(name: string, password = PASSWORDS[name] ?? '', extra: Record<string, string> = {}) {
      const from: Record<string, string> = { 'X-Forwarded-For': anAddress(), ...extra };
      const page = await ask('get', '/sign-in', from);
      const token = cookiesOf(page)['XSRF-TOKEN'] ?? '';
      const cookie = [from.Cookie, `XSRF-TOKEN=${token}`].filter((one) => one !== undefined).join('; ');
      const fields = new URLSearchParams({ name, password, _csrf: token, to: '/queues' });
      const form = { 'Content-Type': 'application/x-www-form-urlencoded', Origin: `http://127.0.0.1:${port}` };
      return ask('post', '/sign-in', { ...from, ...form, Cookie: cookie }, `${fields}`);
    },
    /** The headers of whoever has signed in. */
    async session(name: string) {
      const { 'hourhand.sid': sid } = cookiesOf(await this.signIn(name));
      expect(sid).toBeDefined();
      return { Cookie: `hourhand.sid=${sid}` };
    },
    [Symbol.asyncDispose]: close,
  };
}

let addresses = 0;
function anAddress(): string {
  addresses += 1;
  return `192.0.2.${addresses}`;
}

const bearer = (token: string) => ({ Authorization: `Bearer ${token}` });
const byProxy = (user: string, groups = '') => ({ 'X-Forwarded-User': user, 'X-Forwarded-Groups': groups });
const json = { 'Content-Type': 'application/json' };
/** All but how often somebody tried to sign in. */
const everything = async () =>
  Object.fromEntries(Object.entries(await everythingOf(hourhand)).filter(([key]) => !key.includes(':sign-in:')));
const lines = () => recentActions(hourhand.pool, { limit: 100 });
const settled = (n: number) =>
  until(lines, (seen) => seen.length >= n && seen.every(({ outcome }) => outcome !== null));

const READS = [
  '/',
  '/queues',
  '/queues/',
  '/queues/queue/stats-hour',
  '/queues/api/queues',
  '/queues/api/queues/stats-hour/h-1',
  '/queues/api/queues/stats-hour/h-1/logs',
  '/queues/static/favicon.ico',
  '/api/models',
  '/api/models/checks/1',
  '/api/actions',
  '/actions',
  '/metrics',
  '/parts/now',
  '/hours/2026-08-20T13',
  '/backfills/new',
  '/elsewhere',
];
/** What an operator changes on the pages: test/page.test.ts. */
const OF_PAGES = [
  'post /hours/2026-08-20T13/run',
  'post /backfills',
  'post /backfills/1/cancel',
  'post /schedulers/model.call.stats/pause',
];
const ALL_WRITES = [
  ...WRITES,
  ...OF_PAGES,
  'post /api/models/check',
  'post /',
  'post /api/actions',
  'patch /elsewhere',
  'put /queues',
];
const MAY = [
  ...WRITES.filter((route) => /^put .*\/(pause|resume|promote|retry|clean|:queueStatus)$/.test(route)),
  'post /api/models/check',
];
const bodyOf = (route: string) => (route.includes('/api/models/check') ? '{"models":["acme/gpt"]}' : '{"name":"x"}');
const methodOf = (route: string) => route.replace(/ .*/, '');
const pathOf = (route: string) => {
  const path = route
    .replace(/^\w+ /, '')
    .replace(':queueName', 'stats-hour')
    .replace(':jobId', 'h-1')
    .replace(':queueStatus', 'failed')
    .replace(':schedulerId', 'model.call.stats');
  return WRITES.includes(route) ? `/queues${path}` : path;
};

describe('nobody', () => {
  test('sees and changes nothing, on no route, and is told how to be known', async () => {
    const before = await everything();
    const nobodies: Record<string, string>[] = [
      {},
      bearer('x'.repeat(43)),
      bearer(tokenHash(TOKENS.writer)),
      { Authorization: `Basic ${Buffer.from(`otto:${PASSWORDS.otto}`).toString('base64')}` },
      { Cookie: 'hourhand.sid=s%3Amade-up.signature' },
      { Cookie: 'XSRF-TOKEN=j:{"a":1}' },
      byProxy('on-call, ada'),
      byProxy(' '),
      { 'X-Forwarded-Groups': 'on-call' },
      { 'X-Remote-User': 'on-call' },
    ];
    for (const headers of nobodies) {
      for (const path of READS) {
        const { status, text, headers: said } = await desk.ask('get', path, headers);
        expect([headers, path, status]).toEqual([headers, path, 401]);
        expect(said['www-authenticate']).toBe('Bearer');
        expect(Object.keys(JSON.parse(text))).toEqual(['error', 'message']);
      }
      for (const route of ALL_WRITES) {
        const { status } = await desk.ask(methodOf(route), pathOf(route), { ...headers, ...json }, bodyOf(route));
        expect([headers, route, status]).toEqual([headers, route, headers.Cookie ? 403 : 401]);
      }
    }
    expect(await everything()).toEqual(before);
    expect(await lines()).toEqual([]);
  });

  test('is sent to sign in where they look at a page, and from there to that page alone', async () => {
    const html = { Accept: 'text/html,*/*;q=0.8' };
    const { status, headers } = await desk.ask('get', '/queues/queue/stats-hour?status=failed', html);
    const to = encodeURIComponent('/queues/queue/stats-hour?status=failed');
    expect([status, headers.location]).toEqual([303, `/sign-in?to=${to}`]);
    const part = { ...html, 'HX-Request': 'true', 'HX-Current-URL': 'http://here.example/hours/2026-08-20T13?x=1' };
    expect((await desk.ask('get', '/parts/now', part)).headers['hx-redirect']).toBe(
      '/sign-in?to=%2Fhours%2F2026-08-20T13%3Fx%3D1',
    );
    expect(localPath('/queues/queue/stats-hour?status=failed')).toBe('/queues/queue/stats-hour?status=failed');
    const elsewhere = [
      '//evil.example',
      '/\\evil.example',
      '\\\\evil.example',
      '/\t/evil.example',
      '/.//evil.example',
    ];
    const more = [
      'https://evil.example',
      'javascript:alert(1)',
      'queues',
      '',
      'http://here/x',
      '/%',
      `/${'x'.repeat(3_000)}`,
    ];
    for (const path of [...elsewhere, ...more, '/sign-in', '/sign-out', ['/a', '/b'], undefined]) {
      const found = localPath(path);
      expect([path, new URL(found, 'http://here').host]).toEqual([path, 'here']);
      expect([path, found]).toEqual([path, path === '/%' ? '/%' : '/']);
    }
    expect((await desk.ask('get', '/sign-in?to=//evil&to=/b')).status).toBe(200);
  });

  test('reads that it lives and is ready, and nothing of what was found', async () => {
    expect((await desk.ask('get', '/healthz')).status).toBe(200);
    const ready = JSON.parse((await desk.ask('get', '/readyz')).text);
    expect(ready.checks.map((check: object) => Object.keys(check))).toEqual(ready.checks.map(() => ['name', 'ok']));
    const known = JSON.parse((await desk.ask('get', '/readyz', bearer(TOKENS.reader))).text);
    expect(known.checks[0]).toHaveProperty('found');
  });
});

describe('a viewer', () => {
  test('reads everything and changes nothing, however they are known', async () => {
    const before = await everything();
    for (const [name, as] of Object.entries({
      vera: await desk.session('vera'),
      reader: bearer(TOKENS.reader),
      'vic@acme.example': byProxy('vic@acme.example', 'dev, on-calling'),
    })) {
      await hourhand.pool.$executeRaw`delete from "OperatorAction"`;
      for (const path of READS) {
        const expected = path === '/elsewhere' || path === '/api/models/checks/1' ? 404 : 200;
        expect([name, path, (await desk.ask('get', path, as)).status]).toEqual([name, path, expected]);
      }
      for (const headers of [as, await ownHeaders(desk.port, as)]) {
        for (const route of ALL_WRITES) {
          const { status, text } = await desk.ask(
            methodOf(route),
            pathOf(route),
            { ...headers, ...json },
            bodyOf(route),
          );
          expect([name, route, status]).toEqual([name, route, 403]);
          if (headers !== as) expect(JSON.parse(text).message).toBe(`expected an operator, got viewer ${name}`);
        }
      }
      expect(await lines()).toEqual([]);
    }
    expect(await everything()).toEqual(before);
  });

  test('has no buttons in Bull Board, and an operator has', async () => {
    const seen = async (as: Record<string, string>) =>
      JSON.parse((await desk.ask('get', '/queues/api/queues', as)).text).queues.map(
        (q: { readOnlyMode: boolean }) => q.readOnlyMode,
      );
    expect(new Set(await seen(bearer(TOKENS.reader)))).toEqual(new Set([true]));
    expect(new Set(await seen(bearer(TOKENS.writer)))).toEqual(new Set([false]));
  });
});

describe('an operator', () => {
  test('changes what the board and the API let them, however they are known, and nothing else; each change is written down', async () => {
    for (const [name, as] of Object.entries({
      otto: await desk.session('otto'),
      writer: bearer(TOKENS.writer),
      'on-call': byProxy('on-call'),
      'olga@acme.example': byProxy('olga@acme.example', 'dev,on-call'),
    })) {
      await hourhand.pool.$executeRaw`delete from "OperatorAction"`;
      const headers = await ownHeaders(desk.port, { ...as, 'X-Forwarded-For': '198.51.100.7' });
      for (const route of ALL_WRITES.filter((route) => !MAY.includes(route) && !OF_PAGES.includes(route))) {
        const { status, text } = await desk.ask(
          methodOf(route),
          pathOf(route),
          { ...headers, ...json },
          bodyOf(route),
        );
        expect([name, route, status]).toEqual([name, route, 403]);
        expect(JSON.parse(text).message).toContain('retries, promotes');
      }
      expect(await lines()).toEqual([]);
      for (const route of MAY) {
        const path = pathOf(route).replace('h-1', 'gone');
        const body = route.startsWith('post') ? bodyOf(route) : undefined;
        const { status } = await desk.ask(methodOf(route), path, { ...headers, ...(body ? json : {}) }, body);
        expect([name, route, status]).toEqual([name, route, path.includes('gone') ? 404 : body ? 202 : 200]);
      }
      const written = (await settled(MAY.length)).reverse();
      expect(written.map(({ what, subject, outcome }) => `${what}: ${subject}: ${outcome}`).sort()).toEqual([
        'check models: acme/gpt: 202',
        'pause all queues: null: 200',
        'pause queue: stats-hour: 200',
        'promote all: stats-hour: 200',
        'promote: stats-hour gone: 404',
        'remove all: stats-hour failed: 200',
        'remove: stats-hour gone: 404',
        'resume all queues: null: 200',
        'resume queue: stats-hour: 200',
        'retry all: stats-hour failed: 200',
        'retry: stats-hour gone: 404',
      ]);
      for (const { who, role, from, at } of written) {
        expect({ who, role, from }).toEqual({ who: name, role: 'operator', from: '198.51.100.7' });
        expect(Date.now() - at.getTime()).toBeLessThan(60_000);
      }
      expect((await hourhand.pool.modelCheck.findMany({ orderBy: { id: 'desc' }, take: 1 }))[0]?.requestedBy).toBe(
        name,
      );
    }
    await hourhand.queues.checks.obliterate({ force: true });
  });

  test('changes nothing where the account cannot be written', async () => {
    await using blind = await open(
      {},
      { pool: connect('postgresql://nobody@127.0.0.1:1/none', { connections: 1, onError: () => {} }) },
    );
    const before = await everything();
    const { status, text } = await blind.ask(
      'put',
      '/queues/api/queues/stats-hour/h-1/promote',
      bearer(TOKENS.writer),
    );
    expect([status, JSON.parse(text).message]).toEqual([503, expect.stringContaining('nothing was changed')]);
    expect(await everything()).toEqual(before);
  });
});

describe('who is trusted', () => {
  test("a proxy's headers count from its own address alone, and the address that it tells", async () => {
    await using other = await open({ PROXY_ADDRESSES: '10.0.0.1,192.168.0.0/16,::1' });
    const headers = { ...byProxy('on-call'), 'X-Forwarded-For': '192.168.0.1', Forwarded: 'for=10.0.0.1' };
    expect((await other.ask('get', '/api/models', headers)).status).toBe(401);
    expect((await other.ask('put', '/queues/api/queues/pause', headers)).status).toBe(401);
    await other.ask('put', '/queues/api/queues/stats-hour/pause', { ...bearer(TOKENS.writer), ...headers });
    expect((await settled(1))[0]).toMatchObject({ who: 'writer', from: '127.0.0.1' });
  });

  test('a token that is wrong is nobody’s, though a session comes with it', async () => {
    const session = await desk.session('otto');
    for (const token of ['x'.repeat(43), 'x x', `${TOKENS.writer},x`]) {
      expect([token, (await desk.ask('get', '/api/models', { ...session, ...bearer(token) })).status]).toEqual([
        token,
        401,
      ]);
    }
  });

  test('without credentials this machine is an operator, and a proxy that nobody told of is not', async () => {
    const none = { DASHBOARD_CREDENTIALS: '', PROXY_ADDRESSES: '' };
    await using alone = await open(none);
    expect((await alone.ask('put', '/queues/api/queues/stats-hour/pause')).status).toBe(200);
    expect((await settled(1))[0]).toMatchObject({ who: 'anonymous', role: 'operator', from: '127.0.0.1' });
    expect((await alone.ask('get', '/sign-in')).status).toBe(303);
    const headers = ['X-Forwarded-For', 'Forwarded', 'X-Forwarded-Host', 'Via', 'X-Forwarded-Proto', 'X-Real-IP'];
    for (const header of headers) {
      expect([header, (await alone.ask('get', '/queues', { [header]: 'x' })).status]).toEqual([header, 401]);
    }
  });

  test('on any other address it does not start without, and says what to give', async () => {
    const none = { DASHBOARD_CREDENTIALS: '', PROXY_ADDRESSES: '' };
    for (const HOST of ['0.0.0.0', '::', '192.0.2.1', 'hourhand.example']) {
      await expect(open({ ...none, HOST })).rejects.toThrow(`HOST ${HOST}: expected DASHBOARD_CREDENTIALS (`);
    }
    await expect(open({ ...none, PUBLIC_URL: 'https://h.example' })).rejects.toThrow(
      'PUBLIC_URL https://h.example: expected',
    );
    // Which ends with 2: whoever runs it need not start it again.
    await expect(open({ ...none, HOST: '::' })).rejects.toBeInstanceOf(ConfigError);
    await using there = await open({ HOST: '0.0.0.0' });
    const statusFor = async (headers: Record<string, string>) =>
      (await there.ask('get', '/api/models', headers)).status;
    expect(await statusFor({})).toBe(401);
    expect(await statusFor({ Host: 'anything.example', ...bearer(TOKENS.reader) })).toBe(200);
    await using named = await open({ HOST: '0.0.0.0', PUBLIC_URL: 'https://h.example' });
    const hosts = [
      'h.example',
      `127.0.0.1:${named.port}`,
      '10.1.2.3:3000',
      '[2001:db8::1]',
      'evil.example',
      'h.example.evil',
    ];
    const answers = hosts.map(
      async (Host) => (await named.ask('get', '/api/models', { Host, ...bearer(TOKENS.reader) })).status,
    );
    expect(await Promise.all(answers)).toEqual([200, 200, 200, 200, 403, 403]);
  });

  test('a file of credentials is read at the start, and a line that is wrong is named and not shown', async () => {
    const none = { DASHBOARD_CREDENTIALS: '', DASHBOARD_CREDENTIALS_FILE: '/no/such/file' };
    await expect(open(none)).rejects.toThrow(
      'DASHBOARD_CREDENTIALS_FILE: expected a file that can be read, got ENOENT',
    );
    expect(() => parseCredentials(`# people\n\nada:operator:hunter2`)).toThrow(
      /^expected .* in line 3, got another \(not shown\)$/,
    );
  });
});

describe('a session', () => {
  test('begins with the right password, is told of by a cookie for our own pages alone, and ends when somebody signs out', async () => {
    const { status, headers } = await desk.signIn('otto');
    expect([status, headers.location]).toEqual([303, '/queues']);
    const set = [headers['set-cookie']].flat().find((cookie) => cookie?.startsWith('hourhand.sid='));
    expect(set).toMatch(/; Path=\/; Expires=[^;]+; HttpOnly; SameSite=Strict$/);
    const as = { Cookie: `hourhand.sid=${cookiesOf({ headers })['hourhand.sid']}` };
    expect((await desk.ask('get', '/api/models', as)).status).toBe(200);
    expect((await desk.ask('get', '/sign-in?to=/api/models', as)).headers.location).toBe('/api/models');
    expect((await desk.ask('post', '/sign-out', as)).status).toBe(403); // without the token of its page
    expect((await desk.ask('get', '/api/models', as)).status).toBe(200);
    const out = await desk.ask('post', '/sign-out', await ownHeaders(desk.port, as));
    expect([out.status, out.headers.location, cookiesOf(out)['hourhand.sid']]).toEqual([303, '/sign-in', '']);
    expect((await desk.ask('get', '/api/models', as)).status).toBe(401);
    const written = await settled(2);
    expect(written.map(({ who, role, what }) => [who, role, what])).toEqual([
      ['otto', 'operator', 'sign out'],
      ['otto', 'operator', 'sign in'],
    ]);
  });

  test('is for https alone where browsers come by https', async () => {
    await using published = await open({ PUBLIC_URL: 'https://h.example' });
    const host = { Host: 'h.example' };
    const page = await published.ask('get', '/sign-in', host);
    const token = cookiesOf(page)['XSRF-TOKEN'] ?? '';
    expect(`${page.headers['set-cookie']}`).toMatch(/^XSRF-TOKEN=[^;]+; Path=\/; Secure; SameSite=Strict$/);
    const form = { 'Content-Type': 'application/x-www-form-urlencoded', Cookie: `XSRF-TOKEN=${token}`, ...host };
    const fields = `${new URLSearchParams({ name: 'otto', password: PASSWORDS.otto ?? '', _csrf: token })}`;
    const post = (Origin: string) =>
      published.ask('post', '/sign-in', { ...form, Origin, 'X-Forwarded-For': anAddress() }, fields);
    expect([(await post('http://h.example')).status, (await post('https://evil.example')).status]).toEqual([
      403, 403,
    ]);
    const { status, headers } = await post('https://h.example');
    expect([status, `${headers['set-cookie']}`]).toEqual([
      303,
      expect.stringMatching(/hourhand\.sid=.*; HttpOnly; Secure; SameSite=Strict/),
    ]);
  });

  test('is not one that was planted: signing in makes another, and the old one is void', async () => {
    const planted = await desk.session('vera');
    const { headers } = await desk.signIn('otto', undefined, planted);
    // Whoever has signed in is sent on from the page; the form was sent all the same.
    const sid = cookiesOf({ headers })['hourhand.sid'];
    expect([sid !== undefined, planted.Cookie.includes(`${sid}`)]).toEqual([true, false]);
    expect((await desk.ask('get', '/api/models', planted)).status).toBe(401);
  });

  test('is nobody’s where its cookie is none that we gave', async () => {
    for (const sid of ['x', 's%3Ax.y', 'j:{"a":1}', 'j:["s:x.y"]', 'j:null', 's%3A', '%', '__proto__']) {
      const { status } = await desk.ask('get', '/api/models', { Cookie: `hourhand.sid=${sid}` });
      expect([sid, status]).toEqual([sid, 401]);
    }
  });

  test('nothing is kept of whoever has not signed in', async () => {
    const before = await hourhand.pool.dashboardSession.count();
    await desk.ask('get', '/sign-in');
    await desk.signIn('otto', 'wrong');
    await desk.ask('get', '/queues', { Accept: 'text/html', Cookie: 'hourhand.sid=s%3Ax.y' });
    expect(await hourhand.pool.dashboardSession.count()).toBe(before);
  });

  test('is void once its credential is changed or taken away, and has the role that it has now', async () => {
    const as = await desk.session('otto');
    const become = async (credentials: string) => {
      await using changed = await open({ DASHBOARD_CREDENTIALS: credentials });
      return (await changed.ask('put', '/queues/api/queues/stats-hour/pause', await ownHeaders(changed.port, as)))
        .status;
    };
    const stored = CREDENTIALS.split('\n');
    expect(await become(CREDENTIALS)).toBe(200);
    expect(await become(CREDENTIALS.replace('otto:operator', 'otto:viewer'))).toBe(403);
    expect(await become(CREDENTIALS)).toBe(200);
    expect(await become([line('otto', 'operator'), ...stored.slice(2)].join('\n'))).toBe(401);
    const next = await desk.session('otto');
    await using gone = await open({ DASHBOARD_CREDENTIALS: stored.filter((l) => !l.startsWith('otto')).join('\n') });
    expect((await gone.ask('get', '/api/models', next)).status).toBe(401);
  });

  test('ends by the button of every page, also of one that says what was not found', async () => {
    const session = await desk.session('otto');
    const headers = { ...session, Accept: 'text/html' };
    for (const path of ['/elsewhere', '/hours/none', '/actions']) {
      const page = await desk.ask('get', path, headers);
      const token = /name="_csrf" value="([^"]+)"/.exec(page.text)?.[1] ?? '';
      expect([path, token]).toEqual([path, cookiesOf(page)['XSRF-TOKEN']]);
    }
  });

  test('cannot be known while PostgreSQL is away, and a token can', async () => {
    const as = await desk.session('vera');
    const away = new URL(hourhand.config.DATABASE_URL);
    away.port = '1';
    await using alone = await open({ DATABASE_URL: away.href });
    const { status, text } = await alone.ask('get', '/queues/api/queues', as);
    expect([status, JSON.parse(text).error]).toEqual([503, 'Unavailable']);
    expect((await alone.ask('get', '/healthz', as)).status).toBe(200);
    expect((await alone.ask('get', '/queues/api/queues', bearer(TOKENS.reader))).status).toBe(200);
  });
});

describe('signing in', () => {
  test('answers an unknown name as it answers a wrong password, and writes down no name that nobody has', async () => {
    const [wrong, unknown] = [await desk.signIn('otto', 'hunter2'), await desk.signIn('hunter2-typed-here', 'x')];
    const told = ({ status, text }: Answer) => [status, text.replace(/value="[^"]*"/g, '')];
    expect(told(wrong)).toEqual(told(unknown));
    expect(wrong.status).toBe(401);
    expect((await settled(2)).map(({ who, role, what, outcome }) => [who, role, what, outcome])).toEqual([
      ['an unknown name', null, 'failed sign-in', '401'],
      ['otto', null, 'failed sign-in', '401'],
    ]);
    expect((await desk.signIn('otto', 'x'.repeat(73))).status).toBe(400);
    for (const name of ['reader', 'writer']) {
      const token = TOKENS[name as keyof typeof TOKENS];
      expect((await desk.signIn(name, token)).status).toBe(401); // machines do not sign in
    }
  });

  test('is refused for a while after five wrong passwords from a network, known name or not, and not for others', async () => {
    const from = { 'X-Forwarded-For': '2001:db8:0:7::1' };
    for (const name of ['rosa', 'nobody']) {
      for (let i = 0; i < 5; i++) expect((await desk.signIn(name, 'wrong', from)).status).toBe(401);
      const { status, headers, text } = await desk.signIn(name, PASSWORDS[name], {
        'X-Forwarded-For': '2001:db8:0:7:ffff::2',
      });
      expect([status, Number(headers['retry-after']) > 800]).toEqual([429, true]);
      expect(text).toContain('Too many attempts: try again in 15 minutes.');
    }
    expect((await desk.signIn('rosa', undefined, { 'X-Forwarded-For': '2001:db8:0:8::1' })).status).toBe(303);
    expect((await desk.signIn('otto', undefined, from)).status).toBe(303);
  });

  test('is refused after twenty attempts from one network, whatever the names', async () => {
    const from = { 'X-Forwarded-For': '203.0.113.9' };
    for (let i = 0; i < 20; i++) expect((await desk.signIn(`nobody-${i}`, 'wrong', from)).status).toBe(401);
    expect((await desk.signIn('otto', undefined, from)).status).toBe(429);
  });

  test('is limited by each dashboard for itself while Redis is away', async () => {
    const redis = producerConnection({ url: 'redis://127.0.0.1:1', prefix: hourhand.prefix }, () => {});
    await using alone = await open({}, { redis, queues: openQueues(redis, hourhand.prefix) });
    const from = { 'X-Forwarded-For': '203.0.113.10' };
    for (let i = 0; i < 5; i++) expect((await alone.signIn('otto', 'wrong', from)).status).toBe(401);
    expect((await alone.signIn('otto', undefined, from)).status).toBe(429);
    expect((await alone.signIn('vera', undefined, from)).status).toBe(303);
    redis.disconnect();
  });

  test('of many at once keeps nobody else waiting, and of too many is refused', async () => {
    await using own = await open({ DASHBOARD_CREDENTIALS: `ada:viewer:${hashSync('a password', 12)}` });
    let busy = true;
    const many = Promise.all(Array.from({ length: 30 }, (_, i) => own.signIn(`nobody-${i}`, 'wrong')));
    const done = many.finally(() => {
      busy = false;
    });
    let answers = 0;
    for (; busy; answers += 1) await own.ask('get', '/healthz');
    const statuses = (await done).map(({ status }) => status);
    expect([...new Set(statuses)].sort()).toEqual([401, 503]);
    // Compared all at once, others wait for a turn of each of them: a handful of answers.
    expect(2 * answers).toBeGreaterThan(statuses.filter((status) => status === 401).length);
    expect((await own.signIn('ada', 'a password')).status).toBe(303);
  });

  test('does not wait for a Redis that is silent, and is limited all the same', async () => {
    const redis = new Proxy(hourhand.redis, {
      get: (target, name) => {
        const value = Reflect.get(target, name);
        if (typeof value !== 'function') return value;
        return name === 'defineCommand' ? value.bind(target) : () => new Promise<never>(() => {});
      },
    });
    await using alone = await open({}, { redis });
    const from = { 'X-Forwarded-For': '203.0.113.11' };
    const wrong = await Promise.all([1, 2, 3, 4, 5].map(() => alone.signIn('otto', 'wrong', from)));
    expect(wrong.map(({ status }) => status)).toEqual([401, 401, 401, 401, 401]);
    expect((await alone.signIn('otto', undefined, from)).status).toBe(429);
    expect((await alone.signIn('vera', undefined, from)).status).toBe(303);
  });
});

describe('a forged write', () => {
  test('is refused without the token of its own page: none, a wrong one, another session’s', async () => {
    const before = await everything();
    const as = await desk.session('otto');
    const own = await ownHeaders(desk.port, as);
    const others = await ownHeaders(desk.port, await desk.session('rosa'));
    const nobodys = await ownHeaders(desk.port);
    const proxied = byProxy('on-call');
    const forged: Record<string, string>[] = [
      as,
      { ...own, 'X-XSRF-TOKEN': '' },
      { ...own, 'X-XSRF-TOKEN': 'x' },
      { ...own, Cookie: as.Cookie },
      ...[others, nobodys].map((theirs) => ({
        ...own,
        Cookie: `${as.Cookie}; ${theirs.Cookie?.replace(/^hourhand[^;]*; /, '')}`,
        'X-XSRF-TOKEN': theirs['X-XSRF-TOKEN'] ?? '',
      })),
      proxied,
      { ...(await ownHeaders(desk.port, byProxy('somebody'))), ...proxied },
    ];
    for (const headers of forged) {
      const { status, text } = await desk.ask('put', '/queues/api/queues/stats-hour/h-1/promote', headers);
      expect([headers, status, JSON.parse(text).message]).toEqual([
        headers,
        403,
        expect.stringContaining('CSRF: expected'),
      ]);
      expect((await desk.ask('post', '/api/models/check', { ...headers, ...json }, '{}')).status).toBe(403);
    }
    expect(await everything()).toEqual(before);
    expect((await lines()).map(({ what }) => what)).toEqual(['sign in', 'sign in']);
    expect((await desk.ask('put', '/queues/api/queues/stats-hour/h-1/promote', own)).status).toBe(204);
  });

  test('of a form is refused on this machine too, where nobody has credentials', async () => {
    await using alone = await open({ DASHBOARD_CREDENTIALS: '', PROXY_ADDRESSES: '' });
    const form = { 'Content-Type': 'application/x-www-form-urlencoded' };
    const own = await ownHeaders(alone.port);
    const pause = (headers: Record<string, string>, body?: string) =>
      alone.ask('put', '/queues/api/queues/stats-hour/pause', headers, body);
    const { 'X-XSRF-TOKEN': token = '', ...withoutToken } = own;
    expect((await pause(form, 'a=1')).status).toBe(403);
    expect((await pause({ ...form, ...withoutToken }, 'a=1')).status).toBe(403);
    expect((await pause({ Origin: own.Origin ?? '' })).status).toBe(403);
    expect((await pause({ 'Sec-Fetch-Mode': 'cors' })).status).toBe(403);
    expect((await pause({ ...form, ...withoutToken }, `_csrf=${token}&_csrf=${token}`)).status).toBe(403);
    expect((await pause({ ...form, ...withoutToken }, `_csrf=${token}`)).status).toBe(200);
    expect((await pause({ ...withoutToken, ...form }, `x=${'y'.repeat(20_000)}`)).status).toBe(413);
  });
});

describe('the account', () => {
  test('is read by whoever is known, the newest first, page by page', async () => {
    for (const what of ['one', 'two', 'three']) await recordAction(hourhand.pool, { who: 'ada', what, from: 'here' });
    const read = async (query: string) => {
      const { status, text } = await desk.ask('get', `/api/actions${query}`, bearer(TOKENS.reader));
      return status === 200 ? JSON.parse(text).map(({ what }: { what: string }) => what) : status;
    };
    expect(await read('')).toEqual(['three', 'two', 'one']);
    expect(await read('?limit=1')).toEqual(['three']);
    const [newest] = await lines();
    expect(await read(`?before=${newest?.seq}&limit=1`)).toEqual(['two']);
    for (const query of [
      '?limit=0',
      '?limit=501',
      '?limit=1&limit=2',
      '?before=x',
      '?before=1&before=2',
      '?before[]=1&limit=-1',
    ]) {
      expect([query, await read(query)]).toEqual([query, 400]);
    }
  });

  test('forgets what is older than so many days', async () => {
    await recordAction(hourhand.pool, { who: 'ada', what: 'one', from: 'here' });
    await forgetActions(hourhand.pool, 400);
    expect(await lines()).toHaveLength(1);
    await forgetActions(hourhand.pool, 400, new Date(Date.now() + 401 * 86_400_000));
    expect(await lines()).toEqual([]);
  });

  test('has a line of every command that changes something, and of no other', async () => {
    const range = ['--from', '2026-08-20T13', '--to', '2026-08-20T14'];
    await Promise.all(
      [['status'], ['backfill', ...range, '--dry-run'], ['stale', '--dry-run']].map((args) => hourhand.run(args)),
    );
    expect(await lines()).toEqual([]);
    await hourhand.run(['import', '-'], 'not,a,call\n');
    await hourhand.run(['backfill', ...range]);
    await hourhand.run(['stale']);
    await hourhand.run(['retain', '--calls', '90d']);
    await hourhand.run(['models', 'forget', 'acme/nothing']);
    const written = (await settled(5)).reverse();
    expect(written.map(({ what, subject, outcome }) => [what, subject, outcome])).toEqual([
      ['import', '-', 'failed'],
      ['backfill', '[2026-08-20T13, 2026-08-20T14)', 'exit 0'],
      ['stale', null, 'exit 0'],
      ['retain', null, 'exit 0'],
      ['models forget', 'acme/nothing', 'exit 1'],
    ]);
    for (const { who, role, from } of written) {
      expect([who !== '', role, from]).toEqual([true, null, expect.stringMatching(/^command line on /)]);
    }
  });

  test('has a line of what becomes of a scheduler or a backfill by the command line, as by the page', async () => {
    const id = 'check.model.status';
    await hourhand.record({ user: 'ada', at: '2026-08-20T13:10:00Z' });
    const range = { start: new Date('2026-08-20T13:00Z'), end: new Date('2026-08-20T14:00Z') };
    const { backfill } = await backfillHours(hourhand, range, {
      only: 'all',
      reason: 'backfill',
      requestedBy: 'ada',
      requestedFrom: 'a test',
    });
    for (const change of ['pause', 'run', 'resume']) await hourhand.run(['schedule', change, id]);
    for (const change of ['pause', 'cancel']) await hourhand.run(['backfills', change, `${backfill}`]);
    await hourhand.run(['backfills', 'show', `${backfill}`]);
    expect((await lines()).reverse()).toMatchObject(
      [
        ['pause scheduler', id],
        ['run scheduler now', id],
        ['resume scheduler', id],
        ['pause backfill', `${backfill}`],
        ['cancel backfill', `${backfill}`],
      ].map(([what, subject]) => ({
        what,
        subject,
        outcome: 'exit 0',
        from: expect.stringMatching(/^command line/),
      })),
    );
  });
});

describe('hourhand credentials', () => {
  test('prints a line that signs in, and one that is a token, and wants no servers', async () => {
    const none = { DATABASE_URL: 'nowhere', REDIS_URL: 'nowhere' };
    const person = await hourhand.run(['credentials', 'ada', '--role', 'operator'], 'correct horse\n', none);
    const machine = await hourhand.run(['credentials', 'bot', '--role', 'viewer', '--token'], '', none);
    expect([person.code, machine.code]).toEqual([0, 0]);
    const token = machine.stderr.match(/: (\S{43})\n$/)?.[1] ?? '';
    await using own = await open({ DASHBOARD_CREDENTIALS: person.stdout + machine.stdout });
    expect((await own.signIn('ada', 'correct horse')).status).toBe(303);
    expect((await own.ask('get', '/api/models', bearer(token))).status).toBe(200);
  });

  test.each([
    ['a name that cannot be one', ['a:b', '--role', 'viewer'], 'long enough'],
    ['no role', ['ada'], 'long enough'],
    ['a short password', ['ada', '--role', 'viewer'], 'short'],
    ['a password of which bcrypt would not read the end', ['ada', '--role', 'viewer'], 'ä'.repeat(37)],
  ])('refuses %s', async (_, args, input) => {
    const { code, stdout, stderr } = await hourhand.run(['credentials', ...args], input);
    expect([code, stdout, stderr.split('\n').length]).toEqual([2, '', 2]);
    expect(stderr).not.toContain(input);
  });
});

test('what is too long or given twice is refused in words, and nothing dies of it', async () => {
  const as = bearer(TOKENS.writer);
  const { status, text } = await desk.ask('get', `/queues?${'x'.repeat(5_000)}`, as);
  expect([status, JSON.parse(text).message]).toEqual([
    414,
    expect.stringMatching(/^expected a URL of at most 4096 characters, got /),
  ]);
  for (const path of [
    '/queues/api/queues?page=1&page=2&activeQueue=a&activeQueue=b&jobsPerPage=x&status=y',
    '/queues/api/queues?jobsPerPage=99999999999999&page=-1',
    '/sign-in?to[]=a&to[b]=c',
    '/api/actions?limit[]=1',
  ]) {
    expect([path, (await desk.ask('get', path, as)).status < 500]).toEqual([path, true]);
  }
  expect((await desk.ask('get', '/healthz')).status).toBe(200);
});

test('what PostgreSQL cannot hold, or is said twice where once is meant, is refused in words, and asks for nothing', async () => {
  const range = 'from=2026-08-20T13&to=2026-08-20T14';
  const form = { ...bearer(TOKENS.writer), 'Content-Type': 'application/x-www-form-urlencoded' };
  const refused = async (status: number, method: string, path: string, body?: string, headers = form) => {
    const answer = await desk.ask(method, path, headers, body);
    expect([path, body, answer.status, answer.text]).toEqual([
      path,
      body,
      status,
      expect.stringContaining('expected '),
    ]);
  };
  for (const fields of ['user=%00', 'user=ada&user=bob', 'only=missing&only=all', `user=${'x'.repeat(501)}`]) {
    await refused(400, 'get', `/backfills/new?${range}&${fields}`);
    await refused(400, 'post', '/backfills', `${range}&${fields}`);
  }
  await refused(400, 'get', '/parts/coverage?last=1&last=2');
  await refused(400, 'post', '/api/models/check', '{"models":["acme/\\u0000"]}', { ...form, ...json });
  for (const hour of ['0000-01-01T00', '0001-01-01T00', '1969-12-31T23']) {
    await refused(404, 'get', `/hours/${hour}`);
    await refused(404, 'post', `/hours/${hour}/run`);
  }
  expect(await lines()).toEqual([]);
  expect(await hourhand.pool.backfill.count({ where: { requestedBy: 'writer' } })).toBe(0);
});

test('nobody is told where on the machine the files stand that pages load', async () => {
  const none = { '/none.css': 404, '': 404, '/': 404, '/%00': 400, '/%ZZ': 400, '/..%2fpackage.json': 403 };
  for (const [path, status] of Object.entries(none)) {
    const answer = await desk.ask('get', `/assets${path}`);
    const text = JSON.stringify({ error: 'Not found', message: 'There is no such file.' });
    expect([path, answer.status, answer.text]).toEqual([path, status, text]);
  }
  expect((await desk.ask('get', '/assets/page.css')).status).toBe(200);
});

test('however often nobody asks whether it is ready, the servers are asked once at a time', async () => {
  let asked = 0;
  const silent = () => {
    asked += 1;
    return new Promise<never>(() => {});
  };
  const pool = new Proxy(hourhand.pool, {
    get: (target, name) => (name === '$queryRaw' ? silent : Reflect.get(target, name)),
  });
  await using own = await open({}, { pool });
  expect((await own.ask('get', '/readyz')).status).toBe(503);
  const once = asked;
  await Promise.all(Array.from({ length: 50 }, () => own.ask('get', '/readyz')));
  expect(once).toBeGreaterThan(0);
  expect(asked).toBeLessThan(4 * once);
});

test('no secret stands in any answer, line of the log or line of the account', async () => {
  const answers = [
    await desk.signIn('otto', PASSWORDS.rosa),
    await desk.signIn('otto'),
    await desk.ask('get', '/api/models', bearer(`${TOKENS.writer}x`)),
    await desk.ask('get', '/readyz', bearer(TOKENS.writer)),
    await desk.ask('put', '/queues/api/queues/stats-hour/none/retry', bearer(TOKENS.writer)),
  ];
  const rows = await hourhand.pool.$queryRaw`select sess from "DashboardSession"`;
  const all = JSON.stringify([answers.map(({ text }) => text), await settled(2), hourhand.logged, rows]);
  for (const secret of [
    ...SECRETS,
    hourhand.config.DASHBOARD_SECRET,
    new URL(hourhand.config.DATABASE_URL).password || 'postgresql://',
  ]) {
    expect(all).not.toContain(secret);
  }
});
