import { expect, test } from 'vitest';
import { standingOf } from '../../src/store/standing.ts';
import { endOf, startOf } from '../../src/time/hour.ts';
import { openWriter } from '../support/gateway.ts';
import { h, startHourhand, until } from '../support/hourhand.ts';

const hour = h('2026-08-20T13');
const at = '2026-08-20T13:59:59.999Z';

test("29: a call of a transaction that began before the hour's end and commits after its roll-up is counted, without anybody asking", async () => {
  await using hourhand = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: '* * * * * *', LATE_DATA_SECONDS: '1' });
  await hourhand.record({ user: 'ada', at });
  await hourhand.cover(hour, h('2026-08-20T14'));
  await using writer = await openWriter(hourhand);
  await writer.beforeTheEnd({ user: 'ada', at }, { user: 'bob', at });
  for (let i = 0; i < 2; i += 1) hourhand.spawn('worker');
  await hourhand.reaches(hour, 'closed');
  expect((await hourhand.stat('ada', hour))?.totalCalls).toBe('1');
  const range = { start: startOf(hour), end: endOf(hour) };
  expect((await standingOf(hourhand.pool, range)).reasons).toEqual([{ hour, why: 'older transactions' }]);
  await writer.query('commit');
  await until(
    async () => [await hourhand.wrong(), (await standingOf(hourhand.pool, range)).final],
    ([wrong, final]) => Array.isArray(wrong) && wrong.length === 0 && final === 1,
  );
});
