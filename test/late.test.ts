// Whatever arrives late is counted: each change of an hour that has ended leaves a mark, and each transaction that was open at its end is waited for.

import { describe, expect, test } from 'vitest';
import { allotRun } from '../src/store/cut.ts';
import { Sql } from '../src/store/db.ts';
import { owedHours, requestHours } from '../src/store/ledger.ts';
import { olderTransactions } from '../src/store/seam.ts';
import { standingOf } from '../src/store/standing.ts';
import { endOf, startOf } from '../src/time/hour.ts';
import { createDatabase } from './support/database.ts';
import { openWriter } from './support/gateway.ts';
import { closedHour, type Hourhand, h, holdUser, startHourhand, until, untilSwept } from './support/hourhand.ts';

const hour = h('2026-08-20T13');
const at = '2026-08-20T13:10:00Z';
const range = { start: startOf(hour), end: endOf(hour) };

describe('a mark', () => {
  test('is left for each user and hour that a late insert, update or delete is of, and none in the running hour', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', id: 'a', at }, { user: 'bob', id: 'b', at });
    expect(await marks(hourhand)).toEqual(['13 ada', '13 bob']);
    const columns: [string, string][] = [
      ['type', `'embedding'`],
      ['status', `'failed'`],
      ['"totalUsage"', '11'],
      ['"inputTokens"', 'null'],
      ['"outputTokens"', '1'],
      ['"usageMetrics"', `'{"numberOfImages": 2}'`],
      ['credits', '2'],
      ['duration', '1.5'],
    ];
    for (const [column, value] of columns) {
      await hourhand.pool.$executeRawUnsafe(`update "ModelCall" set ${column} = ${value} where id = 'a'`);
      expect([column, await marks(hourhand)]).toEqual([column, ['13 ada']]);
    }
    // What no figure is made of, and what is said again.
    await hourhand.pool
      .$executeRaw`update "ModelCall" set "errorReason" = 'x', metadata = '{}', ttfb = 1, "traceId" = 't', "updatedAt" = now(), credits = 2 where id = 'a'`;
    expect(await marks(hourhand)).toEqual([]);
    await hourhand.pool.$executeRaw`delete from "ModelCall" where id = 'b'`;
    expect(await marks(hourhand)).toEqual(['13 bob']);
    const running = new Date().toISOString();
    await hourhand.record({ user: 'eve', id: 'e', at: running });
    await hourhand.pool.$executeRaw`update "ModelCall" set credits = 3 where id = 'e'`;
    await hourhand.pool.$executeRaw`delete from "ModelCall" where id = 'e'`;
    expect(await marks(hourhand)).toEqual([]);
  });

  test('is left in both places by a call that moves, but for the one in the running hour', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', id: 'a', at });
    await marks(hourhand);
    const move = async (what: string) => {
      await hourhand.pool.$executeRawUnsafe(`update "ModelCall" set ${what} where id = 'a'`);
      return marks(hourhand);
    };
    expect(await move(`"userDid" = 'bob'`)).toEqual(['13 ada', '13 bob']);
    expect(await move(`"callTime" = "callTime" + interval '1 hour'`)).toEqual(['13 bob', '14 bob']);
    expect(await move(`"callTime" = "callTime" + interval '10 minutes'`)).toEqual(['14 bob']);
    expect(await move('"callTime" = clock_timestamp()')).toEqual(['14 bob']);
    expect(await move(`"callTime" = '${at}'`)).toEqual(['13 bob']);
  });

  test("is the writer's own: it goes with a rollback, and comes with a load, row by row or by COPY, into a partition or through its parent", async () => {
    await using hourhand = await startHourhand();
    await using writer = await openWriter(hourhand);
    await writer.record({ user: 'ada', at });
    await writer.query('rollback');
    expect(await marks(hourhand)).toEqual([]);
    await hourhand.pool.modelCall.createMany({
      data: [{ id: 'c', userDid: 'cy', providerId: 'p', model: 'm', type: 'custom', callTime: new Date(at) }],
    });
    expect(await marks(hourhand)).toEqual(['13 cy']);
    // The partitioned layout: the table as it is becomes a partition, and the triggers are made on the parent, by their own words.
    const triggers = await hourhand.pool.$queryRaw<{ sql: string }[]>`
      select pg_get_triggerdef(oid) as sql from pg_trigger where tgrelid = '"ModelCall"'::regclass and not tgisinternal`;
    for (const sql of [
      'alter table "ModelCall" rename to august',
      'create table "ModelCall" (like august including defaults including constraints) partition by range ("callTime")',
      ...triggers.map((trigger) => trigger.sql),
      "create table september partition of \"ModelCall\" for values from ('2026-09-01Z') to ('2026-10-01Z')",
      'create table others partition of "ModelCall" default',
    ])
      await hourhand.pool.$executeRawUnsafe(sql);
    const insert = (table: string, id: string, user: string, time: string) =>
      hourhand.pool.$executeRawUnsafe(
        `insert into ${table} (id, "userDid", "providerId", model, type, "callTime") values ('${id}', '${user}', 'p', 'm', 'custom', '${time}')`,
      );
    await insert('september', 's', 'dan', '2026-09-01T13:10Z');
    await insert('"ModelCall"', 't', 'eve', '2026-09-01T13:10Z');
    expect(await marks(hourhand)).toEqual(['13 dan', '13 eve']);
    // From one partition into another it is a delete and an insert.
    await hourhand.pool.$executeRaw`update "ModelCall" set "callTime" = ${new Date(at)}::timestamptz where id = 's'`;
    expect(await marks(hourhand)).toEqual(['13 dan', '13 dan']);
    await hourhand.pool.$executeRaw`delete from others where id = 's'`;
    expect(await marks(hourhand)).toEqual(['13 dan']);
  });

  test('is left in a sealed hour too, except by a delete: calls may be archived, and statistics stay', async () => {
    await using hourhand = await closedHour(hour, [{ user: 'ada', id: 'a', at }]);
    await hourhand.pool.$executeRaw`update "StatHour" set "sealedAt" = now()`;
    await hourhand.pool.$executeRaw`update "ModelCall" set credits = 3`;
    await hourhand.pool.$executeRaw`delete from "ModelCall"`;
    await hourhand.record({ user: 'bob', at });
    expect(
      (await hourhand.pool.statMark.findMany({ orderBy: { seq: 'asc' } })).map(({ userDid }) => userDid),
    ).toEqual(['ada', 'bob']);
    expect((await hourhand.tick()).marked).toEqual([]);
    expect(await hourhand.pool.statMark.count()).toBe(0);
    expect((await hourhand.stat('ada', hour))?.totalCalls).toBe('1');
  });

  test('needs no right of the gateway on any table but its own, and meets nothing that it puts in the way', async () => {
    await using hourhand = await startHourhand();
    await using gateway = await openWriter(hourhand);
    const role = `gateway_${process.pid}`;
    await gateway.query(`create role ${role}`);
    await gateway.query(`grant select, insert, update, delete on "ModelCall" to ${role}`);
    await gateway.query(`set local role ${role}`);
    await gateway.query('create temp table "StatMark" (hour timestamptz, "userDid" text, reason text)');
    await gateway.query('create temp table "StatHour" (hour timestamptz, "sealedAt" timestamptz)');
    await gateway.record({ user: 'ada', at });
    await gateway.query('reset role');
    await gateway.query(`drop owned by ${role}`);
    await gateway.query(`drop role ${role}`);
    await gateway.query('commit');
    expect(await marks(hourhand)).toEqual(['13 ada']);
  });

  test('that cannot be left never fails the gateway: its call is accepted', async () => {
    await using hourhand = await startHourhand();
    await hourhand.pool.$executeRaw`drop table "StatMark"`;
    await hourhand.record({ user: 'ada', id: 'a', at });
    await hourhand.pool.$executeRaw`update "ModelCall" set credits = 3`;
    expect(await hourhand.pool.modelCall.count({ where: { credits: 3 } })).toBe(1);
  });

  test('is left once for each user and hour by an import, and not for what was there already', async () => {
    await using hourhand = await startHourhand();
    const header =
      'call_time,user_did,app_did,provider,model,type,input_tokens,output_tokens,credits,status,duration_s';
    const lines = ['13:10:00', '13:20:00', '14:10:00'].flatMap((time) =>
      ['ada', 'bob'].map((user) => `2026-08-20T${time}Z,${user},,p,m,chatCompletion,1,1,0.1,success,1`),
    );
    const csv = `${[header, ...lines].join('\n')}\n`;
    expect((await hourhand.run(['import', '-'], csv)).stderr).toContain('6 calls');
    expect(await marks(hourhand)).toEqual(['13 ada', '13 bob', '14 ada', '14 bob']);
    await hourhand.run(['import', '-'], csv);
    expect(await marks(hourhand)).toEqual([]);
  });
});

describe('late data', () => {
  test('reopens exactly that user in that hour, and what changed, by how much and why is kept', async () => {
    await using hourhand = await closedHour(hour, [
      { user: 'ada', id: 'a', at },
      { user: 'bob', at },
      { user: 'cy', id: 'c', at },
    ]);
    const before = await hourhand.pool.modelCallStat.findMany({ orderBy: { userDid: 'asc' } });
    expect(await standing(hourhand)).toMatchObject({ final: 1, provisional: 0 });
    await hourhand.record({ user: 'ada', at, credits: '0.5', tokens: 5 });
    await hourhand.pool.$executeRaw`delete from "ModelCall" where id = 'c'`;
    await hourhand.record({ user: 'dan', at });
    expect(await standing(hourhand)).toMatchObject({ provisional: 1, reasons: [{ hour, why: '3 users marked' }] });
    await untilSwept(hourhand);
    expect(await hourhand.wrong()).toEqual([]);
    expect(await standing(hourhand)).toMatchObject({ final: 1 });
    expect(await hourhand.hour(hour)).toMatchObject({ state: 'closed', run: 1, users: 3, calls: 4n });
    const after = await hourhand.pool.modelCallStat.findMany({ orderBy: { userDid: 'asc' } });
    expect(after.map(({ userDid, revision }) => [userDid, revision])).toEqual([
      ['ada', 2],
      ['bob', 1],
      ['dan', 2],
    ]);
    expect(after[1]).toEqual(before[1]);
    const ledger = await hourhand.pool.statHour.findUniqueOrThrow({ where: { hour: startOf(hour) } });
    expect(ledger.revision).toBe(2);
    expect(ledger.asOf && ledger.startedAt && ledger.asOf > ledger.startedAt).toBe(true);
    const changes = await hourhand.pool.statChange.findMany({ orderBy: { userDid: 'asc' } });
    expect(changes).toMatchObject([
      {
        userDid: 'ada',
        revision: 2,
        reason: 'late',
        before: { totalCalls: 1, totalUsage: 10 },
        after: { totalCalls: 2, totalUsage: 15 },
      },
      { userDid: 'cy', revision: 2, reason: 'late', before: { totalCalls: 1 }, after: null },
      { userDid: 'dan', revision: 2, reason: 'late', before: null, after: { totalCalls: 1 } },
    ]);
  });

  test('that leaves every figure as it was changes nothing, and is no revision', async () => {
    await using hourhand = await closedHour(hour, [{ user: 'ada', at }]);
    await hourhand.record({ user: 'ada', id: 'x', at });
    await hourhand.pool.$executeRaw`delete from "ModelCall" where id = 'x'`;
    await untilSwept(hourhand);
    expect(await hourhand.pool.statHour.findFirst()).toMatchObject({ revision: 1 });
    expect(await hourhand.pool.statChange.count()).toBe(0);
  });

  test('in a burst is rolled up once for each user and hour', async () => {
    await using hourhand = await closedHour(hour, [{ user: 'u0', at }]);
    await hourhand.backfill(h('2026-08-20T10'), h('2026-08-20T12'));
    await until(
      () => hourhand.pool.statHour.count({ where: { state: 'closed', hour: { lt: endOf(hour) } } }),
      (n) => n === 4,
    );
    await hourhand.pool.$executeRaw`
      insert into "ModelCall" (id, "userDid", "providerId", model, type, "callTime")
      select 'b' || i, 'u' || i % 50, 'p', 'm', 'custom', timestamptz '2026-08-20T10:00Z' + i % 4 * interval '1 hour'
        from generate_series(1, 20000) i`;
    expect(await hourhand.pool.statMark.count()).toBe(20_000);
    await untilSwept(hourhand);
    // Each change of a row is one computation that had something to say: 25 users in each of the four hours.
    expect(await hourhand.pool.statChange.count()).toBe(100);
    expect(
      (await hourhand.queues.marks.getJobs(['completed'])).filter((job) => job.returnvalue.users > 0),
    ).toHaveLength(4);
    expect(await hourhand.wrong()).toEqual([]);
  });

  test('of hours that nobody rolls up is none: its marks are swept away, but for users who were rolled up alone there', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', at }, { user: 'bob', at });
    await hourhand.work();
    expect(
      await until(
        () => hourhand.pool.statMark.count(),
        (n) => n === 0,
      ),
    ).toBe(0);
    expect(await hourhand.pool.modelCallStat.count()).toBe(0);
    await hourhand.backfillUser('ada', hour);
    await untilCalls(hourhand, 'ada', '1');
    await hourhand.record({ user: 'ada', at }, { user: 'bob', at });
    await untilSwept(hourhand);
    await untilCalls(hourhand, 'ada', '2');
    expect(await hourhand.stat('bob', hour)).toBeUndefined();
  });

  test('that comes while an hour is asked for the first time is not swept away with the mark of it', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', at });
    await hourhand.work();
    await using writer = await openWriter(hourhand, 'repeatable read');
    await writer.query('select 1'); // its snapshot knows nothing of the hour
    await hourhand.backfill(hour);
    await hourhand.reaches(hour, 'closed');
    await writer.record({ user: 'ada', at });
    await writer.query('commit');
    await untilSwept(hourhand);
    await untilCalls(hourhand, 'ada', '2');
  });

  test('from a backfill or a repair is told from what came late', async () => {
    await using hourhand = await closedHour(hour, [
      { user: 'ada', at },
      { user: 'bob', at },
    ]);
    await hourhand.silently(Sql.sql`update "ModelCall" set credits = 2`);
    await hourhand.record({ user: 'bob', at });
    await hourhand.backfill(hour);
    await until(
      () => hourhand.pool.statHour.findFirstOrThrow({ where: { hour: startOf(hour) } }),
      (row) => row.state === 'closed' && row.revision === 2,
    );
    const changes = await hourhand.pool.statChange.findMany({ orderBy: { userDid: 'asc' } });
    expect(changes.map(({ userDid, reason }) => [userDid, reason])).toEqual([
      ['ada', 'backfill'],
      ['bob', 'late'],
    ]);
  });

  test('of a user who is rolled up at this moment is seen by that roll-up, or leaves its mark for the next', async () => {
    await using hourhand = await closedHour(hour, [{ user: 'ada', at }]);
    {
      await using _ = await holdUser(hourhand, 'ada');
      await hourhand.record({ user: 'ada', at });
      await hourhand.tick();
      await until(
        () => hourhand.queues.marks.getActiveCount(),
        (n) => n === 1,
      );
      await hourhand.record({ user: 'ada', at });
    }
    await untilSwept(hourhand);
    await untilCalls(hourhand, 'ada', '3');
  });
});

describe('at the seam', () => {
  test('a transaction that was open at the end of the hour is waited for: published, provisional, named; then run once more', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', at });
    await using writer = await openWriter(hourhand);
    await writer.beforeTheEnd({ user: 'ada', at }, { user: 'bob', at });
    await hourhand.work();
    await hourhand.backfill(hour);
    await hourhand.reaches(hour, 'closed');
    expect((await hourhand.stat('ada', hour))?.totalCalls).toBe('1');
    expect(await standing(hourhand)).toMatchObject({
      provisional: 1,
      reasons: [{ hour, why: 'older transactions' }],
    });
    expect(await olderTransactions(hourhand.pool)).toMatchObject([
      { application: 'the gateway', role: 'hourhand', state: 'idle in transaction' },
    ]);
    // However often it is looked at.
    expect((await hourhand.tick()).settled).toEqual([]);
    expect((await hourhand.tick()).enqueued).toEqual([]);

    await writer.query('commit');
    expect((await hourhand.tick()).settled).toContain(hour);
    await until(
      () => standing(hourhand),
      (seen) => seen.final === 1,
    );
    expect(await hourhand.hour(hour)).toMatchObject({ state: 'closed', run: 2, users: 2 });
    expect(await hourhand.wrong()).toEqual([]);
    expect((await hourhand.pool.statChange.findMany()).map(({ reason }) => reason)).toEqual(['late', 'late']);
    expect(await olderTransactions(hourhand.pool)).toEqual([]);
    expect((await hourhand.tick()).settled).toEqual([]);
  });

  test('an hour that seemed empty is not done with while a transaction from before its end is open', async () => {
    await using hourhand = await startHourhand();
    await hourhand.cover(hour, hour);
    await using writer = await openWriter(hourhand);
    await writer.beforeTheEnd({ user: 'ada', at });
    expect((await hourhand.tick()).closedEmpty).toEqual([hour]);
    expect(await standing(hourhand)).toMatchObject({ final: 0 });
    await writer.query('commit');
    await hourhand.work();
    await until(
      () => standing(hourhand),
      (seen) => seen.final === 1,
    );
    await untilCalls(hourhand, 'ada', '1');
  });

  test('a transaction is waited for also where its id is the newest of all that were given', async () => {
    await using hourhand = await startHourhand();
    await hourhand.cover(hour, hour);
    await using writer = await openWriter(hourhand);
    await writer.beforeTheEnd({ user: 'ada', at });
    const fence = async () => (await hourhand.pool.statHour.findFirst())?.fence;
    await allotRun(hourhand.pool, hour, { maxUserJobs: 64, minCalls: 0 });
    expect(await fence()).toBeGreaterThan(0n);
    await hourhand.pool.statHour.deleteMany();
    await hourhand.pool.$transaction((db) => requestHours(db, [hour], { reason: 'backfill', requestedBy: 'test' }));
    expect(await fence()).toBeGreaterThan(0n);
  });

  test('an hour that runs while such a transaction ends runs once more', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', at }, { user: 'bob', at });
    await using writer = await openWriter(hourhand);
    await writer.beforeTheEnd({ user: 'ada', at });
    await hourhand.work();
    {
      await using _ = await holdUser(hourhand, 'bob');
      await hourhand.backfill(hour);
      await untilCalls(hourhand, 'ada', '1');
      await writer.query('commit');
    }
    await hourhand.reaches(hour, 'closed');
    await hourhand.tick();
    await until(
      () => standing(hourhand),
      (seen) => seen.final === 1,
    );
    expect(await hourhand.wrong()).toEqual([]);
  });

  test('neither a transaction that only reads is waited for, nor one of another database, nor one that began later', async () => {
    await using hourhand = await startHourhand();
    await using other = await createDatabase();
    await using reader = await openWriter(hourhand, 'repeatable read');
    await reader.query('select count(*) from "ModelCall"');
    await using elsewhere = await openWriter({ environment: { DATABASE_URL: other.url } });
    await elsewhere.record({ user: 'ada', at });
    await hourhand.record({ user: 'ada', at });
    await hourhand.work();
    await hourhand.backfill(hour);
    await hourhand.reaches(hour, 'closed');
    await using late = await openWriter(hourhand);
    await late.record({ user: 'ada', at });
    expect(await standing(hourhand)).toMatchObject({ final: 1 });
    await late.query('commit');
    expect(await standing(hourhand)).toMatchObject({ reasons: [{ why: '1 users marked' }] });
    await untilSwept(hourhand);
    await untilCalls(hourhand, 'ada', '2');
  });

  test('whose transactions are waited for is seen by every role', async () => {
    await using hourhand = await startHourhand();
    await using writer = await openWriter(hourhand);
    await writer.record({ user: 'ada', at });
    await using looker = await openWriter(hourhand);
    const role = `looker_${process.pid}`;
    await looker.query(`create role ${role}`);
    await looker.query(`set local role ${role}`);
    const { rows } = await looker.query(
      'select pid from pg_stat_activity where datname = current_database() and backend_xid is not null and pid <> pg_backend_pid()',
    );
    expect(rows).toHaveLength(1);
  });

  test('the first look waits for five seconds after the end, lest a clock that is set back opens the hour again', async () => {
    await using hourhand = await startHourhand();
    await hourhand.cover(hour, hour);
    expect(await owedHours(hourhand.pool, 10, new Date('2026-08-20T14:00:04.999Z'))).toEqual([]);
    expect(await owedHours(hourhand.pool, 10, new Date('2026-08-20T14:00:05Z'))).toMatchObject([{ hour }]);
    // Whoever asks sooner gets it sooner, provisional.
    const soon = new Date('2026-08-20T14:00:01Z');
    await hourhand.record({ user: 'ada', at });
    expect(await allotRun(hourhand.pool, hour, { maxUserJobs: 64, minCalls: 0 }, { now: soon })).toMatchObject({
      run: 1,
    });
    expect(await hourhand.pool.statHour.findFirst()).toMatchObject({ fence: null });
  });

  test('a fence from the life of another server, as in a restored dump, is taken anew', async () => {
    await using hourhand = await closedHour(hour, [{ user: 'ada', at }]);
    await hourhand.pool.$executeRaw`update "StatHour" set fence = 1000000000000`;
    expect(await standing(hourhand)).toMatchObject({ final: 0 });
    await until(
      async () => {
        await hourhand.tick();
        return standing(hourhand);
      },
      (seen) => seen.final === 1,
    );
    expect(await hourhand.hour(hour)).toMatchObject({ run: 2 });
  });

  test('a call under way keeps its hour provisional until it ends', async () => {
    await using hourhand = await closedHour(hour, [{ user: 'ada', id: 'a', at, status: 'processing' }]);
    expect(await standing(hourhand)).toMatchObject({ reasons: [{ why: 'calls under way' }] });
    await hourhand.pool.$executeRaw`update "ModelCall" set status = 'success'`;
    await untilSwept(hourhand);
    expect(await standing(hourhand)).toMatchObject({ final: 1 });
    expect((await hourhand.stat('ada', hour))?.successCalls).toBe('1');
  });
});

/** The marks, as `13 ada`; and takes them away. */
async function marks({ pool }: Hourhand): Promise<string[]> {
  const rows = await pool.$queryRaw<{ mark: string }[]>`
    with taken as (delete from "StatMark" returning hour, "userDid", reason)
    select to_char(hour at time zone 'UTC', 'HH24') || ' ' || "userDid" as mark from taken where reason = 'late' order by 1`;
  return rows.map((row) => row.mark);
}

const standing = ({ pool }: Hourhand) => standingOf(pool, range);

const untilCalls = (hourhand: Hourhand, user: string, calls: string) =>
  until(
    () => hourhand.stat(user, hour),
    (stat) => stat?.totalCalls === calls,
  );
