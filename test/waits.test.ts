// Nothing that waits waits for ever: it says what it waits for, and ends.

import { Worker } from 'bullmq';
import { expect, test } from 'vitest';
import { PATIENCE, waitFor } from '../src/commands/backfill.ts';
import { readConfig } from '../src/config.ts';
import { openConnections, redisAddress, watchForSilence } from '../src/connections.ts';
import { checkModelsProcessor } from '../src/processors/check-models.ts';
import { enqueueCheck, requestCheck } from '../src/producers/models.ts';
import { freeLost } from '../src/producers/watchdog.ts';
import { checkModels } from '../src/queues/models.ts';
import { workerConnection } from '../src/queues/redis.ts';
import { beginCheck, checkOf } from '../src/store/checks.ts';
import { connect } from '../src/store/db.ts';
import { giveProviders } from '../src/store/models.ts';
import { between } from './support/between.ts';
import { createDatabase } from './support/database.ts';
import { type Hourhand, h, startHourhand, until } from './support/hourhand.ts';

const MODEL = { model: 'gpt', type: 'chatCompletion' } as const;
const hour = h('2026-08-20T13');

async function knowModel({ pool }: Hourhand): Promise<void> {
  await giveProviders(pool, [
    { id: 'acme', baseUrl: 'https://127.0.0.1:1', apiKeyEnv: 'NONE', concurrency: 1, models: [MODEL] },
  ]);
}

test('models check whose job another database takes ends with 1, says why, and leaves no check unended', async () => {
  await using hourhand = await startHourhand();
  await knowModel(hourhand);
  await using database = await createDatabase();
  // As a worker of 0.6 would, which asks nobody whose the jobs are: its own database knows nothing of them.
  const config = readConfig({ ...hourhand.environment, DATABASE_URL: database.url, REDIS_PREFIX: '{test-stranger}' });
  const theirs = await openConnections(config, hourhand.log);
  const connection = workerConnection(redisAddress(hourhand.config), () => {});
  const process = checkModelsProcessor({ ...theirs, queues: hourhand.queues, policy: theirs.modelPolicy });
  const stranger = new Worker(
    checkModels.queue,
    (job, token = '', signal = new AbortController().signal) =>
      process({ job, token, signal, log: hourhand.log } as Parameters<typeof process>[0]),
    { connection, prefix: hourhand.prefix, name: 'hourhand-0.6.0' },
  );
  try {
    await until(
      () => hourhand.queues.checks.getWorkersCount(),
      (workers) => workers === 1,
    );
    const { code, stderr } = await hourhand.run(['models', 'check', 'acme/gpt', '--probe']);
    expect([code, stderr]).toEqual([1, expect.stringMatching(/check 1 was not judged: its job is over or gone/)]);
    expect(stderr).toContain(hourhand.prefix);
    const check = await checkOf(hourhand.pool, 1);
    expect([check?.finishedAt, check?.outcome]).toEqual([
      expect.any(Date),
      { expired: expect.stringContaining('its job is over or gone') },
    ]);
    expect(await hourhand.pool.modelProbe.count()).toBe(0);
  } finally {
    await stranger.close(true);
    connection.disconnect();
    await theirs.close();
  }
});

test('checks that no job stands for any more are ended by the next check; one that waits is not', async () => {
  await using hourhand = await startHourhand();
  const { pool, queues } = hourhand;
  await knowModel(hourhand);
  const asked = { models: [], probe: false, interval: 900 };
  const hoursAgo = (hours: number) => new Date(Date.now() - hours * 3_600_000);
  const [lost, young] = [await beginCheck(pool, asked, hoursAgo(1)), await beginCheck(pool, asked)];
  await queues.checks.pause();
  const { check: waiting } = await requestCheck(hourhand, { ...asked, names: [], requestedBy: 'test' });
  await pool.$executeRaw`update "ModelCheck" set "startedAt" = ${hoursAgo(1)}::timestamptz where id = ${waiting}`;
  await queues.checks.resume();
  await hourhand.work();
  await until(
    () => checkOf(pool, waiting),
    (check) => check?.finishedAt != null,
  );
  expect((await checkOf(pool, lost))?.outcome).toEqual({ expired: 'its job was gone from Redis' });
  expect((await checkOf(pool, young))?.finishedAt).toBe(null);
  expect((await checkOf(pool, waiting))?.outcome).toMatchObject({ models: 1 });
});

test('backfill --wait gives up with 1 while nothing moves, and says what keeps it', async () => {
  await using hourhand = await startHourhand();
  const { queues } = hourhand;
  await hourhand.record({ user: 'ada', at: '2026-08-20T13:10:00Z' });
  const { backfill } = await hourhand.backfill(hour);
  const said: string[] = [];
  const wait = async (patience: Partial<typeof PATIENCE>) => {
    const { write } = process.stderr;
    process.stderr.write = (text: string | Uint8Array) => said.push(String(text)) > 0;
    try {
      return await waitFor(hourhand, backfill, 1, { ...PATIENCE, ask: 200, ...patience });
    } finally {
      process.stderr.write = write;
    }
  };
  expect(await wait({ stopped: 500 })).toBe(1);
  expect(said.splice(0).join('')).toMatch(
    /^0\/1 hours\nno worker is there .*\ngave up waiting: nothing has moved for 0.5 s: no worker .*\. Backfill 1 stays/,
  );
  await queues.users.pause();
  await hourhand.work();
  expect(await wait({ stopped: 500 })).toBe(1);
  expect(said.splice(0).join('')).toContain(`the queue stats-users is paused: resume it in the board`);
  expect(await wait({ behind: 300 })).toBe(1);
  expect(said.splice(0).join('')).toContain('none of its hours has closed for 0.3 s');
  await queues.users.resume();
  expect(await wait({})).toBe(0);
});

test('a command at work ends if PostgreSQL falls silent on an open connection, and names it', async () => {
  await using hourhand = await startHourhand();
  await using line = await between(hourhand.environment.DATABASE_URL);
  const pool = connect(line.url, { connections: 2, onError: () => {} });
  const watch = watchForSilence(pool, { everyMs: 50, limitMs: 200 });
  try {
    const answers = async () => 'an answer';
    await pool.$queryRaw`select pg_sleep(0.5)::text`;
    expect(await Promise.race([watch.silent, answers()])).toBe('an answer');
    line.hold();
    const never = pool.$queryRaw`select 1`.catch(() => 'cut');
    await expect(Promise.race([watch.silent, never])).rejects.toThrow(
      'PostgreSQL: not ready: no answer within 0.2 s',
    );
  } finally {
    watch.stop();
    line.release();
    await pool.$disconnect();
  }
});

test('a check that waits for a probe whose job is lost is freed, so that the next one can begin', async () => {
  await using hourhand = await startHourhand();
  const { queues, redis } = hourhand;
  await knowModel(hourhand);
  await queues.probes.pause();
  await hourhand.work();
  await enqueueCheck(queues);
  await until(
    () => queues.checks.getWaitingChildrenCount(),
    (checks) => checks === 1,
  );
  const none = { enqueued: [], marked: [] };
  expect(await freeLost(queues, none)).toEqual([]);
  await redis.del(queues.probes.toKey('paused'), queues.probes.toKey('wait'));
  expect(await freeLost(queues, none)).toEqual(['check']);
});
