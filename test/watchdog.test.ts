// What only seems to be under way is found and freed; what really is under way is left alone.

import type { Queue } from 'bullmq';
import { expect, test } from 'vitest';
import { enqueueCheck } from '../src/producers/models.ts';
import { freeLost } from '../src/producers/watchdog.ts';
import { auditHours } from '../src/queues/audit.ts';
import { addJobs, jobOf } from '../src/queues/define-job.ts';
import { takesTurn } from '../src/queues/redis.ts';
import { retainCalls } from '../src/queues/retain.ts';
import { failStaleCalls } from '../src/queues/stale.ts';
import { rollUpHour, rollUpMarks } from '../src/queues/stats.ts';
import { type Hourhand, h, startHourhand, until } from './support/hourhand.ts';

const hour = h('2026-08-20T13');
const at = '2026-08-20T13:10:00Z';
const both = { enqueued: [hour], marked: [hour] };

test('jobs in no list make way for new ones: of an hour, of marks, of the clean-up, the audit, the retention and the check', async () => {
  await using hourhand = await startHourhand();
  const { hours, marks, stale, audits, retentions, checks } = hourhand.queues;
  const looked = [hours, marks, stale, audits, retentions, checks];
  const enqueue = async () => {
    await addJobs(hours, [jobOf(rollUpHour, { hour, step: 'allot', run: 0, backfilled: false, again: false })]);
    await addJobs(marks, [jobOf(rollUpMarks, { hour })]);
    await addJobs(stale, [jobOf(failStaleCalls, {})]);
    await addJobs(audits, [jobOf(auditHours, {})]);
    await addJobs(retentions, [jobOf(retainCalls, {})]);
    await enqueueCheck(hourhand.queues);
  };
  const waiting = () => Promise.all(looked.map((queue) => queue.getWaitingCount()));
  await enqueue();
  expect(await waiting()).toEqual([1, 1, 1, 1, 1, 1]);
  expect(await freeLost(hourhand.queues, both)).toEqual([]);

  for (const queue of looked) await hourhand.redis.del(queue.toKey('wait'));
  await enqueue();
  expect(await waiting()).toEqual([0, 0, 0, 0, 0, 0]);

  expect(await freeLost(hourhand.queues, both)).toEqual([
    'hour-1787230800',
    'marks-1787230800',
    'stale-calls',
    'audit-hours',
    'retain-calls',
    'check',
  ]);
  await enqueue();
  expect(await waiting()).toEqual([1, 1, 1, 1, 1, 1]);
  expect(await freeLost(hourhand.queues, both)).toEqual([]);
});

test('an hour that waits, waits in a paused queue or behind others, is delayed, or has children at work is not lost', async () => {
  await using hourhand = await startHourhand();
  const { hours, users } = hourhand.queues;
  await hourhand.cover(hour, hour);
  await hourhand.record({ user: 'ada', at });
  await hourhand.tick();
  await expectKept(hourhand, hours, 'waiting');
  await hours.pause();
  await expectKept(hourhand, hours, 'waiting');
  const [job] = await hours.getJobs();
  await job?.changePriority({ priority: 10 });
  await expectKept(hourhand, hours, 'prioritized');
  await job?.remove();
  await hours.add('later', {}, { delay: 3_600_000, deduplication: { id: 'hour-1787230800' } });
  await expectKept(hourhand, hours, 'delayed');
  await (await hours.getJobs())[0]?.remove();

  await hours.resume();
  await users.pause();
  await hourhand.work();
  await hourhand.tick();
  await expectKept(hourhand, hours, 'waiting-children');
});

test('an hour that waits for a child in no list, or for one that is gone, makes way for a new run', async () => {
  await using hourhand = await startHourhand();
  const { users } = hourhand.queues;
  await hourhand.cover(hour, hour);
  await hourhand.record({ user: 'ada', at }, { user: 'bob', at });
  await users.pause();
  await hourhand.work();
  for (const [i, lose] of [
    async () => hourhand.redis.del(users.toKey('wait'), users.toKey('paused')),
    async () => {
      for (const { id } of await users.getJobs()) await hourhand.redis.del(users.toKey(id ?? ''));
      await hourhand.redis.del(users.toKey('wait'), users.toKey('paused'));
    },
  ].entries()) {
    await hourhand.tick();
    await until(
      async () => [await hourhand.queues.hours.getWaitingChildrenCount(), (await hourhand.hour(hour))?.run],
      ([waiting, allotted]) => waiting === 1 && allotted === i + 1,
    );
    expect(await freeLost(hourhand.queues, both)).toEqual([]);
    await lose();
    expect(await freeLost(hourhand.queues, both)).toEqual(['hour-1787230800']);
  }
  await users.resume();
  await hourhand.tick();
  await hourhand.reaches(hour, 'closed');
  expect(await hourhand.wrong()).toEqual([]);
});

test('a job in no list that is worked on all the same keeps its hour until it loses its lock', async () => {
  await using hourhand = await startHourhand();
  const { hours } = hourhand.queues;
  await hourhand.cover(hour, hour);
  await hourhand.record({ user: 'ada', at });
  await hourhand.tick();
  const [job] = await hours.getJobs();
  await hourhand.redis.set(hours.toKey(`${job?.id}:lock`), 'somebody');
  await hourhand.redis.del(hours.toKey('wait'));
  expect(await freeLost(hourhand.queues, both)).toEqual([]);
  await hourhand.redis.del(hours.toKey(`${job?.id}:lock`));
  expect(await freeLost(hourhand.queues, both)).toEqual(['hour-1787230800']);
});

test('no job is taken for lost while it moves from list to list, however often one looks', async () => {
  await using hourhand = await startHourhand({ WORKER_CONCURRENCY: '2' });
  const hours = Array.from({ length: 24 }, (_, i) => h(`2026-08-20T${String(i).padStart(2, '0')}`));
  await hourhand.record(...hours.map((one) => ({ user: 'ada', at: `${one}:10:00Z` })));
  await hourhand.work();
  await hourhand.backfill(h('2026-08-20T00'), h('2026-08-20T23'));
  const freed: string[] = [];
  let looks = 0;
  await until(
    async () => {
      freed.push(...(await freeLost(hourhand.queues, { enqueued: hours, marked: [] })));
      looks += 1;
      return Promise.all(hours.map(hourhand.state));
    },
    (states) => states.every((state) => state === 'closed'),
  );
  expect([freed, looks > 3]).toEqual([[], true]);
});

async function expectKept({ queues }: Hourhand, queue: Queue, state: string): Promise<void> {
  await until(
    async () => (await queue.getJobs())[0]?.getState(),
    (seen) => seen === state,
  );
  expect(await freeLost(queues, both)).toEqual([]);
  expect((await queue.getJobs()).length).toBe(1);
}

test('of all processes one looks for all, and another where Redis has forgotten it', async () => {
  await using hourhand = await startHourhand();
  const { redis, prefix } = hourhand;
  const turns = await Promise.all(Array.from({ length: 8 }, () => takesTurn(redis, prefix, 'look', 60_000)));
  expect(turns.filter(Boolean)).toHaveLength(1);
  expect(await takesTurn(redis, prefix, 'look', 60_000)).toBe(false);
  await redis.del(`${prefix}:turn:look`);
  expect(await takesTurn(redis, prefix, 'look', 60_000)).toBe(true);
});
