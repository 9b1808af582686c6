import { expect, test } from 'vitest';
import { openWarnings, settleWarnings } from '../src/store/warnings.ts';
import { startHourhand } from './support/hourhand.ts';

const gap = { subject: 'ModelCall_20261201', detail: 'a session holds ModelCall', remedy: 'end pid 7' };

test('a warning is raised once, keeps its start while its text changes, and ends when it is found no more', async () => {
  await using hourhand = await startHourhand();
  const { pool } = hourhand;
  const early = new Date('2026-08-20T13:00Z');
  const first = await settleWarnings(pool, 'partitions', [gap], early);
  expect(first).toEqual({ raised: [{ kind: 'partitions', since: early, ...gap }], ended: [] });
  const again = await settleWarnings(
    pool,
    'partitions',
    [{ ...gap, remedy: 'end pid 8' }],
    new Date('2026-08-20T14:00Z'),
  );
  expect(again).toEqual({ raised: [], ended: [] });
  expect(await openWarnings(pool)).toEqual([{ kind: 'partitions', since: early, ...gap, remedy: 'end pid 8' }]);
  expect((await settleWarnings(pool, 'partitions', [])).ended).toHaveLength(1);
  expect(await openWarnings(pool)).toEqual([]);
});

test('the look of one kind leaves the warnings of another alone', async () => {
  await using hourhand = await startHourhand();
  await settleWarnings(hourhand.pool, 'partitions', [gap]);
  await settleWarnings(hourhand.pool, 'clock', []);
  expect(await openWarnings(hourhand.pool)).toHaveLength(1);
});

test('many processes that see the same at once raise it once', async () => {
  await using hourhand = await startHourhand();
  const looks = await Promise.all(Array.from({ length: 8 }, () => settleWarnings(hourhand.pool, 'clock', [gap])));
  expect(looks.flatMap(({ raised }) => raised)).toHaveLength(1);
});
