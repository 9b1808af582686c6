// Nothing but these tests depends on the indexes: without one every figure is still right, and a busy gateway's day too long.
// Each statement is hourhand's own, caught as it ran, and then explained; none is timed.

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { PrismaClient } from '../src/generated/prisma/client.ts';
import { adapterOf } from '../src/store/adapter.ts';
import { listBackfills } from '../src/store/backfills.ts';
import { reopenEarly } from '../src/store/clock.ts';
import { allotRun, sizeOf } from '../src/store/cut.ts';
import { openPool, type Pool } from '../src/store/db.ts';
import { forgetCovered, uncoveredSpan, walkOn } from '../src/store/gaps.ts';
import { lateTotals } from '../src/store/late.ts';
import { closeEmptyHours, closeHour, owedHours } from '../src/store/ledger.ts';
import { markedHours, markUser, sweepMarks, untoldHours } from '../src/store/marks.ts';
import { callsSeen } from '../src/store/model-calls.ts';
import { ledgerStatus } from '../src/store/progress.ts';
import { unsealEarly } from '../src/store/seal.ts';
import { countUnfinished, failBatch, staleCalls } from '../src/store/stale.ts';
import { differences, rollUp, statLines, storeZeroRows, usersOfScope } from '../src/store/stats.ts';
import { surveyHours } from '../src/store/survey.ts';
import { endOf, type Hour, startOf } from '../src/time/hour.ts';
import { type Hourhand, h, startHourhand } from './support/hourhand.ts';
import { inPartitions } from './support/partitions.ts';

const hour = h('2026-08-20T13');
const now = new Date('2026-08-21T00:10:00Z');
const day = { start: startOf(h('2026-08-20T00')), end: startOf(h('2026-08-21T00')) };

/** A scan of one table: by which index, and by what it finds its place there; `null` reads the whole table. */
interface Scan {
  table: string;
  index: string | null;
  cond: string;
}

describe.each<[string, ...((hourhand: Hourhand) => Promise<unknown>)[]]>([
  ['in an empty database'],
  ['with 200,000 calls, 50,000 rows and a ledger of two years', fill],
  ['with the same, analysed', fill, ({ pool }) => pool.$executeRaw`analyze`],
  ['with the same, in a partition a day, analysed', inDays, fill, ({ pool }) => pool.$executeRaw`analyze`],
])('%s', (_, ...prepare) => {
  let hourhand: Hourhand;
  let watched: PrismaClient;
  const partitioned = prepare.includes(inDays);
  // A partition that is asked for whole, or is empty, is read whole.
  const inOne = test.skipIf(partitioned);
  let partitions = new Set<string>();
  let statements: { query: string; params: string }[] = [];

  beforeAll(async () => {
    hourhand = await startHourhand();
    for (const step of prepare) await step(hourhand);
    const onError = () => {};
    const client = new PrismaClient({
      adapter: adapterOf(openPool(hourhand.environment.DATABASE_URL, { max: 2, onError }), onError),
      log: [{ emit: 'event', level: 'query' }],
      transactionOptions: { timeout: 300_000, maxWait: 300_000 }, // by default seconds, which a busy machine needs
    });
    client.$on('query', (event) => statements.push(event));
    watched = client;
  });
  afterAll(async () => {
    await watched.$disconnect();
    await hourhand[Symbol.asyncDispose]();
  });

  test('a range of buckets is read by hour and bucket, and nothing else is', async () => {
    const scans = await scansOf((db) => rollUp(db, { hour, lo: 0, hi: 31 }));
    expect(of(scans, 'ModelCall')).toEqual([hourAndBucket]);
    expect(of(scans, 'ModelCallStat')).toEqual([byKey]);
  });

  test('a single user is read by hour and bucket', async () => {
    const scans = await scansOf((db) => rollUp(db, { hour, lo: 7, hi: 7, users: ['user-7'] }));
    expect(of(scans, 'ModelCall')).toEqual([hourAndBucket]);
  });

  test('users that share a bucket, as marks name them, are read by hour and bucket', async () => {
    const scope = { hour, lo: 7, hi: 7, users: Array.from({ length: 50 }, (_, i) => `user-${i}`) };
    expect(of(await scansOf((db) => rollUp(db, scope)), 'ModelCall')).toEqual([hourAndBucket]);
    expect(of(await scansOf((db) => usersOfScope(db, scope)), 'ModelCall')).toEqual([byHour]);
  });

  test('the users of an hour are counted by hour when its run is allotted', async () => {
    await hourhand.cover(hour, hour);
    const scans = await scansOf((db) => allotRun(db, hour, { maxUserJobs: 64, minCalls: 0 }, { now }));
    expect(of(scans, 'ModelCall')).toEqual([byHour]);
    expect(of(scans, 'ModelCallStat')).toEqual([byKey]);
  });

  test('how large an hour is, is told by its index', async () => {
    const scans = await scansOf((db) => sizeOf(db, hour, { maxUserJobs: 64, minCalls: 20_000 }));
    expect(of(scans, 'ModelCall')).toContainEqual(hourAndBucket);
    for (const scan of of(scans, 'ModelCall')) expect([byHour, hourAndBucket]).toContainEqual(scan);
  });

  test('no call is read to close an hour', async () => {
    const run = (await hourhand.hour(hour))?.run ?? 0;
    const scans = await scansOf((db) => closeHour(db, hour, run, 'parent', hourhand.policy, now));
    expect(scans.map(({ table }) => table)).toContain('StatHour');
    expect(of(scans, 'ModelCall')).toEqual([]);
  });

  test('what lies in the future is looked for by indexes, however many hours have closed', async () => {
    const scans = [
      ...(await scansOf((db) => reopenEarly(db, 3_600))),
      ...(await scansOf((db) => unsealEarly(db, 20))),
    ];
    // Of a table that it knows nothing of, the planner guesses that a third lies in the future.
    const whole = of(scans, 'StatHour').filter(({ index }) => index === null);
    expect(whole).toEqual(prepare.length > 1 ? [] : expect.anything());
  });

  inOne.each([1, 24, 1_000])('whether %i hours are empty is asked of the index, hour by hour', async (count) => {
    const hours = Array.from(
      { length: count },
      (_, i) => new Date(startOf(hour).getTime() - i * 3_600_000).toISOString().slice(0, 13) as Hour,
    );
    const scans = await scansOf((db) => closeEmptyHours(db, hours, hourhand.policy, now));
    // A table without a page may be read whole.
    expect(of(scans, 'ModelCall')).toEqual([prepare.length > 0 ? byHour : expect.anything()]);
  });

  inOne('verify recounts an hour, and a day, by hour', async () => {
    for (const range of [{ start: startOf(hour), end: endOf(hour) }, day]) {
      const scans = await scansOf((db) => exhaust(db, (within) => differences(within, range)));
      expect(of(scans, 'ModelCall')).toEqual([byHour]);
      expect(of(scans, 'ModelCallStat')).toEqual([byKey]);
    }
  });

  inOne('the statistics of a day are read by time, and no call is but those under way', async () => {
    const scans = await scansOf((db) => exhaust(db, (within) => statLines(within, day, { by: 'user' })));
    expect(of(scans, 'ModelCallStat')).toEqual([byKey]);
    expect(of(scans, 'ModelCall')).toEqual([underWay]);
  });

  inOne('the idle users of a window are found by hour, to be shown or stored', async () => {
    const shown = await scansOf((db) =>
      exhaust(db, (within) => statLines(within, day, { by: 'user', zerosDays: 1 })),
    );
    expect(of(shown, 'ModelCall')).toEqual([underWay, byHour]);
    const stored = await scansOf((db) => storeZeroRows(db, hour, 1));
    expect(of(stored, 'ModelCall')).toEqual([byHour]);
  });

  inOne("a user's calls of a day are found by hour", async () => {
    const scans = await scansOf((db) => markUser(db, 'user-7', day, { now }));
    expect(of(scans, 'ModelCall')).toEqual([byHour]);
    expect(of(scans, 'ModelCallStat')).toEqual([
      expect.objectContaining({ index: expect.stringMatching(/_pkey$|_userDid_timeType_timestamp_idx$/) }),
    ]);
  });

  test("a user's statistics are read by user", async () => {
    const where = {
      userDid: 'user-7',
      timeType: 'hour' as const,
      timestamp: { gte: new Date('2026-06-01T00:00Z'), lt: day.end },
    };
    expect(of(await scansOf((db) => db.modelCallStat.findMany({ where })), 'ModelCallStat')).toEqual([byUser]);
  });

  test('marks are taken by hour', async () => {
    expect(of(await scansOf((db) => rollUp(db, { hour, lo: 0, hi: 31 })), 'StatMark')).toEqual([
      expect.objectContaining({ index: 'StatMark_hour_userDid_idx', cond: expect.stringContaining('hour =') }),
    ]);
  });

  test('which hours have marks is asked of the ledger; of a row, where neither it nor a range knows the hour, by its key', async () => {
    const scans = await scansOf((db) => markedHours(db, 1_000, now));
    expect(of(scans, 'ModelCall')).toEqual([]);
    expect(of(scans, 'ModelCallStat')).toEqual([
      expect.objectContaining({
        index: expect.any(String),
        cond: expect.stringContaining('"userDid" = m."userDid"'),
      }),
    ]);
  });

  inOne('calls that hang are found among those that are under way, and each is failed by its key', async () => {
    const limits = { minutes: 30, others: [{ type: 'video', minutes: 180 }] };
    for (const after of [null, { callTime: '2026-08-20 13:10:00+00', id: 'call-7' }]) {
      const scans = await scansOf((db) => failBatch(db, limits, { after, size: 2_000, now }));
      expect(new Set(of(scans, 'ModelCall').map(({ index }) => index))).toEqual(
        new Set(['ModelCall_processing_idx', 'ModelCall_pkey']),
      );
      for (const { index, cond } of of(scans, 'ModelCall').filter((scan) => scan.index)) {
        expect(cond).toMatch(
          index === 'ModelCall_pkey' ? /^\(id = ANY/ : /"callTime" < .*ROW\("callTime", id\) > ROW/,
        );
      }
    }
  });

  inOne('calls that hang are counted and shown without a look at those that have ended', async () => {
    const limits = { minutes: 30, others: [] };
    for (const ask of [countUnfinished, (db: Pool) => staleCalls(db, limits, 100, now)]) {
      const scans = await scansOf((db) => ask(db, limits, now));
      expect(of(scans, 'ModelCall').map(({ index }) => index)).toEqual(['ModelCall_processing_idx']);
    }
  });

  inOne('what real calls say of the models is read by hour', async () => {
    const scans = await scansOf((db) => callsSeen(db, now, 900));
    expect(of(scans, 'ModelCall')).toEqual([byHour]);
  });

  test.each<[string, (db: Pool) => Promise<unknown>]>([
    ['which hours are owed', (db) => owedHours(db, 1_000, now)],
    ['how far it has come', (db) => ledgerStatus(db, 20, now)],
    ['of which roll-ups the ledger does not tell', (db) => untoldHours(db, 1_000)],
    ['what came late for sealed hours', (db) => lateTotals(db)],
    ['how far the backfills are', (db) => listBackfills(db, 20)],
    ['what a backfill would find', (db) => surveyHours(db, day, 'all')],
  ])('%s is asked of the ledger alone: no call is read', async (_, ask) => {
    const scans = await scansOf(ask);
    expect(scans.length).toBeGreaterThan(0);
    expect(of(scans, 'ModelCall')).toEqual([]);
    expect(of(scans, 'ModelCallStat')).toEqual([]);
  });

  test.runIf(partitioned)(
    'of hundreds of partitions those of the hours asked for are looked at, and no other',
    async () => {
      const users = ['user-7'];
      const window = { start: startOf(h('2026-08-18T00')), end: day.end };
      const other = h('2026-08-20T20');
      await hourhand.cover(other, other);
      for (const [work, visited] of [
        [(db) => rollUp(db, { hour, lo: 0, hi: 31 }), ['20260820']],
        [(db) => rollUp(db, { hour, lo: 7, hi: 7, users }), ['20260820']],
        [(db) => usersOfScope(db, { hour, lo: 7, hi: 7 }), ['20260820']],
        [(db) => allotRun(db, other, { maxUserJobs: 64, minCalls: 0 }, { now }), ['20260820']],
        [(db) => closeEmptyHours(db, [other], hourhand.policy, now), ['20260820']],
        [(db) => exhaust(db, (within) => differences(within, window)), ['20260818', '20260819', '20260820']],
        [(db) => storeZeroRows(db, h('2026-08-20T00'), 1), ['20260819', '20260820']],
        [(db) => markUser(db, 'user-7', day, { now }), ['20260820']],
        [(db) => callsSeen(db, now, 900), ['20260820', '20260821']],
      ] satisfies [(db: Pool) => Promise<unknown>, string[]][]) {
        await scansOf(work);
        expect([...partitions].sort()).toEqual(visited);
      }
    },
  );

  /** Do the work, and have the plans of its statements made, in the settings in which hourhand's connections run them. */
  async function scansOf(work: (db: Pool) => Promise<unknown>): Promise<Scan[]> {
    statements = [];
    partitions = new Set();
    await work(watched);
    const explained = statements.filter(({ query }) =>
      /^\s*(select|insert|update|delete|with|declare)\b/i.test(query),
    );
    const scans: Scan[] = [];
    for (const { query, params } of explained) {
      const rows = await hourhand.pool.$queryRawUnsafe<[{ 'QUERY PLAN': { Plan: Node }[] }]>(
        `explain (format json) ${query}`,
        ...JSON.parse(params),
      );
      for (const { Plan } of rows[0]['QUERY PLAN']) scans.push(...scansIn(Plan));
      for (const [, name] of JSON.stringify(rows).matchAll(/"Relation Name":"ModelCall_(\d{8}|\w+_\d{8}|default)"/g))
        partitions.add(name ?? '');
    }
    return scans;
  }
});

describe('a look for uncovered hours', () => {
  const running = new Date('2026-08-21T00:00:00Z');

  test.each<[string, (db: Pool) => Promise<unknown>]>([
    ['reads them', (db) => uncoveredSpan(db, now)],
    ['forgets what is covered by now', (db) => forgetCovered(db)],
    ['sweeps marks into them', (db) => sweepMarks(db, 50_000, now)],
    ['walks', (db) => walkOn(db, { now })],
  ])('%s, and reads no more rows with more closed hours or partitions', async (what, work) => {
    const read: Record<string, number>[] = [];
    for (const { closed, days } of [
      { closed: 1_000, days: 2 }, // fewer are read whole
      { closed: 17_520, days: 90 },
    ]) {
      await using hourhand = await startHourhand();
      await inPartitions(hourhand, {
        by: 'day',
        ahead: days,
        now: new Date(running.getTime() - days * 24 * 3_600_000),
      });
      await fillUncovered(hourhand, closed);
      read.push(await rowsRead(hourhand, work));
    }
    const [few = {}, many = {}] = read;
    expect(few).not.toEqual({});
    for (const [table, rows] of Object.entries(many)) {
      // The walk reads where it is, and what is noted and covered there, once for each partition that it passes.
      if (what === 'walks' && !['ModelCall', 'StatHour', 'StatMark'].includes(table)) continue;
      expect(rows, table).toBeLessThanOrEqual(few[table] ?? 0);
    }
  });

  /**
   * 30 uncovered hours of 200 calls each; 200 marks in ten of them; before these hours, a covered range of closed
   * hours with a call in each.
   */
  async function fillUncovered({ pool }: Hourhand, closed: number): Promise<void> {
    await pool.$executeRaw`alter table "ModelCall" disable trigger user`;
    for (const [first, last, calls] of [
      [1, 30, 200],
      [31, 1_000, 1],
    ]) {
      await pool.$executeRaw`
        insert into "ModelCall" (id, "userDid", "providerId", model, type, "totalUsage", credits, status, "callTime")
        select 'call-' || i || '-' || j, 'user-' || j, 'openai', 'gpt', 'chatCompletion', 10, 0.001, 'success',
               ${running}::timestamptz - i * interval '1 hour'
          from generate_series(${first}::int, ${last}::int) i, generate_series(1, ${calls}::int) j`;
    }
    await pool.$executeRaw`
      insert into "StatRange" values (${running}::timestamptz - (${closed}::int + 30) * interval '1 hour', ${running}::timestamptz - interval '30 hours')`;
    await pool.$executeRaw`
      insert into "StatHour" (hour, state, run, wanted, reason, "closedAt", fence)
      select ${running}::timestamptz - i * interval '1 hour', 'closed', 1, 0, 'tick', now(), 0 from generate_series(31, ${closed}::int + 30) i`;
    await pool.$executeRaw`
      insert into "StatMark" (hour, "userDid", reason)
      select ${running}::timestamptz - (i % 10 + 1) * interval '1 hour', 'user-' || i % 2, 'late' from generate_series(0, 199) i`;
    await pool.$executeRaw`insert into "StatGap" select ${running}::timestamptz - i * interval '1 hour' from generate_series(1, 30) i`;
    await pool.$executeRaw`update "StatLook" set "walkBefore" = ${running}::timestamptz`;
    await pool.$executeRaw`analyze`;
  }

  /** The rows that some work reads, in each table and its indexes, by Postgres' own count. */
  async function rowsRead(
    { environment }: Hourhand,
    work: (db: Pool) => Promise<unknown>,
  ): Promise<Record<string, number>> {
    const onError = () => {};
    const client = new PrismaClient({
      // One connection: it is asked for its own reads.
      adapter: adapterOf(openPool(environment.DATABASE_URL, { max: 1, onError }), onError),
    });
    const counted = async () => {
      await client.$queryRaw`select pg_stat_force_next_flush()::text`;
      const lines = await client.$queryRaw<{ name: string; rows: number }[]>`
        select name, sum(rows)::float8 as rows
          from (select regexp_replace(relname, '^ModelCall_.*', 'ModelCall') as name, seq_tup_read as rows from pg_stat_user_tables
                union all
                select regexp_replace(relname, '^ModelCall_.*', 'ModelCall'), idx_tup_read from pg_stat_user_indexes) as reads
         where name <> '_prisma_migrations' group by 1`;
      return Object.fromEntries(lines.map(({ name, rows }) => [name, rows]));
    };
    const before = await counted();
    await work(client);
    const after = await counted();
    await client.$disconnect();
    const rows = Object.entries(after).map(([name, count]) => [name, count - (before[name] ?? 0)] as const);
    return Object.fromEntries(rows.filter(([, count]) => count > 0));
  }
});

/** A partition's table and indexes are called as those of the whole. */
function ofWhole(name: string): string {
  return name
    .replace(/^ModelCall_(before_)?(\d{8}|default)/, 'ModelCall')
    .replace(/date_trunc_expr_idx$/, 'hour_bucket_idx')
    .replace(/callTime_id_idx$/, 'processing_idx');
}

interface Node {
  'Node Type': string;
  'Relation Name'?: string;
  'Index Name'?: string;
  'Index Cond'?: string;
  Plans?: Node[];
}

const hourAndBucket = {
  table: 'ModelCall',
  index: 'ModelCall_hour_bucket_idx',
  cond: expect.stringMatching(/date_trunc\('hour'.* = .*hashtext\("userDid"\) & 63/),
};
const byHour = {
  table: 'ModelCall',
  index: 'ModelCall_hour_bucket_idx',
  cond: expect.stringMatching(/date_trunc\('hour'/),
};
const underWay = {
  table: 'ModelCall',
  index: 'ModelCall_processing_idx',
  cond: expect.stringMatching(/"callTime" >= .*"callTime" </),
};
const byKey = { table: 'ModelCallStat', index: 'ModelCallStat_pkey', cond: expect.stringContaining('"timestamp" ') };
const byUser = {
  table: 'ModelCallStat',
  index: 'ModelCallStat_userDid_timeType_timestamp_idx',
  cond: expect.stringMatching(/"userDid" = .*"timestamp" /),
};

/** The different scans of a table: the same one twice is one. */
function of(scans: readonly Scan[], table: string): Scan[] {
  const found = new Map(
    scans.filter((scan) => scan.table === table).map((scan) => [`${scan.index} ${scan.cond}`, scan]),
  );
  return [...found.values()];
}

function scansIn(node: Node, table = node['Relation Name']): Scan[] {
  const { 'Node Type': type, 'Index Name': index = null, 'Index Cond': cond = '', Plans = [] } = node;
  // The index that a bitmap is made from is named below the table that it is for.
  const below = Plans.flatMap((plan) =>
    scansIn(
      plan,
      plan['Relation Name'] ?? (type === 'Bitmap Heap Scan' || type.startsWith('Bitmap') ? table : undefined),
    ),
  );
  const scans = table !== undefined && type.endsWith('Scan') && type !== 'Bitmap Heap Scan';
  return scans ? [{ table: ofWhole(table), index: index && ofWhole(index), cond }, ...below] : below;
}

async function exhaust<T>(
  db: Pool,
  batches: (within: Parameters<Parameters<Pool['$transaction']>[0]>[0]) => AsyncGenerator<T>,
): Promise<void> {
  await db.$transaction(async (within) => {
    for await (const _ of batches(within));
  });
}

/** As the partitions of two months would be that somebody asked for before the calls came. */
async function inDays(hourhand: Hourhand): Promise<void> {
  await inPartitions(hourhand, { ahead: 60, now: new Date('2026-07-28T12:00:00Z') });
}

/** 400 calls of 2,000 users in each of 500 hours, of which 8 are under way, a row for some users of each, and a ledger of two years. */
async function fill({ pool }: Hourhand): Promise<void> {
  const tables = await pool.$queryRaw<{ name: string }[]>`
    select oid::regclass::text as name from pg_class where relkind = 'r' and relname ~ '^(ModelCall|StatHour|StatMark)'`;
  for (const { name } of tables) {
    await pool.$executeRawUnsafe(`alter table ${name} set (autovacuum_enabled = false)`); // or it is analysed some time
  }
  await pool.$executeRaw`alter table "ModelCall" disable trigger user`; // the marks are made below
  await pool.$executeRaw`
    insert into "ModelCall" (id, "userDid", "providerId", model, type, "totalUsage", credits, status, "callTime")
    select 'call-' || i, 'user-' || (i * 7919 % 2000), 'openai', 'gpt', 'chatCompletion', 10, 0.001,
           (case when i % 50 = 0 then 'processing' else 'success' end)::"ModelCallStatus",
           timestamptz '2026-08-21T00:00Z' - i / 400 * interval '1 hour' - i % 400 * interval '8 seconds' - interval '1 second'
      from generate_series(0, 199999) i`;
  await pool.$executeRaw`
    insert into "ModelCallStat"
    select 'hour', timestamptz '2026-08-20T23:00Z' - i / 100 * interval '1 hour', 'user-' || (i * 7919 % 2000),
           10, 0, 0, 0, 0.001, 1, 1, 0, 0, 0, '{}', 1, now()
      from generate_series(0, 49999) i`;
  await pool.$executeRaw`
    insert into "StatHour" (hour, state, run, wanted, reason, "closedAt", fence)
    select timestamptz '2026-08-20T12:00Z' - i * interval '1 hour', 'closed', 1, 0, 'tick', now(), 0 from generate_series(0, 17519) i`;
  await pool.$executeRaw`insert into "StatRange" values (timestamptz '2026-08-20T12:00Z' - interval '17520 hours', null)`;
  await pool.$executeRaw`
    insert into "StatMark" (hour, "userDid", reason)
    select timestamptz '2026-08-20T23:00Z' - i / 100 * interval '1 hour', 'user-' || i % 100, 'late' from generate_series(0, 4999) i`;
}
