// What is wrong for too long is said once, to whoever is on call, and its end too.

import { Webhook } from 'standardwebhooks';
import { expect, test } from 'vitest';
import { startDashboard } from '../src/dashboard/server.ts';
import { watchAlarms } from '../src/processors/watch-alarms.ts';
import { pauseScheduler, resumeScheduler } from '../src/producers/schedules.ts';
import { type AlarmPolicy, forgetAlarms, openAlarms, settleAlarms } from '../src/store/alarms.ts';
import { closeHour, failHour } from '../src/store/ledger.ts';
import { coverFromNowOn } from '../src/store/ranges.ts';
import { markTicked, settleSchedule } from '../src/store/schedules.ts';
import { startOf } from '../src/time/hour.ts';
import { startWatch } from '../src/watch.ts';
import { ended, type Hourhand, h, linesOf, startHourhand, until } from './support/hourhand.ts';
import { startReceiver } from './support/receiver.ts';
import { today } from './support/schedulers.ts';
import { ownServers } from './support/servers.ts';

const limits: AlarmPolicy = { noHourClosedMinutes: 120, tickMissedSeconds: 180, hourPartialMinutes: 60 };
const secret = 'a-secret-of-enough-letters';
const stats = 'model.call.stats';
const at = (time: string) => new Date(`2026-08-20T${time}Z`);

/** The live range from 12:00 on, and the roll-up set at 13:00, as by a first start. */
async function startedAtOne(pattern = '0 1 * * * *', env: Record<string, string> = {}): Promise<Hourhand> {
  const hourhand = await startHourhand(env);
  await coverFromNowOn(hourhand.pool, at('13:00:00'));
  await settle(hourhand, stats, pattern);
  return hourhand;
}

async function settle({ pool }: Hourhand, id: string, pattern: string): Promise<void> {
  await settleSchedule(pool, id, pattern, today);
  await pool.statSchedule.update({ where: { id }, data: { firesSince: at('13:00:00') } });
}

const ticked = ({ pool }: Hourhand, time: string, id = stats) =>
  pool.statSchedule.update({ where: { id }, data: { lastAt: at(time) } });

/** The hour is closed, or partial since then. */
async function hourIs({ pool }: Hourhand, hour: string, state: 'closed' | 'partial', time: string): Promise<void> {
  const known = {
    state,
    run: 1,
    wanted: 1,
    reason: 'tick' as const,
    closedAt: state === 'closed' ? at(time) : null,
    partialSince: state === 'partial' ? at(time) : null,
    error: state === 'partial' ? 'eve: numeric field overflow (22003)' : null,
  };
  await pool.statHour.upsert({
    where: { hour: startOf(h(hour)) },
    create: { hour: startOf(h(hour)), ...known },
    update: known,
  });
}

/** What a look raised and ended, in words. */
async function look({ pool }: Hourhand, time: string, policy: Partial<AlarmPolicy> = {}) {
  const { raised, ended } = await settleAlarms(pool, { ...limits, ...policy }, at(time));
  const said = (alarms: typeof raised) => alarms.map(({ kind, subject }) => `${kind} ${subject}`.trim());
  return { raised: said(raised), ended: said(ended) };
}

const nothing = { raised: [], ended: [] };
const onlyTicks = { noHourClosedMinutes: 0, hourPartialMinutes: 0 };
const onlyHours = { tickMissedSeconds: 0, hourPartialMinutes: 0 };

test('on a fresh start nothing is wrong, nor where nothing has ever been started', async () => {
  await using hourhand = await startHourhand();
  expect(await look(hourhand, '13:00:00')).toEqual(nothing);
  await hourhand.work();
  expect(await settleAlarms(hourhand.pool, limits)).toEqual(nothing);
});

test('no hour that closes is an alarm after the limit, counted from the last close, or else from the first hour’s end', async () => {
  await using hourhand = await startedAtOne();
  expect(await look(hourhand, '15:00:00', onlyHours)).toEqual(nothing);
  expect(await look(hourhand, '15:00:01', onlyHours)).toEqual({ raised: ['no-hour-closed'], ended: [] });
  await hourIs(hourhand, '2026-08-20T12', 'closed', '15:00:30');
  expect(await look(hourhand, '15:01:00', onlyHours)).toEqual({ raised: [], ended: ['no-hour-closed'] });
  expect(await look(hourhand, '17:00:30', onlyHours)).toEqual(nothing);
  expect(await look(hourhand, '17:00:31', onlyHours)).toEqual({ raised: ['no-hour-closed'], ended: [] });
  expect(await openAlarms(hourhand.pool)).toMatchObject([
    {
      kind: 'no-hour-closed',
      subject: '',
      since: at('15:00:30'),
      raisedAt: at('17:00:31'),
      detail:
        'expected an hour of the live range to close within 120 minutes, found none since 2026-08-20T15:00:30.000Z',
    },
  ]);
});

test('that a backfill’s hours close, of a time before the live range, is not enough', async () => {
  await using hourhand = await startedAtOne();
  await hourIs(hourhand, '2026-08-01T12', 'closed', '15:00:00');
  expect(await look(hourhand, '15:00:01', onlyHours)).toMatchObject({ raised: ['no-hour-closed'] });
});

test('a tick that is missed is an alarm that names its scheduler, and ends with the next', async () => {
  await using hourhand = await startedAtOne();
  await settle(hourhand, 'late.model.calls', '*/15 * * * * *');
  await ticked(hourhand, '13:03:50', 'late.model.calls');
  expect(await look(hourhand, '13:04:00', onlyTicks)).toEqual(nothing);
  expect(await look(hourhand, '13:04:01', onlyTicks)).toEqual({ raised: [`tick-missed ${stats}`], ended: [] });
  await ticked(hourhand, '13:04:20');
  expect(await look(hourhand, '13:04:30', onlyTicks)).toEqual({ raised: [], ended: [`tick-missed ${stats}`] });
  expect(await look(hourhand, '13:08:00', onlyTicks)).toEqual({
    raised: ['tick-missed late.model.calls'],
    ended: [],
  });
  expect(await look(hourhand, '14:04:00', onlyTicks)).toEqual(nothing);
  expect(await look(hourhand, '14:04:01', onlyTicks)).toEqual({ raised: [`tick-missed ${stats}`], ended: [] });
  expect((await openAlarms(hourhand.pool)).map(({ detail }) => detail)).toEqual([
    'expected a tick at 2026-08-20T13:04:00.000Z, and at most 180 s later, found the last was done at 2026-08-20T13:03:50.000Z',
    'expected a tick at 2026-08-20T14:01:00.000Z, and at most 180 s later, found the last was done at 2026-08-20T13:04:20.000Z',
  ]);
});

test('a tick by a clock that is minutes fast is not taken for that of the hour before', async () => {
  await using hourhand = await startedAtOne();
  await ticked(hourhand, '13:56:00');
  expect(await look(hourhand, '14:30:00', onlyTicks)).toEqual(nothing);
  expect(await look(hourhand, '15:04:01', onlyTicks)).toMatchObject({ raised: [`tick-missed ${stats}`] });
});

test('what was written down by a clock that was hours fast, and set back since, hides nothing for as long', async () => {
  await using hourhand = await startedAtOne();
  const { pool } = hourhand;
  await hourIs(hourhand, '2026-08-20T12', 'closed', '13:01:00');
  await hourIs(hourhand, '2026-08-20T13', 'closed', '23:01:00');
  expect(await look(hourhand, '15:01:00', onlyHours)).toEqual(nothing);
  expect(await look(hourhand, '15:01:01', onlyHours)).toEqual({ raised: ['no-hour-closed'], ended: [] });

  const fast = new Date(Date.now() + 10 * 3_600_000);
  await pool.statSchedule.update({ where: { id: stats }, data: { lastAt: fast } });
  await markTicked(pool, stats);
  const [schedule] = await pool.statSchedule.findMany();
  expect(schedule?.lastAt?.getTime()).toBeLessThan(fast.getTime());
});

test('an hour that is partial for too long is an alarm, kept over its re-runs, until it closes', async () => {
  await using hourhand = await startHourhand({ PARTIAL_BACKOFF_MAX_SECONDS: '1' });
  const hour = h('2026-08-20T13');
  await hourhand.record({ user: 'eve', at: '2026-08-20T13:10:00Z', credits: '999999999999', id: 'absurd' });
  await hourhand.record({ user: 'eve', at: '2026-08-20T13:10:00Z', credits: '999999999999' });
  await hourhand.work();
  await hourhand.backfill(hour);
  await hourhand.reaches(hour, 'partial');
  const sinceOf = async () =>
    (await hourhand.pool.statHour.findUnique({ where: { hour: startOf(hour) } }))?.partialSince;
  const since = await sinceOf();
  const after = (minutes: number) => new Date(Number(since) + minutes * 60_000);
  expect(await settleAlarms(hourhand.pool, limits, after(60))).toEqual(nothing);
  await hourhand.backfill(hour);
  await until(
    () => hourhand.hour(hour),
    (row) => row?.run === 2 && row.state === 'partial',
  );
  expect(await sinceOf()).toEqual(since);
  const { raised } = await settleAlarms(hourhand.pool, limits, after(61));
  expect(raised).toMatchObject([{ kind: 'hour-partial', subject: hour, since }]);
  expect(raised[0]?.detail).toContain('eve: numeric field overflow');

  await hourhand.pool.modelCall.delete({ where: { id: 'absurd' } });
  await hourhand.backfill(hour);
  await hourhand.reaches(hour, 'closed');
  expect(await sinceOf()).toBeNull();
  expect((await settleAlarms(hourhand.pool, limits, after(62))).ended).toMatchObject([{ subject: hour }]);
});

test('an hour is partial no longer, nor for any longer, once it is closed as empty or owed as if it had never been', async () => {
  await using hourhand = await startHourhand();
  const { pool, policy } = hourhand;
  const [empty, mended] = [h('2026-08-20T13'), h('2026-08-20T14')];
  await hourhand.cover(empty, empty);
  await failHour(pool, empty, 'eve: not done', policy, at('14:00:00'));
  await failHour(pool, mended, 'eve: not done', policy, at('15:00:00'));
  expect((await look(hourhand, '20:00:00')).raised).toHaveLength(2);
  expect(await closeHour(pool, mended, 0, 'parent', policy)).toEqual({ outcome: 'open' });
  expect(await hourhand.tick()).toMatchObject({ closedEmpty: [empty] });
  expect((await look(hourhand, '20:01:00')).ended).toHaveLength(2);
  expect((await pool.statHour.findMany()).map(({ partialSince }) => partialSince)).toEqual([null, null]);
});

test('of many partial hours a hundred are named, the oldest, and others when these are closed', async () => {
  await using hourhand = await startHourhand();
  await hourhand.pool.$executeRaw`
    insert into "StatHour" (hour, state, reason, run, "partialSince")
    select hour, 'partial', 'tick', 1, hour + interval '1 hour'
      from generate_series('2026-08-01T00:00Z'::timestamptz, '2026-08-05T04:00Z', '1 hour') as hour`;
  const { raised } = await look(hourhand, '13:00:00');
  expect([
    raised.length,
    raised.includes('hour-partial 2026-08-05T03'),
    raised.includes('hour-partial 2026-08-05T04'),
  ]).toEqual([100, true, false]);
  expect(await look(hourhand, '13:00:30')).toEqual(nothing);
  await hourIs(hourhand, '2026-08-01T00', 'closed', '13:00:40');
  expect(await look(hourhand, '13:01:00')).toEqual({
    raised: ['hour-partial 2026-08-05T04'],
    ended: ['hour-partial 2026-08-01T00'],
  });
});

test('of a scheduler that is paused or off no tick is missed and no close; once resumed it counts from then', async () => {
  await using hourhand = await startedAtOne();
  await pauseScheduler(hourhand, stats, 'ada');
  expect(await look(hourhand, '23:00:00')).toEqual(nothing);
  await resumeScheduler(hourhand, stats, 'ada');
  expect(await settleAlarms(hourhand.pool, { ...limits, hourPartialMinutes: 0 })).toEqual(nothing);
  await hourhand.pool.statSchedule.update({ where: { id: stats }, data: { firesSince: at('17:00:30') } });
  expect(await look(hourhand, '17:03:00')).toEqual(nothing);
  expect(await look(hourhand, '17:04:01')).toEqual({ raised: [`tick-missed ${stats}`], ended: [] });
  expect(await look(hourhand, '19:00:31')).toEqual({ raised: ['no-hour-closed'], ended: [] });
  await settle(hourhand, stats, 'off');
  await hourhand.pool.statSchedule.update({ where: { id: stats }, data: { pattern: 'off' } });
  const ended = ['no-hour-closed', `tick-missed ${stats}`];
  const off = await look(hourhand, '19:01:00');
  expect([off.raised, off.ended.sort()]).toEqual([[], ended]);
});

test('a limit of 0 is none', async () => {
  await using hourhand = await startedAtOne();
  await hourIs(hourhand, '2026-08-20T12', 'partial', '13:01:00');
  const none = { noHourClosedMinutes: 0, tickMissedSeconds: 0, hourPartialMinutes: 0 };
  expect(await look(hourhand, '23:00:00', none)).toEqual(nothing);
  expect((await look(hourhand, '23:00:00')).raised.sort()).toEqual([
    'hour-partial 2026-08-20T12',
    'no-hour-closed',
    `tick-missed ${stats}`,
  ]);
});

test('however many look at once, and however often, an alarm is raised once and ended once', async () => {
  await using hourhand = await startedAtOne();
  await using other = await startHourhand({
    DATABASE_URL: hourhand.environment.DATABASE_URL,
    REDIS_PREFIX: hourhand.prefix,
  });
  await hourIs(hourhand, '2026-08-20T12', 'partial', '13:01:00');
  const all = async (time: string) => {
    const looks = await Promise.all(Array.from({ length: 12 }, (_, i) => look(i % 2 ? hourhand : other, time)));
    return { raised: looks.flatMap((one) => one.raised).sort(), ended: looks.flatMap((one) => one.ended).sort() };
  };
  const three = ['hour-partial 2026-08-20T12', 'no-hour-closed', `tick-missed ${stats}`];
  expect(await all('16:00:00')).toEqual({ raised: three, ended: [] });
  expect(await all('16:00:30')).toEqual(nothing);
  await hourIs(hourhand, '2026-08-20T12', 'closed', '16:00:40');
  await ticked(hourhand, '16:00:50');
  expect(await all('16:01:00')).toEqual({ raised: [], ended: three });
  expect(await hourhand.pool.alarm.count()).toBe(3);
});

test('what was ended long ago is forgotten, and nothing that is open', async () => {
  await using hourhand = await startedAtOne();
  await look(hourhand, '13:30:00');
  await ticked(hourhand, '13:30:10');
  await look(hourhand, '13:30:30');
  await look(hourhand, '23:00:00');
  await forgetAlarms(hourhand.pool, 1, new Date('2026-08-21T13:30:31Z'));
  expect((await hourhand.pool.alarm.findMany({ orderBy: { seq: 'desc' } })).map(({ endedAt }) => endedAt)).toEqual([
    null,
    null,
  ]);
});

/** A look with a webhook, as a process does it. */
function watch({ pool, log }: Hourhand, url: string, time: string, signal = new AbortController().signal) {
  return watchAlarms({ pool, log, policy: limits, webhook: { url, secret } }, signal, at(time));
}

test('the webhook is told of an alarm once, signed, and of its end once; the log too', async () => {
  await using receiver = await startReceiver();
  await using hourhand = await startedAtOne();
  await Promise.all([1, 2, 3].map(() => watch(hourhand, receiver.url, '13:30:00')));
  await watch(hourhand, receiver.url, '13:30:30');
  const verified = ({ body, headers }: (typeof receiver.told)[number]) =>
    new Webhook(secret, { format: 'raw' }).verify(body, headers as Record<string, string>);
  const data = {
    kind: 'tick-missed',
    subject: stats,
    since: '2026-08-20T13:01:00.000Z',
    detail: 'expected a tick at 2026-08-20T13:01:00.000Z, and at most 180 s later, found none was ever done',
    raisedAt: '2026-08-20T13:30:00.000Z',
    endedAt: null,
  };
  expect(receiver.told.map(verified)).toEqual([{ type: 'alarm.raised', timestamp: data.raisedAt, data }]);

  await ticked(hourhand, '13:30:40');
  await Promise.all([1, 2, 3].map(() => watch(hourhand, receiver.url, '13:31:00')));
  await watch(hourhand, receiver.url, '13:31:30');
  const endedAt = '2026-08-20T13:31:00.000Z';
  expect(receiver.told.slice(1).map(verified)).toEqual([
    { type: 'alarm.ended', timestamp: endedAt, data: { ...data, endedAt } },
  ]);
  expect(receiver.told.map(({ headers }) => headers['webhook-id'])).toEqual([
    'hourhand-alarm-1-raised',
    'hourhand-alarm-1-ended',
  ]);
  expect(hourhand.logged.filter(({ kind }) => kind)).toMatchObject([
    { level: 50, msg: 'alarm raised', kind: 'tick-missed', subject: stats },
    { level: 30, msg: 'alarm ended', kind: 'tick-missed', subject: stats },
  ]);
});

test('a webhook that refuses is told again at later looks under the same id, at last also of an end that came meanwhile', async () => {
  await using receiver = await startReceiver([500, 307]);
  await using hourhand = await startedAtOne();
  await watch(hourhand, receiver.url, '13:30:00');
  await ticked(hourhand, '13:30:10');
  await watch(hourhand, receiver.url, '13:30:30');
  expect(await openAlarms(hourhand.pool)).toEqual([]);
  for (const time of ['13:31:00', '13:31:30']) {
    await watch(hourhand, receiver.url, time);
    expect(receiver.told.map(({ headers, path }) => [headers['webhook-id'], path])).toEqual([
      ...Array(3).fill(['hourhand-alarm-1-raised', '/']),
      ['hourhand-alarm-1-ended', '/'],
    ]);
  }
  expect(JSON.stringify(hourhand.logged)).toContain('the webhook answered 500');
});

test('who is killed between raising an alarm and telling it, or while telling, leaves it to the next look', async () => {
  await using receiver = await startReceiver([0]);
  await using hourhand = await startedAtOne();
  await look(hourhand, '13:30:00');
  const killed = new AbortController();
  const telling = watch(hourhand, receiver.url, '13:30:10', killed.signal);
  await until(
    async () => receiver.told.length,
    (n) => n === 1,
  );
  await watch(hourhand, receiver.url, '13:30:29'); // somebody is telling it
  expect(receiver.told).toHaveLength(1);
  killed.abort(); // a webhook that hangs keeps nobody who is to stop
  await telling;
  await watch(hourhand, receiver.url, '13:30:30');
  await watch(hourhand, receiver.url, '13:31:00');
  expect(receiver.told).toHaveLength(2);
});

test('without a webhook nobody is told; one that comes later is told of what is still open, and not of the day before', async () => {
  await using receiver = await startReceiver();
  await using hourhand = await startedAtOne();
  await watchAlarms(
    { pool: hourhand.pool, log: hourhand.log, policy: limits, webhook: undefined },
    new AbortController().signal,
    at('13:30:00'),
  );
  await hourhand.pool.alarm.create({
    data: {
      kind: 'hour-partial',
      subject: '2026-08-19T01',
      since: new Date('2026-08-19T02:00Z'),
      detail: '',
      raisedAt: new Date('2026-08-19T03:00Z'),
      endedAt: new Date('2026-08-19T04:00Z'),
      tellAfter: new Date('2026-08-19T03:00Z'),
    },
  });
  await watch(hourhand, receiver.url, '14:00:30');
  expect(receiver.told.map(({ headers }) => headers['webhook-id'])).toEqual(['hourhand-alarm-1-raised']);
});

/** Wrong by the real clock: the roll-up was set yesterday, and has never ticked. */
async function dead(hourhand: Hourhand): Promise<void> {
  await settleSchedule(hourhand.pool, stats, '0 1 * * * *', today);
  await hourhand.pool.$executeRaw`update "StatSchedule" set "firesSince" = now() - interval '1 day'`;
}

test('with no worker at all, the dashboard tells it', { timeout: 120_000 }, async () => {
  await using receiver = await startReceiver();
  await using hourhand = await startHourhand({ ALARM_WEBHOOK_URL: receiver.url, ALARM_WEBHOOK_SECRET: secret });
  await dead(hourhand);
  const dashboard = hourhand.broken({ LOG_LEVEL: 'info' }, 'dashboard');
  const lines = linesOf(dashboard);
  await until(
    async () => receiver.told.length,
    (n) => n === 1,
    90_000, // the first look is half a minute after the start, on purpose
  );
  expect(lines.join('\n')).toContain('alarm raised');
  expect((await hourhand.run(['status'])).stdout).toMatch(
    /^alarm +tick-missed model\.call\.stats: expected a tick at /m,
  );
  dashboard.kill('SIGTERM');
  expect(await ended(dashboard)).toBe(0);
});

test('with Redis away it is raised and told all the same, and /readyz names it', { timeout: 120_000 }, async () => {
  await using servers = await ownServers('alarms', 'redis');
  await using receiver = await startReceiver();
  await using hourhand = await startHourhand({
    ...servers.env,
    ALARM_WEBHOOK_URL: receiver.url,
    ALARM_WEBHOOK_SECRET: secret,
  });
  await dead(hourhand);
  await servers.kill('redis');
  const watching = startWatch(hourhand, 50);
  await until(
    async () => receiver.told.length,
    (n) => n === 1,
  );
  await watching.stop();
  const { url, close } = await startDashboard(hourhand);
  const response = await fetch(`${url}/readyz`);
  const { checks } = (await response.json()) as { checks: { name: string }[] };
  expect([response.status, checks.map(({ name }) => name)]).toEqual([
    503,
    expect.arrayContaining([`alarm tick-missed ${stats}`]),
  ]);
  await close();
});

test('a worker that watches over a webhook that hangs rolls up and stops all the same', async () => {
  await using receiver = await startReceiver([0, 0, 0]);
  await using hourhand = await startHourhand({ ALARM_WEBHOOK_URL: receiver.url, ALARM_WEBHOOK_SECRET: secret });
  await dead(hourhand);
  const watching = startWatch(hourhand, 50);
  await until(
    async () => receiver.told.length,
    (n) => n === 1,
  );
  await hourhand.record({ user: 'ada', at: '2026-08-20T13:10:00Z' });
  const worker = await hourhand.work();
  await hourhand.backfill(h('2026-08-20T13'));
  await hourhand.reaches(h('2026-08-20T13'), 'closed');
  const before = performance.now();
  await watching.stop();
  await worker.stop();
  expect(performance.now() - before).toBeLessThan(4_000);
});
