// Servers that somebody gave us: whatever is wrong with one is said in one sentence, in seconds, with what to do.

import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { cpSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { createServer as createHttpServer } from 'node:http';
import { type AddressInfo, createServer, connect as netConnect } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { home, readConfig } from '../src/config.ts';
import { openConnections } from '../src/connections.ts';
import { unreachable } from '../src/given-servers.mjs';
import { createLogger } from '../src/logger.ts';
import type { Wants } from '../src/queues/redis.ts';
import { connect } from '../src/store/db.ts';
import { askAt } from './support/board.ts';
import { type OwnServer, redisHere, startOwnRedis } from './support/cluster-and-tls.ts';
import { createDatabase, serverUrl, type TestDatabase } from './support/database.ts';
import { type Hourhand, h, startHourhand, until } from './support/hourhand.ts';

if (!redisHere) console.log('skipped: no redis-server is on this machine that could be full, a replica or evicting');

const DATABASE_URL = serverUrl('TEST_DATABASE_URL');
const REDIS_URL = serverUrl('TEST_REDIS_URL');
const SECRET = 's3cr3t';

/** Somebody who listens, and is neither of our servers. */
async function listening(server: ReturnType<typeof createServer> | ReturnType<typeof createHttpServer>) {
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const { port } = server.address() as AddressInfo; // it listens on one
  return { at: `127.0.0.1:${port}`, [Symbol.asyncDispose]: async () => void server.close() };
}
const silent = () => listening(createServer((socket) => socket.on('error', () => {})));
const http = () => listening(createHttpServer((_, res) => res.end('hello')));

/** The same address with another protocol, and a password that nobody may see. */
const as = (protocol: string, url: string) => `${protocol}://:${SECRET}@${new URL(url).host}`;

/** The same address with a setting. */
function having(url: string, name: string, value: string): string {
  const changed = new URL(url);
  changed.searchParams.set(name, value);
  return changed.href;
}

describe.concurrent('an address at which no such server answers', () => {
  const cases: [string, 'PostgreSQL' | 'Redis', string, string][] = [
    [
      'nobody',
      'PostgreSQL',
      `postgres://a:${SECRET}@127.0.0.1:1/b`,
      'nobody listens there (ECONNREFUSED): start it, or mend DATABASE_URL',
    ],
    [
      'nobody',
      'Redis',
      `redis://:${SECRET}@127.0.0.1:1`,
      'nobody listens there (ECONNREFUSED): start it, or mend REDIS_URL',
    ],
    ['a Redis', 'PostgreSQL', as('postgres', REDIS_URL), 'expected PostgreSQL, found a Redis: mend DATABASE_URL'],
    ['a PostgreSQL', 'Redis', as('redis', DATABASE_URL), 'expected Redis, found a PostgreSQL: mend REDIS_URL'],
    [
      'no TLS',
      'PostgreSQL',
      having(DATABASE_URL, 'sslmode', 'require'),
      'expected TLS, for sslmode or ssl is in DATABASE_URL, found a PostgreSQL without: turn its ssl on, or take that out',
    ],
    [
      'no TLS',
      'Redis',
      as('rediss', REDIS_URL),
      'expected Redis with TLS, found a Redis: mend REDIS_URL (redis:// is without TLS, rediss:// with)',
    ],
    ['a host that is none', 'Redis', `redis://:${SECRET}@no-such-host.invalid`, 'no-such-host.invalid:6379: '],
  ];
  test.each(cases)('%s, for %s, is named with what to do', async (_, server, url, says) => {
    const said = await unreachable(server, url, { ms: 5_000 });
    expect(said).toContain(says);
    expect(said).toMatch(new RegExp(`^${server} at \\S+:\\d+: `));
    expect(said).not.toContain(SECRET);
  });

  test('an HTTP server and one that never answers are told from both', async () => {
    await using web = await http();
    await using mute = await silent();
    const at = ({ at }: { at: string }) => [`postgres://a:${SECRET}@${at}/b`, `redis://:${SECRET}@${at}`] as const;
    const look = async ([postgres, redis]: readonly [string, string]) =>
      Promise.all([unreachable('PostgreSQL', postgres, { ms: 500 }), unreachable('Redis', redis, { ms: 500 })]);
    expect(await look(at(web))).toEqual([
      `PostgreSQL at ${web.at}: expected PostgreSQL, found an HTTP server: mend DATABASE_URL`,
      `Redis at ${web.at}: expected Redis, found an HTTP server: mend REDIS_URL`,
    ]);
    expect(await look(at(mute))).toEqual([
      `PostgreSQL at ${mute.at}: expected PostgreSQL, found no answer within 0.5 s: look at what listens there, or mend DATABASE_URL`,
      `Redis at ${mute.at}: expected Redis, found no answer within 0.5 s: look at what listens there, or mend REDIS_URL`,
    ]);
  });

  test('servers that are as they must be are no problem', async () => {
    expect(await unreachable('PostgreSQL', DATABASE_URL, { ms: 5_000 })).toBe(undefined);
    expect(await unreachable('Redis', REDIS_URL, { ms: 5_000 })).toBe(undefined);
  });
});

describe('npm start, npm run servers and npm test', () => {
  let bare: string;
  beforeAll(() => {
    bare = mkdtempSync(path.join(tmpdir(), 'hourhand-bare-'));
    for (const part of ['scripts', 'src/given-servers.mjs', 'package.json'])
      cpSync(path.join(home, part), path.join(bare, part), { recursive: true });
  });
  afterAll(() => rmSync(bare, { recursive: true, force: true }));

  const script = async (args: string[], env: Record<string, string>) => {
    const { PATH, HOME } = process.env;
    const options = { cwd: bare, env: { PATH, HOME, ...env } };
    const ran = promisify(execFile)(process.execPath, args, options).then(({ stdout }) => ({
      code: 0,
      stdout,
      stderr: '',
    }));
    return ran.catch(({ code, stdout, stderr }) => ({ code, stdout, stderr: stderr.trim() }));
  };
  const nobody = 'nobody listens there (ECONNREFUSED): start it, or mend';

  const wrong: [string, string[], Record<string, string>, string][] = [
    [
      'two servers that nobody started',
      ['scripts/start.mjs'],
      { DATABASE_URL: `postgres://a:${SECRET}@127.0.0.1:1/b`, REDIS_URL: 'redis://127.0.0.1:2' },
      `PostgreSQL at 127.0.0.1:1: ${nobody} DATABASE_URL\nRedis at 127.0.0.1:2: ${nobody} REDIS_URL`,
    ],
    [
      'one, where the other is private',
      ['scripts/start.mjs', '--servers-only'],
      { REDIS_URL: 'redis://127.0.0.1:1' },
      `Redis at 127.0.0.1:1: ${nobody} REDIS_URL`,
    ],
    [
      'a URL of something else',
      ['scripts/start.mjs'],
      { DATABASE_URL: `mysql://a:${SECRET}@127.0.0.1:1/b` },
      'DATABASE_URL: expected a URL that begins with postgres:// or postgresql://, got mysql://… (not shown)',
    ],
    [
      "tests' own server, by the name of its variable",
      ['scripts/test.mjs'],
      { TEST_DATABASE_URL: 'postgres://127.0.0.1:1/b', DATABASE_URL },
      `PostgreSQL at 127.0.0.1:1: ${nobody} TEST_DATABASE_URL`,
    ],
  ];
  test.concurrent.each(wrong)('name %s, before anything is installed', async (_, args, env, says) => {
    expect(await script(args, env)).toEqual({ code: 1, stdout: '', stderr: says });
    expect(readdirSync(bare).sort()).toEqual(['package.json', 'scripts', 'src']);
  });

  test('with both given there is nothing to start, and nothing is made', async () => {
    const { code, stdout } = await script(['scripts/start.mjs', '--servers-only'], { DATABASE_URL, REDIS_URL });
    expect([code, stdout]).toEqual([0, 'DATABASE_URL and REDIS_URL are set: there is nothing to start.\n']);
    expect(readdirSync(bare).sort()).toEqual(['package.json', 'scripts', 'src']);
  });
});

/** Why these servers do not do; `undefined` where they do. */
async function refusalOf(env: Record<string, string>, wants: Wants): Promise<string | undefined> {
  const config = readConfig({ REDIS_PREFIX: '{none}', REDIS_URL, ...env });
  const opened = openConnections(config, createLogger('silent'), { wants });
  return opened.then(
    ({ close }) => close().then(() => undefined),
    ({ message }) => message,
  );
}

/** A PostgreSQL that says of itself what it is not: its own functions are asked last. */
async function pretending(
  { pool, environment }: Hourhand,
  says: { version?: string; standby?: boolean },
): Promise<string> {
  await pool.$executeRawUnsafe('create schema if not exists pretence');
  await pool.$executeRawUnsafe(
    `create or replace function pretence.pg_is_in_recovery() returns bool language sql as 'select ${says.standby ?? false}'`,
  );
  const number = Number(says.version?.split('.')[0] ?? 17) * 10_000;
  await pool.$executeRawUnsafe(`create or replace function pretence.current_setting(name text) returns text language sql as $$
    select case name when 'server_version' then '${says.version ?? '17.1'}' when 'server_version_num' then '${number}' else pg_catalog.current_setting(name) end $$`);
  const url = new URL(environment.DATABASE_URL);
  url.searchParams.set('options', '-c search_path=public,pretence,pg_catalog');
  return url.href;
}

describe('a PostgreSQL', () => {
  const at = `PostgreSQL at ${new URL(DATABASE_URL).host}: `;
  let hourhand: Hourhand;
  let empty: TestDatabase;
  const role = `test_${randomBytes(6).toString('hex')}`;
  const asRole = (url: string) => Object.assign(new URL(url), { username: role, password: SECRET }).href;
  beforeAll(async () => {
    [hourhand, empty] = await Promise.all([startHourhand(), createDatabase({ migrated: false })]);
    await hourhand.pool.$executeRawUnsafe(`create role ${role} login password '${SECRET}'`);
  });
  afterAll(async () => {
    await empty?.[Symbol.asyncDispose]();
    await hourhand?.pool.$executeRawUnsafe(`drop role if exists ${role}`);
    await hourhand?.[Symbol.asyncDispose]();
  });

  test('that is too old is refused by its version, also to whoever only looks', async () => {
    const DATABASE_URL = await pretending(hourhand, { version: '13.23' });
    const says = `${at}expected version 14 or newer, found 13.23: upgrade it, or name another in DATABASE_URL`;
    expect(await refusalOf({ DATABASE_URL }, 'look')).toBe(says);
    expect(await hourhand.run(['migrate'], '', { DATABASE_URL })).toMatchObject({
      code: 1,
      stderr: `hourhand: ${says}\n`,
    });
    expect(await refusalOf({ DATABASE_URL: await pretending(hourhand, { version: '14.0' }) }, 'look')).toBe(
      undefined,
    );
  });

  test('that is a standby does for whoever looks, and for nobody else', async () => {
    const DATABASE_URL = await pretending(hourhand, { standby: true });
    const says = `${at}expected one that takes writes, found a standby: name the primary in DATABASE_URL`;
    expect(
      await Promise.all((['look', 'change', 'work'] as const).map((wants) => refusalOf({ DATABASE_URL }, wants))),
    ).toEqual([undefined, says, says]);
  });

  test('that takes no writes is read by commands and by the dashboard, and changed by none', async () => {
    await using readOnly = await startHourhand();
    const { pool } = readOnly;
    await readOnly.backfill(h('2026-08-20T13'));
    const [{ name }] = await pool.$queryRaw<[{ name: string }]>`select current_database() as name`;
    await pool.$executeRawUnsafe(`alter database ${name} set default_transaction_read_only = on`);
    const says = `hourhand: ${at}expected one that takes writes, found default_transaction_read_only on: type ALTER DATABASE ${name} SET default_transaction_read_only = off, or name the primary in DATABASE_URL\n`;
    const [reads, changes] = [[['backfills']], [['worker'], ['migrate'], ['import', '-']]];
    await Promise.all([
      ...reads.map(async (args) => expect([args, (await readOnly.run(args)).code]).toEqual([args, 0])),
      ...changes.map(async (args) =>
        expect([args, await readOnly.run(args)]).toMatchObject([args, { code: 1, stderr: says }]),
      ),
    ]);
    const dashboard = readOnly.spawn('dashboard');
    let said = '';
    dashboard.stderr?.on('data', (chunk) => {
      said += chunk;
    });
    const url = /http:\/\/\S+/;
    await until(
      async () => said,
      () => url.test(said),
    );
    const [page] = url.exec(said) ?? [''];
    const { port } = new URL(page);
    const [seen, asked] = await Promise.all([
      askAt(Number(port), 'get', '/'),
      askAt(Number(port), 'post', '/hours/2026-08-20T13/run'),
    ]);
    expect([seen.status, asked.status]).toEqual([200, 503]);
  });

  test('that takes no writes of a role says how to change that of the role', async () => {
    const { pool, environment } = hourhand;
    const url = asRole(environment.DATABASE_URL);
    const [{ database }] = await pool.$queryRaw<[{ database: string }]>`select current_database() as database`;
    const offer = async (DATABASE_URL: string) => {
      const said = await refusalOf({ DATABASE_URL }, 'change');
      return /found default_transaction_read_only on: (.*), or name the primary in DATABASE_URL$/.exec(
        said ?? '',
      )?.[1];
    };
    for (const whose of [`role ${role}`, `role ${role} in database ${database}`]) {
      await pool.$executeRawUnsafe(`alter ${whose} set default_transaction_read_only = on`);
      const typed = /^type (.*)$/.exec((await offer(url)) ?? '')?.[1] ?? '';
      expect(typed.toLowerCase()).toBe(`alter ${whose} set default_transaction_read_only = off`);
      await pool.$executeRawUnsafe(typed);
      expect(await offer(url)).toBe(undefined);
      await pool.$executeRawUnsafe(`alter ${whose} reset all`);
    }
    expect(await offer(having(url, 'options', '-c default_transaction_read_only=on'))).toBe(
      'take it out of the options in DATABASE_URL',
    );
  });

  test('that has no connection left, no room, or no right for us says so, and what to do', async () => {
    const { pool, environment } = hourhand;
    await pool.$executeRawUnsafe(`alter role ${role} connection limit 0`);
    expect(await refusalOf({ DATABASE_URL: asRole(environment.DATABASE_URL) }, 'look')).toBe(
      `${at}too many connections for role "${role}" (53300): end other connections, or raise its max_connections or the limit of the role`,
    );
    await pool.$executeRawUnsafe(`alter role ${role} connection limit -1`);
    // Nobody but its owner may make tables, as from PostgreSQL 15 on in every database.
    const owner = connect(empty.url, { connections: 1, onError: () => {} });
    await owner.$executeRaw`revoke create on schema public from public`.finally(() => owner.$disconnect());
    expect(await hourhand.run(['migrate'], '', { DATABASE_URL: asRole(empty.url) })).toMatchObject({
      code: 1,
      stderr: `hourhand: ${at}permission denied for schema public (42501): hourhand's own role owns its tables: type CREATE DATABASE … OWNER for it, or GRANT CREATE ON SCHEMA to it\n`,
    });
    await pool.$executeRawUnsafe(`create function full_disk() returns trigger language plpgsql as $$
      begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$`);
    await pool.$executeRawUnsafe(
      'create trigger full_disk before insert on "OperatorAction" execute function full_disk()',
    );
    expect(await hourhand.run(['schedule', 'pause', 'model.call.stats'])).toMatchObject({
      code: 1,
      stderr: `hourhand: ${at}could not extend file: No space left on device (53100): its disk is full: make room there, and do this again\n`,
    });
  });
});

test('a PostgreSQL is reached by a socket, also where its URL has a user and no host', async () => {
  await using hourhand = await startHourhand();
  const { host, username, password, pathname } = new URL(hourhand.environment.DATABASE_URL);
  const folder = mkdtempSync(path.join(tmpdir(), 'hourhand-socket-'));
  const [name = '', port] = host.split(':');
  const server = createServer((near) => {
    const far = netConnect(Number(port), name);
    near.on('error', () => far.destroy()).pipe(far);
    far.on('error', () => near.destroy()).pipe(near);
  });
  try {
    await once(server.listen(path.join(folder, '.s.PGSQL.5432')), 'listening');
    const DATABASE_URL = `postgres://${username}:${password}@${pathname}?host=${folder}`;
    expect(await refusalOf({ DATABASE_URL }, 'look')).toBe(undefined);
    server.close();
    expect(await refusalOf({ DATABASE_URL }, 'look')).toBe(
      `PostgreSQL at ${folder}: nobody listens there (ENOENT): start it, or mend DATABASE_URL`,
    );
  } finally {
    server.close();
    rmSync(folder, { recursive: true });
  }
});

test('what is wrong with either server is said at once, in one line', async () => {
  const env = { DATABASE_URL: 'postgres://127.0.0.1:1/b', REDIS_URL: as('redis', REDIS_URL) };
  expect(await refusalOf(env, 'work')).toMatch(
    /^PostgreSQL at 127\.0\.0\.1:1: nobody .* mend DATABASE_URL; Redis at \S+: WRONGPASS .* in REDIS_URL$/,
  );
});

describe.skipIf(!redisHere)('a Redis', () => {
  let hourhand: Hourhand;
  let server: OwnServer;
  let admin: Redis;
  let url: string;
  let at: string;
  beforeAll(async () => {
    [hourhand, server] = await Promise.all([startHourhand(), startOwnRedis([])]);
    url = `redis://127.0.0.1:${server.port}`;
    at = `Redis at 127.0.0.1:${server.port}: `;
    admin = new Redis(url);
  });
  afterAll(async () => {
    admin?.disconnect();
    await server?.[Symbol.asyncDispose]();
    await hourhand?.[Symbol.asyncDispose]();
  });
  const refusals = (REDIS_URL = url) =>
    Promise.all(
      (['look', 'change', 'work'] as const).map((wants) =>
        refusalOf({ DATABASE_URL: hourhand.environment.DATABASE_URL, REDIS_URL }, wants),
      ),
    );

  test('that may throw jobs away is refused to workers, with the setting to type, and to nobody else', async () => {
    const says = `${at}expected maxmemory-policy noeviction, found allkeys-lru, which may throw jobs away: type redis-cli CONFIG SET maxmemory-policy noeviction, and write maxmemory-policy noeviction into its redis.conf`;
    await admin.config('SET', 'maxmemory-policy', 'allkeys-lru');
    expect(await refusals()).toEqual([undefined, undefined, says]);
    expect(await hourhand.run(['worker'], '', { REDIS_URL: url })).toMatchObject({
      code: 1,
      stderr: `hourhand: ${says}\n`,
    });
    await admin.config('SET', 'maxmemory-policy', 'noeviction');
    expect(await refusals()).toEqual([undefined, undefined, undefined]);
  });

  test('that is refused is refused before hourhand up has changed the database', async () => {
    await using unmigrated = await createDatabase({ migrated: false });
    await admin.config('SET', 'maxmemory-policy', 'allkeys-lru');
    expect(await hourhand.run(['up'], '', { DATABASE_URL: unmigrated.url, REDIS_URL: url })).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/^hourhand: Redis at \S+: expected maxmemory-policy noeviction, .*\n$/),
    });
    await admin.config('SET', 'maxmemory-policy', 'noeviction');
  });

  test('that has no connection left says so, and what to do', async () => {
    await admin.config('SET', 'maxclients', '1');
    const says = `${at}max number of clients reached: end other connections, or raise its maxclients`;
    expect(await refusals()).toEqual([says, says, says]);
    await admin.config('SET', 'maxclients', '100');
  });

  const elsewhere = Object.values(networkInterfaces())
    .flat()
    .find((one) => one?.family === 'IPv4' && !one.internal)?.address;
  test.skipIf(!elsewhere)('that takes its own machine alone says so to others, and what to do', async () => {
    await using guarded = await startOwnRedis(['--bind', '0.0.0.0', '--protected-mode', 'yes']);
    const says = `Redis at ${elsewhere}:${guarded.port}: expected one that takes other machines, found one in protected mode: give it a password (requirepass), or set protected-mode no`;
    expect(await unreachable('Redis', `redis://${elsewhere}:${guarded.port}`, { ms: 5_000 })).toBe(says);
  });

  test('that does not answer INFO is not refused, and its jobs are done', async () => {
    await admin.acl('SETUSER', 'silent', 'on', `>${SECRET}`, '~*', '&*', '+@all', '-@dangerous');
    await admin.config('SET', 'maxmemory-policy', 'allkeys-lru'); // nobody knows
    await using untold = await startHourhand({ REDIS_URL: `redis://silent:${SECRET}@127.0.0.1:${server.port}` });
    await untold.record({ user: 'ada', at: '2026-08-20T13:10:00Z' });
    const worker = untold.spawn('worker');
    await untold.backfill(h('2026-08-20T13'));
    await untold.reaches(h('2026-08-20T13'), 'closed');
    worker.kill('SIGTERM');
    await once(worker, 'exit');
    expect(worker.exitCode).toBe(0);
    await admin.config('SET', 'maxmemory-policy', 'noeviction');
  });

  test('that is full says so to workers at their start', async () => {
    await admin.config('SET', 'maxmemory', '1mb');
    const says = `${at}OOM command not allowed when used memory > 'maxmemory': its memory is full: give it more (maxmemory), or remove what fills it`;
    expect(await refusals()).toEqual([undefined, undefined, says]);
    expect(await hourhand.run(['schedule', 'run', 'model.call.stats'], '', { REDIS_URL: url })).toMatchObject({
      code: 1,
      stderr: `hourhand: ${says}\n`,
    });
    await admin.config('SET', 'maxmemory', '0');
  });

  test('that is a replica is looked at, by queues too, and changed by nobody', async () => {
    await admin.replicaof('127.0.0.1', '1');
    const says = `${at}expected one that takes writes, found a replica of 127.0.0.1:1: name its master in REDIS_URL`;
    expect(await refusals()).toEqual([undefined, says, says]);
    expect(await hourhand.run(['status'], '', { REDIS_URL: url })).toMatchObject({ code: 0, stderr: '' });
    await admin.replicaof('NO', 'ONE');
  });

  test('that cannot write to its disk says so to workers at their start', async () => {
    const [, folder = ''] = (await admin.config('GET', 'dir')) as [string, string];
    await admin.config('SET', 'save', '3600 1');
    rmSync(folder, { recursive: true });
    await admin.bgsave();
    await until(
      () => admin.info('persistence'),
      (info) => info.includes('rdb_last_bgsave_status:err'),
    );
    expect(await refusals()).toEqual([
      undefined,
      undefined,
      expect.stringMatching(
        /^Redis at \S+: MISCONF .*: it cannot write its data to disk: make room there, and see its log$/,
      ),
    ]);
    await admin.config('SET', 'save', '');
  });

  test('that is too old is refused by its version', async () => {
    await using old = await listening(
      createServer((near) => {
        const far = netConnect(server.port, '127.0.0.1');
        near.on('error', () => far.destroy()).on('close', () => far.destroy());
        far.on('error', () => near.destroy()).on('close', () => near.destroy());
        near.pipe(far);
        far.on('data', (chunk) =>
          near.write(chunk.toString('latin1').replace(/redis_version:\d/, 'redis_version:5'), 'latin1'),
        );
      }),
    );
    const says = expect.stringMatching(
      /^Redis at \S+: expected version 6\.2 or newer, found 5\.\S+: upgrade it, or name another in REDIS_URL$/,
    );
    expect(await refusals(`redis://${old.at}`)).toEqual([says, says, says]);
  });
});
