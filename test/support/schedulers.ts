// The scheduler of the roll-up: put there, looked at, and harmed.

import pg from 'pg';
import { expect } from 'vitest';
import { type Ensured, ensureScheduler, inspectScheduler } from '../../src/producers/schedules.ts';
import type { Deploy } from '../../src/store/schedules.ts';
import { type Hourhand, startHourhand } from './hourhand.ts';

export const id = 'model.call.stats';
export const yearly = '0 0 0 1 1 *';
export const monthly = '0 0 0 1 * *';
export const everySecond = '* * * * * *';
export const today: Deploy = { version: '1.2.0', startedAt: new Date('2026-08-20T13:00:00Z') };

export async function startWorking(pattern: string): Promise<Hourhand> {
  const working = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: pattern });
  await working.work();
  return working;
}

/** Who has the word: in an hourhand of one's own, its worker. */
export async function deployOf({ pool }: Hourhand): Promise<Deploy> {
  const [deploy] = await pool.$queryRaw<
    [Deploy]
  >`select version, "startedAt" from "StatSchedule" where id = ${id}::text`;
  return deploy;
}

export function ensure({ pool, queues }: Hourhand, pattern: string, deploy = today): Promise<Ensured> {
  return ensureScheduler(pool, { id, queue: queues.ticks, pattern }, deploy);
}

export function look({ pool, queues }: Hourhand) {
  return inspectScheduler(pool, { id, queue: queues.ticks });
}

export function later({ version, startedAt }: Deploy): Deploy {
  return { version, startedAt: new Date(startedAt.getTime() + 1) };
}

/** One scheduler, with this pattern in UTC, and one job, which is its next, and is whole. */
export async function expectOne(hourhand: Hourhand, pattern: string): Promise<void> {
  const { ticks: queue } = hourhand.queues;
  const found = await queue.getJobSchedulers();
  expect(found).toMatchObject([{ key: id, pattern, tz: 'UTC' }]);
  expect(await jobs(hourhand)).toEqual([`repeat:${id}:${found[0]?.next}`]);
  expect(await queue.getDelayed()).toMatchObject([
    { name: `tick ${id}`, opts: { removeOnComplete: true, removeOnFail: true } },
  ]);
  expect(await look(hourhand)).toMatchObject({ id, pattern, next: new Date(found[0]?.next ?? 0), state: 'live' });
  expect(await queue.getGlobalConcurrency()).toBe(1);
}

export async function expectNone(hourhand: Hourhand): Promise<void> {
  expect(await hourhand.queues.ticks.getJobSchedulersCount()).toBe(0);
  expect(await jobs(hourhand)).toEqual([]);
}

/** The ids of all jobs in the queue of the ticks, wherever they are. */
export async function jobs({ queues }: Hourhand): Promise<(string | undefined)[]> {
  return (await queues.ticks.getJobs()).map((job) => job?.id);
}

/** Whether the next tick is due, by this machine's clock, which Redis' is too. */
export async function overdue({ queues }: Hourhand): Promise<boolean> {
  const next = (await queues.ticks.getJobScheduler(id))?.next;
  return next !== undefined && next < Date.now();
}

/** What became of every tick, told by its id, from Redis' own record of the queue's events. */
export async function ticks({ queues, redis }: Hourhand) {
  const events = (await redis.xrange(queues.ticks.toKey('events'), '-', '+')).map(([, fields]) => ({
    event: fields[fields.indexOf('event') + 1],
    tick: fields[fields.indexOf('jobId') + 1] ?? '',
  }));
  const told = (which: string) =>
    events.filter(({ event, tick }) => event === which && tick.startsWith(`repeat:${id}:`)).map(({ tick }) => tick);
  return { made: [...new Set(told('added'))], active: told('active'), completed: told('completed') };
}

/** What FLUSHALL does, to this hourhand alone. */
export async function forgetAll({ redis, prefix }: Hourhand): Promise<void> {
  const keys = await redis.keys(`${prefix}:*`);
  if (keys.length > 0) await redis.del(...keys);
}

/** Keep whatever asks which hours are covered waiting, as every tick does, until released. */
export async function holdTicks({ environment }: Hourhand) {
  const client = new pg.Client({ connectionString: environment.DATABASE_URL });
  client.on('error', () => {}); // its database may be dropped under it
  await client.connect();
  await client.query('begin');
  await client.query('lock table "StatRange" in access exclusive mode');
  const release = () => client.end();
  return { release, [Symbol.asyncDispose]: release };
}
