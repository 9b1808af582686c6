import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { Ensured } from '../src/producers/schedules.ts';
import type { Deploy } from '../src/store/schedules.ts';
import { type Hourhand, h, startHourhand, until } from './support/hourhand.ts';
import {
  deployOf,
  ensure,
  everySecond,
  expectNone,
  expectOne,
  forgetAll,
  id,
  jobs,
  later,
  look,
  monthly,
  overdue,
  startWorking,
  ticks,
  today,
  yearly,
} from './support/schedulers.ts';

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
});
