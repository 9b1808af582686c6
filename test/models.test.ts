import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { home } from '../src/config.ts';
import { startDashboard } from '../src/dashboard/server.ts';
import { enqueueCheck, requestCheck } from '../src/producers/models.ts';
import { readProviders } from '../src/providers/read-file.ts';
import { beginCheck } from '../src/store/checks.ts';
import { type StatusLine, statusLines } from '../src/store/model-status.ts';
import { forgetModels, giveProviders } from '../src/store/models.ts';
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

/** Calls of a model that have just ended. */
async function calls(
  { pool }: Hourhand,
  n: number,
  { model = 'gpt', status = 'success', reason = null as string | null } = {},
) {
  await pool.$executeRaw`
    insert into "ModelCall" (id, "userDid", "providerId", model, type, status, "errorReason", duration, "callTime")
    select gen_random_uuid()::text, 'ada', 'acme', ${model}, 'chatCompletion', ${status}::"ModelCallStatus", ${reason}::text, 0.5,
           now() - interval '1 minute' from generate_series(1, ${n}::int)`;
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
    await check(hourhand);
    expect(await line(hourhand)).toMatchObject({
      status: 'unknown',
      reason: 'no credentials',
      detail: 'KEY is not set where this worker runs',
    });
    expect(provider.asked).toEqual([]);
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

describe('the budget', () => {
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
    60_000,
  );
  expect(row?.outcome).toMatchObject({ probed: 8, judged: 0 });
  expect(provider.asked).toHaveLength(8);
}, 90_000);

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
  });

  test('tells the share of the time it was up, over a day, a week and a month', async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['gpt', 'never']);
    const { pool } = hourhand;
    const hoursAgo = (hours: number) => new Date(Date.now() - hours * 3_600_000);
    const was = (from: 'up' | 'down' | 'unknown', to: 'up' | 'down', hours: number) => ({
      providerId: 'acme',
      model: 'gpt',
      type: 'chatCompletion' as const,
      from,
      to,
      at: hoursAgo(hours),
    });
    await pool.modelTransition.createMany({
      data: [was('unknown', 'up', 10 * 24), was('up', 'down', 36), was('down', 'up', 18), was('up', 'down', 6)],
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

  test("discover adds what a provider's list names, once, and leaves what was given", async () => {
    await using provider = await startProvider();
    await using hourhand = await knowing(provider, ['dall-e-9']);
    const first = await hourhand.run(['models', 'discover', 'acme']);
    expect(first).toMatchObject({ code: 0, stdout: 'acme/gpt-9 chatCompletion\nacme/text-embedding-9 embedding\n' });
    expect(await hourhand.run(['models', 'discover', 'acme'])).toMatchObject({ code: 0, stdout: '' });
    expect(await hourhand.run(['models', 'discover', 'nobody'])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('(acme)'),
    });
    expect(await forgetModels(hourhand.pool, 'acme', 'gpt-9')).toBe(1);
    expect((await lines(hourhand)).map(({ model }) => model)).toEqual(['dall-e-9', 'text-embedding-9']);
    expect(await hourhand.run(['models', 'forget', 'acme'])).toMatchObject({
      code: 0,
      stderr: '2 models forgotten\n',
    });
    expect(await hourhand.pool.modelProvider.count()).toBe(0);
  });
});
