// No figure depends on what a session, a role, a database or a pooler has set.

import pg from 'pg';
import { expect, test } from 'vitest';
import { barsOf } from '../src/store/charts.ts';
import { canceller, connectClient } from '../src/store/client.ts';
import { connect, type Db, inOneSnapshot, Sql } from '../src/store/db.ts';
import { missingPartitions } from '../src/store/partitions.ts';
import { independently } from '../src/store/timestamps.ts';
import { createDatabase } from './support/database.ts';
import { closedHour, type Hourhand, h, startHourhand, until } from './support/hourhand.ts';
import { startSessionPooler } from './support/session-pooler.ts';

const AT = new Date('2026-08-20T13:00:00.123Z');
const utc = independently(1184, (text) => text);
const utcOfAll = independently(1185, (text) => text);

test.each([
  ['2026-08-20 13:00:00.123456+00', '2026-08-20 13:00:00.123456+00'],
  ['2026-08-20 18:30:00.123456+05:30', '2026-08-20 13:00:00.123456+00'],
  ['2026-01-01 00:30:00+01', '2025-12-31 23:30:00+00'],
  ['2026-08-20 09:30:00-03:30', '2026-08-20 13:00:00+00'],
  ['1890-01-01 05:53:28+05:53:28', '1890-01-01 00:00:00+00'],
  ['-infinity', '-infinity'],
])('an instant that PostgreSQL prints as %s is %s', (text, expected) => {
  expect(utc(text)).toBe(expected);
  expect(utcOfAll(`{"${text}",NULL,infinity}`)).toBe(`{"${expected}",NULL,infinity}`);
});

test.each([
  '20.08.2026 15:00:00.123 CEST', // German
  '08/20/2026 13:00:00.123 UTC', // SQL
  'Thu Aug 20 13:00:00.123 2026 UTC', // Postgres
])('an instant that PostgreSQL prints as %s is refused by name', (text) => {
  expect(() => utc(text)).toThrow(`expected DateStyle ISO from PostgreSQL, found ${JSON.stringify(text)}`);
  expect(() => utcOfAll(`{"${text}"}`)).toThrow('expected DateStyle ISO');
  expect(() => independently(1114, String)(text)).toThrow('expected DateStyle ISO');
});

test('instants go and come right in each zone, in arrays and through the model API, and in no other DateStyle', async () => {
  await using hourhand = await startHourhand();
  const { pool } = hourhand;
  const hour = new Date('2026-08-20T13:00:00Z');
  await pool.statHour.create({ data: { hour, state: 'open', reason: 'tick' } });
  for (const zone of ['Asia/Kolkata', 'America/St_Johns', 'UTC']) {
    await pool.$transaction(async (db) => {
      await db.$executeRaw`select set_config('timezone', ${zone}, true)`;
      expect(
        await db.$queryRaw`
          select ${AT}::timestamptz as at, extract(epoch from ${AT}::timestamptz)::float8 * 1000 as ms,
                 ${[AT, AT]}::timestamptz[] as list, array_agg(hour) as hours from "StatHour" where hour = ${hour}`,
      ).toEqual([{ at: AT, ms: AT.getTime(), list: [AT, AT], hours: [hour] }]);
      expect(await db.statHour.findFirst({ where: { hour: { in: [hour] } }, select: { hour: true } })).toEqual({
        hour,
      });
      expect(await db.statHour.count({ where: { hour: { lt: hour } } })).toBe(0);
    });
  }
  for (const style of ['German', 'SQL, DMY']) {
    const reading = pool.$transaction(async (db) => {
      await db.$executeRaw`select set_config('datestyle', ${style}, true)`;
      return db.$queryRaw`select ${AT}::timestamptz as at`;
    });
    await expect(reading).rejects.toThrow('expected DateStyle ISO from PostgreSQL, found "20');
  }
});

test('a Date that would reach the driver itself is refused', async () => {
  await using database = await createDatabase();
  const client = await connectClient(database.url, 'test');
  expect(() => client.query('select $1', [AT])).toThrow('expected each instant as text with its zone, found a Date');
  expect(() => client.query({ text: 'select $1', values: [[AT]] })).toThrow('found a Date');
  await client.end();
});

/** What a role, or a pooler's stranger, may have set, all of it at once. */
const FOREIGN = {
  timezone: 'Asia/Kolkata',
  datestyle: 'German',
  default_transaction_isolation: 'serializable',
  intervalstyle: 'sql_standard',
  statement_timeout: '1min',
  lock_timeout: '20s',
  extra_float_digits: '0',
};

async function foreignDatabase() {
  const database = await createDatabase();
  const client = new pg.Client({ connectionString: database.url });
  await client.connect();
  const set = (name: string, value: string) =>
    `execute format('alter role %I in database %I set ${name} = %L', current_user, current_database(), '${value}');`;
  await client.query(
    `do $$ begin ${Object.entries(FOREIGN)
      .map(([name, value]) => set(name, value))
      .join(' ')} end $$`,
  );
  await client.end();
  return database;
}

const CALLS = [1, 5, 9, 17].map((hour) => ({
  user: 'ann',
  at: `2026-08-10T${String(hour).padStart(2, '0')}:10:00Z`,
  tokens: hour,
}));

/** A day of calls, rolled up by a worker of this process: each hour is settled, and right. */
async function rollUpTheDay(hourhand: Hourhand): Promise<void> {
  await hourhand.record(...CALLS);
  await hourhand.work();
  await hourhand.backfill(h('2026-08-10T00'), h('2026-08-10T23'));
  await until(
    () =>
      hourhand.pool.statHour.count({
        where: { state: 'closed', fence: 0, hour: { lt: new Date('2026-08-11T00:00Z') } },
      }),
    (n) => n === 24,
  );
  expect(await hourhand.wrong()).toEqual([]);
}

test('with a role of another zone, DateStyle and isolation each hour has its calls, and verify says so', async () => {
  await using database = await foreignDatabase();
  await using hourhand = await startHourhand({ DATABASE_URL: database.url });
  await rollUpTheDay(hourhand);
  const figures = await hourhand.run(['stats', '--from', '2026-08-10', '--to', '2026-08-11', '--format', 'csv']);
  const rows = figures.stdout
    .trim()
    .split('\n')
    .slice(1)
    .map((line) => line.split(','));
  expect(rows.map(([, hour]) => hour)).toEqual(CALLS.map(({ at }) => at.replace(':10:', ':00:')));
  const verified = await hourhand.run(['verify', '--from', '2026-08-10', '--to', '2026-08-11']);
  expect(verified).toMatchObject({ code: 0 });
  const [bar] = await barsOf(
    hourhand.pool,
    { start: new Date('2026-08-10T00:00Z'), end: new Date('2026-08-11T00:00Z') },
    'day',
  );
  expect(bar).toMatchObject({ at: new Date('2026-08-10T00:00Z'), calls: 4n, totalUsage: '32' });
});

test('our own sessions and each transaction have our settings, whatever the role has', async () => {
  await using database = await foreignDatabase();
  const pool = connect(database.url, { connections: 1, onError: () => {} });
  const settings = Sql.sql`select current_setting('timezone') as zone, current_setting('datestyle') as style,
    current_setting('transaction_isolation') as isolation, current_setting('statement_timeout') as patience,
    current_setting('lock_timeout') as lock, current_setting('hourhand.protocol') as protocol`;
  const ours = {
    zone: 'UTC',
    style: 'ISO, MDY',
    isolation: 'read committed',
    patience: '5min',
    lock: '0',
    protocol: '2',
  };
  expect(await pool.$queryRaw(settings)).toEqual([ours]);
  expect(await pool.$transaction((db) => db.$queryRaw(settings))).toEqual([ours]);
  const repeatable = pool.$transaction((db) => db.$queryRaw(settings), { isolationLevel: 'RepeatableRead' });
  expect(await repeatable).toEqual([{ ...ours, isolation: 'repeatable read' }]);
  expect(await pool.$transaction((db) => db.$queryRaw(settings))).toEqual([ours]); // of the same connection
  await pool.$disconnect();
});

test('a transaction of one snapshot takes it with its first statement, not with its beginning', async () => {
  await using hourhand = await startHourhand();
  const seen = hourhand.pool.$transaction(
    async (db) => {
      await hourhand.record({ user: 'ada', at: '2026-08-20T13:10:00Z' });
      return db.modelCall.count();
    },
    { isolationLevel: 'RepeatableRead' },
  );
  expect(await seen).toBe(1);
});

test('days, weeks and months are those of UTC in a zone with summer time', async () => {
  await using hourhand = await startHourhand();
  const range = { start: new Date('2026-03-28T00:00Z'), end: new Date('2026-03-31T00:00Z') };
  await hourhand.pool.$transaction(async (db) => {
    await db.$executeRaw`set local timezone = 'Europe/Berlin'`; // its 29th of March has 23 hours
    const bars = await barsOf(db, range, 'day');
    expect(bars.map(({ at, end }) => [at.toISOString(), end.toISOString()])).toEqual(
      [28, 29, 30].map((day) => [`2026-03-${day}T00:00:00.000Z`, `2026-03-${day + 1}T00:00:00.000Z`]),
    );
    const periods = await missingPartitions(db, { by: 'day', ahead: 2 }, new Date('2026-03-28T12:00Z'));
    expect(periods.map(({ start, end }) => [start.toISOString(), end.toISOString()])).toEqual(
      [28, 29, 30].map((day) => [`2026-03-${day}T00:00:00.000Z`, `2026-03-${day + 1}T00:00:00.000Z`]),
    );
  });
});

test.each([
  ['search_path', 'nowhere', /expected search_path to name a schema that is there, found nowhere: type ALTER ROLE/],
  [
    'search_path',
    'elsewhere, public',
    /expected hourhand's tables in elsewhere, the first schema of search_path, found them in public: /,
  ],
  [
    'session_replication_role',
    'replica',
    /expected session_replication_role origin in our transactions, found session_replication_role replica: /,
  ],
])('a role whose %s is %s is refused in one line', async (name, value, message) => {
  await using hourhand = await startHourhand();
  await hourhand.pool.$executeRaw`create schema elsewhere`;
  await hourhand.pool.$executeRawUnsafe(
    `do $$ begin
       execute format('alter role %I in database %I set ${name} = ${value}', current_user, current_database());
     end $$`,
  );
  const { code, stderr } = await hourhand.run(['status']);
  expect([code, stderr.trim().split('\n').length]).toEqual([1, 1]);
  expect(stderr).toMatch(message);
});

test('through a pooler that drops options the figures are right, and no statement is prepared under a name', async () => {
  await using database = await foreignDatabase();
  await using pooler = await startSessionPooler(database.url);
  await using hourhand = await startHourhand({ DATABASE_URL: pooler.url });
  await rollUpTheDay(hourhand);
  expect(await hourhand.run(['verify', '--from', '2026-08-10', '--to', '2026-08-11'])).toMatchObject({ code: 0 });
  expect(await hourhand.pool.$transaction((db) => db.$queryRaw`select name from pg_prepared_statements`)).toEqual([]);
  expect(pooler.startups.length).toBeGreaterThan(0);
  for (const startup of pooler.startups) {
    expect(startup).toEqual(expect.arrayContaining(['TimeZone', 'UTC', 'DateStyle', 'ISO, MDY']));
    expect(startup).not.toContain('options');
  }
});

test('a statement of its own behind a pooler is in no snapshot of the transaction that had its connection before', async () => {
  await using database = await createDatabase();
  await using pooler = await startSessionPooler(database.url);
  const pool = connect(pooler.url, { connections: 1, onError: () => {} });
  const isolation = async (db: Db) => {
    const [row] = await db.$queryRaw<[{ isolation: string }]>`
      select current_setting('transaction_isolation') as isolation`;
    return row.isolation;
  };
  const found = [await inOneSnapshot(pool, isolation), await isolation(pool), await pool.$transaction(isolation)];
  await pool.$disconnect();
  expect(found).toEqual(['repeatable read', 'read committed', 'read committed']);
});

test('statements have names behind a pooler with DATABASE_PREPARED=on, and nowhere with off', async () => {
  await using database = await createDatabase();
  await using pooler = await startSessionPooler(database.url);
  const names = async (url: string, prepared: 'auto' | 'on' | 'off') => {
    const pool = connect(url, { connections: 1, onError: () => {}, prepared });
    const count = (db: Db) =>
      db.$queryRaw<[{ n: number }]>`select count(*)::int as n from pg_prepared_statements where name like 'h%'`;
    const [{ n }] = await pool.$transaction(async (db) => {
      await count(db);
      return count(db);
    });
    await pool.$disconnect();
    return n > 0;
  };
  expect(await names(pooler.url, 'on')).toBe(true);
  expect(await names(pooler.url, 'auto')).toBe(false);
  expect(await names(database.url, 'auto')).toBe(true);
  expect(await names(database.url, 'off')).toBe(false);
});

test('a search_path in the options of the URL is refused behind a pooler, in one line', async () => {
  await using hourhand = await startHourhand();
  await using pooler = await startSessionPooler(hourhand.environment.DATABASE_URL);
  const url = new URL(pooler.url);
  url.searchParams.set('options', '-c search_path=elsewhere');
  const { code, stderr } = await hourhand.run(['status'], '', { DATABASE_URL: url.href });
  expect([code, stderr.trim().split('\n').length]).toEqual([1, 1]);
  expect(stderr).toMatch(
    /expected no search_path in the options of DATABASE_URL, .* type ALTER ROLE … IN DATABASE … SET/,
  );
});

test('behind a pooler hourhand partition wants DATABASE_DIRECT_URL, of the same database', async () => {
  await using hourhand = await startHourhand();
  await using other = await createDatabase();
  await using pooler = await startSessionPooler(hourhand.environment.DATABASE_URL);
  const partition = (direct: string) =>
    hourhand.run(['partition', '--by', 'day'], '', { DATABASE_URL: pooler.url, DATABASE_DIRECT_URL: direct });
  const refused = await partition('');
  expect(refused.code).toBe(1);
  expect(refused.stderr).toContain(
    'nothing was changed: expected a session of our own, found a pooler: name PostgreSQL itself in DATABASE_DIRECT_URL',
  );
  const wrong = await partition(other.url);
  expect(wrong.code).toBe(1);
  expect(wrong.stderr).toMatch(
    /DATABASE_DIRECT_URL: expected the database of DATABASE_URL \(test_.*\), found another \(test_/,
  );
  expect(await partition(hourhand.environment.DATABASE_URL)).toMatchObject({ code: 0 });
});

test('a statement is cancelled through a pooler, whose numbers for sessions are its own', async () => {
  await using database = await createDatabase();
  await using pooler = await startSessionPooler(database.url);
  for (const url of [pooler.url, database.url]) {
    const client = await connectClient(url, 'test');
    const cancel = canceller(client);
    const waiting = client.query('select pg_sleep(600)');
    const cancelled = expect(waiting).rejects.toThrow('canceling statement due to user request');
    const other = await connectClient(database.url, 'look');
    await until(
      async () =>
        (
          await other.query(
            `select from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()`,
          )
        ).rowCount,
      (n) => n === 1,
    );
    cancel();
    await cancelled;
    await Promise.all([client.end(), other.end()]);
  }
});

test('a process of 0.6 writes nothing that a figure depends on, and is told why; the gateway is not hindered', async () => {
  await using hourhand = await closedHour(h('2026-08-20T13'), [{ user: 'ada', at: '2026-08-20T13:10:00Z' }]);
  const older = new pg.Client({ connectionString: hourhand.environment.DATABASE_URL, application_name: 'hourhand' });
  await older.connect();
  const { rows } = await older.query('select pg_backend_pid() as pid');
  await older.query(`insert into "ModelCall" (id, "userDid", "providerId", model, type, credits, status, "callTime")
                     values ('x', 'ada', 'openai', 'gpt', 'chatCompletion', 1, 'success', '2026-08-20T13:20:00Z')`);
  for (const statement of [
    `insert into "StatHour" (hour, state, reason) values ('2026-08-20T14:00Z', 'open', 'tick')`,
    `update "StatHour" set "auditedAt" = now()`,
    `delete from "StatHour"`,
    `with none as (delete from "ModelCallStat" where false) select`,
    `delete from "StatMark" where false`,
    `insert into "OperatorAction" (at, who, what, "from") values (now(), 'ada', 'import', 'here')`,
  ]) {
    await expect(older.query(statement), statement).rejects.toMatchObject({
      code: '55000', // for 0.6 no fault of the data: it tries again, and halves nothing
      message: `expected hourhand 0.7 or newer, found an older process (pid ${rows[0].pid}, hourhand): replace it`,
    });
  }
  await older.end();
  await until(
    () => hourhand.stat('ada', h('2026-08-20T13')),
    (stat) => stat?.totalCalls === '1', // LATE_DATA_SECONDS is 0: nothing takes the mark
  );
  expect(await hourhand.pool.statMark.count()).toBe(1);
});
