// Ways to both servers: a cluster, a user of few rights, TLS; the main job runs over each, and no secret is told.

import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { type AddressInfo, createServer, connect as netConnect } from 'node:net';
import { inspect } from 'node:util';
import { Redis } from 'ioredis';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { gatherStatus } from '../src/commands/status.ts';
import { migrations, readConfig } from '../src/config.ts';
import { inWords, openConnections, redisAddress, within } from '../src/connections.ts';
import { createLogger } from '../src/logger.ts';
import { maxmemoryPolicy, producerConnection, untilReady } from '../src/queues/redis.ts';
import { connect } from '../src/store/db.ts';
import { migrate } from '../src/store/migrate.ts';
import { forgetModels, giveProviders, providerIds, providerOf } from '../src/store/models.ts';
import { startWorker } from '../src/worker.ts';
import { redisHere, redisSpeaksTls, startCluster, startTlsServers } from './support/cluster-and-tls.ts';
import { serverUrl } from './support/database.ts';
import { type Hourhand, h, startHourhand, until } from './support/hourhand.ts';
import { ownServers } from './support/servers.ts';

if (!redisHere) console.log('skipped: no redis-server is on this machine for a cluster of our own');
if (!redisSpeaksTls) console.log('skipped: the Redis of this machine is built without TLS');

const MODEL = { model: 'gpt', type: 'chatCompletion' } as const;

/** In a URL it reads s3cr3t%2Fof%20ada%25. */
const SECRET = 's3cr3t/of ada%';
const hours = [h('2026-08-20T13'), h('2026-08-20T14')] as const;

/** Of few users: each has a job of its own. */
const calls = hours.flatMap((hour) =>
  ['ada', 'bob', 'eve'].map((user) => ({ user, at: `${hour}:10:00Z`, tokens: 7, credits: '0.00000003' })),
);

/** The hours are asked for, rolled up by children, and closed, with the right rows in the end. */
async function rollsUp(hourhand: Hourhand): Promise<void> {
  await hourhand.record(...calls);
  await hourhand.backfill(...hours);
  for (const hour of hours) await hourhand.reaches(hour, 'closed');
  expect(await hourhand.wrong()).toEqual([]);
  expect(await hourhand.stat('ada', hours[1])).toMatchObject({ totalUsage: '7', totalCredits: '0.00000003' });
  // The last of them ends a moment after it has closed its hour.
  await until(
    () => hourhand.queues.users.getCompletedCount(),
    (children) => children === calls.length,
  );
}

describe.skipIf(!redisHere)('a Redis Cluster of three nodes', () => {
  let cluster: Awaited<ReturnType<typeof startCluster>>;
  let hourhand: Hourhand;
  beforeAll(async () => {
    cluster = await startCluster('secret-of-all-nodes');
    hourhand = await startHourhand({
      REDIS_URL: cluster.url,
      REDIS_CLUSTER: 'true',
      MODEL_CALL_STATS_CRON_TIME: '0 1 * * * *',
    });
  });
  afterAll(async () => {
    await hourhand?.[Symbol.asyncDispose]();
    await cluster?.[Symbol.asyncDispose]();
  });

  test('runs the main job; all keys are on the node of their prefix', async () => {
    await hourhand.work();
    await rollsUp(hourhand);
    const keys = await Promise.all(cluster.nodes.map((node) => node.keys('*')));
    const [ours, ...others] = keys.sort((a, b) => b.length - a.length);
    expect(ours?.every((key) => key.startsWith(`${hourhand.prefix}:`))).toBe(true);
    expect(others).toEqual([[], []]);
  });

  test('has its workers counted and its schedulers shown, whichever node they are on', async () => {
    await hourhand.work();
    await until(
      () => hourhand.queues.hours.getWorkersCount(),
      (workers) => workers === 2,
    );
    const { workers, schedulers } = await gatherStatus(hourhand);
    expect([workers, schedulers[0]]).toMatchObject([2, { id: 'model.call.stats', state: 'live' }]);
  });

  test('is known for one though nobody says so', async () => {
    const { DATABASE_URL } = hourhand.environment;
    const refusals = await Promise.all(
      // One of them has the keys, and takes us.
      cluster.nodes.map(({ options: { port } }) =>
        refusal(
          { DATABASE_URL, REDIS_URL: `redis://:${cluster.password}@127.0.0.1:${port}` },
          cluster.password,
        ).catch(({ message }) => message),
      ),
    );
    const moved = expect.stringMatching(
      /^Redis at 127\.0\.0\.1:\d+: no answer about \{none\}: it is one node of a Redis Cluster: set REDIS_CLUSTER=true$/,
    );
    expect(refusals.sort()).toEqual([moved, moved, 'they were taken']);
  });

  test('says so if any of its nodes may throw jobs away', async () => {
    expect(await maxmemoryPolicy(hourhand.redis)).toBe('noeviction');
    await cluster.nodes[1]?.config('SET', 'maxmemory-policy', 'allkeys-lru');
    expect(await maxmemoryPolicy(hourhand.redis)).toBe('allkeys-lru');
    await cluster.nodes[1]?.config('SET', 'maxmemory-policy', 'noeviction');
  });
});

test('a user of Redis with no more than the rights that the manual names runs the main job, and each command', async () => {
  const name = randomBytes(6).toString('hex');
  const REDIS_PREFIX = `{test-${name}}`;
  await using admin = await startHourhand();
  const rights = [`~${REDIS_PREFIX}:*`, '&*', '+@all', '-@dangerous', '+info'];
  await admin.redis.acl('SETUSER', name, 'reset', 'on', `>${SECRET}`, ...rights);
  const REDIS_URL = redisUrl(name, encodeURIComponent(SECRET));
  try {
    await using hourhand = await startHourhand({ REDIS_URL, REDIS_PREFIX, MODEL_PROBES_PER_HOUR: '0' });
    await hourhand.work();
    await rollsUp(hourhand);
    await giveProviders(hourhand.pool, [
      { id: 'openai', baseUrl: 'https://127.0.0.1:1', apiKeyEnv: 'NONE', concurrency: 1, models: [MODEL] },
    ]);
    // Who is connected is told to administrators alone.
    expect((await gatherStatus(hourhand)).workers).toBe(null);
    const check = await hourhand.run(['models', 'check']);
    expect(check).toMatchObject({ code: 0, stderr: expect.stringContaining('1 models looked at') });
    const other = { ...urlsOf(hourhand), REDIS_PREFIX: '{of-another}' };
    expect(await refusal(other)).toMatch(/^Redis at \S+: no answer about \{of-another\}: NOPERM/);
    expect(inspect([hourhand.logged, check])).not.toContain('s3cr3t');
  } finally {
    await admin.redis.acl('DELUSER', name);
  }
});

describe.skipIf(!redisSpeaksTls)('TLS, with a certificate of an authority of our own', () => {
  let servers: Awaited<ReturnType<typeof startTlsServers>>;
  beforeAll(async () => {
    servers = await startTlsServers();
    await migrate(servers.tls.databaseUrl, migrations);
  });
  afterAll(() => servers?.[Symbol.asyncDispose]());

  test('runs the main job over it, to both servers, and tells no password at any level of the log', async () => {
    // Node reads further authorities as a process starts, so this process goes without TLS to Redis.
    await using hourhand = await startHourhand({
      DATABASE_URL: servers.tls.databaseUrl,
      REDIS_URL: servers.plain.redisUrl,
      LOG_LEVEL: 'trace',
    });
    Object.assign(hourhand.environment, { REDIS_URL: servers.tls.redisUrl, NODE_EXTRA_CA_CERTS: servers.ca });
    const worker = hourhand.spawn('worker');
    let said = '';
    worker.stdout?.on('data', (chunk) => {
      said += chunk;
    });
    worker.stderr?.on('data', (chunk) => {
      said += chunk;
    });
    await rollsUp(hourhand);
    const connected = await hourhand.pool.$queryRaw`
      select application_name as name, bool_and(ssl) as ssl from pg_stat_ssl join pg_stat_activity using (pid)
       where application_name like 'hourhand%' group by 1`;
    expect(connected).toEqual([{ name: 'hourhand', ssl: true }]);
    const clients = `${await hourhand.redis.client('LIST')}`.split('\n').filter((line) => line.includes(' name={'));
    expect(clients.length > 0 && clients.every((line) => line.includes(`laddr=127.0.0.1:${servers.tlsPort} `))).toBe(
      true,
    );
    await until(
      async () => said,
      () => said.includes('worker started'),
    );
    expect(said).not.toContain(servers.password);
  });

  const refused: [string, (of: typeof servers) => Record<string, string>, RegExp][] = [
    [
      'PostgreSQL, of an authority that nobody knows',
      ({ plain }) => ({ ...urls(plain), DATABASE_URL: `${plain.databaseUrl}?sslmode=require` }),
      /^PostgreSQL at \S+: .*(certificate|verify).*: set NODE_EXTRA_CA_CERTS to the file of the authority that signed it$/,
    ],
    [
      'PostgreSQL, of another name',
      ({ plain, tls }) => ({ ...urls(plain), DATABASE_URL: tls.databaseUrl.replace('127.0.0.1', 'localhost') }),
      /^PostgreSQL at \S+: .*altnames.*: name the host as the certificate does$/,
    ],
    [
      'a node of a Redis Cluster, of an authority that nobody knows',
      ({ plain, tls }) => ({ ...urls(plain), REDIS_URL: tls.redisUrl, REDIS_CLUSTER: 'true' }),
      /^Redis at \S+: .*(certificate|verify).*: set NODE_EXTRA_CA_CERTS to the file of the authority that signed it$/,
    ],
    [
      'Redis, of an authority that nobody knows',
      ({ plain, tls }) => ({ ...urls(plain), REDIS_URL: tls.redisUrl }),
      /^Redis at \S+: .*(certificate|verify).*: set NODE_EXTRA_CA_CERTS to the file of the authority that signed it$/,
    ],
  ];
  test.each(refused)('a certificate of %s is refused in seconds', async (_, env, says) => {
    const begin = Date.now();
    expect(await refusal(env(servers), servers.password)).toMatch(says);
    expect(Date.now() - begin).toBeLessThan(5_000);
  });

  test('of a Redis that hangs up it is said that it may want a certificate of ours', async () => {
    const admin = new Redis(servers.plain.redisUrl);
    await admin.config('SET', 'tls-auth-clients', 'yes');
    expect(await refusal({ ...urls(servers.plain), REDIS_URL: servers.tls.redisUrl }, servers.password)).toMatch(
      /^Redis at \S+: expected Redis with TLS, found one that hangs up, as does one that wants a certificate of ours \(tls-auth-clients\): /,
    );
    await admin.config('SET', 'tls-auth-clients', 'no');
    admin.disconnect();
  });
});

test('a second error of one socket of Redis, as a refused certificate brings, does not end the process', async () => {
  const ours = producerConnection({ url: serverUrl('TEST_REDIS_URL'), prefix: '{none}' }, () => {});
  await untilReady(ours, 10_000);
  const theirs = (ours as Redis).duplicate(); // as BullMQ makes them
  theirs.on('error', () => {});
  await untilReady(theirs, 10_000);
  for (const { stream } of [ours as Redis, theirs]) {
    stream.emit('error', new Error('one'));
    stream.emit('error', new Error('another')); // throws where nobody listens
  }
  ours.disconnect();
  theirs.disconnect();
});

test('options in the URL of PostgreSQL stand beside our own, which win', async () => {
  await using hourhand = await startHourhand();
  const url = new URL(hourhand.environment.DATABASE_URL);
  url.search = 'options=-c%20search_path%3Delsewhere%20-c%20timezone%3DAsia/Tokyo%20-c%20datestyle%3DGerman';
  const pool = connect(url.href, { connections: 1, onError: () => {} });
  try {
    const setting = (name: string) => pool.$queryRaw`select current_setting(${name}) as "is"`;
    expect(await setting('search_path')).toEqual([{ is: 'elsewhere' }]);
    expect(await setting('TimeZone')).toEqual([{ is: 'UTC' }]);
    expect(await setting('statement_timeout')).toEqual([{ is: '5min' }]);
    const at = new Date('2026-08-20T13:00:00.123Z');
    expect(await pool.$queryRaw`select ${at}::timestamptz as at`).toEqual([{ at }]);
  } finally {
    await pool.$disconnect();
  }
});

test('a schema that the URL of PostgreSQL names has all the tables, and every command finds them there', async () => {
  await using hourhand = await startHourhand();
  await hourhand.pool.$executeRaw`create schema elsewhere`;
  const url = new URL(hourhand.environment.DATABASE_URL);
  url.search = 'options=-c%20search_path%3Delsewhere';
  await migrate(url.href, migrations);
  const pool = connect(url.href, { connections: 1, onError: () => {} });
  try {
    await hourhand.pool.$executeRaw`drop schema public cascade`;
    const openai = { id: 'openai', baseUrl: 'https://127.0.0.1:1', apiKeyEnv: 'NONE', concurrency: 1 };
    await giveProviders(pool, [{ ...openai, concurrency: 2, models: [MODEL] }]);
    await giveProviders(pool, [{ ...openai, models: [MODEL] }]);
    expect([await providerIds(pool), await providerOf(pool, 'openai'), await providerOf(pool, 'other')]).toEqual([
      ['openai'],
      openai,
      undefined,
    ]);
    expect([await forgetModels(pool, 'openai', 'other'), await forgetModels(pool, 'openai')]).toEqual([0, 1]);
    expect(await providerIds(pool)).toEqual([]);
  } finally {
    await pool.$disconnect();
  }
});

test('a PostgreSQL that stops in the moment in which it takes a connection fails what was asked of it, and nothing more', async () => {
  const to = new URL(serverUrl('TEST_DATABASE_URL'));
  const { port, hostname } = to;
  const fields = ['SFATAL', 'C57P01', 'Mterminating connection due to administrator command', ''];
  const text = Buffer.from(`${fields.join('\0')}\0`);
  const lastWord = Buffer.concat([Buffer.from('E'), Buffer.alloc(4), text]);
  lastWord.writeInt32BE(4 + text.length, 1);
  // Its last word comes in one piece with its being ready, as a busy machine may well deliver them.
  const server = createServer((near) => {
    const far = netConnect(Number(port), hostname);
    near.on('error', () => far.destroy()).on('close', () => far.destroy());
    far.on('error', () => near.destroy()).on('close', () => near.destroy());
    near.pipe(far);
    far.on('data', (chunk) => {
      const ready = chunk.subarray(-6, -1).toString('latin1') === 'Z\0\0\0\x05';
      if (ready) near.end(Buffer.concat([chunk, lastWord]));
      else near.write(chunk);
    });
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  to.port = String((server.address() as AddressInfo).port); // it listens on one
  const said: string[] = [];
  const pool = connect(to.href, { connections: 2, onError: ({ message }) => said.push(message) });
  await expect(pool.$transaction((db) => db.$queryRaw`select 1`)).rejects.toThrow();
  expect(said).toContain('terminating connection due to administrator command');
  await pool.$disconnect();
  server.close();
});

describe.concurrent('credentials that are not taken are not told', () => {
  const secret = encodeURIComponent(SECRET);
  const databaseUrl = (change: object) => Object.assign(new URL(serverUrl('TEST_DATABASE_URL')), change).href;
  const DATABASE_URL = databaseUrl({ password: secret });
  const unread = databaseUrl({ password: secret, search: 'sslrootcert=/no/such/file' });
  const REDIS_URL = redisUrl('default', secret);
  let hourhand: Hourhand;
  beforeAll(async () => {
    hourhand = await startHourhand();
  });
  afterAll(() => hourhand?.[Symbol.asyncDispose]());

  test.each([
    ['a wrong password of PostgreSQL', { DATABASE_URL }, /^PostgreSQL at \S+: .*password authentication failed/],
    [
      'a PostgreSQL that nobody reaches',
      { DATABASE_URL: `postgresql://ada:${secret}@127.0.0.1:1/calls` },
      /^PostgreSQL at 127\.0\.0\.1:1: nobody listens there/,
    ],
    ['an authority of PostgreSQL in no file', { DATABASE_URL: unread }, /^PostgreSQL at \S+: .*\/no\/such\/file/],
    ['a wrong password of Redis', { REDIS_URL }, /^Redis at \S+: WRONGPASS/],
    ['a wrong password of a Redis Cluster', { REDIS_URL, REDIS_CLUSTER: 'true' }, /^Redis at \S+: WRONGPASS/],
    [
      'a Redis that is in no cluster',
      { REDIS_URL: serverUrl('TEST_REDIS_URL'), REDIS_CLUSTER: 'true' },
      /^Redis at \S+: .*cluster support disabled/,
    ],
  ])('%s', async (_, env, says) => {
    expect(await refusal({ ...urlsOf(hourhand), ...env })).toMatch(says);
  });

  test.each([
    [['worker'], { REDIS_URL }, /^hourhand: Redis at \S+: WRONGPASS.*\n$/],
    [['status'], { DATABASE_URL }, /^hourhand: PostgreSQL at \S+: .*\n$/],
    [['migrate'], { DATABASE_URL }, /^hourhand: PostgreSQL at \S+: .*\n$/],
    [['import', '-'], { DATABASE_URL: unread }, /^hourhand: PostgreSQL at \S+: .*\/no\/such\/file'?\n$/],
  ])('by hourhand %s, at any level of the log', async (args, env, says) => {
    const { code, stdout, stderr } = await hourhand.run(args, '', { ...env, LOG_LEVEL: 'trace' });
    expect([code, stderr]).toEqual([1, expect.stringMatching(says)]);
    expect(stdout + stderr).not.toContain('s3cr3t');
  });
});

describe('a server that goes away', () => {
  test('during the first look of a worker does not end it: a later look makes up for it', async () => {
    await using servers = await ownServers('first-look', 'redis');
    await using hourhand = await startHourhand(servers.env);
    const { pool, logged } = hourhand;
    const [hour] = hours;
    await hourhand.record(...calls);
    await hourhand.cover(hours[0], hours[1]);
    const locked = await pool.$transaction(async (db) => {
      // The first look stops at the backfills, with the queues' workers at work.
      await db.$executeRaw`lock table "Backfill" in exclusive mode`;
      const starting = startWorker(hourhand, hourhand.environment, undefined, 200);
      starting.catch(() => {});
      await until(
        () => hourhand.queues.hours.getWorkersCount(),
        (workers) => workers === 1,
      );
      await servers.kill('redis');
      return { starting };
    });
    const worker = await locked.starting;
    try {
      expect(logged.some(({ msg }) => msg === 'worker started')).toBe(true);
      const failed = logged.filter(({ server, msg }) => server === 'Redis' && msg === 'server error');
      expect(failed.length).toBeGreaterThan(0);
      await servers.restart();
      await hourhand.reaches(hour, 'closed');
    } finally {
      await worker.stop();
    }
  });

  test('is named in the line that ends a process, with what to do; so is one that refuses', async () => {
    await using hourhand = await startHourhand();
    const { config, pool } = hourhand;
    const lineOf = async (asked: Promise<unknown>) =>
      asked.then(
        () => 'done',
        (error: unknown) => String(inWords(error, config)),
      );
    const redis = producerConnection(redisAddress(config), () => {});
    await untilReady(redis, 10_000);
    expect(await lineOf(redis.hget('{none}:any', 'a').then(() => redis.call('NO-SUCH-COMMAND')))).toMatch(
      /^Error: Redis at 127\.0\.0\.1:\d+: ERR unknown command/,
    );
    redis.disconnect();
    const away = /^Error: Redis at 127\.0\.0\.1:\d+: there is no connection: see whether it runs .* do this again$/;
    expect(await lineOf(redis.get('{none}:any'))).toMatch(away);
    expect(await lineOf(maxmemoryPolicy(redis))).toMatch(away);

    const pid = 'select pg_terminate_backend(pg_backend_pid())';
    expect(await lineOf(pool.$queryRawUnsafe(pid))).toMatch(
      /^Error: PostgreSQL at 127\.0\.0\.1:\d+: .*(57P01|terminat)/,
    );
    const state = (code: string) => `do $$ begin raise 'NOPERM, and OOM' using errcode = '${code}'; end $$`;
    expect(await lineOf(pool.$executeRawUnsafe(state('42P05')))).toMatch(/^Error: PostgreSQL at \S+ NOPERM, .*42P05/);
    expect(await lineOf(pool.$executeRawUnsafe(state('P0001')))).toMatch(/^Error: PostgreSQL at \S+ NOPERM, .*P0001/);
  });

  test('is not blamed for what another said while it was asked, nor for words of our own', async () => {
    await using hourhand = await startHourhand();
    const { config, pool } = hourhand;
    const sql = `do $$ begin raise 'twice' using errcode = '42P05'; end $$`;
    const said = await within(5_000, 'Redis', pool.$executeRawUnsafe(sql)).catch((error: unknown) =>
      String(inWords(error, config)),
    );
    expect(said).toMatch(/^Error: PostgreSQL at \S+ twice \(42P05\): /);
    for (const text of ['OOM in the mine', 'a provider said NOPERM', 'Connection is closed.']) {
      const own = new Error(text);
      expect(inWords(own, config)).toBe(own);
    }
  });

  test('Redis is not what status says is away if PostgreSQL refuses', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await pool.$executeRaw`alter table "StatSchedule" rename to "Elsewhere"`;
    const { code, stderr } = await hourhand.run(['status']);
    expect([code, stderr]).toEqual([1, expect.stringMatching(/^hourhand: PostgreSQL at \S+ .*StatSchedule.*42P01/)]);
  });
});

function redisUrl(username: string, password: string): string {
  return Object.assign(new URL(serverUrl('TEST_REDIS_URL')), { username, password }).href;
}

function urlsOf({ environment: { DATABASE_URL, REDIS_URL = '' } }: Hourhand) {
  return { DATABASE_URL, REDIS_URL };
}

function urls({ databaseUrl, redisUrl }: { databaseUrl: string; redisUrl: string }) {
  return { DATABASE_URL: databaseUrl, REDIS_URL: redisUrl };
}

/** What ends a command that these servers do not take: in it, whatever lies behind it, and the log, there is no secret. */
async function refusal(env: Record<string, string>, secret = 's3cr3t'): Promise<string> {
  const logged: string[] = [];
  const log = createLogger('trace', { write: (line: string) => void logged.push(line) });
  const error = await openConnections(readConfig({ REDIS_PREFIX: '{none}', ...env }), log).then(
    async ({ close }) => {
      await close();
      throw new Error('they were taken');
    },
    (error: Error) => error,
  );
  expect(inspect([error, logged], { depth: 20, showHidden: true })).not.toContain(secret);
  return error.message;
}
