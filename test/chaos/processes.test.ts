// Many processes, some of them killed: the figures are those of the calls all the same.

import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { type Hourhand, h, startHourhand, straggle, until } from '../support/hourhand.ts';

test('four workers, one of them killed every second, leave nothing wrong and nothing owed', async () => {
  await using hourhand = await startHourhand({ FANOUT_MAX_USER_JOBS: '4', WORKER_CONCURRENCY: '2' });
  const hours = Array.from({ length: 48 }, (_, i) => new Date(Date.UTC(2026, 7, 1, i)).toISOString().slice(0, 13));
  await hourhand.record(
    ...hours.flatMap((hour, i) =>
      Array.from({ length: 3 + (i % 4) }, (_, u) => ({ user: `u${u}`, at: `${hour}:30:00Z`, credits: '0.00000003' })),
    ),
  );
  // Each takes its time, so that every kill meets jobs under way.
  for (let u = 0; u < 6; u += 1) await straggle(hourhand, `u${u}`, 1, 4);
  const workers = [1, 2, 3, 4].map(() => hourhand.spawn('worker'));
  await hourhand.backfill(h('2026-08-01T00'), h('2026-08-02T23'));
  await until(
    () => running(hourhand),
    (n) => n > 0,
  );
  for (let kill = 0; kill < 5; kill += 1) {
    workers[kill % 4]?.kill('SIGKILL');
    workers[kill % 4] = hourhand.spawn('worker');
    await sleep(1_000); // the kills' own rhythm; nothing is asserted on it
  }
  await until(
    () => hourhand.pool.statHour.count({ where: { hour: { lt: new Date('2026-09-01') }, state: 'closed' } }),
    (n) => n === 48,
  );
  expect(await hourhand.wrong()).toEqual([]);
});

test('eight workers and three schedulers on a pattern of one second run no hour twice for one owing', async () => {
  await using hourhand = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: '* * * * * *', WORKER_CONCURRENCY: '1' });
  const hours = Array.from({ length: 24 }, (_, i) => `2026-08-01T${String(i).padStart(2, '0')}`);
  await hourhand.record(...hours.flatMap((hour) => ['ada', 'bob'].map((user) => ({ user, at: `${hour}:30:00Z` }))));
  await hourhand.cover(h('2026-08-01T00'), h('2026-08-01T23'));
  await straggle(hourhand, 'ada', 2, 6);
  for (let i = 0; i < 8; i += 1) hourhand.spawn('worker');
  const scheduled = await Promise.all([1, 2, 3].map(() => hourhand.run(['schedule'])));
  expect(scheduled.map(({ code }) => code)).toEqual([0, 0, 0]);
  await until(
    () => hourhand.pool.statHour.count({ where: { hour: { lt: new Date('2026-09-01') }, state: 'closed' } }),
    (n) => n === 24,
  );
  const ticks = async () => (await hourhand.queues.ticks.getJobScheduler('model.call.stats'))?.iterationCount ?? 0;
  const seen = await ticks();
  await until(ticks, (n) => n >= seen + 3);
  expect(
    await hourhand.pool.statHour.groupBy({
      by: ['run'],
      where: { hour: { lt: new Date('2026-09-01') } },
      _count: true,
    }),
  ).toEqual([{ run: 1, _count: 24 }]);
  expect(await hourhand.wrong()).toEqual([]);
});

async function running({ pool }: Hourhand): Promise<number> {
  return pool.statHour.count({ where: { state: 'running' } });
}
