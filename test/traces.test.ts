import { expect, test } from 'vitest';
import { startCollector } from './support/collector.ts';
import { ended, type Hourhand, h, startHourhand, until } from './support/hourhand.ts';

const users = ['ada', 'bob', 'cyd', 'dan', 'eve'];
const calls = (hour: string) => users.map((user) => ({ user, at: `${hour}:10:00Z` }));
const INTERNAL = 1;
/** It tells at once. */
const eager = { OTEL_BSP_SCHEDULE_DELAY: '100' };

async function stopped(workers: Awaited<ReturnType<Hourhand['startWorker']>>[]): Promise<number> {
  const began = performance.now();
  for (const { child } of workers) child.kill('SIGTERM');
  for (const { child } of workers) expect(await ended(child)).toBe(0);
  return performance.now() - began;
}

test('a tick is one trace with its hours and all their children, whoever did them; another tick is another', async () => {
  await using collector = await startCollector();
  await using hourhand = await startHourhand({
    ...eager,
    OTEL_EXPORTER_OTLP_ENDPOINT: `${collector.url}/`,
    MODEL_CALL_STATS_CRON_TIME: '* * * * * *',
    WORKER_CONCURRENCY: '1',
  });
  const workers = [await hourhand.startWorker(), await hourhand.startWorker()];
  for (const hour of ['2026-08-20T13', '2026-08-20T15']) {
    await hourhand.record(...calls(hour));
    await hourhand.cover(h(hour), h(hour));
    await hourhand.reaches(h(hour), 'closed');
  }
  await stopped(workers);

  expect([...collector.paths]).toEqual(['POST /v1/traces application/json']);
  const ticks = collector.named('process stats-tick');
  expect(ticks.length).toBeGreaterThanOrEqual(2);
  expect(new Set(ticks.map((span) => span.traceId)).size).toBe(ticks.length);
  expect(ticks.filter((span) => span.parentSpanId)).toEqual([]);

  const tracesOf = (name: string) => [...new Set(collector.named(name).map((span) => span.traceId))];
  const countIn = (traceId: string) => (name: string) =>
    collector.named(name).filter((span) => span.traceId === traceId).length;
  // A tick that looked in the moment in which an hour closed has asked for it once more, for nothing.
  for (const traceId of tracesOf('process stats-hour')) expect(countIn(traceId)('process stats-tick')).toBe(1);
  const traces = tracesOf('process stats-users');
  expect(traces.length).toBe(2);
  for (const traceId of traces) {
    const count = countIn(traceId);
    expect(count('process stats-hour')).toBe(2); // it fans out; it closes
    expect(count('process stats-users')).toBe(users.length);
  }
  expect(collector.named('process stats-users').length).toBe(2 * users.length);
  const [next] = await hourhand.queues.ticks.getJobs(['delayed', 'waiting'], 0, 0);
  expect(next?.opts.telemetry).toBeUndefined(); // nothing is handed on to the next tick

  const ids = new Set(collector.spans.map((span) => span.spanId));
  expect(collector.spans.filter((span) => span.parentSpanId && !ids.has(span.parentSpanId))).toEqual([]);
  expect(collector.spans.filter((span) => span.kind === INTERNAL && !span.parentSpanId)).toEqual([]);
  expect(new Set(collector.spans.map((span) => span.service))).toEqual(new Set(['hourhand']));
  const work = collector.spans.filter((span) => span.name.startsWith('process '));
  expect([...new Set(work.map((span) => span.pid))].sort()).toEqual(workers.map(({ child }) => child.pid).sort());
});

test('a scheduler that was set up with a trace hands it to none of its ticks', async () => {
  await using collector = await startCollector();
  await using hourhand = await startHourhand({ MODEL_CALL_STATS_CRON_TIME: '* * * * * *' });
  const traceId = '0af7651916cd43dd8448eb211c80319c';
  const metadata = JSON.stringify({ traceparent: `00-${traceId}-b7ad6b7169203331-01` });
  const pattern = { pattern: '* * * * * *', tz: 'UTC' };
  await hourhand.queues.ticks.upsertJobScheduler('model.call.stats', pattern, { opts: { telemetry: { metadata } } });
  await using traced = await startHourhand({
    ...hourhand.environment,
    ...eager,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: `${collector.url}/v1/traces`,
  });
  const worker = await traced.startWorker();
  await until(
    async () => collector.named('process stats-tick').length,
    (n) => n >= 2,
  );
  await stopped([worker]);
  const ticks = collector.named('process stats-tick').map((span) => span.traceId);
  expect(new Set(ticks).size).toBe(ticks.length);
  expect(ticks).not.toContain(traceId);
});

test('hours that are asked for together are one trace, and so is late data with its marks', async () => {
  await using collector = await startCollector();
  await using hourhand = await startHourhand({
    OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
    OTEL_SERVICE_NAME: 'the hours',
    LATE_DATA_SECONDS: '1',
  });
  await hourhand.record(...calls('2026-08-20T13'), ...calls('2026-08-20T14'));
  const worker = await hourhand.startWorker();
  await hourhand.backfill(h('2026-08-20T13'), h('2026-08-20T14'));
  for (const hour of ['2026-08-20T13', '2026-08-20T14']) await hourhand.reaches(h(hour), 'closed');
  await hourhand.record({ user: 'ada', at: '2026-08-20T13:30:00Z' });
  await until(
    () => hourhand.stat('ada', h('2026-08-20T13')),
    (stat) => stat?.totalCalls === '2',
  );
  await stopped([worker]);
  const tracesOf = (name: string) => [...new Set(collector.named(name).map((span) => span.traceId))];
  expect(tracesOf('process stats-hour').length).toBe(1);
  expect(tracesOf('process stats-users')).toEqual(tracesOf('process stats-hour'));
  expect(tracesOf('process late-tick')).toEqual(expect.arrayContaining(tracesOf('process stats-marks')));
  expect(tracesOf('process stats-marks').length).toBeGreaterThan(0);
  expect(collector.named('process stats-marks')[0]?.service).toBe('the hours');
});

/** Says, as it ends, which packages a process has loaded. */
const LOADED = `--import=data:text/javascript,${encodeURIComponent(`
  import { createRequire } from 'node:module';
  const { cache } = createRequire('file:///');
  const names = () => Object.keys(cache).map((file) => /.*node_modules\\/((@[^/]+\\/)?[^/]+)/.exec(file)?.[1]);
  process.on('exit', () => process.stdout.write('LOADED ' + JSON.stringify([...new Set(names())]) + '\\n'));`)}`;

async function loadedBy(env: Record<string, string>): Promise<string[]> {
  await using hourhand = await startHourhand({ ...env, NODE_OPTIONS: LOADED });
  const worker = await hourhand.startWorker();
  await stopped([worker]);
  const [said] = await until(
    async () => worker.lines.filter((line) => line.startsWith('LOADED ')),
    (lines) => lines.length === 1,
  );
  return JSON.parse(said?.slice('LOADED '.length) ?? '');
}

test('a worker loads nothing of traces and metrics, unless it is given a collector, or a port for them', async () => {
  const extra = /^(@opentelemetry\/.*|bullmq-otel|prom-client|express)$/;
  const plain = await loadedBy({});
  expect(plain).toContain('pg');
  expect(plain.filter((name) => extra.test(name))).toEqual([]);

  await using collector = await startCollector();
  const told = await loadedBy({ OTEL_EXPORTER_OTLP_ENDPOINT: collector.url, METRICS_PORT: '0' });
  expect(told).toEqual(expect.arrayContaining(['@opentelemetry/api', 'bullmq-otel', 'prom-client']));
});

test('a collector that hangs holds up neither an hour nor a stop', async () => {
  await using collector = await startCollector({ hangs: true });
  await using hourhand = await startHourhand({ ...eager, OTEL_EXPORTER_OTLP_ENDPOINT: collector.url });
  await hourhand.record(...calls('2026-08-20T13'));
  const worker = await hourhand.startWorker();
  await hourhand.backfill(h('2026-08-20T13'));
  await hourhand.reaches(h('2026-08-20T13'), 'closed');
  await until(
    async () => collector.named('process stats-hour').length,
    (n) => n > 0,
  );
  expect(await stopped([worker])).toBeLessThan(3_000); // it is waited for ten seconds otherwise
});

test('a collector that is away holds up nothing either, and is named in the log', async () => {
  await using hourhand = await startHourhand({
    ...eager,
    OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:9', // nobody is there
    OTEL_EXPORTER_OTLP_TIMEOUT: '500',
  });
  await hourhand.record(...calls('2026-08-20T13'));
  const worker = await hourhand.startWorker();
  await hourhand.backfill(h('2026-08-20T13'));
  await hourhand.reaches(h('2026-08-20T13'), 'closed');
  const said = await until(
    async () => worker.lines.filter((line) => line.includes('"collector of traces"')),
    (lines) => lines.length > 0,
  );
  expect(JSON.parse(said[0] ?? '')).toMatchObject({ msg: 'server error', reason: expect.stringMatching(/^[^{]+$/) });
  expect(await stopped([worker])).toBeLessThan(3_000);
});
