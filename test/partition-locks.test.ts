// Partitions are made and let go while everybody works: nobody loses a call, and the gateway hardly waits.

import { cpSync, mkdtempSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { migrations } from '../src/config.ts';
import { wholeHour } from '../src/processors/roll-up-scope.ts';
import { keepPartitions } from '../src/producers/partitions.ts';
import { takesTurn } from '../src/queues/redis.ts';
import { auditHour } from '../src/store/audit.ts';
import { connect, inOneSnapshot, Sql } from '../src/store/db.ts';
import { allot, closeEmptyHours, endRun } from '../src/store/ledger.ts';
import { migrate } from '../src/store/migrate.ts';
import { detachPartition } from '../src/store/partition-changes.ts';
import { layoutOf, partitionsBefore, SPAN_CHECK } from '../src/store/partitions.ts';
import { partitionCalls } from '../src/store/repartition.ts';
import { removeCalls } from '../src/store/retain.ts';
import { rollUp } from '../src/store/stats.ts';
import { openWarnings, type Warning } from '../src/store/warnings.ts';
import { createDatabase } from './support/database.ts';
import { connected } from './support/gateway.ts';
import { ended, type Hourhand, h, startHourhand, straggling, until } from './support/hourhand.ts';
import { ASKED, inPartitions } from './support/partitions.ts';
import { startPooler } from './support/pooler.ts';

const day = (date: string) => new Date(`2026-08-${date}T00:00:00Z`);
/** An hour without a partition, until one is made. */
const callTime = '2026-08-21T13:10:00Z';

describe('while a partition is made', () => {
  test('no hour closes without its calls, and each statement of the gateway that waits finds its calls', async () => {
    await using hourhand = await startHourhand();
    const { pool, policy } = hourhand;
    await withoutNext(hourhand);
    await hourhand.cover(h('2026-08-21T13'), h('2026-08-21T14'));
    await hourhand.backfill(h('2026-08-21T13'), h('2026-08-21T14'));
    // As if they had been written while their hour ran: without marks.
    await hourhand.silently(Sql.sql`
      insert into "ModelCall" (id, "userDid", "providerId", model, type, "callTime")
      select 'c' || i, 'u' || i % 5, 'p', 'm', 'custom', ${callTime}::timestamptz + (i % 2) * interval '1 hour'
        from generate_series(1, 60) i`);
    const sessions = await Promise.all(Array.from({ length: 7 }, () => connected(hourhand)));
    const [plain, byId, prepared, called, writer, preparedWriter, reader] = sessions;
    const update = `update "ModelCall" set status = 'success' where id = $1 and "callTime" = $2`;
    const insert = `insert into "ModelCall" (id, "userDid", "providerId", model, type, "callTime")
      values ($1, 'eve', 'p', 'm', 'custom', $2)`;
    // With plans that were made before the partition was.
    for (const session of sessions) await session.query('set plan_cache_mode = force_generic_plan');
    await called?.query(`
      create function end_call(which text, at timestamptz) returns int language plpgsql as $$
      declare n int;
      begin
        update "ModelCall" set status = 'success' where id = which and "callTime" = at;
        get diagnostics n = row_count;
        return n;
      end $$`);
    const end = `select end_call('c8', '${callTime}') as n`;
    await called?.query(end);
    await prepared?.query({ name: 'end', text: update, values: ['c2', callTime] });
    await preparedWriter?.query({ name: 'write', text: insert, values: ['w0', callTime] });
    await holdTheLock(hourhand);

    const making = keepPartitions(pool, { now: day('20') });
    await until(
      () => straggling(hourhand),
      (n) => n === 1,
    );
    const outcomes = await Promise.allSettled([
      closeEmptyHours(pool, [h('2026-08-21T13')], policy),
      wholeHour(pool, h('2026-08-21T14'), async (db, scope) => {
        await allot(db, scope.hour, { again: false });
        const figures = await rollUp(db, scope);
        await endRun(db, scope.hour, 'closed', policy, { counted: figures });
        return figures;
      }),
      plain?.query(`update "ModelCall" set status = 'success' where id = 'c4' and "callTime" = '${callTime}'`),
      byId?.query(`update "ModelCall" set status = 'success' where id = 'c6'`),
      prepared?.query({ name: 'end', text: update, values: ['c10', callTime] }),
      called?.query(end),
      writer?.query(insert, ['w1', callTime]),
      preparedWriter?.query({ name: 'write', text: insert, values: ['w2', callTime] }),
      reader?.query(
        `select from "ModelCall" where "callTime" between '2026-08-21' and '2026-08-22' and id like 'c%'`,
      ),
    ]);
    expect(await making).toMatchObject({ created: [{ start: day('21'), moved: 61 }] });
    await Promise.all(sessions.map((session) => session.end()));
    const seen = outcomes.map((outcome) => (outcome.status === 'fulfilled' ? outcome.value : outcome.reason.code));
    expect(seen).toMatchObject([
      [], // of the hours that closed, without a call
      { calls: 30n, users: 5 },
      ...[1, 1, 1, 1, 1, 1, 60].map((rowCount) => ({ rowCount })),
    ]);
    expect(await pool.$queryRaw`select count(*)::int as n from "ModelCall_20260821"`).toEqual([{ n: 63 }]);
    const done = await pool.modelCall.findMany({ where: { status: 'success' }, orderBy: { id: 'asc' } });
    expect(done.map(({ id }) => id)).toEqual(['c10', 'c2', 'c4', 'c6', 'c8']);
  });

  test('ten times over, with six sessions that write and one that reads, no call is lost', async () => {
    await using hourhand = await startHourhand();
    await inPartitions(hourhand, { ahead: 1 });
    const { pool } = hourhand;
    let stop = false;
    let committed = 0;
    const writers = Array.from({ length: 6 }, async (_, w) => {
      await using gateway = await connected(hourhand);
      let written = 0;
      while (!stop) {
        const [id, at] = [`w${w}-${written}`, new Date(day('20').getTime() + ((written * 7) % 264) * 3_600_000)];
        await gateway.query(
          `insert into "ModelCall" (id, "userDid", "providerId", model, type, "callTime")
           values ($1, $2, 'p', 'm', 'custom', $3)`,
          [id, `u${w}`, at],
        );
        written += 1;
        committed += 1;
        const update = `update "ModelCall" set status = 'success' where id = $1 and "callTime" = $2`;
        const { rowCount } = await gateway.query({ name: 'end', text: update, values: [id, at] });
        if (rowCount !== 1) throw new Error(`the call ${id} of ${at.toISOString()} was not found`);
      }
      return written;
    });
    const reader = (async () => {
      await using gateway = await connected(hourhand);
      for (let reads = 0; ; reads += 1) {
        const least = committed;
        const { rows } = await gateway.query('select count(*)::int as n from "ModelCall"');
        if (rows[0].n < least) throw new Error(`${rows[0].n} calls are there, and ${least} were committed`);
        const [first, second] = await inOneSnapshot(pool, async (db) => [await countOf(db), await countOf(db)]);
        if (first !== second) throw new Error(`one snapshot holds ${first} calls and ${second}`);
        if (stop) return reads;
      }
    })();
    const created: Date[] = [];
    for (let date = 19; date < 29; date += 1) {
      const before = committed;
      await Promise.race([
        Promise.all([...writers, reader]), // fails at once where one of them does
        until(
          async () => committed,
          (n) => n > before + 30,
        ),
      ]);
      // A transaction of the writers may be in the way for a moment.
      const kept = await until(
        () => keepPartitions(pool, { now: day(`${date}`) }),
        ({ waiting }) => waiting.length === 0,
      );
      created.push(...kept.created.map(({ start }) => start));
    }
    stop = true;
    const written = (await Promise.all(writers)).reduce((sum, n) => sum + n, 0);
    expect(await reader).toBeGreaterThan(0);
    expect(created).toHaveLength(10);
    const [row] = await pool.$queryRaw<[{ calls: number; ids: number; done: number; strays: number }]>`
      select count(*)::int as calls, count(distinct id)::int as ids,
             count(*) filter (where status = 'success')::int as done,
             count(*) filter (where tableoid = '"ModelCall_default"'::regclass
                                and "callTime" < ${day('30')}::timestamptz)::int as strays from "ModelCall"`;
    expect(row).toEqual({ calls: written, ids: written, done: written, strays: 0 });
  });

  test('the gateway waits once in ten minutes for 150 ms at most, however long somebody reads', async () => {
    await using hourhand = await startHourhand();
    const { pool, redis, prefix } = hourhand;
    await inPartitions(hourhand, { ahead: 2 });
    await using reader = await connected(hourhand);
    const now = day('19'); // the day after next has no partition: there is time
    let locked = 0;
    // The worst case: the reader comes between the look at the locks and the lock.
    const mayLock = async () => {
      const turn = await takesTurn(redis, prefix, 'partition', 10 * 60_000);
      if (!turn) return false;
      locked += 1;
      await reader.query('begin; select from "ModelCall" limit 1');
      return true;
    };
    const waits = await waitsOfAWriter(hourhand, async () => {
      for (let look = 0; look < 20; look += 1) {
        const kept = await keepPartitions(pool, { now, mayLock });
        expect(kept).toMatchObject({ created: [], waiting: [{ start: day('21') }], raised: [] });
        if (look === 10) await reader.query('rollback');
      }
    });
    expect(locked).toBe(1);
    expect(waits.length).toBe(1);
    expect(Math.max(...waits)).toBeLessThanOrEqual(150);
    expect(await drafts(hourhand)).toEqual([]);
  });
});

test('partitions are made and detached behind a transaction pooler of strangers', async () => {
  await using hourhand = await startHourhand();
  await withoutNext(hourhand);
  await hourhand.record({ user: 'ada', at: callTime });
  await using pooler = await startPooler({
    databaseUrl: hourhand.environment.DATABASE_URL,
    strangers: [
      { TimeZone: 'Asia/Kathmandu', DateStyle: 'German', default_transaction_isolation: 'repeatable read' },
      { TimeZone: 'America/St_Johns', DateStyle: 'SQL, DMY', lock_timeout: '1ms' },
    ],
  });
  const pool = connect(pooler.url, { connections: 2, onError: () => {} });
  try {
    const kept = await keepPartitions(pool, { now: day('22') });
    expect(kept).toMatchObject({ created: [{ start: day('22') }, { start: day('23') }], waiting: [] });
    expect(await keepPartitions(pool, { now: day('20') })).toMatchObject({
      created: [{ start: day('21'), moved: 1 }],
    });
    const [first, second] = await partitionsBefore(pool, day('22'));
    expect([first?.start, second?.start, second?.end]).toEqual([null, day('20'), day('21')]);
    expect(first && (await detachPartition(pool, first))).toBe(true);
  } finally {
    await pool.$disconnect();
  }
});

describe('a partition that is needed soon', () => {
  test('is tried at each look, and a warning names the session in the way until it has gone', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await withoutNext(hourhand);
    await using reader = await connected(hourhand);
    await reader.query('begin; select from "ModelCall" limit 1');
    const { rows } = await reader.query('select pg_backend_pid() as pid, current_user as role');
    const now = day('20');
    const never = async () => {
      throw new Error('there is no time to wait for a turn');
    };
    let raised: Warning[] = [];
    const waits = await waitsOfAWriter(hourhand, async () => {
      const kept = await keepPartitions(pool, { now, mayLock: never });
      expect(kept.waiting).toMatchObject([{ start: day('21') }]);
      raised = kept.raised;
    });
    expect(waits).toEqual([]);
    expect(raised).toMatchObject([{ kind: 'partitions', subject: 'ModelCall_20260821', since: now }]);
    expect(raised[0]?.detail).toMatch(
      new RegExp(
        `^calls from 2026-08-21T00:00:00.000Z to 2026-08-22T00:00:00.000Z have no partition but ModelCall_default: ` +
          `the session ${rows[0].pid} of role ${rows[0].role} \\(the gateway\\), ` +
          'whose transaction began at .*Z, holds ModelCall$',
      ),
    );
    expect(raised[0]?.remedy).toContain(`SELECT pg_terminate_backend(${rows[0].pid})`);
    expect(await openWarnings(pool)).toHaveLength(1);
    await reader.query('rollback');
    expect(await keepPartitions(pool, { now, mayLock: never })).toMatchObject({
      created: [{ start: day('21') }],
      ended: [{}],
    });
    expect(await openWarnings(pool)).toEqual([]);
  });

  test('is not made over a stranger of its name, nor over a large default partition', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await withoutNext(hourhand);
    await pool.$executeRaw`create table "ModelCall_20260821" (id text)`;
    const now = day('20');
    expect(await keepPartitions(pool, { now })).toMatchObject({
      stuck: [{ start: day('21') }],
      raised: [{ detail: 'a table named ModelCall_20260821 is there already, and is no partition of ModelCall' }],
    });
    await pool.$executeRaw`alter table "ModelCall_20260821" rename to mine`;
    await hourhand.silently(Sql.sql`
      insert into "ModelCall" (id, "userDid", "providerId", model, type, "callTime", metadata)
      select 'b' || i, 'u', 'p', repeat('m', 1900), 'custom', timestamptz '2027-08-20Z', null
        from generate_series(1, 34000) i`);
    const { stuck } = await keepPartitions(pool, { now });
    expect(stuck).toMatchObject([{ start: day('21') }]);
    expect(await openWarnings(pool)).toMatchObject([
      { detail: expect.stringMatching(/^ModelCall_default takes \d+ MB: expected at most 64 MB/) },
    ]);
  });
});

describe('a process that is killed', () => {
  test('at any step of making a partition leaves nothing that the next look does not mend', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await inPartitions(hourhand, { ahead: 1 });
    const made = async () => {
      const rows = await pool.$queryRaw<{ name: string }[]>`
        select relname::text as name from pg_class
         where relispartition and relname ~ '^ModelCall_[0-9]{8}$' and relname > 'ModelCall_202609'`;
      return rows.map(({ name }) => name);
    };
    // Held up at the draft's creation, at its last word, and in the attaching, under the lock.
    for (const step of ['CREATE TABLE', 'COMMENT', 'ALTER TABLE']) {
      for (const name of await made()) await pool.$executeRawUnsafe(`drop table "${name}"`);
      await holdTheLock(hourhand, { tag: step, always: true });
      const child = hourhand.spawn('worker');
      await until(
        () => straggling(hourhand),
        (n) => n === 1,
      );
      child.kill('SIGKILL');
      await ended(child);
      // PostgreSQL does not see that nobody is there, and ends the statement; or the session ends as well.
      if (step !== 'COMMENT')
        await pool.$executeRaw`
        select pg_terminate_backend(pid) from pg_stat_activity
         where wait_event = 'PgSleep' and datname = current_database()`;
      await until(
        () => straggling(hourhand),
        (n) => n === 0,
      );
      await pool.$executeRaw`drop event trigger hold`;
      await until(
        () => keepPartitions(pool),
        ({ waiting }) => waiting.length === 0,
      );
      expect(await made(), step).toHaveLength(2);
      expect(await drafts(hourhand), step).toEqual([]);
      expect(await openWarnings(pool)).toEqual([]);
    }
    // One that nobody wants any more is dropped; one that somebody uses is left.
    await pool.$executeRaw`
      create table "ModelCall_20250101" (like "ModelCall" including all);
      create table "ModelCall_20250102" (like "ModelCall" including all);
      comment on table "ModelCall_20250101" is 'hourhand partition: not attached yet';
      comment on table "ModelCall_20250102" is 'hourhand partition: not attached yet';
      insert into "ModelCall_20250102" (id, "userDid", "providerId", model, type, "callTime")
      values ('a', 'ada', 'p', 'm', 'custom', '2025-01-02Z')`;
    await keepPartitions(pool);
    expect(await drafts(hourhand)).toEqual(['ModelCall_20250102']);
  });
});

describe('a reader of calls that wants one snapshot', () => {
  test('keeps partitions from being made, where a mere snapshot would lose the calls that are moved', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await withoutNext(hourhand);
    await hourhand.record({ user: 'ada', at: callTime });
    const now = day('20');
    const seen = `select from "ModelCall" where "callTime" = '${callTime}'`;
    expect(
      await inOneSnapshot(pool, async (db) => {
        expect(await keepPartitions(pool, { now })).toMatchObject({ created: [], waiting: [{}] });
        return (await db.$queryRawUnsafe<object[]>(seen)).length;
      }),
    ).toBe(1);

    // What docs/scaling.md says of a gateway in REPEATABLE READ, and what it can do.
    await using gateway = await connected(hourhand);
    await gateway.query('begin isolation level repeatable read; select 1 from "StatRange"');
    expect(await keepPartitions(pool, { now })).toMatchObject({ created: [{ moved: 1 }] });
    expect((await gateway.query(seen)).rowCount).toBe(0);
    await gateway.query('rollback');
    await gateway.query('begin isolation level repeatable read; lock table only "ModelCall" in row exclusive mode');
    expect(await keepPartitions(pool, { now: day('21') })).toMatchObject({ created: [] });
    expect((await gateway.query(seen)).rowCount).toBe(1);
    await gateway.query('rollback');
  });

  test('waits for the table before it has a snapshot: audit, retention, verify and stats', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    const hour = h('2026-08-21T13');
    await withoutNext(hourhand);
    await hourhand.record({ user: 'ada', at: callTime });
    await hourhand.cover(hour, hour);
    const worker = await hourhand.work();
    await hourhand.backfill(hour);
    await hourhand.reaches(hour, 'closed');
    await until(
      () => pool.statMark.count(),
      (n) => n === 0,
    );
    await worker.stop();
    await pool.$executeRaw`update "StatHour" set fence = 0`;
    const range = ['--from', '2026-08-21T13', '--to', '2026-08-21T14'];
    await using admin = await connected(hourhand);
    await admin.query('begin; lock table only "ModelCall" in access exclusive mode');
    const all = Promise.all([
      auditHour(pool, hour),
      removeCalls(pool, hour, 100),
      hourhand.run(['verify', ...range]),
      hourhand.run(['stats', ...range]),
    ]);
    const waiting = await until(
      () => pool.$queryRaw<{ query: string }[]>`
        select a.query from pg_locks l join pg_stat_activity a using (pid)
         where not l.granted and l.relation = '"ModelCall"'::regclass and datname = current_database()`,
      (found) => found.length === 4,
    );
    const query = 'lock table only "ModelCall" in access share mode';
    expect(waiting).toEqual(Array.from({ length: 4 }, () => ({ query })));
    // As docs/scaling.md says it, while they wait; without marks, which would tell of the move.
    await admin.query(`
      set local session_replication_role = replica;
      create table "ModelCall_20260821" (like "ModelCall" including all);
      with moved as (
        delete from "ModelCall_default" where "callTime" >= '2026-08-21Z' and "callTime" < '2026-08-22Z' returning *)
      insert into "ModelCall_20260821" select * from moved;
      alter table "ModelCall" attach partition "ModelCall_20260821"
        for values from ('2026-08-21Z') to ('2026-08-22Z');
      commit`);
    const [audited, removed, verified, stats] = await all;
    expect({ audited, removed }).toEqual({ audited: undefined, removed: undefined });
    expect(verified).toMatchObject({ code: 0, stdout: '' });
    expect(stats).toMatchObject({ code: 0, stdout: expect.stringContaining('ada') });
  });
});

describe('a change of the table', () => {
  test('leaves a long reader and the gateway alone, changes nothing, and names the session', async () => {
    await using hourhand = await startHourhand();
    const { pool, environment } = hourhand;
    await using reader = await connected(hourhand);
    const { rows } = await reader
      .query('begin; select from "ModelCall" limit 1')
      .then(() => reader.query('select pg_backend_pid() as pid'));
    const { pid } = rows[0];
    const named = new RegExp(`in use at each of 1 attempts; the session ${pid} of role .* is in the way: .*${pid}`);
    const convert = () =>
      partitionCalls({
        databaseUrl: environment.DATABASE_URL,
        plan: { by: 'day', ahead: 1 },
        dryRun: false,
        onProspect: () => {},
        onStep: () => {},
        now: ASKED,
        attempts: 1,
      });
    expect(await waitsOfAWriter(hourhand, () => expect(convert()).rejects.toThrow(named))).toEqual([]);
    expect(await layoutOf(pool)).toEqual({ kind: 'plain', spanCheck: false });
    await reader.query('rollback');
    expect(await convert()).toBeLessThan(1_000);

    await pool.$executeRaw`delete from "ModelCall"`;
    const [first] = await partitionsBefore(pool, day('20'));
    if (!first) throw new Error('expected a partition');
    await reader.query('begin; select from "ModelCall" limit 1');
    const detached = () => detachPartition(pool, first, { attempts: 1 });
    expect(await waitsOfAWriter(hourhand, () => expect(detached()).rejects.toThrow(named), callTime)).toEqual([]);
    await reader.query('rollback');
    expect(await detachPartition(pool, first)).toBe(true);
  });

  test('looks at the seals once more under the lock: a call that came meanwhile keeps its partition', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await withoutNext(hourhand);
    const [, partition] = await partitionsBefore(pool, day('21'));
    if (!partition) throw new Error('expected a partition');
    await using admin = await connected(hourhand);
    await admin.query(`begin; lock table only "${partition.name}" in share update exclusive mode`);
    const detaching = detachPartition(pool, partition);
    await until(
      () => pool.$queryRaw<object[]>`
        select 1 from pg_locks where not granted and relation = to_regclass(${`"${partition.name}"`})`,
      (found) => found.length === 1,
    );
    await hourhand.record({ user: 'ada', at: '2026-08-20T13:10:00Z' });
    await admin.query('rollback');
    expect(await detaching).toBe(false);
    expect(await partitionsBefore(pool, day('21'))).toHaveLength(2);
  });

  test('is over at once for the migrations since 0.6.0, in partitions too, while the gateway writes', async () => {
    await using database = await createDatabase({ migrated: false });
    const former = mkdtempSync(path.join(tmpdir(), 'hourhand-migrations-'));
    for (const name of readdirSync(migrations).filter((name) => name < '20261130'))
      cpSync(path.join(migrations, name), path.join(former, name), { recursive: true });
    await migrate(database.url, former);
    const gateway = { environment: { DATABASE_URL: database.url } };
    await using admin = await connected(gateway);
    await admin.query(`insert into "ModelCall" (id, "userDid", "providerId", model, type, "callTime")
      select 'c' || i, 'u' || i % 50, 'p', 'm', 'custom', '2026-08-01Z'::timestamptz + i * interval '10 seconds'
        from generate_series(1, 100000) i`);
    await partitionCalls({
      databaseUrl: database.url,
      plan: { by: 'day', ahead: 1 },
      dryRun: false,
      onProspect: () => {},
      onStep: () => {},
      now: ASKED,
    });
    const waits = await waitsOfAWriter(gateway, async () => void (await migrate(database.url, migrations)));
    expect(Math.max(0, ...waits)).toBeLessThanOrEqual(500);
  });

  test('drops the check of a killed conversion without a wait, and warns while it cannot', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    await pool.$executeRawUnsafe(
      `alter table "ModelCall" add constraint "${SPAN_CHECK}"
         check ("callTime" < '2026-08-20T00:00:00.000Z') not valid`,
    );
    await using reader = await connected(hourhand);
    await reader.query('begin; select from "ModelCall" limit 1');
    const look = () => keepPartitions(pool, { now: ASKED });
    const waits = await waitsOfAWriter(hourhand, async () => {
      expect(await look()).toMatchObject({ checkDropped: false, raised: [{ subject: SPAN_CHECK }] });
    });
    expect(waits).toEqual([]);
    await reader.query('rollback');
    expect(await look()).toMatchObject({ checkDropped: true, ended: [{ subject: SPAN_CHECK }] });
  });
});

/** The calls in partitions by day, of which the 20th is the last. */
async function withoutNext(hourhand: Hourhand): Promise<void> {
  await inPartitions(hourhand, { ahead: 1 });
  await keepPartitions(hourhand.pool, { now: day('19') });
}

async function countOf(db: Hourhand['pool'] | Parameters<Parameters<typeof inOneSnapshot>[1]>[0]): Promise<number> {
  const [row] = await db.$queryRaw<[{ n: number }]>`select count(*)::int as n from "ModelCall"`;
  return row.n;
}

/** What changes a table sleeps for half a second under its exclusive lock, or at any statement of a kind. */
async function holdTheLock({ pool }: Hourhand, { tag = 'ALTER TABLE', always = false } = {}): Promise<void> {
  await pool.$executeRawUnsafe(`
    create or replace function hold() returns event_trigger language plpgsql as $$ begin
      if ${always && tag !== 'ALTER TABLE'} or exists (
        select from pg_locks where pid = pg_backend_pid() and mode = 'AccessExclusiveLock' and granted
           and relation in ('"ModelCall"'::regclass, to_regclass('"ModelCall_default"')))
      then perform pg_sleep(${always ? 3 : 0.5}); end if;
    end $$`);
  await pool.$executeRawUnsafe(
    `create event trigger hold on ddl_command_end when tag in ('${tag}') execute function hold()`,
  );
}

/** The tables that are to become partitions. */
async function drafts({ pool }: Hourhand): Promise<string[]> {
  const rows = await pool.$queryRaw<{ name: string }[]>`
    select relname::text as name from pg_class
     where relkind = 'r' and relname like 'ModelCall\\_2%' and not relispartition`;
  return rows.map(({ name }) => name);
}

/** How many milliseconds each statement of a gateway that writes all the while waits for a lock. */
async function waitsOfAWriter(
  hourhand: { environment: { DATABASE_URL: string } },
  work: () => Promise<void>,
  at = '2026-08-18T13:00Z',
): Promise<number[]> {
  const waits = new Map<string, number>();
  let stopped = false;
  await using gateway = await connected(hourhand);
  await using watcher = await connected(hourhand);
  const pid = (await gateway.query('select pg_backend_pid() as pid')).rows[0].pid;
  const writing = (async () => {
    while (!stopped) {
      await gateway.query(`insert into "ModelCall" (id, "userDid", "providerId", model, type, "callTime")
        values (gen_random_uuid(), 'ada', 'p', 'm', 'custom', '${at}')`);
    }
  })();
  const watching = (async () => {
    while (!stopped) {
      const { rows } = await watcher.query(`
        select waitstart::text as wait, extract(epoch from clock_timestamp() - waitstart)::float8 * 1000 as ms
          from pg_locks where pid = ${pid} and not granted and waitstart is not null`);
      for (const { wait, ms } of rows) waits.set(wait, Math.max(ms, waits.get(wait) ?? 0));
    }
  })();
  try {
    await work();
  } finally {
    stopped = true;
    await Promise.all([writing, watching]);
  }
  return [...waits.values()];
}
