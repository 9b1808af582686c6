import type { Queue } from 'bullmq';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type Ensured, pauseScheduler, resumeScheduler, runNow } from '../src/producers/schedules.ts';
import { freeLost } from '../src/producers/watchdog.ts';
import { type Deploy, scheduleOf } from '../src/store/schedules.ts';
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
  const never = { id, next: null, lastAt: null, pausedAt: null, pausedBy: null };
  expect(await look(hourhand)).toEqual({ ...never, pattern: null, state: 'missing' });
  await expectNone(hourhand);
  await ensure(hourhand, yearly);
  await hourhand.queues.ticks.removeJobScheduler(id);
  expect(await look(hourhand)).toEqual({ ...never, pattern: yearly, state: 'missing' });
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

  test('its firings count from the moment in which it says other ones', async () => {
    const since = async () => (await scheduleOf(hourhand.pool, id))?.firesSince;
    await ensure(hourhand, yearly, today);
    const first = await since();
    await ensure(hourhand, yearly, later(today));
    expect(await since()).toEqual(first);
    await ensure(hourhand, monthly, later(later(today)));
    expect(Number(await since())).toBeGreaterThan(Number(first));
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

describe('a scheduler that is paused', () => {
  const pause = (by = 'ada') => pauseScheduler(hourhand, id, by);

  test('leaves Redis, is said to be paused by whom and since when, and stays the first one’s pause', async () => {
    await ensure(hourhand, yearly);
    const paused = await pause();
    expect(paused).toMatchObject({ state: 'paused', pattern: yearly, next: null, pausedBy: 'ada' });
    await expectNone(hourhand);
    expect(await pause('bob')).toEqual(paused);
    expect(await look(hourhand)).toEqual(paused);
  });

  test.each<[string, () => Promise<unknown>, Deploy]>([
    ['the next look', async () => {}, today],
    ['a newer deploy', async () => {}, { version: '9.0.0', startedAt: today.startedAt }],
    ['Redis forgetting everything', () => forgetAll(hourhand), today],
    ['a newer deploy after that', () => forgetAll(hourhand), later(today)],
  ])('stays so through %s', async (_, happens, deploy) => {
    await ensure(hourhand, yearly);
    await pause();
    await happens();
    expect(await ensure(hourhand, deploy === today ? yearly : monthly, deploy)).toBe('kept');
    await expectNone(hourhand);
    expect((await look(hourhand)).state).toBe('paused');
  });

  test('is taken out again where another hand put it there', async () => {
    await ensure(hourhand, yearly);
    await pause();
    await hourhand.queues.ticks.upsertJobScheduler(id, { pattern: everySecond, tz: 'UTC' });
    expect((await look(hourhand)).state).toBe('changed');
    expect(await ensure(hourhand, yearly)).toBe('removed');
    await expectNone(hourhand);
  });

  test('fires again once it is resumed, at once, as the newest deploy says by then', async () => {
    await ensure(hourhand, yearly);
    await pause();
    await ensure(hourhand, monthly, later(today));
    expect(await resumeScheduler(hourhand, id, 'bob')).toMatchObject({
      state: 'live',
      pausedBy: null,
      resumed: true,
    });
    await expectOne(hourhand, monthly);
    expect(await resumeScheduler(hourhand, id, 'bob')).toMatchObject({ state: 'live', resumed: false });
  });

  test('stays off once it is resumed, where it is off', async () => {
    await ensure(hourhand, 'off');
    await pause();
    expect(await resumeScheduler(hourhand, id, 'bob')).toMatchObject({ state: 'off' });
    await expectNone(hourhand);
  });

  test('may be paused before any deploy has said a word of it', async () => {
    await pause();
    expect(await ensure(hourhand, yearly)).toBe('kept');
    expect(await look(hourhand)).toMatchObject({ state: 'paused', pattern: yearly });
  });

  test.each([pauseScheduler, resumeScheduler, runNow])(
    'has a name that there is, or %o does nothing',
    async (does) => {
      await expect(does(hourhand, 'nonsense', 'ada')).rejects.toThrow(
        /^expected model\.call\.stats, late\.model\.calls, .*, retain\.model\.calls, got "nonsense"$/,
      );
      expect(await hourhand.pool.statSchedule.count()).toBe(0);
    },
  );
});

test('ten who ask for a tick at once get one, and ask again once it is done', async () => {
  for (const ticks of ['1', '2']) {
    await Promise.all(Array.from({ length: 10 }, () => runNow(hourhand, id)));
    expect(await jobs(hourhand)).toHaveLength(1);
    const [job] = await hourhand.queues.ticks.getJobs();
    expect([ticks, job?.data]).toEqual([ticks, { asked: true }]);
    await job?.remove();
  }
});

test('a tick that was asked for, and that is in no list, makes way for a new one', async () => {
  await runNow(hourhand, id);
  await hourhand.redis.del(hourhand.queues.ticks.toKey('wait'));
  expect(await freeLost(hourhand.queues, { enqueued: [], marked: [] })).toEqual(['tick-asked-for']);
});

describe.concurrent('while it is paused', () => {
  const hour = h('2026-08-20T13');
  const asked = h('2026-08-20T15');
  const at = '2026-08-20T13:10:00Z';

  async function startPaused(id: string): Promise<Hourhand> {
    const paused = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: yearly });
    await pauseScheduler(paused, id, 'ada');
    return paused;
  }

  const idle = (...queues: Queue[]) =>
    until(
      () => Promise.all(queues.map((queue) => queue.getJobCountByTypes('waiting', 'active'))),
      (counts) => counts.every((n) => n === 0),
    );

  test('the roll-up is asked for by neither a look nor a tick that waited, but for the hours of a backfill', async () => {
    await using paused = await startPaused(id);
    await paused.record({ user: 'ada', at }, { user: 'ada', at: '2026-08-20T15:10:00Z' });
    await paused.cover(hour, hour);
    await paused.backfill(asked);
    await forgetAll(paused);
    expect(await paused.tick()).toMatchObject({ enqueued: [asked], closedEmpty: [] });
    await paused.queues.ticks.add('tick', {});
    await paused.work();
    await paused.reaches(asked, 'closed');
    await idle(paused.queues.ticks);
    expect(await paused.hour(hour)).toBeUndefined();
    expect(await look(paused)).toMatchObject({ state: 'paused', lastAt: null });

    await resumeScheduler(paused, id, 'ada');
    await paused.tick();
    await paused.reaches(hour, 'closed');
  });

  test('a tick that somebody asks for runs, and is its last', async () => {
    await using paused = await startPaused(id);
    await paused.record({ user: 'ada', at });
    await paused.cover(hour, hour);
    await paused.work();
    const before = new Date();
    await runNow(paused, id);
    await paused.reaches(hour, 'closed');
    await idle(paused.queues.ticks);
    const { state, lastAt } = await look(paused);
    expect([state, Number(lastAt) > before.getTime() - 1_000]).toEqual(['paused', true]);
  });

  test('late data is asked for by neither a look nor a tick of either scheduler, until somebody asks', async () => {
    await using paused = await startPaused('late.model.calls');
    await paused.record({ user: 'ada', at });
    await paused.work();
    await paused.backfill(hour);
    await paused.reaches(hour, 'closed');
    await paused.record({ user: 'bob', at });
    expect(await paused.tick()).toMatchObject({ marked: [], settled: [] });
    await runNow(paused, id);
    await paused.queues.lateTicks.add('tick', {});
    await idle(paused.queues.ticks, paused.queues.lateTicks);
    expect([await paused.stat('bob', hour), await paused.pool.statMark.count()]).toEqual([undefined, 1]);

    await runNow(paused, 'late.model.calls');
    await until(
      () => paused.stat('bob', hour),
      (stat) => stat !== undefined,
    );
  });

  test('no tick of the others asks for anything, unless somebody asked for it', async () => {
    await using paused = await startPaused('audit.model.call.stats');
    await paused.work();
    const { auditTicks, audits } = paused.queues;
    await auditTicks.add('tick', {});
    await idle(auditTicks);
    expect(await audits.getJobs()).toEqual([]);
    await runNow(paused, 'audit.model.call.stats');
    await until(
      () => audits.getCompletedCount(),
      (n) => n === 1,
    );
  });

  test('workers that start, and a pattern that is set anew, leave it so', async () => {
    await using paused = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: yearly });
    const first = await paused.work();
    await pauseScheduler(paused, id, 'ada');
    await first.stop();
    await forgetAll(paused);
    const { DATABASE_URL } = paused.environment;
    await using newer = await startHourhand({
      MODEL_CALL_STATS_CRON_TIME: monthly,
      DATABASE_URL,
      REDIS_PREFIX: paused.prefix,
    });
    await newer.work();
    await expectNone(paused);
    expect(await look(paused)).toMatchObject({ state: 'paused', pattern: monthly, pausedBy: 'ada' });
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

  test('are written down once they are done, each scheduler’s own, and not while they fail', async () => {
    await using working = await startWorking(yearly);
    await working.pool.$executeRaw`alter table "StatRange" rename to "elsewhere"`;
    await runNow(working, id);
    await until(
      () => jobs(working),
      (left) => left.length === 1,
    );
    expect(await look(working)).toMatchObject({ lastAt: null });
    await working.pool.$executeRaw`alter table "elsewhere" rename to "StatRange"`;
    await runNow(working, id);
    await until(
      () => look(working),
      ({ lastAt }) => lastAt !== null,
    );
    expect(
      (await working.pool.statSchedule.findMany({ where: { lastAt: { not: null } } })).map((row) => row.id),
    ).toEqual([id]);
  });

  test('do not fail for not being written down', async () => {
    await using working = await startWorking(yearly);
    await working.pool.$executeRaw`
      create function refuse() returns trigger language plpgsql as $$ begin raise exception 'refused'; end $$`;
    await working.pool.$executeRaw`
      create trigger refuse before update on "StatSchedule" for each row execute function refuse()`;
    const hour = h('2026-08-20T13');
    await working.record({ user: 'ada', at: '2026-08-20T13:10:00Z' });
    await working.cover(hour, hour);
    await runNow(working, id);
    await working.reaches(hour, 'closed');
    const said = await until(
      async () => working.logged.filter(({ scheduler }) => scheduler === id),
      (lines) => lines.some(({ msg }) => msg === 'last tick not written down'),
    );
    expect(said.at(-1)?.reason).toContain('refused');
    expect(working.logged.filter(({ msg }) => msg === 'job failed')).toEqual([]);
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
