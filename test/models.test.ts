import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { home } from '../src/config.ts';
import { startDashboard } from '../src/dashboard/server.ts';
import type { ModelHealth } from '../src/generated/prisma/enums.ts';
import { checkInterval, enqueueCheck, requestCheck } from '../src/producers/models.ts';
import { cleanUp } from '../src/producers/stale.ts';
import { readProviders } from '../src/providers/read-file.ts';
import {
  beginCheck,
  beginProbe,
  endCheck,
  endProbe,
  probesOf,
  probesSpent,
  reserveProbes,
} from '../src/store/checks.ts';
import { callsSeen } from '../src/store/model-calls.ts';
import { expireStatuses, type StatusLine, statusLines } from '../src/store/model-status.ts';
import { discoverModels, forgetModels, giveProviders } from '../src/store/models.ts';
import { deployOf, settleSchedule } from '../src/store/schedules.ts';
import { type Hourhand, startHourhand, until } from './support/hourhand.ts';
import { type Provider, startProvider } from './support/provider.ts';

const key = 'sk-0123456789-do-not-tell';
const plenty = {
  MODEL_PROBES_PER_HOUR: '1000',
  MODEL_PROBE_CREDITS_PER_DAY: '100',
  MODEL_PROBE_TIMEOUT_SECONDS: '1',
  KEY: key,
};

/** An hourhand that knows these chat models of one provider. */
async function knowing(provider: Provider, models: string[], env: Record<string, string> = {}, concurrency = 32) {
  const hourhand = await startHourhand({ ...plenty, ...env });
  await give(hourhand, provider, models, concurrency);
  return hourhand;
}

function give({ pool }: Hourhand, { baseUrl }: Provider, models: string[], concurrency = 32, id = 'acme') {
  const given = models.map((model) => ({ model, type: 'chatCompletion' as const }));
  return giveProviders(pool, [{ id, baseUrl, apiKeyEnv: 'KEY', concurrency, models: given }]);
}

/** Look at the models as a scheduled check does, and wait until it is judged. */
async function check(hourhand: Hourhand, names: string[] = [], probe = false) {
  const { check: id } = await requestCheck(hourhand, { names, probe, interval: 900, requestedBy: 'test' });
  const [row] = await until(
    () => hourhand.pool.modelCheck.findMany({ where: { id } }),
    (rows) => rows[0]?.finishedAt !== null,
  );
  return row?.outcome as Record<string, unknown>; // what judgeAll writes
}

const lines = ({ pool }: Hourhand, interval = 900) => statusLines(pool, interval);

async function line(hourhand: Hourhand, model = 'gpt'): Promise<StatusLine> {
  const found = (await lines(hourhand)).find((one) => one.model === model);
  if (!found) throw new Error(`${model} is not known`);
  return found;
}

/** Calls of a model, a minute old if nothing else is said. */
async function calls(
  { pool }: Hourhand,
  n: number,
  {
    model = 'gpt',
    status = 'success',
    reason = null as string | null,
    minutesAgo = 1,
    ttfb = null as number | null,
    duration = 0.5,
  } = {},
) {
  await pool.$executeRaw`
    insert into "ModelCall" (id, "userDid", "providerId", model, type, status, "errorReason", ttfb, duration, "callTime")
    select gen_random_uuid()::text, 'ada', 'acme', ${model}, 'chatCompletion', ${status}::"ModelCallStatus", ${reason}::text, ${ttfb}::numeric, ${duration}::numeric,
           now() - ${minutesAgo}::int * interval '1 minute' from generate_series(1, ${n}::int)`;
}

async function spent({ pool }: Hourhand): Promise<string | undefined> {
  return (await pool.modelProbe.aggregate({ _sum: { credits: true } }))._sum.credits?.toFixed(8);
}

describe('a check', () => {
  test('probes a silent model with its key, and says up, since when and how fast', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt']);
    await hourhand.work();
    expect(await line(hourhand)).toMatchObject({ status: 'unknown', checkedAt: null, source: null });
    expect(await check(hourhand)).toMatchObject({ models: 1, probed: 1, judged: 1, became: { up: 1 } });
    expect(provider.asked).toEqual([{ path: '/v1/chat/completions', model: 'gpt', authorization: `Bearer ${key}` }]);
    expect(await line(hourhand)).toMatchObject({
      status: 'up',
      source: 'probe',
      reason: null,
      latencyMs: expect.any(Number),
    });
  });

  test('does not probe a model that real calls speak for', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt', 'quiet']);
    await calls(hourhand, 20);
    await hourhand.work();
    await check(hourhand);
    expect(provider.asked.map(({ model }) => model)).toEqual(['quiet']);
    expect(await line(hourhand)).toMatchObject({ status: 'up', source: 'calls', latencyMs: 500 });
  });

  test('counts neither the fault of a caller nor a content policy against a model', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt']);
    await calls(hourhand, 5);
    await calls(hourhand, 50, { status: 'failed', reason: '400 Invalid value for temperature' });
    await calls(hourhand, 50, { status: 'failed', reason: 'Your request was rejected by our content policy' });
    await hourhand.work();
    await check(hourhand);
    expect(await line(hourhand)).toMatchObject({ status: 'up', source: 'calls', reason: null });
    expect(provider.asked).toEqual([]);
  });

  test('counts the calls of its interval that have ended, and no others', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['busy', 'gpt', 'later', 'older']);
    const failed = { status: 'failed', reason: 'HTTP 503 from upstream' };
    await calls(hourhand, 9, { model: 'busy', status: 'processing' });
    await calls(hourhand, 9, { ...failed, model: 'later', minutesAgo: -5 });
    await calls(hourhand, 9, { ...failed, model: 'older', minutesAgo: 16 });
    await calls(hourhand, 9, { minutesAgo: 14 });
    await hourhand.work();
    await check(hourhand);
    expect((await lines(hourhand)).map(({ model, status, source }) => [model, status, source])).toEqual([
      ['busy', 'up', 'probe'],
      ['gpt', 'up', 'calls'],
      ['later', 'up', 'probe'],
      ['older', 'up', 'probe'],
    ]);
  });

  test('counts the calls that began in its interval, across the hour, its end excluded', async () => {
    await using hourhand = await startHourhand();
    for (const at of ['12:49:59', '12:50:00', '13:04:59', '13:05:00'])
      await hourhand.record({ user: 'ada', at: `2026-08-20T${at}Z` });
    const seen = await callsSeen(hourhand.pool, new Date('2026-08-20T13:05:00Z'), 900);
    expect(seen).toEqual([expect.objectContaining({ providerId: 'openai', model: 'gpt', calls: 2, failed: 0 })]);
  });

  test('takes the latency from the calls that succeeded, to their first byte where that is known, and the reason from most of the others', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt']);
    await calls(hourhand, 5, { ttfb: 0.2, duration: 9 });
    await calls(hourhand, 9, { status: 'failed', reason: 'HTTP 503 from upstream', duration: 30 });
    for (const reason of ['401 Incorrect API key', 'zzz']) await calls(hourhand, 2, { status: 'failed', reason });
    await hourhand.work();
    await check(hourhand);
    expect(await line(hourhand)).toMatchObject({
      status: 'degraded',
      source: 'calls',
      reason: 'unavailable',
      latencyMs: 200,
    });
  });

  test('does not ask a model before its provider wants to be asked again', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt']);
    provider.says.set('gpt', 'later');
    await hourhand.work();
    await check(hourhand);
    expect(await line(hourhand)).toMatchObject({
      status: 'degraded',
      reason: 'rate limit',
      retryAt: expect.any(Date),
    });
    provider.says.clear();
    expect(await check(hourhand)).toMatchObject({ probed: 0, judged: 0 });
    expect(provider.asked).toHaveLength(1);
    await hourhand.pool.modelStatus.updateMany({ data: { retryAt: new Date(Date.now() - 1_000) } });
    expect(await line(hourhand)).toMatchObject({ status: 'degraded', retryAt: null });
    expect(await check(hourhand)).toMatchObject({ probed: 1, became: { up: 1 } });
  });

  test('probes a model whose calls fail, and both have a say', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt', 'dead']);
    provider.says.set('dead', 503);
    await calls(hourhand, 9, { status: 'failed', reason: 'HTTP 503 from upstream' });
    await calls(hourhand, 9, { model: 'dead', status: 'failed', reason: 'HTTP 503 from upstream' });
    await hourhand.work();
    await check(hourhand);
    expect(provider.asked).toHaveLength(2);
    expect(await line(hourhand)).toMatchObject({ status: 'degraded', reason: 'unavailable' });
    expect(await line(hourhand, 'dead')).toMatchObject({
      status: 'down',
      reason: 'unavailable',
      detail: '9 of 9 calls failed',
    });
  });

  test('counts calls that hung until they were failed, though they began long before its interval', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt']);
    await calls(hourhand, 3);
    await calls(hourhand, 97, { status: 'processing', minutesAgo: 31 });
    await cleanUp(
      { ...hourhand, policy: hourhand.stalePolicy },
      { requestedBy: null, signal: new AbortController().signal },
    );
    await hourhand.work();
    expect(await check(hourhand)).toMatchObject({ probed: 1 });
    expect(await line(hourhand)).toMatchObject({
      status: 'degraded',
      reason: 'network time-out',
      detail: '97 of 100 calls failed; a probe succeeded',
    });
  });

  test('of one model alone suspects our own network as well, by what the other providers said of late', async () => {
    await using one = await startProvider();
    await using other = await startProvider();
    await using hourhand = await knowing(one, ['gpt']);
    await give(hourhand, other, ['claude'], 32, 'other');
    await hourhand.work();
    await check(hourhand);
    for (const provider of [one, other]) provider.says.set('*', 503);
    await check(hourhand);
    for (let i = 0; i < 3; i++) expect(await check(hourhand, ['gpt'])).toMatchObject({ suspect: ['acme', 'other'] });
    expect(await line(hourhand)).toMatchObject({ status: 'up' });
  });

  test('needs two failures for down, and one success for up again', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt']);
    await hourhand.work();
    const seen: string[] = [];
    for (const status of [200, 503, 503, 503, 200]) {
      provider.says.set('gpt', status);
      await check(hourhand);
      seen.push((await line(hourhand)).status);
    }
    expect(seen).toEqual(['up', 'degraded', 'down', 'down', 'up']);
    const history = await hourhand.pool.modelTransition.findMany({ orderBy: { seq: 'asc' } });
    expect(history.map(({ from, to, reason }) => [from, to, reason])).toEqual([
      ['unknown', 'up', null],
      ['up', 'degraded', 'unavailable'],
      ['degraded', 'down', 'unavailable'],
      ['down', 'up', null],
    ]);
    expect(history.every(({ announcedAt }) => announcedAt !== null)).toBe(true); // there is no webhook to be told
    const { since, checkedAt } = await line(hourhand);
    await check(hourhand);
    const again = await line(hourhand);
    expect(again.since).toEqual(since);
    expect(again.checkedAt?.getTime()).toBeGreaterThan(checkedAt?.getTime() ?? Number.POSITIVE_INFINITY);
    expect(await hourhand.pool.modelTransition.count()).toBe(4);
  });

  test('marks nothing down when every provider fails at once, and says so', async () => {
    await using one = await startProvider();
    await using other = await startProvider();
    await using hourhand = await knowing(one, ['gpt']);
    await give(hourhand, other, ['claude'], 32, 'other');
    await hourhand.work();
    await check(hourhand);
    for (const provider of [one, other]) provider.says.set('*', 503);
    for (let i = 0; i < 3; i++)
      expect(await check(hourhand)).toMatchObject({ judged: 0, suspect: ['acme', 'other'] });
    expect((await lines(hourhand)).map(({ status }) => status)).toEqual(['up', 'up']);
    await until(
      async () => hourhand.logged.map(({ msg }) => msg),
      (said) => said.includes('every provider failed: is it our own network?'),
    );
    other.says.clear();
    for (let i = 0; i < 2; i++) await check(hourhand);
    expect((await lines(hourhand)).map(({ status }) => status)).toEqual(['down', 'up']);
  });

  test('asks a provider for no more at once than it may', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(
      provider,
      Array.from({ length: 12 }, (_, i) => `gpt-${i}`),
      {},
      3,
    );
    await hourhand.work();
    await check(hourhand);
    expect(provider.asked).toHaveLength(12);
    expect(provider.most()).toBeLessThanOrEqual(3);
  });

  test('begins no more probes of a provider at once than it may, whoever begins them, and none twice', async () => {
    await using provider = await startProvider();
    const models = Array.from({ length: 12 }, (_, i) => `gpt-${i}`);
    await using hourhand = await knowing(provider, models, {}, 3);
    const { pool } = hourhand;
    const probes = await reserved(hourhand, models);
    const begin = (some: typeof probes) => Promise.all(some.map(({ id }) => beginProbe(pool, id, 60)));
    const first = await begin(probes);
    const begun = probes.filter((_, i) => first[i]?.state === 'begun');
    const waiting = probes.filter((_, i) => first[i]?.state === 'busy');
    expect([begun.length, waiting.length]).toEqual([3, 9]);
    await pool.$executeRaw`update "ModelProbe" set "startedAt" = "startedAt" - interval '61 seconds'`; // those died
    expect((await begin(begun)).map(({ state }) => state)).toEqual(['over', 'over', 'over']);
    expect((await begin(waiting)).filter(({ state }) => state === 'begun')).toHaveLength(3); // in their places
  });

  test('ends once, with the answers that it has: a probe without one says nothing of its model', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['a', 'b', 'c']);
    const { pool } = hourhand;
    const [answered, died] = await reserved(hourhand, ['a', 'b', 'c']);
    for (const probe of [answered, died]) await beginProbe(pool, probe?.id ?? 0, 60);
    await endProbe(pool, answered?.id ?? 0, { ok: true, latencyMs: 120 });
    const { checkId } = await pool.modelProbe.findFirstOrThrow();
    expect(await endCheck(pool, Number(checkId))).toEqual({
      sent: 2,
      unsent: 0,
      found: [expect.objectContaining({ model: 'a', ok: true, latencyMs: 120 })],
    });
    expect(await endCheck(pool, Number(checkId))).toBeUndefined();
  });

  test('leaves a model alone that is forgotten before its probe begins', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt', 'other']);
    const [gpt, other] = await reserved(hourhand, ['gpt', 'other']);
    await forgetModels(hourhand.pool, 'acme', 'gpt');
    expect(await beginProbe(hourhand.pool, gpt?.id ?? 0, 60)).toEqual({ state: 'over' });
    expect(await beginProbe(hourhand.pool, other?.id ?? 0, 60)).toMatchObject({ state: 'begun', model: 'other' });
  });

  test('is not held up by models that hang', async () => {
    await using provider = await startProvider();
    const models = Array.from({ length: 60 }, (_, i) => (i % 10 === 0 ? `hang-${i}` : `gpt-${i}`));
    await using hourhand = await knowing(provider, models);
    for (const model of models) if (model.startsWith('hang')) provider.says.set(model, 'hang');
    await hourhand.work();
    expect(await check(hourhand)).toMatchObject({ models: 60, judged: 60, probed: 60, became: { up: 54 } });
    expect(await line(hourhand, 'hang-0')).toMatchObject({ status: 'unknown', reason: 'network time-out' });
  });

  test('says that there are no credentials where the key is not set, and that is not the model', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt'], { KEY: '' });
    await hourhand.work();
    expect(await check(hourhand)).toMatchObject({ probed: 0, unsent: 1 });
    expect(await line(hourhand)).toMatchObject({
      status: 'unknown',
      reason: 'no credentials',
      detail: 'KEY is not set where this worker runs',
    });
    expect(provider.asked).toEqual([]);
  });

  test('finds a model up that the list names, though its provider has no record of one model', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, []);
    const models = ['dall-e-9', 'dall-e-1'].map((model) => ({ model, type: 'imageGeneration' as const }));
    const { baseUrl } = provider;
    await giveProviders(hourhand.pool, [{ id: 'acme', baseUrl, apiKeyEnv: 'KEY', concurrency: 1, models }]);
    for (const { model } of models) provider.says.set(model, 404);
    await hourhand.work();
    await check(hourhand);
    await check(hourhand);
    expect(await line(hourhand, 'dall-e-9')).toMatchObject({ status: 'up', reason: null });
    expect(await line(hourhand, 'dall-e-1')).toMatchObject({ status: 'down', reason: 'not found' });
    // Without a list there is no telling.
    provider.says.set('', 404);
    await check(hourhand);
    expect(await line(hourhand, 'dall-e-9')).toMatchObject({ status: 'unknown', reason: 'invalid argument' });
  });

  test('that a tick asks for is one at a time', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt']);
    for (let i = 0; i < 3; i++) await enqueueCheck(hourhand.queues);
    await hourhand.work();
    await until(
      () => hourhand.pool.modelCheck.findMany(),
      (rows) => rows.length > 0 && rows.every(({ finishedAt }) => finishedAt !== null),
    );
    const [job] = await until(
      () => hourhand.queues.checks.getCompleted(),
      (jobs) => jobs.length > 0,
    );
    expect(provider.asked).toHaveLength(1);
    expect(job?.returnvalue).toMatchObject({ models: 1, probed: 1, became: { up: 1 } });
  });

  test('by hand looks at the models it was asked for, and probes even those that calls speak for if told to', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt', 'other']);
    await calls(hourhand, 20);
    await hourhand.work();
    await check(hourhand, ['acme/gpt']);
    expect(provider.asked).toEqual([]);
    await check(hourhand, ['gpt'], true);
    expect(provider.asked.map(({ model }) => model)).toEqual(['gpt']);
    await expect(check(hourhand, ['nobody'])).rejects.toThrow(
      'expected models that are known (hourhand models status lists them), got "nobody"',
    );
    await expect(check(hourhand, ['gpt', 'nobody'])).rejects.toThrow('got "nobody"');
  });

  test('by hand at one model looks neither at others of its provider nor at its namesakes', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt', 'claude']);
    await give(hourhand, provider, ['gpt'], 32, 'other');
    await calls(hourhand, 20, { model: 'claude' });
    await hourhand.work();
    expect(await check(hourhand, ['acme/gpt'])).toMatchObject({ models: 1, probed: 1, judged: 1 });
    expect((await lines(hourhand)).map(({ provider, model, status }) => [provider, model, status])).toEqual([
      ['acme', 'claude', 'unknown'],
      ['acme', 'gpt', 'up'],
      ['other', 'gpt', 'unknown'],
    ]);
  });

  test('that is judged already is not judged again by a repeated job', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt']);
    provider.says.set('gpt', 503);
    await hourhand.work();
    await check(hourhand);
    const [job] = await until(
      () => hourhand.queues.checks.getCompleted(),
      (jobs) => jobs.length > 0,
    );
    await job?.retry('completed');
    await until(
      () => hourhand.queues.checks.getJobCountByTypes('completed'),
      (n) => n === 1,
    );
    expect(provider.asked).toHaveLength(1);
    expect((await hourhand.pool.modelStatus.findFirstOrThrow()).failures).toBe(1);
  });
});

const budget = { probesPerHour: 1_000, creditsPerDay: '100', defaultCredits: '0.01' };
const candidates = (models: readonly string[]) =>
  models.map((model) => ({ providerId: 'acme', model, type: 'chatCompletion' as const, free: false }));
const planned = ({ pool }: Hourhand) => beginCheck(pool, { models: [], probe: false, interval: 900 });

/** Probes of a check that no worker knows of. */
async function reserved(hourhand: Hourhand, models: readonly string[]) {
  const id = await planned(hourhand);
  await reserveProbes(hourhand.pool, id, candidates(models), budget);
  return probesOf(hourhand.pool, id);
}

describe('the budget', () => {
  test('is not spent twice by checks that reserve at once, nor by one that reserves again', async () => {
    await using provider = await startProvider();
    const models = Array.from({ length: 20 }, (_, i) => `gpt-${i}`);
    await using hourhand = await knowing(provider, models);
    const { pool } = hourhand;
    const checks = await Promise.all(Array.from({ length: 8 }, () => planned(hourhand)));
    const reserve = (budget: Parameters<typeof reserveProbes>[3]) =>
      Promise.all(checks.map((id) => reserveProbes(pool, id, candidates(models), budget)));
    await reserve({ ...budget, creditsPerDay: '0.05' });
    expect(await pool.modelProbe.count()).toBe(5);
    await pool.modelProbe.deleteMany();
    const first = await reserve({ ...budget, probesPerHour: 5 });
    expect(await pool.modelProbe.count()).toBe(5);
    const done = first.findIndex(({ reserved }) => reserved > 0);
    const again = await reserveProbes(pool, checks[done] ?? 0, candidates(models), budget);
    expect(again).toEqual(first[done]);
    expect(again).toEqual({ reserved: 5, unpaid: 15 });
    expect(await pool.modelProbe.count()).toBe(5);
  });

  test('is one of an hour for probes, and one of a day for credits', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['a', 'b']);
    const { pool } = hourhand;
    const little = { probesPerHour: 1, creditsPerDay: '0.01', defaultCredits: '0.01' };
    const reserve = async () =>
      (await reserveProbes(pool, await planned(hourhand), candidates(['a']), little)).reserved;
    const age = (minutes: number) =>
      pool.$executeRaw`update "ModelProbe" set "startedAt" = now() - ${minutes}::int * interval '1 minute'`;
    expect(await reserve()).toBe(1);
    await age(61);
    expect(await reserve()).toBe(0);
    expect(await probesSpent(pool)).toEqual({ lastHour: 0, lastDayCredits: '0.01000000' });
    await age(24 * 60 + 1);
    expect(await probesSpent(pool)).toEqual({ lastHour: 0, lastDayCredits: '0.00000000' });
    expect(await reserve()).toBe(1);
  });

  test('pays for a generation of a type that is to be probed by one', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, [], {
      MODEL_PROBE_CREDITS_PER_DAY: '0.01',
      MODEL_PROBE_DEFAULT_CREDITS: '0.02',
      MODEL_PROBE_GENERATE: 'imageGeneration',
    });
    const models = [{ model: 'draw', type: 'imageGeneration' as const }];
    await giveProviders(hourhand.pool, [
      { id: 'acme', baseUrl: provider.baseUrl, apiKeyEnv: 'KEY', concurrency: 9, models },
    ]);
    await hourhand.work();
    expect(await check(hourhand)).toMatchObject({ probed: 0 });
    expect(provider.asked).toEqual([]);
  });

  test('goes first to the models whose calls fail', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['a', 'z'], { MODEL_PROBES_PER_HOUR: '1' });
    await calls(hourhand, 9, { model: 'z', status: 'failed', reason: 'HTTP 503 from upstream' });
    await hourhand.work();
    await check(hourhand);
    expect(provider.asked.map(({ model }) => model)).toEqual(['z']);
  });

  test('of five probes an hour lets fifty silent models have five, across four worker processes', async () => {
    await using provider = await startProvider();
    const models = Array.from({ length: 50 }, (_, i) => `gpt-${i}`);
    await using hourhand = await knowing(provider, models, { MODEL_PROBES_PER_HOUR: '5' });
    const workers = Array.from({ length: 4 }, () => hourhand.spawn('worker'));
    await until(
      () => hourhand.queues.probes.getWorkersCount(),
      (n) => n === workers.length,
    );
    await Promise.all([check(hourhand), check(hourhand), check(hourhand)]);
    await check(hourhand);
    expect(provider.asked).toHaveLength(5);
    expect(new Set(provider.asked.map(({ model }) => model)).size).toBe(5);
  });

  test('of credits a day is kept exactly, and a dear model leaves room for a cheap one', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, [], {
      MODEL_PROBE_CREDITS_PER_DAY: '0.05',
      MODEL_PROBE_DEFAULT_CREDITS: '0.02',
    });
    const given = (model: string, probeCredits?: string) => ({
      model,
      type: 'chatCompletion' as const,
      probeCredits,
    });
    await giveProviders(hourhand.pool, [
      {
        id: 'acme',
        baseUrl: provider.baseUrl,
        apiKeyEnv: 'KEY',
        concurrency: 9,
        models: [
          given('a'),
          given('b', '0.04'),
          given('c'),
          given('d', '0.01'),
          given('e', '0.00000001'),
          { model: 'f', type: 'imageGeneration' },
        ],
      },
    ]);
    await hourhand.work();
    await check(hourhand);
    expect(provider.asked.map(({ model }) => model).sort()).toEqual(['a', 'c', 'd', 'f']);
    expect(await spent(hourhand)).toBe('0.05000000');
    expect(await hourhand.pool.modelCall.count()).toBe(0);
  });

  test('is not spent by what never goes out, for want of a key', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt'], {
      MODEL_PROBES_PER_HOUR: '2',
      MODEL_PROBE_CREDITS_PER_DAY: '0.02',
    });
    const model = { model: 'keyless', type: 'chatCompletion' as const };
    await giveProviders(hourhand.pool, [
      { id: 'nobody', baseUrl: provider.baseUrl, apiKeyEnv: 'NOT_SET', concurrency: 9, models: [model] },
    ]);
    await hourhand.work();
    for (let i = 0; i < 3; i++) await check(hourhand, ['keyless']);
    await check(hourhand, ['gpt']);
    expect(provider.asked).toHaveLength(1);
    expect(await spent(hourhand)).toBe('0.01000000');
  });

  test('is given back by probes that were never begun', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt'], { MODEL_PROBES_PER_HOUR: '1' });
    await hourhand.queues.probes.pause();
    await hourhand.work();
    const { check: id } = await requestCheck(hourhand, {
      names: [],
      probe: false,
      interval: 900,
      requestedBy: 'test',
    });
    const [child] = await until(
      () => hourhand.queues.probes.getJobs(['waiting']),
      (jobs) => jobs.length === 1,
    );
    await child?.remove();
    await until(
      () => hourhand.pool.modelCheck.findMany({ where: { id } }),
      (rows) => rows[0]?.finishedAt !== null,
    );
    expect(await hourhand.pool.modelProbe.count()).toBe(0);
    await hourhand.queues.probes.resume();
    expect(await check(hourhand)).toMatchObject({ probed: 1 });
  });

  test('goes first to those that were not looked at for longest', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['a', 'b', 'c'], { MODEL_PROBES_PER_HOUR: '2' });
    await hourhand.work();
    await check(hourhand);
    await hourhand.pool.$executeRaw`update "ModelProbe" set "startedAt" = "startedAt" - interval '61 minutes'`;
    await check(hourhand);
    expect(provider.asked.map(({ model }) => model)).toEqual(expect.arrayContaining(['a', 'b', 'c']));
  });
});

test('a worker that is killed in the middle of a check keeps nobody from its end, and no model is asked twice', async () => {
  await using provider = await startProvider();
  const models = Array.from({ length: 8 }, (_, i) => `gpt-${i}`);
  await using hourhand = await knowing(provider, models, { MODEL_PROBE_TIMEOUT_SECONDS: '30' });
  provider.says.set('*', 'hang');
  const doomed = hourhand.spawn('worker');
  const { check: id } = await requestCheck(hourhand, { names: [], probe: false, interval: 900, requestedBy: 'test' });
  await until(
    async () => provider.asked.length,
    (n) => n === models.length,
  );
  doomed.kill('SIGKILL');
  provider.says.clear();
  hourhand.spawn('worker');
  const [row] = await until(
    () => hourhand.pool.modelCheck.findMany({ where: { id } }),
    (rows) => rows[0]?.finishedAt !== null,
  );
  expect(row?.outcome).toMatchObject({ probed: 8, judged: 0 });
  expect(provider.asked).toHaveLength(8);
});

describe('what is known', () => {
  test('expires to unknown after twice the interval, as of then, whether or not a check says so', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt'], { MODEL_PROBES_PER_HOUR: '1' });
    await hourhand.work();
    await check(hourhand);
    await hourhand.pool.$executeRaw`update "ModelStatus" set "checkedAt" = now() - interval '30 minutes'`;
    const expired = await line(hourhand);
    expect(expired).toMatchObject({ status: 'unknown', source: null, reason: null });
    expect(expired.since.getTime() - (expired.checkedAt?.getTime() ?? 0)).toBe(1_800_000);
    await check(hourhand);
    expect((await hourhand.pool.modelTransition.findMany({ orderBy: { seq: 'desc' }, take: 1 }))[0]).toMatchObject({
      from: 'up',
      to: 'unknown',
      at: expired.since,
    });
    expect(await expireStatuses(hourhand.pool, 900, false)).toBe(0); // it is said once
  });

  test('expires by the schedule that stands, whatever this process has been told', async () => {
    await using hourhand = await startHourhand();
    const { pool } = hourhand;
    expect(await checkInterval(pool, '0 */10 * * * *')).toBe(600);
    await settleSchedule(pool, 'check.model.status', '0 0 * * * *', await deployOf(pool, '9.0.0'));
    expect(await checkInterval(pool, '0 */10 * * * *')).toBe(3_600);
    await settleSchedule(pool, 'check.model.status', 'off', await deployOf(pool, '9.0.1'));
    expect(await checkInterval(pool, '0 */10 * * * *')).toBe(900);
  });

  test('tells the share of the time it was up, over a day, a week and a month', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt', 'never']);
    const { pool } = hourhand;
    const hoursAgo = (hours: number) => new Date(Date.now() - hours * 3_600_000);
    const was = (from: ModelHealth, to: ModelHealth, hours: number) => ({
      providerId: 'acme',
      model: 'gpt',
      type: 'chatCompletion' as const,
      from,
      to,
      at: hoursAgo(hours),
    });
    await pool.modelTransition.createMany({
      data: [
        was('unknown', 'up', 10 * 24),
        was('up', 'down', 36),
        was('down', 'degraded', 18),
        was('degraded', 'down', 6),
      ],
    });
    await pool.modelStatus.updateMany({ where: { model: 'gpt' }, data: { status: 'down', checkedAt: new Date() } });
    const { uptime } = await line(hourhand);
    expect(uptime.day).toBeCloseTo(12 / 24, 4);
    expect(uptime.week).toBeCloseTo((7 * 24 - 18 - 6) / (7 * 24), 4);
    expect(uptime.month).toBeCloseTo((10 * 24 - 18 - 6) / (10 * 24), 4);
    expect((await line(hourhand, 'never')).uptime).toEqual({ day: null, week: null, month: null });
  });

  test('is history that ends: transitions, checks and probes are forgotten after so many days', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt'], { MODEL_HISTORY_DAYS: '31' });
    await hourhand.work();
    await check(hourhand);
    await beginCheck(
      hourhand.pool,
      { models: [], probe: false, interval: 900 },
      new Date(Date.now() - 32 * 86_400_000),
    );
    await hourhand.pool.$executeRaw`update "ModelTransition" set at = at - interval '32 days'`;
    await hourhand.pool.$executeRaw`update "ModelProbe" set "startedAt" = "startedAt" - interval '32 days'`;
    await check(hourhand);
    const { pool } = hourhand;
    expect(
      await Promise.all([pool.modelTransition.count(), pool.modelProbe.count(), pool.modelCheck.count()]),
    ).toEqual([0, 1, 2]);
  });
});

test('a key is nowhere but on its way to its provider, whatever the provider says of it', async () => {
  await using provider = await startProvider();
  await using hourhand = await knowing(provider, ['gpt', 'good', 'late'], { LOG_LEVEL: 'trace' });
  provider.says.set('gpt', 'echo').set('late', 'hang');
  const worker = hourhand.spawn('worker');
  let log = '';
  for (const stream of [worker.stdout, worker.stderr]) {
    stream?.on('data', (chunk) => {
      log += chunk;
    });
  }
  for (let i = 0; i < 2; i++) await check(hourhand);
  const board = await startDashboard(hourhand);
  try {
    const pages = [
      '/api/models',
      '/api/models/checks/1',
      '/queues/api/queues?activeQueue=models-probe&status=completed',
      '/readyz',
    ];
    const shown = await Promise.all(pages.map(async (page) => (await fetch(board.url + page)).text()));
    const run = await hourhand.run(['models', 'check', 'gpt']);
    const everywhere = {
      redis: await everythingInRedis(hourhand),
      postgres: await everythingInPostgres(hourhand),
      log,
      board: shown.join(),
      cli: run.stdout + run.stderr,
    };
    expect(everywhere.redis).toContain('probe acme/gpt');
    expect(everywhere.postgres).toContain('invalid key');
    expect(everywhere.log).toContain('models changed');
    expect(everywhere.board).toContain('invalid key');
    expect(Object.entries(everywhere).filter(([, text]) => text.includes(key.slice(3)))).toEqual([]);
  } finally {
    await board.close();
  }
});

async function everythingInRedis({ redis, prefix }: Hourhand): Promise<string> {
  const texts = await Promise.all(
    (await redis.keys(`${prefix.replace(/[{}]/g, '?')}:*`)).map(async (key) => {
      const type = await redis.type(key);
      if (type === 'hash') return JSON.stringify(await redis.hgetall(key));
      if (type === 'list') return JSON.stringify(await redis.lrange(key, 0, -1));
      if (type === 'zset') return JSON.stringify(await redis.zrange(key, '0', '-1'));
      if (type === 'stream') return JSON.stringify(await redis.xrange(key, '-', '+'));
      return type === 'string' ? redis.get(key) : '';
    }),
  );
  return texts.join('\n');
}

async function everythingInPostgres({ pool }: Hourhand): Promise<string> {
  const tables = await pool.$queryRaw<{ name: string }[]>`
    select table_name as name from information_schema.tables where table_schema = 'public'`;
  const texts = await Promise.all(
    tables.map(({ name }) => pool.$queryRawUnsafe<{ row: string }[]>(`select t::text as row from "${name}" t`)),
  );
  return JSON.stringify(texts);
}

describe('hourhand models', () => {
  const importing = (hourhand: Hourhand, content: unknown) =>
    hourhand.run(['models', 'import', '-'], typeof content === 'string' ? content : JSON.stringify(content));

  test('import, check and status speak of a file of providers, without any worker', async () => {
    await using provider = await startProvider();
    await using hourhand = await startHourhand(plenty);
    provider.says.set('bad', 401);
    const given = {
      providers: [
        {
          id: 'acme',
          baseUrl: provider.baseUrl,
          apiKeyEnv: 'KEY',
          models: [
            { model: 'gpt', type: 'chatCompletion', probeCredits: '0.0001' },
            { model: 'bad', type: 'chatCompletion' },
            { model: 'embed', type: 'embedding' },
            { model: 'draw/er', type: 'imageGeneration' },
          ],
        },
      ],
    };
    expect(await importing(hourhand, given)).toMatchObject({
      code: 0,
      stderr: '1 providers with 4 models are known\n',
    });
    const checked = await hourhand.run(['models', 'check']);
    expect(checked).toMatchObject({
      code: 0,
      stderr: expect.stringContaining('4 models looked at: 4 probed, 4 judged'),
    });
    expect(checked.stderr).not.toContain('0/0');
    expect(provider.asked.map(({ path }) => path).sort()).toEqual([
      '/v1/chat/completions',
      '/v1/chat/completions',
      '/v1/embeddings',
      '/v1/models/draw%2Fer',
    ]);
    await hourhand.run(['models', 'check', 'bad']);
    const { stdout } = await hourhand.run(['models', 'status', '--json']);
    const shown = JSON.parse(stdout) as StatusLine[];
    expect(shown.map(({ model, type, status, reason, source }) => [model, type, status, reason, source])).toEqual([
      ['bad', 'chatCompletion', 'down', 'invalid key', 'probe'],
      ['draw/er', 'imageGeneration', 'up', null, 'probe'],
      ['embed', 'embedding', 'up', null, 'probe'],
      ['gpt', 'chatCompletion', 'up', null, 'probe'],
    ]);
    expect(await spent(hourhand)).toBe('0.03010000');
  });

  test('a file is taken whole or not at all, and every wrong place is named without its value', async () => {
    await using hourhand = await startHourhand();
    const wrong = {
      providers: [
        { id: 'a/b', baseUrl: 'http://api.example.com/v1', apiKeyEnv: key, models: [{ model: 'gpt', type: 'chat' }] },
        { id: 'fine', baseUrl: 'https://api.example.com', apiKeyEnv: 'KEY', models: [], more: 1 },
        { id: 'fine', baseUrl: 'https://u:p@api.example.com', apiKeyEnv: 'KEY', models: [] },
      ],
    };
    const { code, stderr } = await importing(hourhand, wrong);
    expect(code).toBe(1);
    for (const place of ['0.id', '0.baseUrl', '0.apiKeyEnv', '0.models.0.type', '1', '2.baseUrl']) {
      expect(stderr).toContain(`providers.${place}: `);
    }
    expect(stderr).not.toContain(key);
    expect(await hourhand.pool.modelProvider.count()).toBe(0);
    for (const content of [
      '',
      '{',
      '[]',
      '{"providers": []}',
      '{"providers": [{}]}',
      '{"providers": [{"id": "a"}]}',
    ]) {
      expect(() => readProviders(content, { allowHttp: false })).toThrow(/expected/);
    }
    const model = { model: 'gpt', type: 'chatCompletion' };
    const fine = { id: 'fine', baseUrl: 'https://api.example.com/v1', apiKeyEnv: 'KEY', models: [model] };
    const read = (...providers: object[]) => readProviders(JSON.stringify({ providers }), { allowHttp: false });
    expect(read(fine, { ...fine, id: 'other', models: [model, { ...model, type: 'embedding' }] })).toHaveLength(2);
    expect(() => read(fine, fine)).toThrow('providers.1.id: expected it once, got it twice');
    expect(() => read({ ...fine, models: [model, model] })).toThrow(
      'providers.0.models.1: expected it once, got it twice',
    );
    for (const probeCredits of ['1e12', '999999999999.999999995', '-1', '', 'NaN', '0x1']) {
      expect(() => read({ ...fine, models: [{ ...model, probeCredits }] })).toThrow(
        /models\.0\.probeCredits: expected/,
      );
    }
  });

  test('the example in the docs is one', async () => {
    const example = await readFile(path.join(home, 'docs', 'providers.example.json'), 'utf8');
    expect(readProviders(example, { allowHttp: false }).map(({ id, models }) => [id, models.length])).toEqual([
      ['openai', 3],
      ['local', 1],
    ]);
  });

  test('a second import leaves of its providers what it names, and what is known of that', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt', 'old']);
    await hourhand.work();
    await check(hourhand);
    await give(hourhand, provider, ['gpt', 'new']);
    expect((await lines(hourhand)).map(({ model, status }) => [model, status])).toEqual([
      ['gpt', 'up'],
      ['new', 'unknown'],
    ]);
  });

  test('an import leaves what was discovered until it names that itself, and takes the new price of a model', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt']);
    const found = { providerId: 'acme', model: 'found', type: 'chatCompletion' as const };
    const known = async () =>
      (await hourhand.pool.modelStatus.findMany({ orderBy: { model: 'asc' } })).map(({ model, probeCredits }) => [
        model,
        probeCredits?.toString() ?? null,
      ]);
    const priced = (probeCredits: string) => {
      const models = ['found', 'gpt'].map((model) => ({ ...found, model, probeCredits }));
      return giveProviders(hourhand.pool, [
        { id: 'acme', baseUrl: provider.baseUrl, apiKeyEnv: 'KEY', concurrency: 9, models },
      ]);
    };
    await discoverModels(hourhand.pool, [found]);
    await give(hourhand, provider, ['gpt']);
    expect(await known()).toEqual([
      ['found', null],
      ['gpt', null],
    ]);
    for (const price of ['0.25', '0.5']) {
      await priced(price);
      expect(await known()).toEqual([
        ['found', price],
        ['gpt', price],
      ]);
    }
    expect(await give(hourhand, provider, ['gpt'])).toEqual({ removed: 1 });
    expect(await known()).toEqual([['gpt', null]]);
  });

  test('what is forgotten or imported of one provider leaves the namesakes of another', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['claude', 'gpt']);
    await give(hourhand, provider, ['claude', 'gpt'], 32, 'other');
    const known = async () => (await lines(hourhand)).map(({ provider, model }) => `${provider}/${model}`);
    expect(await forgetModels(hourhand.pool, 'acme', 'gpt')).toBe(1);
    expect(await known()).toEqual(['acme/claude', 'other/claude', 'other/gpt']);
    await give(hourhand, provider, ['new']);
    expect(await known()).toEqual(['acme/new', 'other/claude', 'other/gpt']);
    expect(await forgetModels(hourhand.pool, 'acme')).toBe(1);
    expect(await known()).toEqual(['other/claude', 'other/gpt']);
  });

  test("discover adds what a provider's list names, once, and leaves what was given", async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['dall-e-9']);
    const first = await hourhand.run(['models', 'discover', 'acme']);
    expect(first).toMatchObject({ code: 0, stdout: 'acme/gpt-9 chatCompletion\nacme/text-embedding-9 embedding\n' });
    const [again, unknown] = await Promise.all([
      hourhand.run(['models', 'discover', 'acme']),
      hourhand.run(['models', 'discover', 'nobody']),
    ]);
    expect(again).toMatchObject({ code: 0, stdout: '' });
    expect(unknown).toMatchObject({ code: 1, stderr: expect.stringContaining('(acme)') });
    expect(await forgetModels(hourhand.pool, 'acme', 'gpt-9')).toBe(1);
    expect((await lines(hourhand)).map(({ model }) => model)).toEqual(['dall-e-9', 'text-embedding-9']);
    expect(await hourhand.run(['models', 'forget', 'acme'])).toMatchObject({
      code: 0,
      stderr: '2 models forgotten\n',
    });
    expect(await hourhand.pool.modelProvider.count()).toBe(0);
  });
});
