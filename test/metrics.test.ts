import { execFileSync, spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { UnrecoverableError } from 'bullmq';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { home, version } from '../src/config.ts';
import { redisAddress } from '../src/connections.ts';
import { startDashboard } from '../src/dashboard/server.ts';
import { openMetrics } from '../src/metrics.ts';
import { enqueueHours, enqueueMarks } from '../src/producers/hours.ts';
import { queueWorkers } from '../src/queue-worker.ts';
import { workerConnection } from '../src/queues/redis.ts';
import { giveProviders } from '../src/store/models.ts';
import { recordBatch } from '../src/store/stale.ts';
import { startWorker } from '../src/worker.ts';
import { connected } from './support/gateway.ts';
import { ended, type Hourhand, h, linesOf, startHourhand, until } from './support/hourhand.ts';
import { ownServers } from './support/servers.ts';

/** A sample as Prometheus' text format writes it: its name, its labels in their order, its value. */
const SAMPLE = /^(\w+)(?:\{(.*)\})? (-?[\d.e+-]+|nan|[+-]inf)$/i;

/** Every sample of a scrape, by its name and labels as they stand there. */
function samplesOf(text: string): Map<string, number> {
  const samples = new Map<string, number>();
  for (const line of text.split('\n').filter((line) => line !== '' && !line.startsWith('#'))) {
    const found = SAMPLE.exec(line);
    if (!found) throw new Error(`no sample: ${line}`);
    const [, name, labels, value] = found;
    samples.set(labels ? `${name}{${labels}}` : `${name}`, Number(value));
  }
  return samples;
}

/** Those of hourhand, and of none of its processes, that a text names. */
const namesIn = (text: string) =>
  [...new Set(text.match(/hourhand_[a-z0-9_]+/g) ?? [])].filter((name) => !/^hourhand_(process|nodejs)_/.test(name));

async function open(hourhand: Hourhand, metrics = openMetrics()) {
  const { url, close } = await startDashboard(hourhand, { metrics });
  const scrape = async () => {
    const response = await fetch(`${url}/metrics`);
    expect(response.status).toBe(200);
    return response.text();
  };
  return {
    url,
    scrape,
    samples: async () => samplesOf(await scrape()),
    [Symbol.asyncDispose]: close,
  };
}

const promtool = spawnSync('promtool', ['--version']).status === 0;
const ops = path.join(home, 'ops');
const read = (...name: string[]) => readFileSync(path.join(home, ...name), 'utf8');

describe('two years of hours, some of them not in order', () => {
  let hourhand: Hourhand;
  let dashboard: Awaited<ReturnType<typeof open>>;
  let text = '';
  const value = (sample: string) => samplesOf(text).get(sample);

  beforeAll(async () => {
    hourhand = await startHourhand({ AUDIT_MODEL_CALL_STATS_CRON_TIME: '0 30 * * * *' });
    const { pool, queues } = hourhand;
    // A worker has been there, and is gone: the schedulers stand.
    await (await hourhand.work()).stop();
    await pool.$executeRaw`delete from "StatRange"`;
    await pool.$executeRaw`delete from "StatHour"`;
    await pool.$executeRaw`
      insert into "StatHour" (hour, state, reason, run, fence, calls, "startedAt", "closedAt", "auditedAt")
      select hour, 'closed', 'tick', 1, 0, 9, hour + interval '1 hour', hour + interval '1 hour 4 seconds', now()
        from generate_series(date_trunc('hour', now(), 'UTC') - interval '17520 hours', date_trunc('hour', now(), 'UTC') - interval '1 hour', '1 hour') hour`;
    await pool.$executeRaw`
      insert into "StatRange" values (date_trunc('hour', now(), 'UTC') - interval '17520 hours', null)`;
    const not = (hours: number, what: string) =>
      pool.$executeRawUnsafe(
        `update "StatHour" set ${what} where hour = date_trunc('hour', now(), 'UTC') - interval '${hours} hours'`,
      );
    await not(3, `state = 'partial', error = 'eve'`);
    await not(5, `state = 'partial', error = 'eve'`);
    await not(4, `state = 'running'`);
    await not(9, `fence = 7`);
    await not(11, `"auditFound" = 'ada: 1 of 2'`);
    await not(12, `"auditFound" = 'ada: 1 of 2', "auditedAt" = "closedAt" - interval '1 second'`); // repaired since
    await pool.$executeRaw`
      insert into "StatMark" (hour, "userDid", reason) select date_trunc('hour', now(), 'UTC'), 'ada', 'late' from generate_series(1, 3)`;
    await giveProviders(pool, [
      {
        id: 'acme',
        baseUrl: 'https://acme.example/v1',
        apiKeyEnv: 'KEY',
        concurrency: 1,
        models: [{ model: 'gpt "9"', type: 'chatCompletion' }],
      },
    ]);
    await pool.$executeRaw`update "ModelStatus" set status = 'down', "checkedAt" = now(), since = now()`;
    await pool.$executeRaw`
      insert into "ModelProbe" ("checkId", "providerId", model, type, credits, "startedAt")
      values (1, 'acme', 'a', 'chatCompletion', 0.125, now()), (2, 'acme', 'a', 'chatCompletion', 0.5, now() - interval '2 hours'),
             (3, 'acme', 'a', 'chatCompletion', 64, now() - interval '25 hours')`;
    await recordBatch(pool, { calls: 5, models: [], hours: [] }, { cleanup: 'c', requestedBy: null });
    await queues.hours.add('later', {}, { delay: 3_600_000 });
    await queues.marks.addBulk([1, 2].map((n) => ({ name: `${n}`, data: {} })));
    await queues.users.pause();
    dashboard = await open(hourhand);
    await until(dashboard.samples, (seen) => seen.get('hourhand_workers') === 0); // Redis forgets a connection in a moment
    text = await dashboard.scrape();
  });
  afterAll(async () => {
    await dashboard?.[Symbol.asyncDispose]();
    await hourhand?.[Symbol.asyncDispose]();
  });

  test('the lag is what has gone by since the watermark, the start of the oldest hour that is owed', async () => {
    const [{ lag }] = await hourhand.pool.$queryRaw<[{ lag: number }]>`
      select extract(epoch from now() - date_trunc('hour', now(), 'UTC') + interval '5 hours')::float8 as lag`;
    const said = value('hourhand_watermark_lag_seconds') ?? 0;
    expect(lag - said).toBeGreaterThanOrEqual(0);
    expect(lag - said).toBeLessThan(60);
  });

  test.each([
    ['hourhand_hours{state="owed"}', 3],
    ['hourhand_hours{state="partial"}', 2],
    ['hourhand_hours{state="running"}', 1],
    ['hourhand_hours{state="provisional"}', 1],
    ['hourhand_marks', 3],
    ['hourhand_audit_differences', 1],
    ['hourhand_hour_duration_seconds{percentile="50"}', 4],
    ['hourhand_hour_duration_seconds{percentile="99"}', 4],
    ['hourhand_stale_calls_24h', 5],
    ['hourhand_probes_1h', 1],
    ['hourhand_probe_credits_24h', 0.625],
    ['hourhand_model_status{provider="acme",model="gpt \\"9\\"",type="chatCompletion",status="down"}', 1],
    ['hourhand_queue_jobs{queue="stats-hour",state="delayed"}', 1],
    ['hourhand_queue_jobs{queue="stats-marks",state="waiting"}', 2],
    ['hourhand_queue_jobs{queue="stats-users",state="waiting"}', 0],
    ['hourhand_queue_paused{queue="stats-users"}', 1],
    ['hourhand_queue_paused{queue="stats-hour"}', 0],
    ['hourhand_workers', 0],
    ['hourhand_scheduler_live{scheduler="audit.model.call.stats"}', 1],
    ['hourhand_scheduler_live{scheduler="model.call.stats"}', undefined], // it is off
    ['hourhand_scrape_ok{source="postgres"}', 1],
    ['hourhand_scrape_ok{source="redis"}', 1],
    ['hourhand_scrape_ok{source="schedulers"}', 1],
    ['hourhand_deduplicated_total{queue="stats-hour"}', 0],
    [`hourhand_info{version="${version}"}`, 1],
  ])('%s is %s', (sample, expected) => {
    expect(value(sample)).toBe(expected);
  });

  test("a scheduler's next tick is within the hour that its pattern says", () => {
    const next = value('hourhand_scheduler_next_run_timestamp_seconds{scheduler="audit.model.call.stats"}') ?? 0;
    expect(next - Date.now() / 1_000).toBeGreaterThan(0);
    expect(next - Date.now() / 1_000).toBeLessThanOrEqual(3_600);
    expect(next % 3_600).toBe(1_800);
  });

  test('a scheduler that is gone is not live', async () => {
    await hourhand.queues.auditTicks.removeJobScheduler('audit.model.call.stats');
    const samples = await dashboard.samples();
    expect(samples.get('hourhand_scheduler_live{scheduler="audit.model.call.stats"}')).toBe(0);
  });

  test('PostgreSQL that does not answer leaves its figures out, and is said, while the others are there', async () => {
    await using other = await connected(hourhand);
    await other.query('begin; lock table "StatHour" in access exclusive mode');
    const [held, meanwhile] = await Promise.all([dashboard.samples(), dashboard.samples()]);
    for (const samples of [held, meanwhile]) {
      expect(samples.get('hourhand_scrape_ok{source="postgres"}')).toBe(0);
      expect(samples.has('hourhand_marks')).toBe(false);
      expect(samples.get('hourhand_scrape_ok{source="redis"}')).toBe(1);
      expect(samples.has('hourhand_queue_jobs{queue="stats-hour",state="delayed"}')).toBe(true);
    }
    const { rows } = await other.query(
      `select count(*)::int as asking from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`,
    );
    expect(rows).toEqual([{ asking: 1 }]); // by two scrapes: it is not asked again while it has not answered
    await other.query('rollback');
    await until(dashboard.samples, (samples) => samples.get('hourhand_scrape_ok{source="postgres"}') === 1);
  });

  test('the docs name every metric, and none that does not exist', () => {
    const emitted = [...text.matchAll(/^# TYPE (\w+)/gm)].map(([, name = '']) => name);
    const documented = [...read('docs', 'monitoring.md').matchAll(/^\| `(hourhand_[a-z0-9_]+)[`{]/gm)];
    expect(documented.map(([, name]) => name).sort()).toEqual(namesIn(emitted.join('\n')).sort());
  });

  test.each([
    ['prometheus', 'alerts.yml'],
    ['prometheus', 'alerts.test.yml'],
    ['grafana', 'hourhand.json'],
  ])('ops/%s/%s names no metric and no label that does not exist', (...file) => {
    const asked = read('ops', ...file);
    const emitted = [...text.matchAll(/^# TYPE (\w+) (\w+)/gm)].flatMap(([, name = '', type]) =>
      type === 'histogram' ? ['_bucket', '_sum', '_count'].map((part) => name + part) : [name],
    );
    const names = asked.match(/hourhand_[a-z0-9_]+/g) ?? [];
    expect(names.length).toBeGreaterThan(3);
    for (const name of names) expect(emitted).toContain(name);
    const labels = new Set([
      ...[...text.matchAll(/(\w+)="/g)].map(([, label]) => label),
      // Of what has happened nowhere yet, and what Prometheus adds.
      ...['queue', 'step', 'outcome', 'le', 'job', 'instance'],
    ]);
    for (const [, list = ''] of asked.matchAll(/by \(([\w, ]+)\)/g)) {
      for (const label of list.split(', ')) expect(labels).toContain(label);
    }
  });

  describe.skipIf(!promtool)(promtool ? "by Prometheus' own tool" : '(SKIPPED: promtool is not there)', () => {
    const run = (args: string[], input = '') =>
      execFileSync('promtool', args, { cwd: path.join(ops, 'prometheus'), input, encoding: 'utf8', stdio: 'pipe' });

    test('a scrape is what Prometheus reads', () => {
      const { status, stdout, stderr } = spawnSync('promtool', ['check', 'metrics'], {
        input: text,
        encoding: 'utf8',
      });
      // 3: of good style or not. What it has against the client's own names is not ours, and hours are what is counted, not a unit.
      expect([0, 3]).toContain(status);
      const said = `${stdout}${stderr}`.split('\n');
      expect(said.filter((line) => !/^hourhand_(nodejs_|process_|hours use base unit)|^$/.test(line))).toEqual([]);
    });

    test('the rules and the scrape config can be loaded, and the rules do what their tests say', () => {
      expect(run(['check', 'rules', 'alerts.yml'])).toContain('SUCCESS');
      expect(run(['check', 'config', 'prometheus.yml'])).toContain('SUCCESS');
      expect(run(['test', 'rules', 'alerts.test.yml'])).toContain('SUCCESS');
    });
  });
});

test('every alert has a severity, and says what it is and what to type', () => {
  const [, ...alerts] = read('ops', 'prometheus', 'alerts.yml').split(/^ {6}- alert: /m);
  expect(alerts.length).toBeGreaterThan(10);
  for (const alert of alerts) {
    expect(alert).toMatch(/^Hourhand\w+\n {8}expr: /);
    expect(alert).toMatch(/^ {10}severity: (critical|warning)$/m);
    expect(alert).toMatch(/^ {10}summary: '.+'$/m);
    expect(alert).toMatch(/^ {10}description: '.+(hourhand [a-z]+|\/queues|\/readyz|job stalled).+'$/m);
  }
});

test('the Grafana dashboard can be imported: each panel has a place of its own and asks the chosen data source', () => {
  const { schemaVersion, templating, panels, id } = JSON.parse(read('ops', 'grafana', 'hourhand.json'));
  expect(schemaVersion).toBeGreaterThanOrEqual(39);
  expect(id).toBeNull();
  expect(templating.list[0]).toMatchObject({ name: 'datasource', type: 'datasource', query: 'prometheus' });
  expect(new Set(panels.map((panel: { id: number }) => panel.id)).size).toBe(panels.length);
  const taken = new Set<string>();
  for (const { type, title, datasource, targets = [], gridPos } of panels) {
    for (let x = gridPos.x; x < gridPos.x + gridPos.w; x += 1) {
      for (let y = gridPos.y; y < gridPos.y + gridPos.h; y += 1) {
        expect(taken.has(`${x},${y}`), title).toBe(false);
        taken.add(`${x},${y}`);
      }
    }
    expect(gridPos.x + gridPos.w).toBeLessThanOrEqual(24);
    if (type === 'row') continue;
    expect(targets.length, title).toBeGreaterThan(0);
    for (const asked of [{ datasource }, ...targets])
      expect(asked.datasource.uid, title).toMatch(/^\$\{datasource\}$/);
  }
});

test('Redis that does not answer leaves its figures out, and is said', async () => {
  await using own = await ownServers('metrics', 'redis');
  await using hourhand = await startHourhand(own.env);
  await using dashboard = await open(hourhand);
  expect((await dashboard.samples()).get('hourhand_scrape_ok{source="redis"}')).toBe(1);
  own.signal('redis', 'SIGSTOP');
  const silent = await dashboard.samples();
  own.signal('redis', 'SIGCONT');
  expect(silent.get('hourhand_scrape_ok{source="redis"}')).toBe(0);
  expect(silent.has('hourhand_workers')).toBe(false);
  expect(silent.get('hourhand_scrape_ok{source="postgres"}')).toBe(1);
  expect(silent.get('hourhand_marks')).toBe(0);
  await until(dashboard.samples, (samples) => samples.get('hourhand_scrape_ok{source="redis"}') === 1);
});

test('a job that was not added because one under way stands for it is counted, by every dashboard', async () => {
  await using hourhand = await startHourhand();
  await using one = await open(hourhand);
  await using other = await open(hourhand);
  const hours = [{ hour: h('2026-08-20T13'), backfilled: false }];
  const added = async () => {
    await enqueueHours(hourhand.queues, hours);
    await enqueueMarks(hourhand.queues, [h('2026-08-20T13')]);
  };
  await added();
  // Until both listen: the first of these they may not have heard.
  for (const { samples } of [one, other]) {
    await until(
      async () => {
        await enqueueHours(hourhand.queues, hours);
        return samples();
      },
      (seen) => (seen.get('hourhand_deduplicated_total{queue="stats-hour"}') ?? 0) > 0,
    );
  }
  const before = await one.samples();
  await added();
  await added();
  for (const queue of ['stats-hour', 'stats-marks']) {
    const name = `hourhand_deduplicated_total{queue="${queue}"}`;
    await until(one.samples, (seen) => (seen.get(name) ?? 0) === (before.get(name) ?? 0) + 2);
  }
});

describe('the attempts at jobs', () => {
  test('of an hour, by its steps: it moves to wait for its children, and fails for good when one cannot be stored', async () => {
    await using hourhand = await startHourhand();
    const metrics = openMetrics();
    await hourhand.record(
      { user: 'ada', at: '2026-08-20T13:10:00Z' },
      { user: 'eve', at: '2026-08-20T13:20:00Z', credits: '999999999999' },
      { user: 'eve', at: '2026-08-20T13:20:01Z', credits: '999999999999' },
    );
    await using dashboard = await open(hourhand, metrics);
    const worker = await startWorker(hourhand, hourhand.environment, metrics);
    await hourhand.backfill(h('2026-08-20T13'));
    await hourhand.reaches(h('2026-08-20T13'), 'partial');
    const attempts = (queue: string, outcome: string) =>
      `hourhand_job_attempts_total{queue="${queue}",outcome="${outcome}"}`;
    const samples = await until(
      dashboard.samples,
      (seen) => (seen.get(attempts('stats-hour', 'failed')) ?? 0) > 0 && (seen.get('hourhand_workers') ?? 0) > 0,
    );
    await worker.stop();
    expect(samples.get(attempts('stats-hour', 'moved'))).toBe(1);
    expect(samples.get(attempts('stats-users', 'completed'))).toBe(1);
    expect(samples.get(attempts('stats-users', 'failed'))).toBe(1);
    expect(samples.get(attempts('audit-hours', 'failed'))).toBe(0); // before anything of it happens
    const count = (step: string, outcome: string) =>
      samples.get(`hourhand_job_duration_seconds_count{queue="stats-hour",step="${step}",outcome="${outcome}"}`);
    expect([count('allot', 'moved'), count('close', 'failed'), count('close', 'moved')]).toEqual([1, 1, undefined]);
    expect(samples.get('hourhand_jobs_stalled_total{queue="stats-hour"}')).toBe(0);
  });

  test('that fail are retried, until they fail for good', async () => {
    await using hourhand = await startHourhand();
    const { config, log } = hourhand;
    const metrics = openMetrics();
    const connection = workerConnection(redisAddress(config), () => {});
    const work = queueWorkers({ config, log, connection, identity: 'test', metrics });
    const [worker, other] = [
      work(hourhand.queues.stale.name, 1, 60_000, async () => {
        throw new Error('the disk is full');
      }),
      work(hourhand.queues.audits.name, 1, 60_000, async ({ job }) => {
        if (job.name === 'wrong') throw new UnrecoverableError('for ever');
      }),
    ];
    await hourhand.queues.stale.add('job', {}, { attempts: 3 });
    await hourhand.queues.audits.addBulk(
      ['right', 'wrong'].map((name) => ({ name, data: {}, opts: { attempts: 3 } })),
    );
    const counted = await until(
      async () => {
        const seen = samplesOf(await metrics.registry.metrics());
        return Object.fromEntries(
          [...seen].filter(([name, n]) => name.startsWith('hourhand_job_attempts_total') && n > 0),
        );
      },
      (seen) => Object.keys(seen).length === 4,
    );
    expect(counted).toEqual({
      'hourhand_job_attempts_total{queue="stale-calls",outcome="retried"}': 2,
      'hourhand_job_attempts_total{queue="stale-calls",outcome="failed"}': 1,
      'hourhand_job_attempts_total{queue="audit-hours",outcome="completed"}': 1,
      'hourhand_job_attempts_total{queue="audit-hours",outcome="failed"}': 1,
    });
    await Promise.all([worker.close(), other.close()]);
    connection.disconnect();
  });
});

describe('a worker process', () => {
  const start = async (hourhand: Hourhand) => {
    const child = hourhand.broken({ LOG_LEVEL: 'info' }, 'worker');
    const lines = linesOf(child);
    const said = await until(
      async () => lines.map((line) => line.startsWith('{') && JSON.parse(line)),
      (seen) => seen.some(({ msg }) => msg === 'worker started'),
    );
    const url: string | undefined = said.find(({ msg }) => msg === 'metrics served')?.url;
    const stop = async () => {
      child.kill('SIGTERM');
      return ended(child);
    };
    return { url, stop };
  };

  test('serves what it counts itself, and that it lives, on a port of its own, and nothing else', async () => {
    await using hourhand = await startHourhand({ METRICS_PORT: '0' });
    const { url = '', stop } = await start(hourhand);
    expect(url).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/metrics$/);
    await hourhand.record({ user: 'ada', at: '2026-08-20T13:10:00Z' });
    await hourhand.backfill(h('2026-08-20T13'));
    const samples = await until(
      async () => samplesOf(await (await fetch(url)).text()),
      (seen) => seen.get('hourhand_job_attempts_total{queue="stats-hour",outcome="completed"}') === 1,
    );
    expect(samples.get('hourhand_job_attempts_total{queue="stats-users",outcome="completed"}')).toBe(1);
    expect(samples.get(`hourhand_info{version="${version}"}`)).toBe(1);
    expect([...samples.keys()].filter((name) => /hourhand_(hours|queue|scrape|marks)/.test(name))).toEqual([]);
    const status = async (path: string, method = 'GET') =>
      (await fetch(new URL(path, url), { method, redirect: 'manual' })).status;
    expect(
      await Promise.all([status('/'), status('/queues'), status('/metrics', 'POST'), status('/metrics?x')]),
    ).toEqual([404, 404, 405, 200]);
    expect(await (await fetch(new URL('/healthz', url))).json()).toEqual({ status: 'ok', version });
    expect(await stop()).toBe(0);
    await expect(fetch(url)).rejects.toThrow('fetch failed');
  });

  test('asks for the token that it was given, but not whoever asks whether it lives', async () => {
    const token = '0123456789abcdef';
    await using hourhand = await startHourhand({ METRICS_PORT: '0', METRICS_HOST: '0.0.0.0', METRICS_TOKEN: token });
    const { url = '', stop } = await start(hourhand);
    const status = async (authorization?: string) =>
      (await fetch(url, { headers: authorization === undefined ? {} : { authorization } })).status;
    expect(await status()).toBe(401);
    for (const wrong of [
      '',
      'Bearer',
      'Bearer ',
      `Bearer ${token}0`,
      'Bearer 0123456789abcdeg',
      `Basic ${token}`,
      token,
    ]) {
      expect(await status(wrong), wrong).toBe(401);
    }
    expect(await status(`Bearer ${token}`)).toBe(200);
    expect((await fetch(new URL('/healthz', url))).status).toBe(200);
    expect(await stop()).toBe(0);
  });

  test('says which variable is wrong when it cannot listen', async () => {
    await using hourhand = await startHourhand();
    await using dashboard = await open(hourhand);
    const { port } = new URL(dashboard.url);
    expect(await hourhand.run(['worker'], '', { METRICS_PORT: port })).toMatchObject({
      code: 1,
      stderr: `hourhand: METRICS_PORT ${port} is taken on 127.0.0.1: free it, or set METRICS_PORT to another (0 takes any)\n`,
    });
  });

  test('serves nothing where nobody asked for it', async () => {
    await using hourhand = await startHourhand();
    const { url, stop } = await start(hourhand);
    expect(url).toBeUndefined();
    expect(await stop()).toBe(0);
  });
});
