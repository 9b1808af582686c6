// Schedulers, and what an operator or an older replica does to them.

import { describe, expect, test } from 'vitest';
import { h, startHourhand, until } from '../support/hourhand.ts';
import {
  deployOf,
  ensure,
  expectOne,
  forgetAll,
  holdTicks,
  later,
  monthly,
  startWorking,
  ticks,
  yearly,
} from '../support/schedulers.ts';

const hour = h('2026-08-20T13');

describe.concurrent('schedulers', () => {
  test('6: the waiting tick is promoted twice, then hourhand deployed again: ticking goes on', async () => {
    await using hourhand = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: yearly });
    let worker = await hourhand.work();
    const promoted: (string | undefined)[] = [];
    for (const deploys of [false, false, true]) {
      if (deploys) {
        await worker.stop();
        worker = await hourhand.work();
      }
      const [next] = await until(
        () => hourhand.queues.ticks.getDelayed(),
        (delayed) => delayed.length === 1,
      );
      await next?.promote();
      promoted.push(next?.id);
      await until(
        () => ticks(hourhand),
        ({ completed }) => completed.length === promoted.length,
      );
    }
    expect((await ticks(hourhand)).completed).toEqual(promoted);
    expect(new Set(promoted).size).toBe(3);
    await expectOne(hourhand, yearly);
  });

  test('7: a slow tick is promoted, and the scheduler written anew while it is active: whatever comes of it is taken for a tick', async () => {
    await using working = await startWorking(yearly);
    const { ticks: queue } = working.queues;
    await using held = await holdTicks(working);
    await (await queue.getDelayed())[0]?.promote();
    await until(
      () => queue.getActiveCount(),
      (n) => n === 1,
    );
    expect(await ensure(working, monthly, later(await deployOf(working)))).toBe('changed');
    await held.release();
    await until(
      () => ticks(working),
      ({ completed }) => completed.length === 1,
    );
    await expectOne(working, monthly);

    // What BullMQ may leave behind then: neither name nor data.
    const [next] = await queue.getDelayed();
    await working.redis.hset(queue.toKey(next?.id ?? ''), { name: '', data: '{}' });
    await working.record({ user: 'ada', at: '2026-08-20T13:10:00Z' });
    await working.cover(hour, hour);
    await next?.promote();
    await working.reaches(hour, 'closed');
    expect(await working.wrong()).toEqual([]);
    await until(
      () => ticks(working),
      ({ completed }) => completed.length === 2,
    );
    await expectOne(working, monthly);
  });

  test('11: a replica of an older version starts again with an older pattern: the schedule is not reverted, even after Redis lost it', async () => {
    await using hourhand = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: yearly });
    const newer = { version: '99.0.0', startedAt: new Date() };
    expect(await ensure(hourhand, monthly, newer)).toBe('added');
    await (await hourhand.work()).stop();
    await expectOne(hourhand, monthly);
    await forgetAll(hourhand);
    await hourhand.work();
    await expectOne(hourhand, monthly);
  });
});

test('12: patterns that are empty, too short, never fire or name an unknown zone are refused at start, each by its name', async () => {
  await using hourhand = await startHourhand();
  const refused = async (patterns: Record<string, string>) => {
    Object.assign(hourhand.environment, patterns);
    const { code, stderr } = await hourhand.run(['worker']);
    expect(code).toBe(2);
    for (const [name, pattern] of Object.entries(patterns)) {
      expect(stderr).toContain(
        `${name}: expected six cron fields in UTC, seconds first (five: minute first), or off, got "${pattern}"`,
      );
    }
  };
  await refused({
    MODEL_CALL_STATS_CRON_TIME: '',
    CLEANUP_STALE_MODEL_CALLS_CRON_TIME: '* * *',
    CHECK_MODEL_STATUS_CRON_TIME: '0 0 0 30 2 *',
  });
  await refused({ MODEL_CALL_STATS_CRON_TIME: 'CRON_TZ=Mars/Olympus 0 1 * * * *' });
});
