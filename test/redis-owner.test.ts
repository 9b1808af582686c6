// A prefix in Redis belongs to one database.

import { randomBytes } from 'node:crypto';
import { Worker } from 'bullmq';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { redisAddress } from '../src/connections.ts';
import { startDashboard } from '../src/dashboard/server.ts';
import { askOwner, type Claimant, claimPrefix } from '../src/queues/owner.ts';
import {
  producerConnection,
  type RedisConnection,
  untilReady,
  workerConnection,
  workerName,
} from '../src/queues/redis.ts';
import { connect } from '../src/store/db.ts';
import { renewIdentity } from '../src/store/identity.ts';
import { openWarnings } from '../src/store/warnings.ts';
import { startWorker } from '../src/worker.ts';
import { askAt, ownHeaders } from './support/board.ts';
import { copyDatabase, createDatabase, serverUrl } from './support/database.ts';
import { ended, forget, type Hourhand, linesOf, startHourhand, until } from './support/hourhand.ts';

const span = ['--from', '2026-08-20T13', '--to', '2026-08-20T14'];

const newPrefix = () => `{test-${randomBytes(6).toString('hex')}}`;

const nameOf = (url: string) => new URL(url).pathname.slice(1);

/** Another hourhand's. The databases of tests are copies of one, as its own is not. */
async function otherDatabase() {
  const database = await createDatabase();
  const pool = connect(database.url, { connections: 1, onError: () => {} });
  await pool.$transaction(renewIdentity).finally(() => pool.$disconnect());
  return database;
}

/** Who is refused says whose the prefix is, who it is itself, and what to do. */
const refusal = (
  owner: string,
  own: string,
  whose = 'belongs to another hourhand',
  remedy = 'set REDIS_PREFIX to',
) => {
  const [from, to] = [`the database "${owner}" at \\S+, seen [^\n]*`, `the database "${own}" at [^\n]*`];
  return expect.stringMatching(new RegExp(`Redis at \\S+: the prefix \\S+ ${whose}, ${from}${to}: [^\n]*${remedy}`));
};
const COPY = 'is used by another copy of this database';

/** What is under the key. */
async function ownerOf({ redis }: Pick<Hourhand, 'redis'>, prefix: string) {
  return JSON.parse((await redis.get(`${prefix}:owner`)) ?? '{}');
}

/** As if the owner had not looked for so long. */
async function age({ redis }: Pick<Hourhand, 'redis'>, prefix: string, ms: number): Promise<void> {
  const owner = await ownerOf({ redis }, prefix);
  await redis.set(`${prefix}:owner`, JSON.stringify({ ...owner, seen: owner.seen - ms }));
}

const someone = (change: Partial<Claimant> = {}): Claimant => ({
  id: '00000000-0000-4000-8000-000000000000',
  system: '7000000000000000001',
  oid: '16384',
  host: 'db.example:5432',
  database: 'calls',
  ...change,
});

describe('two databases on one Redis with one prefix:', () => {
  test('the second to work or change something is refused, naming both; who looks is warned', async () => {
    await using hourhand = await startHourhand();
    await using other = await otherDatabase();
    const env = { DATABASE_URL: other.url };
    const [one, two] = [nameOf(hourhand.environment.DATABASE_URL), nameOf(other.url)];
    const keys = await hourhand.redis.keys(`${hourhand.prefix}:*`);
    const run = async (args: string[]) => [args, await hourhand.run(args, '', env)] as const;
    const changing = [['worker'], ['up'], ['schedule', 'run', 'model.call.stats']];
    for (const [args, ran] of await Promise.all(changing.map(run))) {
      expect([args, ran]).toEqual([args, { code: 1, stdout: '', stderr: refusal(one, two) }]);
    }
    for (const [args, { code, stderr }] of await Promise.all([['status'], ['stats', ...span]].map(run))) {
      expect([args, code, stderr]).toEqual([args, 0, expect.stringContaining('hourhand: warning: the prefix')]);
      expect(stderr).toContain(`"${one}"`);
    }
    expect((await hourhand.redis.keys(`${hourhand.prefix}:*`)).sort()).toEqual(keys.sort());
    expect((await hourhand.run(['schedule', 'run', 'model.call.stats'])).code).toBe(0);
  });

  test('of two workers that start at once one works, and the other ends with 1', async () => {
    await using hourhand = await startHourhand();
    await using other = await otherDatabase();
    const prefix = newPrefix();
    const start = (DATABASE_URL?: string) => {
      const child = hourhand.spawnIn({ REDIS_PREFIX: prefix, ...(DATABASE_URL && { DATABASE_URL }) }, ['worker']);
      return { child, lines: linesOf(child) };
    };
    try {
      const workers = [start(), start(other.url)];
      const over = await Promise.race(workers.map(async ({ child }, i) => ({ i, code: await ended(child) })));
      const [loser, winner] = over.i === 0 ? workers : workers.reverse();
      expect(over.code).toBe(1);
      expect(loser?.lines.join('\n')).toMatch(/the prefix \S+ belongs to another hourhand/);
      expect(winner?.child.exitCode).toBe(null);
      const databases = [hourhand.environment.DATABASE_URL, other.url].map(nameOf);
      expect(databases[1 - over.i]).toBe((await ownerOf(hourhand, prefix)).database);
    } finally {
      await forget(hourhand.redis, prefix);
    }
  });

  test('after a flush the loser takes no jobs, says so once, warns, and goes on once the prefix is its', async () => {
    await using hourhand = await startHourhand();
    const { redis, prefix, pool, queues, logged } = hourhand;
    let looks = 0;
    const ownership = {
      ...hourhand.ownership,
      hold: () => {
        looks += 1;
        return hourhand.ownership.hold();
      },
    };
    const worker = await startWorker({ ...hourhand, ownership }, hourhand.environment, undefined, 100);
    try {
      const said = (text: string) => logged.filter(({ msg }) => `${msg}`.includes(text)).length;
      // The other database is first after the flush.
      await until(
        async () => {
          await forget(redis, prefix);
          return (await askOwner(redis, prefix, someone(), 'hold')).state;
        },
        (state) => state === 'taken',
      );
      await until(
        () => openWarnings(pool),
        (warnings) => warnings.length === 1,
      );
      const [warning] = await openWarnings(pool);
      expect(warning).toMatchObject({
        kind: 'redis-owner',
        detail: expect.stringContaining('"calls" at db.example:5432'),
        remedy: expect.stringContaining('set REDIS_PREFIX to one of its own'),
      });
      // The other's job: nobody touches it, however often we look.
      const job = await queues.stale.add('of the other', {});
      const before = looks;
      await until(
        async () => looks,
        (now) => now > before + 10,
      );
      expect(await job.getState()).toBe('waiting');
      expect(said('no more jobs are taken')).toBe(1);
      // Another flush: now we are first.
      await redis.del(`${prefix}:owner`);
      await until(
        () => job.getState(),
        (state) => state === 'completed',
      );
      await until(
        () => openWarnings(pool),
        (warnings) => warnings.length === 0,
      );
      expect([said('no more jobs are taken'), said('jobs are taken again')]).toEqual([1, 1]);
    } finally {
      await worker.stop();
    }
  });

  test('the dashboard of the other changes nothing, and shows everything', async () => {
    await using hourhand = await startHourhand();
    const { redis, prefix, pool } = hourhand;
    const { url, close } = await startDashboard(hourhand);
    try {
      const port = Number(new URL(url).port);
      const headers = { 'Content-Type': 'application/json', ...(await ownHeaders(port)) };
      const ask = () => askAt(port, 'post', '/api/models/check', headers, '{}');
      expect((await ask()).status).toBe(404); // no model is known
      await redis.del(`${prefix}:owner`);
      await askOwner(redis, prefix, someone(), 'hold');
      const refused = await ask();
      expect([refused.status, JSON.parse(refused.text)]).toEqual([
        409,
        expect.objectContaining({ message: expect.stringMatching(/^Nothing was changed: the prefix .*"calls" at/) }),
      ]);
      expect(await pool.operatorAction.count()).toBe(1); // of the first request
      // No worker has looked. What else is typed is refused, so that it comes first.
      const told = /^The prefix .* belongs to another hourhand, .*: set REDIS_PREFIX to one of its own/;
      expect((await hourhand.run(['status'])).stdout.split('\n')[0]).toMatch(told);
      expect(await (await fetch(url)).text()).toContain('<strong>The prefix');
      const { checks } = (await (await fetch(`${url}/readyz`)).json()) as {
        checks: { name: string; found: string }[];
      };
      expect(checks.find(({ name }) => name === 'warning redis-owner')).toMatchObject({
        ok: true,
        warn: true,
        found: expect.stringContaining('claim-redis'),
      });
      expect((await fetch(`${url}/api/models`)).status).toBe(200);
    } finally {
      await close();
    }
  });

  test('workers of a version that does not say whose they are, are warned of', async () => {
    await using hourhand = await startHourhand();
    const { prefix, queues, config, ownership } = hourhand;
    const connection = workerConnection(redisAddress(config), () => {});
    const work = (name: string) => new Worker(queues.hours.name, async () => {}, { connection, prefix, name });
    const [old, own] = [work('hourhand-0.6.0'), work(workerName('0.7.0', (await ownership.claimant()).id))];
    try {
      await until(
        () => queues.hours.getWorkersCount(),
        (count) => count === 2,
      );
      expect(await ownership.findings(await ownership.look(), queues)).toEqual([
        {
          subject: 'workers',
          detail: '1 workers of version 0.6.0 are connected under this prefix, and do not say of which database',
          remedy: expect.stringMatching(/^replace them/),
        },
      ]);
    } finally {
      await Promise.all([old.close(true), own.close(true)]);
      connection.disconnect();
    }
  });
});

describe('a copy of a database', () => {
  test('is refused while the original works, takes over after two minutes, and can become another', async () => {
    await using hourhand = await startHourhand();
    const { redis } = hourhand;
    await using original = await createDatabase();
    await using copy = await copyDatabase(original);
    const REDIS_PREFIX = newPrefix();
    const ask = (database: { url: string }, ...args: string[]) =>
      hourhand.run(args, '', { DATABASE_URL: database.url, REDIS_PREFIX });
    const tick = ['schedule', 'run', 'model.call.stats'];
    const [one, two] = [original, copy].map(({ url }) => nameOf(url));
    try {
      expect(await ask(original, ...tick)).toMatchObject({ code: 0 });
      const { id, oid } = await ownerOf(hourhand, REDIS_PREFIX);
      const refused = refusal(`${one}`, `${two}`, COPY, 'type hourhand identity new here');
      expect(await ask(copy, ...tick)).toMatchObject({ code: 1, stderr: refused });

      await age(hourhand, REDIS_PREFIX, 121_000);
      const taken = new RegExp(`^hourhand: warning: the prefix \\S+ was taken over from the database "${one}"`);
      expect(await ask(copy, ...tick)).toMatchObject({ code: 0, stderr: expect.stringMatching(taken) });
      const owner = await ownerOf(hourhand, REDIS_PREFIX);
      expect([owner.id, owner.oid === oid, owner.database]).toEqual([id, false, two]);
      expect(await ask(original, ...tick)).toMatchObject({
        code: 1,
        stderr: refusal(`${two}`, `${one}`, COPY, 'stop its'),
      });

      expect(await ask(copy, 'identity', 'new')).toMatchObject({ code: 0, stderr: expect.stringContaining(id) });
      await age(hourhand, REDIS_PREFIX, 24 * 3_600_000);
      expect(await ask(copy, ...tick)).toMatchObject({
        code: 1,
        stderr: expect.stringContaining('another hourhand'),
      });
      expect(await ask(original, ...tick)).toMatchObject({ code: 0 });
    } finally {
      await forget(redis, REDIS_PREFIX);
    }
  });
});

describe('hourhand claim-redis', () => {
  test('leaves a prefix whose owner lives, and with --force empties it and takes it', async () => {
    await using hourhand = await startHourhand();
    await using other = await otherDatabase();
    const { redis, prefix } = hourhand;
    const env = { DATABASE_URL: other.url };
    const pipeline = redis.pipeline();
    for (let i = 0; i < 2_500; i++) pipeline.set(`${prefix}:stats-hour:${i}`, 'a job');
    await pipeline.set(`${prefix.replace('}', '-2}')}:kept`, 'of another prefix').exec();

    const refused = await hourhand.run(['claim-redis'], '', env);
    expect(refused).toMatchObject({ code: 1, stderr: expect.stringMatching(/^nothing was changed: .*--force/) });
    expect((await redis.keys(`${prefix}:*`)).length).toBeGreaterThan(2_500);

    const claimed = await hourhand.run(['claim-redis', '--force'], '', env);
    const says = new RegExp(`now belongs to the database "${nameOf(other.url)}".*\n25\\d\\d keys removed`);
    expect(claimed).toMatchObject({ code: 0, stderr: expect.stringMatching(says) });
    expect(await redis.keys(`${prefix}:*`)).toEqual([`${prefix}:owner`]);
    expect(await redis.unlink(`${prefix.replace('}', '-2}')}:kept`)).toBe(1);

    const again = await hourhand.run(['claim-redis'], '', env);
    expect(again).toMatchObject({ code: 0, stderr: expect.stringContaining("this database's already") });
    expect((await hourhand.ownership.hold()).foreign?.detail).toContain(nameOf(other.url));

    // Of a former owner that was not seen for two minutes nothing is asked.
    await age(hourhand, prefix, 121_000);
    expect(await hourhand.run(['claim-redis'])).toMatchObject({ code: 0 });
    expect((await hourhand.ownership.hold()).holding.state).toBe('ours');
  });

  test('goes on with a claim that died on its way', async () => {
    await using hourhand = await startHourhand();
    const { redis, prefix, ownership } = hourhand;
    await redis.set(`${prefix}:left`, 'over');
    const own = await ownership.claimant();
    await redis.set(`${prefix}:owner`, JSON.stringify({ ...own, seen: Date.now(), emptying: true }));
    await ownership.hold(); // a worker of ours may begin meanwhile
    expect(await hourhand.run(['claim-redis'])).toMatchObject({ code: 0 });
    expect(await redis.exists(`${prefix}:left`)).toBe(0);
    expect((await ownerOf(hourhand, prefix)).emptying).toBeUndefined();
  });
});

describe('the key of the owner', () => {
  const here = { system: '7000000000000000001', oid: '16384' };
  let redis: RedisConnection;
  beforeAll(async () => {
    redis = producerConnection({ url: serverUrl('TEST_REDIS_URL'), prefix: '{none}' }, () => {});
    await untilReady(redis, 10_000);
  });
  afterAll(() => redis.disconnect());

  test.each([
    ['the same database', here, 0, 'ours'],
    ['the same database, seen by a role that may not ask for the system', { ...here, system: null }, 0, 'ours'],
    ['one of another oid, at once', { ...here, oid: '5' }, 0, 'copy'],
    ['one of another system, at once', { ...here, system: '8' }, 0, 'copy'],
    ['one of another system, after two minutes', { ...here, system: '8' }, 121_000, 'moved'],
    ['another database, at once', { id: 'other' }, 0, 'other'],
    ['another database, after a year', { id: 'other' }, 365 * 24 * 3_600_000, 'other'],
  ])('tells %s', async (_, change, ms, state) => {
    const prefix = newPrefix();
    const key = `${prefix}:owner`;
    try {
      expect((await askOwner(redis, prefix, someone(), 'look')).state).toBe('free');
      expect(await redis.exists(key)).toBe(0);
      expect((await askOwner(redis, prefix, someone(), 'hold')).state).toBe('taken');
      await age({ redis }, prefix, ms);
      const before = await redis.get(key);
      expect((await askOwner(redis, prefix, someone(change), 'look')).state).toBe(state);
      expect(await redis.get(key)).toBe(before);
      expect((await askOwner(redis, prefix, someone(change), 'hold')).state).toBe(state);
      const { system, id } = await ownerOf({ redis }, prefix);
      // What is refused is left as it was; a role that may ask for less forgets nothing.
      if (state === 'copy' || state === 'other') expect(await redis.get(key)).toBe(before);
      else expect([id, system]).toEqual([someone().id, ('system' in change && change.system) || here.system]);
    } finally {
      await forget(redis, prefix);
    }
  });

  test("that holds something else is nobody's to take, except by a claim", async () => {
    const prefix = newPrefix();
    const key = `${prefix}:owner`;
    try {
      const spoilt = [
        () => redis.set(key, 'not JSON'),
        () => redis.set(key, '{"id":7}'),
        () => redis.del(key).then(() => redis.rpush(key, 'a list')),
      ];
      for (const spoil of spoilt) {
        await spoil();
        for (let time = 0; time < 2; time++) {
          expect((await askOwner(redis, prefix, someone(), 'hold')).state).toBe('unreadable');
        }
      }
      await claimPrefix(redis, prefix, someone());
      expect((await askOwner(redis, prefix, someone(), 'hold')).state).toBe('ours');
    } finally {
      await forget(redis, prefix);
    }
  });

  test('is refreshed by each look of a worker', async () => {
    await using hourhand = await startHourhand();
    const { prefix } = hourhand;
    const worker = await startWorker(hourhand, hourhand.environment, undefined, 100);
    try {
      await age(hourhand, prefix, 60_000);
      const { seen } = await ownerOf(hourhand, prefix);
      await until(
        async () => (await ownerOf(hourhand, prefix)).seen,
        (now) => now >= seen + 60_000,
      );
    } finally {
      await worker.stop();
    }
  });
});

test('a database has one identity, and keeps it', async () => {
  await using hourhand = await startHourhand();
  const { pool } = hourhand;
  await expect(pool.$executeRaw`delete from "StatIdentity"`).rejects.toThrow(/hourhand identity new/);
  await expect(pool.$executeRaw`truncate "StatIdentity"`).rejects.toThrow(/hourhand identity new/);
  await expect(pool.$executeRaw`insert into "StatIdentity" (id) values (gen_random_uuid())`).rejects.toThrow();
  await expect(
    pool.$executeRaw`insert into "StatIdentity" ("only", id) values (false, gen_random_uuid())`,
  ).rejects.toThrow();
  expect(await pool.statIdentity.count()).toBe(1);
});
