// The board, asked by pages of other sites.

import { expect, test } from 'vitest';
import { askAt, everythingOf, openBoard, WRITES } from '../support/board.ts';
import { h, startHourhand } from '../support/hourhand.ts';

const hour = h('2026-08-20T13');

test('30: a text/plain POST from a foreign origin, or any other body that a form can carry, changes nothing on any write route', async () => {
  await using hourhand = await startHourhand();
  await using board = await openBoard(hourhand);
  const { hours } = hourhand.queues;
  // Something to change, whatever the route: a job that waits, one that is delayed, a scheduler.
  await hourhand.record({ user: 'ada', at: `${hour}:10:00Z` });
  await hourhand.backfill(hour);
  await hours.add('later', {}, { delay: 3_600_000 });
  await hours.upsertJobScheduler('model.call.stats', { pattern: '0 0 0 1 1 *', tz: 'UTC' });
  const [job] = await hours.getWaiting();
  const before = await everythingOf(hourhand);

  const types = [
    'text/plain',
    'text/plain; application/json',
    'application/x-www-form-urlencoded',
    'multipart/form-data; boundary=x',
    'application/jsonp',
  ];
  const own = { Origin: `http://127.0.0.1:${board.port}`, 'Sec-Fetch-Site': 'same-origin' };
  for (const route of WRITES) {
    const [ownMethod = '', path = ''] = route.split(' ');
    const filled = path
      .replace(':queueName', hours.name)
      .replace(':jobId', job?.id ?? '')
      .replace(':queueStatus', 'wait')
      .replace(':schedulerId', 'model.call.stats');
    for (const method of ['post', ownMethod]) {
      for (const headers of [{ Origin: 'https://evil.example' }, own, {}] as Record<string, string>[]) {
        const typed = [...types.map((type) => ({ 'Content-Type': type })), {}];
        const answers = await Promise.all(
          typed.map((type) =>
            askAt(board.port, method, `/queues${filled}`, { ...headers, ...type }, '{"name":"x","data":{}}'),
          ),
        );
        expect([route, method, ...answers.map(({ status }) => status)]).toEqual([
          route,
          method,
          ...typed.map(() => 403),
        ]);
      }
    }
  }
  expect(await everythingOf(hourhand)).toEqual(before);
});
