import { spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { setImmediate as breathe } from 'node:timers/promises';
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { home } from '../src/config.ts';
import { type Ensured, ensureScheduler, inspectScheduler } from '../src/producers/schedules.ts';
import type { Deploy } from '../src/store/schedules.ts';
import { type Hourhand, h, startHourhand, until } from './support/hourhand.ts';

const id = 'model.call.stats';
const yearly = '0 0 0 1 1 *';
const monthly = '0 0 0 1 * *';
const everySecond = '* * * * * *';
const today: Deploy = { version: '1.2.0', startedAt: new Date('2026-08-20T13:00:00Z') };

/** The one for all tests without a worker: each finds it as new. */
let hourhand: Hourhand;
beforeAll(async () => {
  hourhand = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: yearly });
});
beforeEach(async () => {
  await hourhand.pool.$executeRaw`delete from "StatSchedule"`;
  await forgetAll(hourhand);
});
afterAll(() => hourhand[Symbol.asyncDispose]());

describe('any number of processes', () => {
  test('that ensure one scheduler many times at once make one scheduler with one live job', async () => {
    const outcomes = await ensureInProcesses(hourhand, 8, 10);
    expect(outcomes).toHaveLength(8);
    for (const [first, ...rest] of outcomes) {
      expect(['added', 'kept']).toContain(first);
      expect(rest).toEqual(Array(9).fill('kept'));
    }
    expect(outcomes.flat()).toContain('added');
    await expectOne(hourhand, yearly);
  });
});

describe('a scheduler is put right that', () => {
  type Damage = [string, Ensured, (hourhand: Hourhand, key: (name: string) => string) => Promise<unknown>];
  const tick = async ({ queues }: Hourhand) => `repeat:${id}:${(await queues.ticks.getJobScheduler(id))?.next}`;

  test.each<Damage>([
    ['was removed', 'added', ({ queues }) => queues.ticks.removeJobScheduler(id)],
    [
      'fires at other times',
      'changed',
      ({ queues }) => queues.ticks.upsertJobScheduler(id, { pattern: monthly, tz: 'UTC' }),
    ],
    [
      'fires in another zone',
      'changed',
      ({ queues }) => queues.ticks.upsertJobScheduler(id, { pattern: yearly, tz: 'Asia/Kolkata' }),
    ],
    [
      'fires in the zone of the machine',
      'changed',
      ({ queues }) => queues.ticks.upsertJobScheduler(id, { pattern: yearly }),
    ],
    ['fires at intervals', 'changed', ({ queues }) => queues.ticks.upsertJobScheduler(id, { every: 3_600_000 })],
    [
      'lost its next job',
      'repaired',
      async (hourhand, key) => {
        const job = await tick(hourhand);
        await hourhand.redis.multi().del(key(job)).zrem(key('delayed'), job).exec();
      },
    ],
    [
      'has its next job in no list',
      'repaired',
      async (hourhand, key) => hourhand.redis.zrem(key('delayed'), await tick(hourhand)),
    ],
    ['does not know when it fires next', 'added', ({ redis }, key) => redis.zrem(key('repeat'), id)],
    ['knows nothing but when it fires next', 'added', ({ redis }, key) => redis.del(key(`repeat:${id}`))],
    ['lost everything, with all of Redis', 'added', (hourhand) => forgetAll(hourhand)],
  ])('%s', async (_, expected, damage) => {
    expect(await ensure(hourhand, yearly)).toBe('added');
    await damage(hourhand, (name) => hourhand.queues.ticks.toKey(name));
    expect(await ensure(hourhand, yearly)).toBe(expected);
    await expectOne(hourhand, yearly);
    expect(await ensure(hourhand, yearly)).toBe('kept');
  });

  test('is to fire at other times now', async () => {
    await ensure(hourhand, yearly);
    expect(await ensure(hourhand, monthly, later(today))).toBe('changed');
    await expectOne(hourhand, monthly);
  });

  test('is to be off now', async () => {
    await ensure(hourhand, everySecond);
    await until(() => overdue(hourhand), Boolean);
    expect(await ensure(hourhand, 'off', later(today))).toBe('removed');
    await expectNone(hourhand);
    expect(await look(hourhand)).toMatchObject({ state: 'off', pattern: 'off', next: null });
    expect(await ensure(hourhand, 'off', later(today))).toBe('kept');
  });

  test('was off, and is to be on again', async () => {
    expect(await ensure(hourhand, 'off')).toBe('kept');
    expect(await ensure(hourhand, yearly, later(today))).toBe('added');
    await expectOne(hourhand, yearly);
  });

  test('was off, and is to be on again while a tick from before still waits', async () => {
    await ensure(hourhand, yearly);
    const [tick] = await hourhand.queues.ticks.getDelayed();
    await tick?.promote();
    await ensure(hourhand, 'off', later(today));
    expect(await ensure(hourhand, yearly, later(later(today)))).toBe('added');
    expect((await look(hourhand)).state).toBe('live');
  });

  test('was off, and was put there by another hand', async () => {
    await ensure(hourhand, 'off');
    await hourhand.queues.ticks.upsertJobScheduler(id, { pattern: everySecond, tz: 'UTC' });
    expect((await look(hourhand)).state).toBe('changed');
    expect(await ensure(hourhand, 'off')).toBe('removed');
    await expectNone(hourhand);
  });
});

test('a look at a scheduler changes nothing', async () => {
  expect(await look(hourhand)).toEqual({ id, pattern: null, next: null, state: 'missing' });
  await expectNone(hourhand);
  await ensure(hourhand, yearly);
  await hourhand.queues.ticks.removeJobScheduler(id);
  expect(await look(hourhand)).toEqual({ id, pattern: yearly, next: null, state: 'missing' });
  await expectNone(hourhand);
});

test('a paused queue keeps its scheduler, and the tick that waits in it', async () => {
  await ensure(hourhand, yearly);
  await hourhand.queues.ticks.pause();
  const [tick] = await hourhand.queues.ticks.getDelayed();
  await tick?.promote();
  expect(await ensure(hourhand, yearly)).toBe('kept');
  expect(await jobs(hourhand)).toEqual([tick?.id]);
  await hourhand.queues.ticks.resume();
  expect(await ensure(hourhand, yearly)).toBe('kept');
  expect(await jobs(hourhand)).toEqual([tick?.id]);
});

test('that ticks run one at a time is said to Redis again where it has forgotten it, or was told otherwise', async () => {
  const { ticks: queue } = hourhand.queues;
  for (const pattern of [yearly, 'off']) {
    await ensure(hourhand, pattern, later(today));
    expect(await queue.getGlobalConcurrency()).toBe(1);
    await queue.removeGlobalConcurrency();
    expect(await queue.getGlobalConcurrency()).toBeNull();
    await ensure(hourhand, pattern, later(today));
    expect(await queue.getGlobalConcurrency()).toBe(1);
    await queue.setGlobalConcurrency(7);
    await ensure(hourhand, pattern, later(today));
    expect(await queue.getGlobalConcurrency()).toBe(1);
  }
});

test('hourhand schedule, typed where the pattern is not set, leaves it as the workers said', async () => {
  await using working = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: yearly });
  expect(await working.run(['schedule'])).toMatchObject({ code: 0, stdout: expect.stringContaining(yearly) });
  const { MODEL_CALL_STATS_CRON_TIME: _, ...silent } = working.environment as Record<string, string>;
  Object.assign(working.environment, { MODEL_CALL_STATS_CRON_TIME: undefined }, silent);
  expect(await working.run(['schedule'])).toMatchObject({ code: 0, stdout: expect.stringContaining(yearly) });
  Object.assign(working.environment, { MODEL_CALL_STATS_CRON_TIME: monthly });
  expect(await working.run(['schedule'])).toMatchObject({ code: 0, stdout: expect.stringContaining(monthly) });
});

describe('of two deploys the newer has the word:', () => {
  const older: [string, Deploy][] = [
    ['an older version', { version: '1.1.9', startedAt: new Date('2026-08-21T13:00:00Z') }],
    [
      'a version that is older by number, not by letter',
      { version: '1.1.10', startedAt: new Date('2026-08-21T13:00:00Z') },
    ],
    ['a process that started earlier', { version: '1.2.0', startedAt: new Date('2026-08-20T12:59:59.999Z') }],
  ];

  test.each(older)('%s does not revert its pattern, and puts it right where it is lost', async (_, deploy) => {
    await ensure(hourhand, yearly, deploy);
    expect(await ensure(hourhand, monthly, today)).toBe('changed');
    const kept = await jobs(hourhand);
    expect(await ensure(hourhand, yearly, deploy)).toBe('kept');
    expect(await jobs(hourhand)).toEqual(kept);
    await forgetAll(hourhand);
    expect(await ensure(hourhand, yearly, deploy)).toBe('added');
    await expectOne(hourhand, monthly);
  });

  test.each(older)(
    '%s does not bring back what it has put off, even after Redis lost everything',
    async (_, deploy) => {
      await ensure(hourhand, yearly, deploy);
      expect(await ensure(hourhand, 'off', today)).toBe('removed');
      expect(await ensure(hourhand, yearly, deploy)).toBe('kept');
      await forgetAll(hourhand);
      expect(await ensure(hourhand, yearly, deploy)).toBe('kept');
      await expectNone(hourhand);
    },
  );

  test.each<[string, Deploy, Deploy]>([
    [
      'a newer version',
      { version: '1.9.0', startedAt: today.startedAt },
      { version: '1.10.0', startedAt: new Date('2026-08-19T13:00:00Z') },
    ],
    ['a process that started later', today, later(today)],
    [
      'a release after its preview',
      { version: '2.0.0-rc.1', startedAt: today.startedAt },
      { version: '2.0.0', startedAt: today.startedAt },
    ],
  ])('%s overrides', async (_, before, after) => {
    await ensure(hourhand, yearly, before);
    expect(await ensure(hourhand, monthly, after)).toBe('changed');
    await expectOne(hourhand, monthly);
  });

  test('they do not take turns', async () => {
    const outcomes: Ensured[] = [];
    for (let i = 0; i < 5; i++) {
      outcomes.push(await ensure(hourhand, yearly, today), await ensure(hourhand, monthly, later(today)));
    }
    expect(outcomes).toEqual(['added', 'changed', ...Array(8).fill('kept')]);
    await expectOne(hourhand, monthly);
  });

  test('nor when both say it at once', async () => {
    const both = () =>
      Promise.all(
        Array.from({ length: 16 }, (_, i) =>
          ensure(hourhand, i % 2 ? monthly : yearly, i % 2 ? later(today) : today),
        ),
      );
    await both();
    await both(); // what crossed in the first round is put right by the next
    expect(new Set(await both())).toEqual(new Set(['kept']));
    await expectOne(hourhand, monthly);
  });
});

describe.concurrent('ticks', () => {
  test('are not lost, however often the scheduler is ensured across them', async () => {
    await using working = await startWorking(everySecond);
    const outcomes: Ensured[] = [];
    let done = false;
    const hammers = Array.from({ length: 8 }, async () => {
      for (; !done; await breathe()) outcomes.push(await ensure(working, everySecond, await deployOf(working)));
    });
    try {
      await until(
        () => ticks(working),
        ({ completed }) => completed.length >= 5,
      );
    } finally {
      done = true;
      await Promise.all(hammers);
    }
    expect(new Set(outcomes)).toEqual(new Set(['kept']));
    expect(outcomes.length).toBeGreaterThan(100);

    // Every tick that was ever made was run, once, but for the one that is to come.
    const { made, active, completed } = await until(
      () => ticks(working),
      (seen) => seen.active.length === seen.completed.length,
    );
    expect(active).toEqual(completed);
    expect(new Set(completed).size).toBe(completed.length);
    expect(made.filter((tick) => !completed.includes(tick))).toHaveLength(1);
  });

  test('go on, one at a time, after all that Redis knew is lost under a running worker', async () => {
    await using working = await startWorking(everySecond);
    await until(
      () => ticks(working),
      ({ completed }) => completed.length >= 1,
    );
    await forgetAll(working);
    await until(
      () => ensure(working, everySecond, { version: '0.0.1', startedAt: today.startedAt }),
      (ensured) => ensured === 'kept',
    );
    expect(await working.queues.ticks.getGlobalConcurrency()).toBe(1);
    await until(
      () => ticks(working),
      ({ completed }) => completed.length >= 2,
    );
    expect(await working.queues.ticks.getJobSchedulersCount()).toBe(1);
  });

  test('go on after one was promoted twice by hand', async () => {
    await using working = await startWorking(yearly);
    const promoted: (string | undefined)[] = [];
    for (let i = 0; i < 3; i++) {
      const [next] = await until(
        () => working.queues.ticks.getDelayed(),
        (delayed) => delayed.length === 1,
      );
      await next?.promote();
      await until(
        () => ticks(working),
        ({ completed }) => completed.length === i + 1,
      );
      promoted.push(next?.id);
    }
    expect((await ticks(working)).completed).toEqual(promoted);
    expect(new Set(promoted).size).toBe(3);
    await expectOne(working, yearly);
  });

  test('end with their scheduler: one that waits when it is put off is the last', async () => {
    await using working = await startWorking(yearly);
    await working.queues.ticks.pause();
    const [next] = await working.queues.ticks.getDelayed();
    await next?.promote();
    expect(await ensure(working, 'off', later(await deployOf(working)))).toBe('removed');
    await working.queues.ticks.resume();
    await until(
      () => jobs(working),
      (left) => left.length === 0,
    );
    await expectNone(working);
  });

  test('go on after some failed', async () => {
    await using working = await startWorking(everySecond);
    await working.pool.$executeRaw`alter table "StatRange" rename to "elsewhere"`;
    await until(
      async () => working.logged.filter((line) => line.msg === 'job failed'),
      (failures) => failures.length >= 2,
    );
    await working.pool.$executeRaw`alter table "elsewhere" rename to "StatRange"`;
    const { completed } = await ticks(working);
    await until(
      () => ticks(working),
      (seen) => seen.completed.length > completed.length,
    );
    expect(await working.queues.ticks.getFailedCount()).toBe(0);
  });

  test('go on after one lost its name and its data', async () => {
    await using working = await startWorking(yearly);
    const { ticks: queue } = working.queues;
    const [next] = await queue.getDelayed();
    await working.redis.hset(queue.toKey(next?.id ?? ''), { name: '', data: '{}' });
    await next?.promote();
    await until(
      () => ticks(working),
      ({ completed }) => completed.length === 1,
    );
    await expectOne(working, yearly);
  });

  test('go on, once ensured, after all of the next one was lost but its place in the list', async () => {
    await using working = await startWorking(yearly);
    const { ticks: queue } = working.queues;
    const [next] = await queue.getDelayed();
    await next?.promote();
    await working.redis.del(queue.toKey(next?.id ?? ''));
    await until(
      () => ensure(working, yearly, today).then(() => queue.getDelayed()),
      ([tick]) => tick?.name === `tick ${id}`,
    );
    await expectOne(working, yearly);
  });

  test('are known by their queue: one without a name and without data has the owed hours rolled up', async () => {
    await using working = await startWorking('off');
    const hour = h('2026-08-20T13');
    await working.record({ user: 'ada', at: '2026-08-20T13:10:00Z' });
    await working.cover(hour, hour);
    await working.queues.ticks.add('', undefined);
    await working.reaches(hour, 'closed');
    expect(await working.wrong()).toEqual([]);
  });

  test('that take longer than their interval never overlap, and go on afterwards', async () => {
    await using working = await startWorking(everySecond);
    await working.work(); // a second one, free to take the next tick
    const { ticks: queue } = working.queues;
    const held = await holdTicks(working);
    try {
      const counts = () => queue.getJobCounts('active', 'waiting');
      expect(await until(counts, ({ active = 0, waiting = 0 }) => active + waiting >= 2)).toEqual({
        active: 1,
        waiting: 1,
      });
    } finally {
      await held.end();
    }
    const { completed } = await ticks(working);
    await until(
      () => ticks(working),
      (seen) => seen.completed.length >= completed.length + 3,
    );
  });

  test('that came due while nobody worked are caught up by one, though all ensure before they work', async () => {
    await using idle = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: everySecond });
    await ensure(idle, everySecond, { version: '0.0.1', startedAt: today.startedAt });
    const [due] = await jobs(idle);
    await until(() => overdue(idle), Boolean);
    const ensured = await Promise.all(
      Array.from({ length: 8 }, () => ensure(idle, everySecond, { version: '0.0.1', startedAt: new Date() })),
    );
    expect(new Set(ensured)).toEqual(new Set(['kept']));
    expect(await jobs(idle)).toEqual([due]);
    await idle.work();
    const { completed } = await until(
      () => ticks(idle),
      (seen) => seen.completed.length >= 2,
    );
    expect(completed[0]).toBe(due);
  });
});

async function startWorking(pattern: string): Promise<Hourhand> {
  const working = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: pattern });
  await working.work();
  return working;
}

/** Who has the word: in an hourhand of one's own, its worker. */
async function deployOf({ pool }: Hourhand): Promise<Deploy> {
  const [deploy] = await pool.$queryRaw<
    [Deploy]
  >`select version, "startedAt" from "StatSchedule" where id = ${id}::text`;
  return deploy;
}

function ensure({ pool, queues }: Hourhand, pattern: string, deploy = today): Promise<Ensured> {
  return ensureScheduler(pool, { id, queue: queues.ticks, pattern }, deploy);
}

function look({ pool, queues }: Hourhand) {
  return inspectScheduler(pool, { id, queue: queues.ticks });
}

function later({ version, startedAt }: Deploy): Deploy {
  return { version, startedAt: new Date(startedAt.getTime() + 1) };
}

/** One scheduler, with this pattern in UTC, and one job, which is its next, and is whole. */
async function expectOne(hourhand: Hourhand, pattern: string): Promise<void> {
  const { ticks: queue } = hourhand.queues;
  const found = await queue.getJobSchedulers();
  expect(found).toMatchObject([{ key: id, pattern, tz: 'UTC' }]);
  expect(await jobs(hourhand)).toEqual([`repeat:${id}:${found[0]?.next}`]);
  expect(await queue.getDelayed()).toMatchObject([
    { name: `tick ${id}`, opts: { removeOnComplete: true, removeOnFail: true } },
  ]);
  expect(await look(hourhand)).toEqual({ id, pattern, next: new Date(found[0]?.next ?? 0), state: 'live' });
  expect(await queue.getGlobalConcurrency()).toBe(1);
}

async function expectNone(hourhand: Hourhand): Promise<void> {
  expect(await hourhand.queues.ticks.getJobSchedulersCount()).toBe(0);
  expect(await jobs(hourhand)).toEqual([]);
}

/** The ids of all jobs in the queue of the ticks, wherever they are. */
async function jobs({ queues }: Hourhand): Promise<(string | undefined)[]> {
  return (await queues.ticks.getJobs()).map((job) => job?.id);
}

/** Whether the next tick is due, by this machine's clock, which Redis' is too. */
async function overdue({ queues }: Hourhand): Promise<boolean> {
  const next = (await queues.ticks.getJobScheduler(id))?.next;
  return next !== undefined && next < Date.now();
}

/** What became of every tick, told by its id, from Redis' own record of the queue's events. */
async function ticks({ queues, redis }: Hourhand) {
  const events = (await redis.xrange(queues.ticks.toKey('events'), '-', '+')).map(([, fields]) => ({
    event: fields[fields.indexOf('event') + 1],
    tick: fields[fields.indexOf('jobId') + 1] ?? '',
  }));
  const told = (which: string) =>
    events.filter(({ event, tick }) => event === which && tick.startsWith(`repeat:${id}:`)).map(({ tick }) => tick);
  return { made: [...new Set(told('added'))], active: told('active'), completed: told('completed') };
}

/** What FLUSHALL does, to this hourhand alone. */
async function forgetAll({ redis, prefix }: Hourhand): Promise<void> {
  const keys = await redis.keys(`${prefix}:*`);
  if (keys.length > 0) await redis.del(...keys);
}

/** Keep whatever asks which hours are covered waiting, until it ends. */
async function holdTicks({ environment }: Hourhand): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: environment.DATABASE_URL });
  client.on('error', () => {}); // its database may be dropped under it
  await client.connect();
  await client.query('begin');
  await client.query('lock table "StatRange" in access exclusive mode');
  return client;
}

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
