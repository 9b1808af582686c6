import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Db } from '../src/store/db.ts';
import { type Hourhand, startHourhand } from './support/hourhand.ts';

let hourhand: Hourhand;
beforeAll(async () => {
  hourhand = await startHourhand();
});
afterAll(() => hourhand[Symbol.asyncDispose]());

type Row = Record<string, string | number | null>;

const sealedHour: Row = {
  state: 'closed',
  run: 1,
  wanted: 1,
  closedAt: '2026-08-20T14:01Z',
  sealedAt: '2026-09-20T00:00Z',
};

/** A row of each table as it should be, and what makes nonsense of it, by the check that refuses it. */
const tables: Record<string, { row: Row; nonsense: Record<string, Row[]>; sense: Row[] }> = {
  ModelCall: {
    row: { id: 'call-1', userDid: 'ada', providerId: 'openai', model: 'gpt', type: 'chatCompletion' },
    nonsense: {
      ModelCall_userDid_check: [{ userDid: '' }],
      ModelCall_credits_check: [{ credits: '-0.00000001' }, { credits: 'NaN' }],
      ModelCall_tokens_check: [
        { totalUsage: -1 },
        { inputTokens: -1 },
        { outputTokens: -1 },
        { inputTokens: 1, outputTokens: -1 },
      ],
      ModelCall_duration_check: [
        { duration: '-0.000001' },
        { duration: 'NaN' },
        { ttfb: '-1' },
        { ttfb: 'NaN' },
        { duration: '1', ttfb: 'NaN' },
      ],
      ModelCall_callTime_check: [
        { callTime: 'infinity' },
        { callTime: '-infinity' },
        { callTime: '1969-12-31T23:59:59.999999Z' },
        { callTime: '10000-01-01Z' },
      ],
    },
    sense: [
      {},
      { credits: '999999999999.99999999', totalUsage: '9223372036854775807', duration: '99999999999999.999999' },
      { inputTokens: null, outputTokens: 0, duration: null, ttfb: 0 },
      { callTime: '1970-01-01T00:00:00Z' },
      { callTime: '9999-12-31T23:59:59.999999Z' },
    ],
  },
  ModelCallStat: {
    row: {
      timeType: 'hour',
      timestamp: '2026-08-20T13:00Z',
      userDid: 'ada',
      totalUsage: 1,
      inputTokens: 1,
      outputTokens: 0,
      imageGenerations: 0,
      totalCredits: '0.5',
      totalCalls: 1,
      successCalls: 1,
      failedCalls: 0,
      processingCalls: 0,
      totalDuration: '1.5',
      byType: '{}',
      run: 1,
      computedAt: '2026-08-20T14:01Z',
    },
    nonsense: {
      ModelCallStat_timestamp_check: [
        { timestamp: '2026-08-20T13:30Z' },
        { timestamp: '2026-08-20T13:00:00.000001Z' },
      ],
      ModelCallStat_figures_check: [{ totalCalls: -1 }, { totalUsage: -1 }, { totalCredits: 'NaN' }],
    },
    sense: [{}, { timestamp: '2026-08-20T13:00+05:00' }, { totalCalls: 0, successCalls: 0, totalUsage: 0 }],
  },
  StatHour: {
    row: { hour: '2026-08-20T13:00Z', state: 'open', reason: 'tick' },
    nonsense: {
      StatHour_hour_check: [{ hour: '2026-08-20T13:30Z' }, { hour: '2026-08-20T13:00+05:30' }],
      StatHour_run_check: [{ run: -1 }, { wanted: -1 }, { wanted: 2 }, { run: 3, wanted: 5 }, { attempts: -1 }],
      StatHour_closed_check: [
        { state: 'closed', run: 1 },
        { state: 'closed', run: 1, wanted: 2, closedAt: '2026-08-20T14:01Z' },
      ],
      StatHour_sealed_check: ['open', 'running', 'partial'].map((state) => ({
        state,
        sealedAt: '2026-09-20T00:00Z',
      })),
      StatHour_bucketsGone_check: [{ bucketsGone: -1 }, { bucketsGone: 1 }, { ...sealedHour, bucketsGone: 65 }],
      StatHour_revision_check: [{ revision: -1 }, { fence: -1 }],
    },
    sense: [
      {},
      { revision: 1, fence: 0 },
      { wanted: 1 },
      { state: 'running', run: 3, wanted: 4 },
      sealedHour,
      { ...sealedHour, bucketsGone: 64 },
    ],
  },
  StatRange: {
    row: { start: '2026-08-20T13:00Z', end: null },
    nonsense: {
      StatRange_check: [
        { end: '2026-08-20T13:00Z' },
        { end: '2026-08-20T12:00Z' },
        { start: '2026-08-20T13:30Z' },
        { end: '2026-08-20T14:30Z' },
      ],
    },
    sense: [{}, { end: '2026-08-20T14:00Z' }],
  },
  StatShard: {
    row: { hour: '2026-08-20T13:00Z', run: 1, shard: 0, lo: 0, hi: 63 },
    nonsense: { StatShard_check: [{ lo: -1 }, { hi: 64 }, { lo: 5, hi: 4 }, { run: 0 }, { shard: -1 }] },
    sense: [{}, { lo: 63 }],
  },
  StatMark: {
    row: { hour: '2026-08-20T13:00Z', userDid: 'ada', reason: 'late' },
    nonsense: { StatMark_hour_check: [{ hour: '2026-08-20T13:30Z' }] },
    sense: [{}],
  },
  StatLate: {
    row: {
      hour: '2026-08-20T13:00Z',
      userDid: 'ada',
      writes: 2,
      firstAt: '2026-08-20T15:00Z',
      lastAt: '2026-08-20T15:10Z',
    },
    nonsense: {
      StatLate_hour_check: [{ hour: '2026-08-20T13:30Z' }, { hour: 'infinity' }],
      StatLate_accepted_check: [{ writes: 0 }, { accepted: -1 }, { accepted: 3 }],
    },
    sense: [{}, { userDid: '' }, { accepted: 2, acceptedAt: '2026-08-20T15:10Z', acceptedBy: 'ada' }],
  },
  StatSchedule: {
    row: { id: 'model.call.stats', pattern: 'off', version: '1.2.0', startedAt: '2026-08-20T13:00Z' },
    nonsense: { StatSchedule_paused_check: [{ pausedAt: '2026-08-20T13:10Z' }, { pausedBy: 'ada' }] },
    sense: [{}, { pausedAt: '2026-08-20T13:10Z', pausedBy: 'ada' }],
  },
  Alarm: {
    row: {
      kind: 'tick-missed',
      subject: 'model.call.stats',
      since: '2026-08-20T13:01Z',
      detail: '',
      raisedAt: '2026-08-20T13:04Z',
      tellAfter: '2026-08-20T13:04Z',
    },
    nonsense: {
      Alarm_kind_check: [{ kind: 'nonsense' }],
      Alarm_told_check: [
        { endToldAt: '2026-08-20T13:10Z', toldAt: '2026-08-20T13:10Z' },
        { endToldAt: '2026-08-20T13:10Z', endedAt: '2026-08-20T13:10Z' },
      ],
    },
    sense: [
      {},
      ...['no-hour-closed', 'hour-partial'].map((kind) => ({ kind, subject: '' })),
      { endToldAt: '2026-08-20T13:10Z', endedAt: '2026-08-20T13:10Z', toldAt: '2026-08-20T13:10Z' },
    ],
  },
  Backfill: {
    row: {
      requestedBy: 'ada',
      requestedFrom: 'command line',
      requestedAt: '2026-08-20T16:10Z',
      start: '2026-08-20T13:00Z',
      end: '2026-08-20T15:00Z',
      only: 'all',
      hours: 2,
    },
    nonsense: {
      Backfill_range_check: [
        { end: '2026-08-20T13:00Z' },
        { end: 'infinity' },
        { start: '-infinity' },
        { hours: -1 },
        { givenBack: 3 },
      ],
      Backfill_state_check: [
        { state: 'paused' },
        { state: 'finished' },
        { state: 'cancelled' },
        { pausedAt: '2026-08-20T16:10Z' },
        { finishedAt: '2026-08-20T16:10Z' },
      ],
    },
    sense: [
      {},
      { state: 'paused', pausedAt: '2026-08-20T16:10Z' },
      { state: 'cancelled', finishedAt: '2026-08-20T16:10Z', givenBack: 2 },
      { state: 'finished', finishedAt: '2026-08-20T16:10Z', userDid: 'ada', hours: 0 },
    ],
  },
  BackfillHour: {
    row: {
      backfillId: 1,
      hour: '2026-08-20T13:00Z',
      wanted: 1,
      covered: 'false',
      priorRun: 0,
      priorWanted: 0,
      reason: 'tick',
      attempts: 0,
    },
    nonsense: {
      BackfillHour_wanted_check: [{ wanted: 0 }, { wanted: 2 }, { priorRun: -1, wanted: 0 }, { priorWanted: -1 }],
    },
    sense: [{}, { state: 'closed', priorRun: 2, priorWanted: 1, wanted: 3 }],
  },
  StaleBatch: {
    row: { cleanup: 'c', at: '2026-08-20T13:10Z', calls: 1, models: '[]', hours: '[]' },
    nonsense: { StaleBatch_calls_check: [{ calls: 0 }, { calls: -1 }] },
    sense: [{}, { requestedBy: 'ada' }],
  },
  ModelProvider: {
    row: { id: 'acme', baseUrl: 'https://acme.example/v1', apiKeyEnv: 'KEY', concurrency: 32 },
    nonsense: { ModelProvider_check: [{ id: '' }, { apiKeyEnv: '' }, { concurrency: 0 }, { concurrency: 1001 }] },
    sense: [{}, { concurrency: 1 }],
  },
  ModelTransition: {
    row: { providerId: 'acme', model: 'gpt', type: 'custom', from: 'up', to: 'down', at: '2026-08-20T13:10Z' },
    nonsense: { ModelTransition_check: [{ to: 'up' }] },
    sense: [{}, { source: 'calls', reason: 'unavailable' }],
  },
  ModelProbe: {
    row: { checkId: 1, providerId: 'acme', model: 'gpt', type: 'custom', credits: '0.00000001' },
    nonsense: {
      ModelProbe_credits_check: [{ credits: '-0.00000001' }, { credits: 'NaN' }],
      ModelProbe_finished_check: [
        { finishedAt: '2026-08-20T13:10Z', startedAt: '2026-08-20T13:09Z' },
        { finishedAt: '2026-08-20T13:10Z', ok: 'true' },
      ],
    },
    sense: [{}, { startedAt: '2026-08-20T13:09Z', finishedAt: '2026-08-20T13:10Z', ok: 'false' }],
  },
};

describe.each(Object.entries(tables))('%s', (table, { row, nonsense, sense }) => {
  test.each(Object.entries(nonsense).flatMap(([check, rows]) => rows.map((wrong) => [wrong, check] as const)))(
    'does not take %j',
    async (wrong, check) => {
      await expect(insert(table, { ...row, ...wrong })).rejects.toThrow(`violates check constraint "${check}"`);
    },
  );

  test.each(sense.map((right) => [right] as const))('takes %j', async (right) => {
    expect(await insert(table, { ...row, ...right })).toBe(1);
  });

  test('has no check that is not tried here', async () => {
    const checks = await hourhand.pool.$queryRaw<{ name: string }[]>`
      select conname as name from pg_constraint where contype = 'c' and conrelid = ${`"${table}"`}::regclass order by conname`;
    expect(checks.map(({ name }) => name)).toEqual(Object.keys(nonsense).sort());
  });
});

test.each<[string, Row]>([
  ['StatHour', { hour: 'infinity' }],
  ['StatHour', { hour: '-infinity' }],
  ['StatRange', { start: '-infinity' }],
  ['StatRange', { end: 'infinity' }],
  ['StatMark', { hour: '-infinity' }],
  ['ModelCallStat', { timestamp: 'infinity' }],
])('an hour without a date is none: %s does not take %j', async (table, wrong) => {
  await expect(insert(table, { ...tables[table]?.row, ...wrong })).rejects.toThrow('violates check constraint');
});

/** All that a gateway writes of a call. */
const figures = {
  totalUsage: 12n,
  inputTokens: 10n,
  outputTokens: 2n,
  credits: '0.00000001',
  duration: '1.5',
  ttfb: '0.2',
  usageMetrics: { tokens: 12 },
  metadata: { some: 'thing' },
  requestId: 'r',
  traceId: 't',
  credentialId: 'c',
  errorReason: 'none',
};

test.each([
  ['that goes on stays within its page, for it moves no index', { ...figures }, 1],
  // docs/decisions/0005-unfinished-calls.md
  [
    'that ends leaves the index of the unfinished calls, and so its page',
    { ...figures, status: 'success' as const },
    0,
  ],
])("the gateway's UPDATE of a call %s", async (_, data, hot) => {
  const { pool } = hourhand;
  const call = { id: `call-${hot}`, userDid: 'ada', providerId: 'openai', model: 'gpt', type: 'custom' as const };
  await pool.modelCall.create({ data: call });
  const counts = await pool.$transaction(async (db) => {
    const [before] = await updates(db);
    await db.modelCall.update({ where: { id: call.id }, data });
    const [after] = await updates(db);
    return { updated: after.updated - before.updated, hot: after.hot - before.hot };
  });
  expect(counts).toEqual({ updated: 1, hot });
});

/** How many updates of calls this connection has not reported yet, and how many of them were heap-only. */
function updates(db: Db) {
  return db.$queryRaw<[{ updated: number; hot: number }]>`
    select n_tup_upd::int as updated, n_tup_hot_upd::int as hot from pg_stat_xact_user_tables where relname = 'ModelCall'`;
}

/** Insert one row, and leave nothing behind; returns how many were taken. */
async function insert(table: string, row: Row): Promise<number> {
  const columns = Object.keys(row).map((name) => `"${name}"`);
  const values = Object.values(row).map((value) => (value === null ? 'null' : `'${value}'`));
  const { pool } = hourhand;
  const taken = await pool.$executeRawUnsafe(
    `insert into "${table}" (${columns.join(', ')}) values (${values.join(', ')})`,
  );
  await pool.$executeRawUnsafe(`delete from "${table}"`);
  return taken;
}
