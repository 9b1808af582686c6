// Schedulers under many processes, lost servers, killed workers and wrong clocks.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { setImmediate as breathe } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { home } from '../../src/config.ts';
import { type Ensured, wishes } from '../../src/producers/schedules.ts';
import { ended, type Hourhand, h, startHourhand, straggle, straggling, until } from '../support/hourhand.ts';
import {
  deployOf,
  ensure,
  everySecond,
  expectOne,
  holdTicks,
  jobs,
  startWorking,
  ticks,
  yearly,
} from '../support/schedulers.ts';
import { ownServers } from '../support/servers.ts';

const HOUR_MS = 3_600_000;

test('1: eight processes ensure at once, two hundred times each: one scheduler, and one live job', async () => {
  await using hourhand = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: yearly });
  const outcomes = await ensureInProcesses(hourhand, 8, 200);
  expect(outcomes).toHaveLength(8);
  for (const [first, ...rest] of outcomes) {
    expect(['added', 'kept']).toContain(first);
    expect(rest).toEqual(Array(199).fill('kept'));
  }
  expect(outcomes.flat()).toContain('added');
  await expectOne(hourhand, yearly);
});

describe.concurrent('schedulers', () => {
  test('2: ensured again and again across the ticks of a one-second schedule: no tick is lost', async () => {
    await using working = await startWorking(everySecond);
    const outcomes: Ensured[] = [];
    let done = false;
    const hammers = Array.from({ length: 8 }, async () => {
      for (; !done; await breathe()) outcomes.push(await ensure(working, everySecond, await deployOf(working)));
    });
    try {
      await until(
        () => ticks(working),
        ({ completed }) => completed.length >= 5 && outcomes.length > 100,
      );
    } finally {
      done = true;
      await Promise.all(hammers);
    }
    expect(new Set(outcomes)).toEqual(new Set(['kept']));

    // Every tick that was ever made was run, once, but for the one that is to come.
    const { made, active, completed } = await until(
      () => ticks(working),
      (seen) => seen.active.length === seen.completed.length,
    );
    expect(active).toEqual(completed);
    expect(new Set(completed).size).toBe(completed.length);
    expect(made.filter((tick) => !completed.includes(tick))).toHaveLength(1);
  });

  test.for([
    ['worker first', 0],
    ['ensured first, by eight at once', 8],
  ] as const)('3: every process was down for five hours; %s: all owed hours are closed', async ([, ensuring]) => {
    await using hourhand = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: '0 1 * * * *' });
    const running = await runningHour(hourhand);
    const past = [5, 4, 3, 2, 1].map((n) => hourBefore(running, n));
    await hourhand.record(...past.flatMap((hour) => ['ada', 'bob'].map((user) => ({ user, at: `${hour}:30:00Z` }))));
    await hourhand.pool
      .$executeRaw`insert into "StatRange" (start) values (${new Date(running.getTime() - 5 * HOUR_MS)}::timestamptz)`;
    // The last that anybody did, five hours ago by its clock.
    while ((await ended(hourhand.broken({ CLOCK_MINUTES: '-300' }, 'schedule'))) !== 0);
    const [due] = await jobs(hourhand);
    const stood = { version: '0.0.1', startedAt: new Date() };
    const outcomes = await Promise.all(
      Array.from({ length: ensuring }, () => ensure(hourhand, '0 1 * * * *', stood)),
    );
    expect(outcomes).toEqual(Array(ensuring).fill('kept'));
    expect(await jobs(hourhand)).toEqual([due]);

    await hourhand.startWorker();
    await until(
      () => Promise.all(past.map(hourhand.state)),
      (states) => states.every((state) => state === 'closed'),
    );
    expect(await hourhand.wrong()).toEqual([]);
    const { completed } = await until(
      () => ticks(hourhand),
      (seen) => seen.completed.length === 1,
    );
    expect(completed).toEqual([due]);
    await expectOne(hourhand, '0 1 * * * *');
  });

  test('4: FLUSHALL while idle: schedulers and limits are back with the next look', async () => {
    await using servers = await ownServers('flushed-idle', 'redis');
    await using hourhand = await startHourhand({
      MODEL_CALL_STATS_CRON_TIME: yearly,
      CLEANUP_STALE_MODEL_CALLS_CRON_TIME: yearly,
      CHECK_MODEL_STATUS_CRON_TIME: yearly,
      ...servers.env,
    });
    const all = wishes(hourhand.queues, hourhand.config).filter(({ pattern }) => pattern === yearly);
    const stand = async () =>
      Promise.all(
        all.map(async ({ id, queue }) => [
          (await queue.getJobScheduler(id))?.pattern,
          await queue.getDelayedCount(),
          await queue.getGlobalConcurrency(),
        ]),
      );
    const expected = all.map(() => [yearly, 1, 1]);
    await hourhand.startWorker();
    expect(await stand()).toEqual(expected);
    await hourhand.redis.flushall();
    expect(await stand()).not.toEqual(expected);
    await until(stand, (seen) => JSON.stringify(seen) === JSON.stringify(expected));
  });

  test('5: FLUSHALL while children run: the hour is redone and closed, with right rows', async () => {
    await using servers = await ownServers('flushed-busy', 'redis');
    await using hourhand = await startHourhand({ WORKER_CONCURRENCY: '1', ...servers.env });
    const hour = h('2026-08-20T13');
    await hourhand.record(...Array.from({ length: 20 }, (_, i) => ({ user: `u${i}`, at: '2026-08-20T13:10:00Z' })));
    await straggle(hourhand, 'u1', 3);
    await hourhand.startWorker();
    await hourhand.backfill(hour);
    await until(
      () => straggling(hourhand),
      (n) => n === 1,
    );
    await hourhand.redis.flushall();
    await until(
      () => hourhand.state(hour),
      (state) => state === 'closed',
    );
    expect(await hourhand.wrong()).toEqual([]);
    expect((await hourhand.hour(hour))?.run).toBeGreaterThan(1);
  });

  test('8: SIGKILL between a tick and the making of the next: the schedule resumes', async () => {
    await using hourhand = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: everySecond });
    await hourhand.dieOf('dies before the next tick');
    expect((await ticks(hourhand)).completed).toEqual([]);
    await hourhand.startWorker();
    await until(
      () => ticks(hourhand),
      ({ completed }) => completed.length >= 3,
    );
    expect(await hourhand.queues.ticks.getJobSchedulersCount()).toBe(1);
  });

  test('9: a tick slower than its interval: never two at once, and ticking goes on', async () => {
    await using working = await startWorking(everySecond);
    await working.work(); // a second one, free to take the next tick
    const { ticks: queue } = working.queues;
    await using held = await holdTicks(working);
    const counts = () => queue.getJobCounts('active', 'waiting');
    expect(await until(counts, ({ active = 0, waiting = 0 }) => active + waiting >= 2)).toEqual({
      active: 1,
      waiting: 1,
    });
    await held.release();
    const { completed } = await ticks(working);
    await until(
      () => ticks(working),
      (seen) => seen.completed.length >= completed.length + 3,
    );
  });

  // More than ten minutes: whatever the minute, the fast one takes the running hour for ended.
  test("10: one worker's clock is 70 minutes fast, another's 70 slow: no hour is rolled up before its end, none skipped", async () => {
    await using hourhand = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: everySecond });
    const running = await runningHour(hourhand);
    const past = [3, 2, 1].map((n) => hourBefore(running, n));
    await hourhand.record(
      ...[...past, hourBefore(running, 0)].map((hour) => ({ user: 'ada', at: `${hour}:00:00Z` })),
    );
    await hourhand.cover(past[0] ?? h(''), past[2] ?? h(''));
    await hourhand.startWorker({ CLOCK_MINUTES: '70' });
    await hourhand.startWorker({ CLOCK_MINUTES: '-70' });
    await until(
      async () => [(await ticks(hourhand)).completed.length, ...(await Promise.all(past.map(hourhand.state)))],
      ([ticks, ...states]) => Number(ticks) >= 5 && states.every((state) => state === 'closed'),
    );
    expect((await hourhand.wrong()).filter((who) => !who.includes(running.toISOString().slice(11, 13)))).toEqual([]);
    const early = await hourhand.pool.$queryRaw`
      select hour from "StatHour" where "startedAt" < hour + interval '1 hour' or hour + interval '1 hour' > now()`;
    expect(early).toEqual([]);
  });
});

/** The start of the hour that runs, by PostgreSQL's clock. */
async function runningHour({ pool }: Hourhand): Promise<Date> {
  const [{ start }] = await pool.$queryRaw<[{ start: Date }]>`select date_trunc('hour', now(), 'UTC') as start`;
  return start;
}

const hourBefore = (running: Date, n: number) =>
  h(new Date(running.getTime() - n * HOUR_MS).toISOString().slice(0, 13));

/** Real processes, each of which ensures so many times, all of them at once; what each was told. */
async function ensureInProcesses({ environment }: Hourhand, processes: number, times: number): Promise<Ensured[][]> {
  const dist = (file: string) => JSON.stringify(path.join(home, 'dist', file));
  const script = `
    import { readConfig, version } from ${dist('config.js')};
    import { openConnections } from ${dist('connections.js')};
    import { createLogger } from ${dist('logger.js')};
    import { ensureScheduler, wishes } from ${dist('producers/schedules.js')};
    import { deployOf } from ${dist('store/schedules.js')};
    const config = readConfig();
    const { pool, queues, close } = await openConnections(config, createLogger('silent'));
    const deploy = await deployOf(pool, version);
    const [wish] = wishes(queues, config);
    process.once('message', async () => {
      const outcomes = [];
      for (let i = 0; i < ${times}; i++) outcomes.push(await ensureScheduler(pool, wish, deploy));
      process.send(outcomes, async () => { await close(); process.disconnect(); });
    });
    process.send('ready');`;
  const children = Array.from({ length: processes }, () =>
    spawn(process.execPath, ['--input-type=module', '--eval', script], {
      env: { PATH: process.env.PATH, HOME: process.env.HOME, ...environment },
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    }),
  );
  try {
    await Promise.all(children.map((child) => once(child, 'message')));
    return await Promise.all(
      children.map(async (child) => {
        const answer = once(child, 'message');
        child.send('go');
        const [outcomes] = await answer;
        return outcomes as Ensured[]; // what the script above sends
      }),
    );
  } finally {
    for (const child of children) child.kill('SIGKILL');
  }
}
