// Billions of calls: the same code over a table in partitions, which hourhand makes ahead, and lets go of when they are old.

import { describe, expect, test } from 'vitest';
import { keepPartitions } from '../src/producers/partitions.ts';
import { retain } from '../src/producers/retain.ts';
import { Sql } from '../src/store/db.ts';
import { detachPartition } from '../src/store/partition-changes.ts';
import { layoutOf, partitionsBefore, SPAN_CHECK } from '../src/store/partitions.ts';
import { failBatch } from '../src/store/stale.ts';
import { openWarnings } from '../src/store/warnings.ts';
import { connected, openWriter } from './support/gateway.ts';
import {
  ended,
  type Hourhand,
  h,
  linesOf,
  startHourhand,
  straggling,
  type TestCall,
  until,
} from './support/hourhand.ts';
import { ASKED, inPartitions } from './support/partitions.ts';

const at = '2026-08-19T13:10:00Z';
const range = ['--from', '2026-08-19', '--to', '2026-08-22'];

describe('a table in partitions', () => {
  test('says of the same calls what one table says, byte for byte, and counts what comes late', async () => {
    await using plain = await startHourhand({ FANOUT_MAX_USER_JOBS: '0' });
    await using parts = await startHourhand({ FANOUT_MAX_USER_JOBS: '0' });
    for (const hourhand of [plain, parts]) await hourhand.record(...calls('2026-08-19'));
    await inPartitions(parts);
    for (const hourhand of [plain, parts]) {
      await hourhand.record(...calls('2026-08-20'), ...calls('2026-08-21'));
      await hourhand.work();
      await hourhand.backfill(h('2026-08-19T00'), h('2026-08-21T23'));
      await settled(hourhand);
    }
    for (const hourhand of [plain, parts]) {
      await hourhand.record(
        { user: 'late', at: '2026-08-20T23:59:59.999Z' },
        { user: 'late', at: '2026-08-21T00:00:00Z' },
      );
      await hourhand.pool
        .$executeRaw`update "ModelCall" set "callTime" = '2026-08-21T07:30Z' where id = '2026-08-19 1'`;
      await hourhand.pool.$executeRaw`delete from "ModelCall" where id = '2026-08-20 2'`;
      await settled(hourhand);
      expect(await hourhand.wrong()).toEqual([]);
    }
    await same(plain, parts);
    expect(await tables(parts)).toEqual({ before_20260820: 59, 20260820: 60, 20260821: 62 });
  });

  test('has each index, check, default, trigger and right that the table had, and its calls where they were', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await using admin = await connected(hourhand);
    const role = `gateway_${process.pid}`;
    await admin.query(`create role ${role}`);
    try {
      await admin.query(`grant select, insert on "ModelCall" to ${role} with grant option`);
      await admin.query(
        `grant update (status, credits) on "ModelCall" to ${role}; grant select on "ModelCall" to public`,
      );
      await admin.query(
        `create index mine on "ModelCall" (model) where credits > 1; alter table "ModelCall" enable always trigger "ModelCall_late_update"`,
      );
      await hourhand.record(...calls('2026-08-19'));
      const before = await shapeOf(hourhand, 'ModelCall');
      const file = await fileOf(hourhand, 'ModelCall');
      await inPartitions(hourhand);
      expect(await shapeOf(hourhand, 'ModelCall')).toEqual(before);
      for (const table of ['ModelCall_before_20260820', 'ModelCall_20260820', 'ModelCall_default']) {
        const { grants: _, ...shape } = await shapeOf(hourhand, table);
        expect(shape).toMatchObject({
          owner: before.owner,
          defaults: before.defaults,
          checks: before.checks,
          triggers: before.triggers,
        });
        expect(shape.indexes).toHaveLength(before.indexes.length);
      }
      expect(await fileOf(hourhand, 'ModelCall_before_20260820')).toBe(file);
      const [key] = await pool.$queryRaw<[{ key: string }]>`
        select pg_get_constraintdef(oid) as key from pg_constraint where conrelid = '"ModelCall"'::regclass and contype = 'p'`;
      expect(key.key).toBe('PRIMARY KEY (id, "callTime")');
    } finally {
      await admin.query(`drop owned by ${role}`);
      await admin.query(`drop role ${role}`);
    }
  });

  test('leaves one mark for each change, in both places where a call moves from one partition into another', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', id: 'a', at: '2026-08-19T13:10:00Z' });
    await inPartitions(hourhand);
    await marks(hourhand);
    const change = async (sql: string) => {
      await hourhand.pool.$executeRawUnsafe(sql);
      return marks(hourhand);
    };
    expect(await change(`update "ModelCall" set credits = 3`)).toEqual(['19T13 ada']);
    expect(await change(`update "ModelCall" set "callTime" = '2026-08-21T07:00Z'`)).toEqual([
      '19T13 ada',
      '21T07 ada',
    ]);
    expect(await change(`update "ModelCall" set "userDid" = 'bob'`)).toEqual(['21T07 ada', '21T07 bob']);
    expect(await change(`update "ModelCall" set "callTime" = clock_timestamp()`)).toEqual(['21T07 bob']);
    expect(await tables(hourhand)).toEqual({ default: 1 });
    expect(await change(`update "ModelCall" set "callTime" = '2026-08-20T07:00Z'`)).toEqual(['20T07 bob']);
    expect(await change('delete from "ModelCall_20260820"')).toEqual(['20T07 bob']);
    await hourhand.record({ user: 'cy', at: '2026-08-20T07:00:00Z' });
    expect(await marks(hourhand)).toEqual(['20T07 cy']);
  });

  test("takes the gateway's calls as before: by Prisma, and skipping those that are there", async () => {
    await using hourhand = await startHourhand();
    await inPartitions(hourhand);
    const { modelCall } = hourhand.pool;
    const callTime = new Date('2026-08-20T13:10:00.123Z');
    const call = {
      id: 'c',
      userDid: 'ada',
      providerId: 'openai',
      model: 'gpt',
      type: 'chatCompletion',
      callTime,
    } as const;
    expect(await modelCall.createMany({ data: [call, { ...call, id: 'd' }] })).toEqual({ count: 2 });
    expect(await modelCall.createMany({ data: [call, { ...call, id: 'e' }], skipDuplicates: true })).toEqual({
      count: 1,
    });
    await expect(modelCall.create({ data: call })).rejects.toThrow(/Unique constraint/);
    const data = { status: 'success', credits: '0.5' } as const;
    expect(await modelCall.update({ where: { id: 'c', callTime }, data })).toMatchObject({
      id: 'c',
      status: 'success',
    });
    expect(await modelCall.update({ where: { id: 'd' }, data })).toMatchObject({ id: 'd', status: 'success' });
    expect(await modelCall.groupBy({ by: ['status'], _count: true, orderBy: { status: 'asc' } })).toMatchObject([
      { status: 'processing', _count: 1 },
      { status: 'success', _count: 2 },
    ]);
  });

  test('fails the calls that hang, of whatever partition, and no other of their ids', async () => {
    await using hourhand = await startHourhand();
    await inPartitions(hourhand);
    const status = 'processing';
    await hourhand.record(
      { user: 'ada', id: 'a', at: '2026-08-19T13:00:00Z', status },
      { user: 'ada', id: 'b', at: '2026-08-20T13:00:00Z', status },
      { user: 'ada', id: 'a', at: '2026-08-20T23:50:00Z', status },
      { user: 'ada', id: 'b', at: '2026-08-21T00:05:00Z', status },
    );
    const limits = { minutes: 30, others: [] };
    const now = new Date('2026-08-21T00:10:00Z');
    const first = await failBatch(hourhand.pool, limits, { size: 1, now });
    expect(first).toMatchObject({ calls: 1, hours: [{ hour: '2026-08-19T13', calls: 1 }] });
    expect(await failBatch(hourhand.pool, limits, { after: first.next, size: 10, now })).toMatchObject({
      calls: 1,
      next: null,
    });
    const left = await hourhand.pool.modelCall.findMany({ where: { status }, orderBy: { callTime: 'asc' } });
    expect(left.map(({ id, callTime }) => `${id} ${callTime.toISOString()}`)).toEqual([
      'a 2026-08-20T23:50:00.000Z',
      'b 2026-08-21T00:05:00.000Z',
    ]);
  });
});

describe('an id', () => {
  const header =
    'id,call_time,user_did,app_did,provider,model,type,input_tokens,output_tokens,credits,status,duration_s';
  const line = (id: string, time: string) => `${id},2026-08-${time}:00Z,ada,,p,m,chatCompletion,1,1,0.1,success,1`;
  const csv = (...lines: string[]) => `${[header, ...lines].join('\n')}\n`;

  test('that is imported at another time is a bad line, whichever partition its call is in, and the same file changes nothing', async () => {
    await using hourhand = await startHourhand();
    await inPartitions(hourhand);
    const good = csv(line('a', '19T13:10'), line('b', '20T13:10'));
    expect((await hourhand.run(['import', '-'], good)).stderr).toContain('2 calls of 1 users imported');
    expect((await hourhand.run(['import', '-'], good)).stderr).toContain(
      '0 calls of 1 users imported, 2 were there already',
    );
    const bad = csv(
      line('a', '20T13:10'),
      line('b', '20T13:20'),
      line('c', '19T13:10'),
      line('c', '21T13:10'),
      line('d', '21T13:10'),
    );
    const refused = await hourhand.run(['import', '-'], bad);
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(
      /^line 2: id: .* got another call_time\nline 3: .*call_time\nline 5: .*call_time\nnothing imported: 3 of 5/m,
    );
    expect(await tables(hourhand)).toEqual({ before_20260820: 1, 20260820: 1 });
    expect((await hourhand.run(['import', '--skip-bad', '-'], bad)).stderr).toContain('2 calls of 1 users imported');
    expect(await tables(hourhand)).toEqual({ before_20260820: 2, 20260820: 1, 20260821: 1 });
  });

  test('that the gateway repeats at another time is found by verify, wherever the other is', async () => {
    await using hourhand = await startHourhand();
    await inPartitions(hourhand);
    await hourhand.record(
      { user: 'ada', id: 'a', at: '2026-08-19T13:10:00Z' },
      { user: 'ada', id: 'a', at: '2026-08-21T13:10:00Z' },
      { user: 'ada', id: 'b', at: '2026-08-20T13:10:00Z' },
      { user: 'ada', id: 'b', at: '2026-08-20T13:10:00.001Z' },
      { user: 'ada', id: 'c', at: '2026-08-20T13:10:00Z' },
    );
    await hourhand.cover(h('2026-08-19T00'), h('2026-08-21T23'));
    await hourhand.work();
    await settled(hourhand);
    const { code, stdout, stderr } = await hourhand.run(['verify', ...range]);
    expect({ code, stdout }).toEqual({
      code: 1,
      stdout:
        'repeated id a: 2026-08-19T13:10:00.000Z, 2026-08-21T13:10:00.000Z\n' +
        'repeated id b: 2026-08-20T13:10:00.000Z, 2026-08-20T13:10:00.001Z\n',
    });
    expect(stderr).toContain('0 user-hours differ; 2 ids are those of several calls\n');
    expect(await hourhand.run(['verify', '--from', '2026-08-21T13', '--to', '2026-08-21T14'])).toMatchObject({
      code: 1,
      stdout: 'repeated id a: 2026-08-19T13:10:00.000Z, 2026-08-21T13:10:00.000Z\n',
    });
  });
});

describe('partitions', () => {
  test('are made ahead, once, by many processes at once, as soon as no transaction holds the table', async () => {
    await using hourhand = await startHourhand();
    await inPartitions(hourhand, { ahead: 3 });
    expect(await layoutOf(hourhand.pool, ASKED)).toMatchObject({
      by: 'day',
      ahead: 3,
      partitions: 3,
      reaches: day('22'),
    });
    await using gateway = await openWriter(hourhand);
    await gateway.record({ user: 'ada', at: '2026-08-21T13:10:00Z' });
    const now = day('20');
    const early = await keepPartitions(hourhand.pool, { now });
    expect(early).toMatchObject({ created: [], waiting: [{ start: day('22') }, { start: day('23') }] });
    await gateway.query('commit');
    const looks = await Promise.all(Array.from({ length: 4 }, () => keepPartitions(hourhand.pool, { now })));
    const created = looks.flatMap((look) => look.created.map(({ start }) => start.getTime())).sort();
    expect(created).toEqual([day('22').getTime(), day('23').getTime()]);
    await hourhand.record({ user: 'ada', at: '2026-08-23T13:10:00Z' });
    expect(await tables(hourhand)).toEqual({ 20260821: 1, 20260823: 1 });
    expect(await keepPartitions(hourhand.pool, { now })).toEqual({
      created: [],
      stuck: [],
      waiting: [],
      checkDropped: false,
      raised: [],
      ended: [],
    });
    const { indexes, triggers } = await shapeOf(hourhand, 'ModelCall');
    const made = await shapeOf(hourhand, 'ModelCall_20260823');
    expect([made.indexes.length, made.triggers]).toEqual([indexes.length, triggers]);
    expect(await layoutOf(hourhand.pool, now)).toMatchObject({ partitions: 5, reaches: day('24') });
  });

  test('are made by a worker that finds none for this moment, and status says how far they reach', async () => {
    await using hourhand = await startHourhand();
    await inPartitions(hourhand, { by: 'month', ahead: 2 });
    await hourhand.record({ user: 'ada', at: new Date().toISOString() });
    expect((await hourhand.run(['status'])).stdout).toMatch(
      /^layout .* by month, 2 ahead: none is there for this moment; the default partition holds calls$/m,
    );
    await hourhand.work();
    const [{ month, reaches }] = await hourhand.pool.$queryRaw<[{ month: string; reaches: Date }]>`
      select to_char(now() at time zone 'UTC', 'YYYYMM01') as month, date_trunc('month', now(), 'UTC') + interval '3 months' as reaches`;
    expect(await tables(hourhand)).toEqual({ [month]: 1 });
    const { stdout } = await hourhand.run(['status', '--json']);
    expect(JSON.parse(stdout).layout).toMatchObject({
      kind: 'ours',
      by: 'month',
      ahead: 2,
      reaches: reaches.toISOString(),
      strays: false,
    });
    expect(hourhand.logged.filter(({ msg }) => msg === 'partition created')).toHaveLength(3);
  });

  test('are not made over many calls of the default partition: a warning stands until those are gone', async () => {
    await using hourhand = await startHourhand();
    await inPartitions(hourhand, { ahead: 1 });
    await hourhand.silently(Sql.sql`
      insert into "ModelCall" (id, "userDid", "providerId", model, type, "callTime")
      select 'b' || i, 'u' || i % 50, 'p', 'm', 'custom', timestamptz '2026-08-20T10:00Z'
        from generate_series(1, 2001) i`);
    const kept = await keepPartitions(hourhand.pool, { now: day('19') });
    expect(kept).toMatchObject({ created: [], stuck: [{ start: day('20') }], raised: [{ kind: 'partitions' }] });
    expect(await openWarnings(hourhand.pool)).toMatchObject([
      { subject: 'ModelCall_20260820', detail: expect.stringContaining('more than 2000 calls') },
    ]);
    await hourhand.silently(Sql.sql`delete from "ModelCall" where id = 'b1'`);
    expect(await keepPartitions(hourhand.pool, { now: day('19') })).toMatchObject({
      created: [{ start: day('20'), moved: 2_000 }],
      ended: [{ subject: 'ModelCall_20260820' }],
    });
    expect(await tables(hourhand)).toEqual({ 20260820: 2_000 });
    expect(await openWarnings(hourhand.pool)).toEqual([]);
  });

  test('are detached by a retention once all their hours are sealed, and stay as tables; the statistics stay too', async () => {
    await using hourhand = await startHourhand();
    const { pool, queues } = hourhand;
    await inPartitions(hourhand);
    await hourhand.record(...calls('2026-08-19'), ...calls('2026-08-20'), ...calls('2026-08-21'));
    await hourhand.work();
    await hourhand.backfill(h('2026-08-19T00'), h('2026-08-21T23'));
    await settled(hourhand);
    const before = await hourhand.run(['stats', ...range, '--format', 'csv']);
    const options = {
      kept: { calls: 24 },
      requestedBy: 'test',
      signal: new AbortController().signal,
      now: new Date('2026-08-22T12:00:00Z'), // half a day of the third partition is old
    };
    const names = ['ModelCall_before_20260820', 'ModelCall_20260820'];
    expect(await retain({ pool, queues }, { ...options, dryRun: true })).toMatchObject({
      detached: names,
      calls: 30,
    });
    expect(await tables(hourhand)).toEqual({ before_20260820: 60, 20260820: 60, 20260821: 60 });
    await using gateway = await openWriter(hourhand);
    await gateway.record({ user: 'ada', at: '2026-08-21T13:10:00Z' });
    const retaining = retain({ pool, queues }, options);
    await until(
      () => pool.$queryRaw<object[]>`
        select 1 from pg_stat_activity
         where datname = current_database() and query like '%pg_locks%' and pid <> pg_backend_pid()`,
      (looks) => looks.length > 0,
    );
    await gateway.query('rollback');
    expect(await retaining).toMatchObject({ detached: names, calls: 30, late: { calls: 0 }, passed: {} });
    expect(await tables(hourhand)).toEqual({ 20260821: 30 });
    for (const name of names)
      expect(await pool.$queryRawUnsafe(`select count(*)::int as n from "${name}"`)).toEqual([{ n: 60 }]);
    expect(await hourhand.run(['stats', ...range, '--format', 'csv'])).toMatchObject({ stdout: before.stdout });
    await hourhand.record({ user: 'late', at: '2026-08-20T23:10:00Z' });
    expect(await marks(hourhand)).toEqual(['20T23 late']);
    expect(await tables(hourhand)).toEqual({ default: 1, 20260821: 30 });
    expect(await retain({ pool, queues }, options)).toMatchObject({ detached: [], calls: 0, late: { calls: 1 } });
  });

  test('are not detached while a call of theirs lies in an hour that is not sealed', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await inPartitions(hourhand);
    await hourhand.record({ user: 'ada', at: '2026-08-20T13:10:00Z' }, { user: 'ada', at: '2026-08-20T23:10:00Z' });
    await hourhand.work();
    await hourhand.backfill(h('2026-08-20T13'), h('2026-08-20T23'));
    await settled(hourhand);
    await pool.$executeRaw`update "StatHour" set "sealedAt" = now() where hour < '2026-08-20T23:00Z'`;
    const [first, second, ...others] = await partitionsBefore(pool, day('21'));
    if (!first || !second) throw new Error('expected two partitions');
    expect([first.name, second.name, others]).toEqual(['ModelCall_before_20260820', 'ModelCall_20260820', []]);
    expect(await detachPartition(pool, second)).toBe(false);
    await pool.$executeRaw`update "StatHour" set "sealedAt" = now()`;
    expect(await detachPartition(pool, second)).toBe(true);
    expect(await detachPartition(pool, first)).toBe(true); // without any call
    expect(await tables(hourhand)).toEqual({});
  });
});

describe('hourhand partition', () => {
  test('says first what it would do, then does it, and only once', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record(...calls('2026-08-19'));
    const before = await everything(hourhand);
    expect(await hourhand.run(['partition', '--by', 'week', '--ahead', '2', '--dry-run'])).toMatchObject({
      code: 0,
      stderr: expect.stringMatching(
        /^the \d+ calls that are there .* before \d{4}-\d\d-\d\dT00:00:00.000Z\nafter it, one for each week, 2 ahead; .*\nnothing was changed\n$/,
      ),
    });
    expect(await everything(hourhand)).toEqual(before);
    expect((await hourhand.run(['status'])).stdout).toMatch(/^layout {6}ModelCall is one table$/m);
    expect(await hourhand.run(['partition', '--by', 'week', '--ahead', '2'])).toMatchObject({
      code: 0,
      stderr: expect.stringMatching(/\ndone; writers waited for \d+ ms\n(ModelCall_\d{8} created\n)+$/),
    });
    expect((await hourhand.run(['status'])).stdout).toMatch(
      /^layout .* by week, 2 ahead: they reach to \d{4}-\d\d-\d\dT00$/m,
    );
    expect((await keepPartitions(hourhand.pool)).created).toEqual([]);
    expect(await hourhand.run(['partition', '--by', 'day'])).toMatchObject({
      code: 1,
      stderr: 'nothing was changed: expected ModelCall to be one plain table, it is partitioned already\n',
    });
    expect(await hourhand.run(['migrate'])).toMatchObject({ code: 0, stderr: 'nothing to apply\n' });
  });

  test.each([
    ['a view of it', 'create view seen as select id from "ModelCall"', /depends on the table .*view seen/],
    ['a key to it', 'create table bill (call text references "ModelCall")', /depends on the table .*bill/],
    ['a unique index', 'create unique index trace on "ModelCall" ("traceId")', /unique or exclusion index trace/],
    ['row-level security', 'alter table "ModelCall" enable row level security', /row-level security/],
    [
      'a trigger that no partition can have',
      'create function f() returns trigger language plpgsql as $$ begin return null; end $$; create trigger u after insert on "ModelCall" referencing new table as n for each row execute function f()',
      /transition tables/,
    ],
    [
      'a call of another time',
      `insert into "ModelCall" (id, "userDid", "providerId", model, type, "callTime") values ('x', 'u', 'p', 'm', 'custom', now() + interval '40 days')`,
      /expected all calls before/,
    ],
  ])('is refused where there is %s, in one line, and nothing is half done', async (_, sql, line) => {
    await using hourhand = await startHourhand();
    await using admin = await connected(hourhand);
    await admin.query(sql);
    const before = await everything(hourhand);
    await expect(inPartitions(hourhand)).rejects.toThrow(line);
    expect(await everything(hourhand)).toEqual(before);
  });

  test('is taken back where somebody interrupts it, and by a worker where it was killed: no check is left to refuse calls', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    const before = await everything(hourhand);
    // Held up once the table is read, and before that is written down.
    await pool.$executeRaw`
      create function hold() returns event_trigger language plpgsql as $$ begin
        if exists (select from pg_constraint where conname = 'ModelCall_partition_check' and convalidated) then perform pg_sleep(600); end if;
      end $$`;
    await pool.$executeRaw`create event trigger hold on ddl_command_end when tag in ('ALTER TABLE') execute function hold()`;
    const held = async () => {
      const child = hourhand.spawn('partition', '--by', 'day');
      await until(
        () => straggling(hourhand),
        (sleeping) => sleeping === 1,
      );
      expect(await hasCheck(hourhand)).toBe(true);
      await hourhand.record({ user: 'ada', at });
      return child;
    };
    const interrupted = await held();
    const lines = linesOf(interrupted);
    interrupted.kill('SIGINT');
    expect(await ended(interrupted)).toBe(1);
    expect(lines.at(-1)).toBe('hourhand: SIGINT: nothing was changed');
    expect(await everything(hourhand)).toEqual(before);

    const killed = await held();
    killed.kill('SIGKILL');
    await ended(killed);
    await pool.$executeRaw`select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()`;
    await until(
      () => keepPartitions(pool),
      ({ checkDropped }) => checkDropped,
    );
    expect(await hasCheck(hourhand)).toBe(false);
    await pool.$executeRaw`drop event trigger hold`;
    await inPartitions(hourhand); // over what is left of the other
    expect(await tables(hourhand)).toEqual({ before_20260820: 2 });
  });
});

/** Calls of a few users in the first hour of a day and in its last, its first instant and its last among them; 60 in all. */
function calls(date: string): TestCall[] {
  return Array.from({ length: 60 }, (_, i) => ({
    id: `${date} ${i}`,
    user: `u${i % 7}`,
    at:
      i === 0
        ? `${date}T00:00:00Z`
        : i === 59
          ? `${date}T23:59:59.999Z`
          : `${date}T${['00', '23'][i % 2]}:${String(i).padStart(2, '0')}:30Z`,
    type: i % 5 === 0 ? 'imageGeneration' : 'chatCompletion',
    tokens: i,
    credits: `0.0000000${1 + (i % 9)}`,
    status: i % 11 === 0 ? 'failed' : 'success',
  }));
}

const day = (date: string) => new Date(`2026-08-${date}T00:00:00Z`);

/** What the reports of both say. */
async function same(one: Hourhand, other: Hourhand): Promise<void> {
  for (const args of [
    ['stats', ...range, '--by', 'type', '--format', 'csv'],
    ['stats', ...range, '--zeros', '--format', 'csv'],
    ['verify', ...range],
  ]) {
    const [{ stdout }, others] = await Promise.all([one.run(args), other.run(args)]);
    expect(others).toMatchObject({ code: 0, stdout });
  }
}

/** Look, as every few seconds, until nothing is owed and no mark is left. */
async function settled(hourhand: Hourhand): Promise<void> {
  await until(
    async () => {
      await hourhand.tick();
      const open = await hourhand.pool.statHour.count({ where: { state: { not: 'closed' } } });
      return open + (await hourhand.pool.statMark.count());
    },
    (left) => left === 0,
  );
}

/** The marks, as `19T13 ada`; and takes them away. */
async function marks({ pool }: Hourhand): Promise<string[]> {
  const rows = await pool.$queryRaw<{ mark: string }[]>`
    with taken as (delete from "StatMark" returning hour, "userDid")
    select to_char(hour at time zone 'UTC', 'DD"T"HH24') || ' ' || "userDid" as mark from taken order by 1`;
  return rows.map((row) => row.mark);
}

/** How many calls are in which partition, by what follows `ModelCall_`. */
async function tables({ pool }: Hourhand): Promise<Record<string, number>> {
  const rows = await pool.$queryRaw<{ name: string; calls: number }[]>`
    select replace(tableoid::regclass::text, '"', '') as name, count(*)::int as calls from "ModelCall" group by 1`;
  return Object.fromEntries(rows.map(({ name, calls }) => [name.replace('ModelCall_', ''), calls]));
}

/** What a table of calls is made of, its own name taken out. */
async function shapeOf({ pool }: Hourhand, table: string) {
  const of = async (query: Sql.Sql) =>
    (await pool.$queryRaw<{ what: string }[]>(query)).map(({ what }) => what.replaceAll(table, 'ModelCall')).sort();
  const t = Sql.sql`to_regclass(${`"${table}"`})`;
  const [owner] = await of(Sql.sql`select relowner::regrole::text as what from pg_class where oid = ${t}`);
  return {
    owner,
    defaults: await of(Sql.sql`select pg_get_expr(adbin, adrelid) as what from pg_attrdef where adrelid = ${t}`),
    checks: await of(
      Sql.sql`select conname || ' ' || pg_get_constraintdef(oid) as what from pg_constraint where conrelid = ${t} and contype = 'c'`,
    ),
    triggers: await of(
      Sql.sql`select tgname || ' ' || tgenabled::text || ' ' || pg_get_triggerdef(oid) as what from pg_trigger where tgrelid = ${t}`,
    ),
    indexes: await of(Sql.sql`
      select replace(pg_get_indexdef(indexrelid), ' ON ONLY ', ' ON ') as what
        from pg_index where indrelid = ${t} and not indisprimary
      union all select 'the key' from pg_index where indrelid = ${t} and indisprimary`),
    grants: await of(Sql.sql`
      select coalesce(a::text, '') as what from pg_class c, aclexplode(relacl) a where c.oid = ${t}
      union all select attname || a::text from pg_attribute, aclexplode(attacl) a where attrelid = ${t}`),
  };
}

async function fileOf({ pool }: Hourhand, table: string): Promise<string> {
  const [row] = await pool.$queryRaw<
    [{ file: string }]
  >`select pg_relation_filepath(${`"${table}"`}::regclass) as file`;
  return row.file;
}

/** The tables, their constraints and their indexes. */
async function everything({ pool }: Hourhand): Promise<unknown> {
  return pool.$queryRaw`
    select relname, relkind::text, (select array_agg(conname::text order by conname) from pg_constraint where conrelid = c.oid) as constraints,
           (select array_agg(tgname::text order by tgname) from pg_trigger where tgrelid = c.oid) as triggers
      from pg_class c where relnamespace = current_schema()::regnamespace order by relname`;
}

async function hasCheck({ pool }: Hourhand): Promise<boolean> {
  const rows = await pool.$queryRaw<object[]>`select 1 from pg_constraint where conname = ${SPAN_CHECK}`;
  return rows.length > 0;
}
