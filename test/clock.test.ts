// PostgreSQL's clock steps and comes back: every figure ends exact, and nothing is deleted by a clock that is wrong.

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { clockWatch, stepBetween } from '../src/producers/clock.ts';
import { type RetainOptions, retain } from '../src/producers/retain.ts';
import { hoursToAudit } from '../src/store/audit.ts';
import { readClock, whyHeld } from '../src/store/clock.ts';
import { ledgerStatus } from '../src/store/progress.ts';
import { sealHour } from '../src/store/seal.ts';
import { standingOf } from '../src/store/standing.ts';
import { openWarnings } from '../src/store/warnings.ts';
import { endOf, type Hour, startOf } from '../src/time/hour.ts';
import { findFaketime, startPostgresWithClock } from './support/faketime.ts';
import { audited, type Hourhand, h, startHourhand, threeHours, until } from './support/hourhand.ts';

const faketime = findFaketime();
const aloud = faketime.missing === undefined ? '' : ` (skipped: ${faketime.missing})`;

describe.skipIf(faketime.missing !== undefined)(`a clock that is moved${aloud}`, () => {
  let server: Awaited<ReturnType<typeof startPostgresWithClock>>;
  beforeAll(async () => {
    server = await startPostgresWithClock(faketime.library ?? '', 'clock');
  }, 180_000);
  afterAll(() => server?.[Symbol.asyncDispose]());

  /** An hourhand on that server, and a worker's looks, whose own clock goes as PostgreSQL's should. */
  async function started(env: Record<string, string> = {}) {
    const hourhand = await startHourhand({ DATABASE_URL: await server.database(), ...env });
    let passed = 0;
    const look = clockWatch({
      ...hourhand,
      backOffMaxSeconds: 3_600,
      monotonic: () => performance.now() + passed * 60_000,
    });
    /** Time passes, which is no step. */
    const pass = (minutes: number) => {
      passed += minutes;
      server.step(minutes);
    };
    return Object.assign(hourhand, { look, pass });
  }

  test('seventy minutes fast, then right: hours that had not ended run again, and nothing is deleted', async () => {
    server.set('2026-12-10T13:20:00Z');
    await using hourhand = await started();
    const [old, running] = [h('2026-12-08T13'), h('2026-12-10T13')];
    await hourhand.look();
    const worker = await hourhand.work();
    await hourhand.record({ user: 'ada', at: '2026-12-08T13:10:00Z' }, { user: 'bob', at: '2026-12-10T13:05:00Z' });
    await hourhand.backfill(old);
    await hourhand.reaches(old, 'closed');

    server.step(70);
    // By this clock the calls of the old hour have been kept for two days.
    expect(await retained(hourhand)).toMatchObject({
      sealed: 0,
      calls: 0,
      held: expect.stringContaining('may have'),
    });
    await hourhand.look();
    await becomesFinal(hourhand, running, 1);
    expect(await retained(hourhand)).toMatchObject({
      calls: 0,
      held: expect.stringMatching(/forward by 4[12]\d\d s/),
    });
    await worker.stop();

    server.step(-70);
    await hourhand.record({ user: 'cy', at: '2026-12-10T13:15:00Z' });
    expect(await hourhand.pool.statMark.count({ where: { userDid: 'cy' } })).toBe(0);
    expect(await standing(hourhand, running)).toMatchObject({
      final: 0,
      reasons: [{ why: 'closed by a clock that was fast' }],
    });
    expect(await hoursToAudit(hourhand.pool, 1)).not.toContain(running);
    expect(await sealHour(hourhand.pool, running)).toMatchObject({ outcome: 'passed' });
    expect((await ledgerStatus(hourhand.pool, 0)).watermark).toEqual(startOf(running));
    expect(await hourhand.look()).toMatchObject({ trusted: false });
    expect(await hourhand.state(running)).toBe('open');
    expect(await openWarnings(hourhand.pool)).toMatchObject([
      { kind: 'clock', detail: expect.stringMatching(/went back by 4[12]\d\d seconds/) },
    ]);
    expect(await retained(hourhand)).toMatchObject({ calls: 0, held: expect.stringMatching(/back by 4[12]\d\d s/) });
    expect(await hourhand.pool.modelCall.count()).toBe(3);

    hourhand.pass(41);
    expect(await hourhand.look()).toMatchObject({ trusted: true });
    expect(await openWarnings(hourhand.pool)).toEqual([]);
    await hourhand.work();
    await becomesFinal(hourhand, running, 2);
    expect(await hourhand.wrong()).toEqual([]);
    // Now it has been kept long enough, by a clock that is trusted.
    expect(await retained(hourhand)).toMatchObject({ sealed: 1, calls: 1 });
  });

  test('half a minute fast, then right: too little to see in the ledger, and seen by the worker', async () => {
    server.set('2026-12-10T13:59:40Z');
    await using hourhand = await started();
    const hour = h('2026-12-10T13');
    await hourhand.look();
    await hourhand.record({ user: 'ada', at: '2026-12-10T13:05:00Z' });
    server.step(0.5);
    await hourhand.look();
    const worker = await hourhand.work();
    await hourhand.reaches(hour, 'closed');
    await worker.stop();
    server.step(-0.5);
    await hourhand.record({ user: 'bob', at: '2026-12-10T13:59:50Z' });
    hourhand.pass(1);
    expect(await standing(hourhand, hour)).toMatchObject({ final: 1 });
    await hourhand.look();
    expect(await hourhand.state(hour)).toBe('open');
    await hourhand.work();
    await becomesFinal(hourhand, hour, 2);
    expect(await hourhand.wrong()).toEqual([]);
  });

  test('two hours slow, then right: calls that came meanwhile without a mark are counted', async () => {
    server.set('2026-12-10T13:20:00Z');
    await using hourhand = await started();
    const hours = [h('2026-12-10T11'), h('2026-12-10T12')] as const;
    await hourhand.look();
    const worker = await hourhand.work();
    await hourhand.record(...['11', '12'].map((hour) => ({ user: 'ada', at: `2026-12-10T${hour}:10:00Z` })));
    await hourhand.backfill(...hours);
    for (const hour of hours) await becomesFinal(hourhand, hour, 1);
    await worker.stop();

    server.step(-120);
    await hourhand.record({ user: 'bob', at: '2026-12-10T12:30:00Z' });
    await hourhand.look();
    for (const hour of hours) expect(await hourhand.state(hour)).toBe('open');
    server.step(120);
    await hourhand.look();
    await hourhand.work();
    await becomesFinal(hourhand, hours[0], 1);
    await becomesFinal(hourhand, hours[1], 2);
    expect(await hourhand.wrong()).toEqual([]);
  });

  test('a step back while no worker lived is found by the audit', async () => {
    server.set('2026-12-10T14:30:00Z'); // seventy minutes fast
    await using hourhand = await started({ AUDIT_WITHIN_DAYS: '1' });
    const hour = h('2026-12-10T13');
    await hourhand.record({ user: 'ada', at: '2026-12-10T13:05:00Z' });
    const worker = await hourhand.work();
    await hourhand.reaches(hour, 'closed');
    await worker.stop();
    server.step(-70);
    await hourhand.record({ user: 'bob', at: '2026-12-10T13:15:00Z' });
    server.step(120);
    await hourhand.work();
    expect((await audited(hourhand)).returnvalue).toMatchObject({ differing: 1 });
    await becomesFinal(hourhand, hour, 2);
    expect(await hourhand.wrong()).toEqual([]);
  });
});

describe('a look at the clock', () => {
  test('opens the hours again that have not ended, whatever their state, and leaves all others alone', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await pool.$executeRaw`
      with running as (select date_trunc('hour', clock_timestamp(), 'UTC') as hour)
      insert into "StatHour" (hour, state, run, wanted, reason, "closedAt", "asOf", fence, error, "nextAttemptAt",
                              "partialSince")
      select running.hour + ahead * interval '1 hour', state::"HourState", 3, 3, 'tick', clock_timestamp(),
             clock_timestamp() + as_of::interval, fence,
             case when state = 'partial' then 'x' end, clock_timestamp() + wait::interval,
             clock_timestamp() + wait::interval
        from running, (values (0, 'closed', '0', 0, null), (1, 'running', '0', 0, null),
                              (2, 'partial', '0', 7, '1 hour'),
                              (-3, 'closed', '1 hour', 0, null), (-4, 'partial', '0', 0, '100 days'),
                              (-5, 'closed', '0', 0, null), (-6, 'partial', '0', 0, '30 minutes'))
                     as t(ahead, state, as_of, fence, wait)`;
    const kept = await hoursWith(hourhand);
    await clockWatch({ ...hourhand, backOffMaxSeconds: 3_600 })();
    expect(await hoursWith(hourhand)).toEqual([
      kept[0], // a back-off as usual
      kept[1], // closed, and right
      expect.objectContaining({ state: 'partial', wanted: 3, fence: null, nextAttemptAt: null, reason: 'tick' }),
      expect.objectContaining({ state: 'open', wanted: 4, fence: null, reason: 'repair', requestedBy: 'clock' }),
      expect.objectContaining({ state: 'open', wanted: 4, fence: null, reason: 'repair', requestedBy: 'clock' }),
      expect.objectContaining({ state: 'running', wanted: 4, fence: null, reason: 'repair', requestedBy: 'clock' }),
      expect.objectContaining({ state: 'partial', wanted: 3, fence: null, nextAttemptAt: null, reason: 'tick' }),
    ]);
    const partials = await pool.statHour.count({ where: { partialSince: { gt: new Date(Date.now() + 7_200_000) } } });
    expect(partials).toBe(0);
  });

  test('takes the seal from hours that were sealed in time to come, if all their calls are still there', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    const [whole, archived, forgotten] = [h('2026-08-20T13'), h('2026-08-20T14'), h('2026-08-20T15')];
    await hourhand.record(
      ...['13', '14', '15'].map((hour) => ({ user: 'ada', id: hour, at: `2026-08-20T${hour}:10:00Z` })),
    );
    await hourhand.work();
    await hourhand.backfill(whole, forgotten);
    for (const hour of [whole, archived, forgotten]) await hourhand.reaches(hour, 'closed');
    await pool.$executeRaw`
      update "StatHour" set "sealedAt" = clock_timestamp() + interval '24 hours' where hour < '2026-08-21Z'`;
    await pool.$executeRaw`delete from "ModelCall" where id in ('14', '15')`;
    await pool.$executeRaw`delete from "ModelCallStat" where "timestamp" = ${startOf(forgotten)}`;
    // Of the archived hour there are as many calls as before, but not ada's.
    await hourhand.record(...['13', '14'].map((hour) => ({ user: 'bob', at: `2026-08-20T${hour}:20:00Z` })));
    await clockWatch({ ...hourhand, backOffMaxSeconds: 3_600 })();
    await hourhand.tick();
    await becomesFinal(hourhand, whole, 2);
    const sealed = { where: { sealedAt: { not: null } }, orderBy: { hour: 'asc' } } as const;
    expect(await pool.statHour.findMany(sealed)).toMatchObject([
      { hour: startOf(archived), calls: 1n },
      { hour: startOf(forgotten), calls: 1n },
    ]);
    expect((await hourhand.stat('ada', archived))?.totalCalls).toBe('1');
  });

  test('brings to the present what schedulers, alarms, probes, audit and live range would wait for', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await pool.$executeRaw`
      insert into "StatSchedule" (id, pattern, version, "startedAt", "firesSince", "lastAt")
      values ('model.call.stats', '0 0 * * * *', '0.7.0', now() + interval '99 days', now() + interval '99 days',
              null)`;
    await pool.$executeRaw`
      insert into "Alarm" (kind, subject, since, detail, "raisedAt", "tellAfter")
      values ('tick-missed', 'x', now(), '', now(), now() + interval '99 days')`;
    await pool.$executeRaw`
      insert into "ModelProvider" (id, "baseUrl", "apiKeyEnv", concurrency) values ('openai', 'http://x', 'KEY', 1)`;
    await pool.$executeRaw`
      insert into "ModelStatus" ("providerId", model, type, "checkedAt", "retryAt")
      values ('openai', 'gpt', 'custom', now() + interval '99 days', now() + interval '23 hours')`;
    await pool.$executeRaw`
      insert into "ModelProbe" ("checkId", "providerId", model, type, credits, "startedAt")
      values (1, 'openai', 'gpt', 'custom', 1, now() + interval '99 days')`;
    await pool.$executeRaw`
      insert into "StatRange" (start) values (date_trunc('hour', now(), 'UTC') + interval '70 hours')`;
    await pool.$executeRaw`
      insert into "StatHour" (hour, state, run, reason, "closedAt", fence, "auditedAt")
      select '2026-08-20Z'::timestamptz + n * interval '1 hour', 'closed', 1, 'tick', now(), 0,
             now() + (n - 1) * interval '99 days'
        from generate_series(0, 2) as n`;
    expect((await ledgerStatus(pool, 0)).watermark).toBeNull();
    await clockWatch({ ...hourhand, backOffMaxSeconds: 3_600 })();
    const [{ ahead, retries, start }] = await pool.$queryRaw<[{ ahead: number; retries: number; start: Date }]>`
      select (select count(*)::int from "StatSchedule" where greatest("startedAt", "firesSince", "lastAt") > now())
           + (select count(*)::int from "Alarm" where "tellAfter" > now())
           + (select count(*)::int from "ModelStatus" where "checkedAt" > now())
           + (select count(*)::int from "ModelProbe" where "startedAt" > now()) as ahead,
             (select count("retryAt")::int from "ModelStatus") as retries,
             (select start from "StatRange") as start`;
    expect({ ahead, retries }).toEqual({ ahead: 0, retries: 1 });
    expect(await pool.statSchedule.findMany()).toMatchObject([{ lastAt: null }]);
    expect(Date.now() - start.getTime()).toBeGreaterThanOrEqual(3_600_000);
    expect((await ledgerStatus(pool, 0)).watermark).toEqual(start);
    // The one that was audited in time to come is among the first, not the last.
    expect(await hoursToAudit(pool, 1)).toEqual(['2026-08-20T02', '2026-08-20T00', '2026-08-20T01']);
  });

  test('ends a step after 15 minutes if it agrees with the last; before, retention says why it waits', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    const look = clockWatch({ ...hourhand, backOffMaxSeconds: 3_600 });
    expect(await look()).toMatchObject({ trusted: true });
    const stepped = (minutesAgo: number) =>
      pool.$executeRaw`
        update "StatClock"
           set "steppedAt" = clock_timestamp() - ${minutesAgo}::int * interval '1 minute', step = 4200`;
    await stepped(14);
    expect(await look()).toMatchObject({ trusted: false });
    const held = await hourhand.run(['retain', '--calls', '2d']);
    expect(held.code).toBe(1);
    expect(held.stderr).toMatch(
      /nothing more is sealed or deleted: PostgreSQL's clock went forward by 4200 seconds, seen at \S+; again from /,
    );
    await stepped(15);
    // A process that has just started has no last look.
    expect(await clockWatch({ ...hourhand, backOffMaxSeconds: 3_600 })()).toMatchObject({ trusted: false });
    expect(await look()).toMatchObject({ trusted: true });
    expect((await hourhand.run(['retain', '--calls', '2d'])).code).toBe(0);
    // The last look is long ago, or in the future: the clock may be wrong at this moment.
    for (const [minutes, why] of [
      [-16, 'no worker has looked'],
      [1, 'behind the last look'],
    ] as const) {
      await pool.$executeRaw`
        update "StatClock" set "lookedAt" = clock_timestamp() + ${minutes}::int * interval '1 minute'`;
      expect(whyHeld(await readClock(pool))).toContain(why);
      expect(await clockWatch({ ...hourhand, backOffMaxSeconds: 3_600 })()).toMatchObject({ trusted: false });
      await pool.$executeRaw`update "StatClock" set "steppedAt" = null, step = null`;
    }
  });

  test('keeps the audit from sealing, and the clean-up from failing calls, while a step is not over', async () => {
    await using hourhand = await threeHours({ AUDIT_WITHIN_DAYS: '1', CALLS_KEPT_DAYS: '2' });
    const { pool, queues } = hourhand;
    await hourhand.record({ user: 'ada', at: '2026-08-20T16:10:00Z', status: 'processing' });
    await pool.$executeRaw`
      insert into "OperatorAction" (at, who, what, "from") values ('2020-01-01Z', 'ada', 'pause', 'page')`;
    await pool.$executeRaw`update "StatClock" set "steppedAt" = clock_timestamp(), step = 86400`;
    const cleanedUp = async () => {
      const before = await queues.stale.getCompletedCount();
      await queues.staleTicks.add('tick', {});
      await until(
        () => queues.stale.getCompletedCount(),
        (n) => n === before + 1,
      );
      return pool.modelCall.count({ where: { status: 'failed' } });
    };
    expect((await audited(hourhand)).returnvalue).toMatchObject({ audited: expect.any(Number), sealed: 0 });
    expect(await cleanedUp()).toBe(0);
    expect(await pool.operatorAction.count()).toBe(1);
    await pool.$executeRaw`update "StatClock" set "steppedAt" = null, step = null`;
    expect((await audited(hourhand)).returnvalue).toMatchObject({ sealed: 3 });
    expect(await cleanedUp()).toBe(1);
    expect(await pool.operatorAction.count()).toBe(0);
  });

  test('takes no slow answer for a step, and the smallest step that the answers leave room for', () => {
    const earlier = { at: 1_000_000, before: 0, after: 10 };
    expect(stepBetween(earlier, { at: 1_030_000, before: 30_000, after: 30_010 })).toBe(0);
    expect(stepBetween(earlier, { at: 1_089_000, before: 30_000, after: 90_000 })).toBe(0);
    expect(stepBetween(earlier, { at: 1_031_500, before: 30_000, after: 30_010 })).toBe(0);
    expect(stepBetween(earlier, { at: 1_040_000, before: 30_000, after: 30_010 })).toBe(9_990);
    expect(stepBetween(earlier, { at: 970_000, before: 30_000, after: 30_010 })).toBe(-59_990);
  });
});

/** A retention of calls older than two days. */
function retained({ pool, queues }: Hourhand, options: Partial<RetainOptions> = {}) {
  const { signal } = new AbortController();
  return retain({ pool, queues }, { kept: { calls: 48 }, requestedBy: 'test', signal, ...options });
}

const standing = ({ pool }: Hourhand, hour: Hour) => standingOf(pool, { start: startOf(hour), end: endOf(hour) });

/** Wait until an hour is final, with so many users. */
async function becomesFinal(hourhand: Hourhand, hour: Hour, users: number): Promise<void> {
  await until(
    async () => {
      await hourhand.tick();
      const [{ final, reasons }, row] = await Promise.all([standing(hourhand, hour), hourhand.hour(hour)]);
      return { final, reasons, users: row?.users };
    },
    (seen) => seen.final === 1 && seen.users === users,
  );
}

/** The hours of the ledger, the oldest first. */
function hoursWith({ pool }: Hourhand) {
  return pool.statHour.findMany({
    orderBy: { hour: 'asc' },
    select: { state: true, wanted: true, fence: true, nextAttemptAt: true, reason: true, requestedBy: true },
  });
}
