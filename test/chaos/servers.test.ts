// Redis and PostgreSQL killed, filled up, failed over, or not there. Each test has servers of its own.

import type { ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { describe, expect, test } from 'vitest';
import { ended, type Hourhand, h, startHourhand, straggle, straggling, until } from '../support/hourhand.ts';
import { ownServers } from '../support/servers.ts';

const hours = Array.from({ length: 24 }, (_, i) => h(`2026-08-20T${String(i).padStart(2, '0')}`));
const users = ['ada', 'bob', 'cyd'];

describe.concurrent('Redis', () => {
  test('23: kill -9 with an append-only file, and a restart: every user is rolled up at most twice', async () => {
    await using servers = await ownServers('killed', 'redis');
    await using hourhand = await startHourhand({ WORKER_CONCURRENCY: '2', ...servers.env });
    await recordAll(hourhand);
    await countRollUps(hourhand);
    await straggle(hourhand, 'ada', 2, 3);
    const workers = await Promise.all([hourhand.startWorker(), hourhand.startWorker()]);
    await hourhand.backfill(h('2026-08-20T00'), h('2026-08-20T23'));
    await until(
      () => straggling(hourhand),
      (n) => n > 0,
    );
    await servers.kill('redis');
    await servers.restart();
    await allClosed(hourhand);
    expect(await hourhand.wrong()).toEqual([]);
    expect(await mostRollUps(hourhand)).toBeLessThanOrEqual(2);
    expect(workers.map(({ child }) => lives(child))).toEqual([true, true]);
  });

  test('24: CLIENT KILL TYPE normal, again and again: nothing is lost', async () => {
    await using servers = await ownServers('cut', 'redis');
    await using hourhand = await startHourhand({ WORKER_CONCURRENCY: '2', ...servers.env });
    await using admin = await connectTo(servers.env.REDIS_URL);
    await recordAll(hourhand);
    const workers = await Promise.all([hourhand.startWorker(), hourhand.startWorker()]);
    await hourhand.backfill(h('2026-08-20T00'), h('2026-08-20T23'));
    let kills = 0;
    for (let i = 0; i < 20; i += 1) {
      kills += Number(await admin.redis.call('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes'));
      await sleep(300); // the kills' own rhythm
    }
    await allClosed(hourhand);
    expect(kills).toBeGreaterThan(10);
    expect(await hourhand.wrong()).toEqual([]);
    expect(workers.map(({ child }) => lives(child))).toEqual([true, true]);
  });

  test('25: a read-only replica for a while, as in a fail-over: it recovers, and says little meanwhile', async () => {
    await using servers = await ownServers('replica', 'redis');
    await using hourhand = await startHourhand(servers.env);
    await using admin = await connectTo(servers.env.REDIS_URL);
    await recordAll(hourhand);
    const { child: worker, lines } = await hourhand.startWorker();
    await straggle(hourhand, 'ada', 1, 24);
    await hourhand.backfill(h('2026-08-20T00'), h('2026-08-20T23'));
    await until(
      () => straggling(hourhand),
      (n) => n > 0,
    );
    await admin.redis.replicaof('127.0.0.1', 1);
    const cpu = cpuSeconds(worker);
    await sleep(5_000); // a fail-over's own time
    expect(lines.length).toBeLessThan(500);
    expect(cpuSeconds(worker) - cpu).toBeLessThan(2.5);
    await admin.redis.replicaof('NO', 'ONE');
    await allClosed(hourhand);
    expect(await hourhand.wrong()).toEqual([]);
    expect(lives(worker)).toBe(true);
  });

  test('26: no memory left: it says little and works little, and recovers when memory returns', async () => {
    await using servers = await ownServers('full', 'redis');
    await using hourhand = await startHourhand(servers.env);
    await using admin = await connectTo(servers.env.REDIS_URL);
    await recordAll(hourhand);
    const { child: worker, lines } = await hourhand.startWorker();
    await straggle(hourhand, 'ada', 1, 24);
    await hourhand.backfill(h('2026-08-20T00'), h('2026-08-20T23'));
    await until(
      () => straggling(hourhand),
      (n) => n > 0,
    );
    await admin.redis.config('SET', 'maxmemory', '1mb');
    await until(
      async () => lines.filter((line) => line.includes('OOM')),
      (found) => found.length > 0,
    );
    const cpu = cpuSeconds(worker);
    await sleep(5_000); // while nobody frees any
    expect(lines.length).toBeLessThan(500);
    expect(cpuSeconds(worker) - cpu).toBeLessThan(2.5);
    await admin.redis.config('SET', 'maxmemory', '0');
    await allClosed(hourhand);
    expect(await hourhand.wrong()).toEqual([]);
    expect(lives(worker)).toBe(true);
  });
});

describe.concurrent('27: a server that is down', () => {
  test.for([
    ['Redis', { REDIS_URL: 'redis://127.0.0.1:1' }, /^hourhand: Redis at 127\.0\.0\.1:1: nobody listens there/],
    [
      'PostgreSQL',
      { DATABASE_URL: 'postgresql://a:pw@127.0.0.1:1/b' },
      /^hourhand: PostgreSQL at 127\.0\.0\.1:1: nobody listens there/,
    ],
  ] as const)('at the start, %s: one clear line, and the end', async ([, env, line]) => {
    await using hourhand = await startHourhand();
    Object.assign(hourhand.environment, env);
    const { code, stdout, stderr } = await hourhand.run(['worker']);
    expect([code, stdout, stderr.trim().split('\n')]).toEqual([1, '', [expect.stringMatching(line)]]);
  });

  test.for([
    ['redis', 'gone'],
    ['redis', 'silent'],
    ['postgres', 'gone'],
    ['postgres', 'silent'],
  ] as const)('at SIGTERM, %s %s: the worker ends all the same', async ([server, how]) => {
    await using servers = await ownServers(`${server}-${how}`, server);
    await using hourhand = await startHourhand(servers.env);
    await recordAll(hourhand);
    await straggle(hourhand, 'ada', 2, 24);
    const { child: worker } = await hourhand.startWorker();
    await hourhand.backfill(h('2026-08-20T00'), h('2026-08-20T23'));
    await until(
      () => straggling(hourhand),
      (n) => n > 0,
    );
    if (how === 'gone') await servers.kill(server);
    else servers.signal(server, 'SIGSTOP');
    worker.kill('SIGTERM');
    expect(await ended(worker)).toBe(0);
    if (how === 'gone') await servers.restart();
    else servers.signal(server, 'SIGCONT');
  });
});

test('28: PostgreSQL is stopped at once and started again while children run: no process dies, and all converges', async () => {
  await using servers = await ownServers('stopped', 'postgres');
  await using hourhand = await startHourhand({ WORKER_CONCURRENCY: '2', ...servers.env });
  await recordAll(hourhand);
  await straggle(hourhand, 'ada', 2, 6);
  // Else what was committed in the last half second is forgotten, the request itself: servers of tests are made to be fast.
  await hourhand.pool.$executeRaw`alter system set synchronous_commit = on`;
  await hourhand.pool.$executeRaw`select pg_reload_conf()`;
  const workers = await Promise.all([hourhand.startWorker(), hourhand.startWorker()]);
  await hourhand.backfill(h('2026-08-20T00'), h('2026-08-20T23'));
  await until(
    () => straggling(hourhand),
    (n) => n > 0,
  );
  await servers.kill('postgres');
  await servers.restart();
  await allClosed(hourhand);
  expect(await hourhand.wrong()).toEqual([]);
  expect(workers.map(({ child }) => lives(child))).toEqual([true, true]);
});

async function recordAll(hourhand: Hourhand): Promise<void> {
  await hourhand.record(...hours.flatMap((hour) => users.map((user) => ({ user, at: `${hour}:30:00Z` }))));
}

async function closedHours({ pool }: Hourhand): Promise<number> {
  return pool.statHour.count({ where: { hour: { lt: new Date('2026-09-01') }, state: 'closed' } });
}

async function allClosed(hourhand: Hourhand): Promise<void> {
  await until(
    () => closedHours(hourhand).catch(() => 0), // the server may be on its way back
    (n) => n === hours.length,
  );
}

const lives = (child: ChildProcess) => child.exitCode === null && child.signalCode === null;

/** The processor's time that a process has had so far. */
function cpuSeconds({ pid }: ChildProcess): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const [user = 0, system = 0] = stat
    .slice(stat.lastIndexOf(')') + 2)
    .split(' ')
    .slice(11, 13)
    .map(Number);
  return (user + system) / 100;
}

/** A line to Redis that waits until it answers. */
async function connectTo(url = '') {
  const redis = new Redis(url, { maxRetriesPerRequest: null });
  redis.on('error', () => {});
  return {
    redis,
    async [Symbol.asyncDispose]() {
      redis.disconnect();
    },
  };
}

/** Count how often each user's hour is rolled up, whether its row changes or not. */
async function countRollUps({ pool }: Hourhand): Promise<void> {
  await pool.$executeRaw`create table rolled_up ("userDid" text, hour timestamptz)`;
  await pool.$executeRaw`create function count_roll_up() returns trigger language plpgsql as $$
    begin insert into rolled_up values (new."userDid", new."timestamp"); return new; end $$`;
  await pool.$executeRaw`create trigger count_roll_up before insert on "ModelCallStat" for each row execute function count_roll_up()`;
}

async function mostRollUps({ pool }: Hourhand): Promise<number> {
  const [{ most }] = await pool.$queryRaw<[{ most: number }]>`
    select max(n)::int as most from (select count(*) as n from rolled_up group by "userDid", hour) as times`;
  return most;
}
