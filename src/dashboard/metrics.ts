// What does Prometheus see?

import { Router } from 'express';
import { Gauge, Registry } from 'prom-client';
import { type Connections, quiet, within } from '../connections.ts';
import { inspectScheduler, wishes } from '../producers/schedules.ts';
import { depthsOf, STATES } from '../queues/redis.ts';
import { probesSpent } from '../store/checks.ts';
import { uncoveredSpan } from '../store/gaps.ts';
import { waitingMarks } from '../store/marks.ts';
import { statusLines } from '../store/model-status.ts';
import { hourFigures, ledgerStatus } from '../store/progress.ts';
import { failedLately } from '../store/stale.ts';
import { WARNING_KINDS } from '../store/warnings.ts';
import { onceAtATime } from './once.ts';
import { warningsNow } from './warnings.ts';

/** Of each source; Prometheus itself gives up after ten seconds. */
const LIMIT_MS = 2_000;

/** A gauge: its name, what it is, and its values, each with its labels. What is not known has none. */
type Figure = readonly [name: string, help: string, ...values: (readonly [number, Record<string, string>?])[]];

/**
 * `GET /metrics`: what this process counts, and what Postgres and Redis say at this moment. Nothing is asked between two scrapes, and
 * nothing twice at once. A source that is away, or takes longer than two seconds, leaves its figures out, and says so by
 * `hourhand_scrape_ok`.
 */
export function metrics(connections: Connections, registry: Registry): Router {
  const onError = quiet(connections.log);
  const ask = Object.entries(sources).map(([source, figures]) => {
    const asked = onceAtATime(() => figures(connections));
    return async (): Promise<Figure[]> => {
      try {
        return [...(await within(LIMIT_MS, source, asked())), ok(source, 1)];
      } catch (error) {
        onError('metrics')(error as Error); // within throws errors
        return [ok(source, 0)];
      }
    };
  });
  const router = Router();
  router.get('/metrics', async (_req, res) => {
    const figures = (await Promise.all(ask.map((source) => source()))).flat();
    const text = `${await registry.metrics()}\n${await inWords(figures)}`;
    res.set({ 'Cache-Control': 'no-store', 'Content-Type': registry.contentType }).send(text);
  });
  return router;
}

const sources: Record<string, (connections: Connections) => Promise<Figure[]>> = {
  async postgres(connections) {
    const { pool, modelPolicy } = connections;
    const { now, watermark, owed } = await ledgerStatus(pool, 0);
    const marks = await waitingMarks(pool);
    const uncovered = await uncoveredSpan(pool);
    const warnings = await warningsNow(connections, uncovered);
    const { running, partial, provisional, differing, durations } = await hourFigures(pool);
    const { lastHour, lastDayCredits } = await probesSpent(pool);
    const models = await statusLines(pool, await modelPolicy.interval());
    return [
      [
        'hourhand_watermark_lag_seconds',
        'Since the watermark: the live range is closed up to it. At most an hour and some minutes if all is well.',
        ...known(watermark && (now.getTime() - watermark.getTime()) / 1_000),
      ],
      [
        'hourhand_hours',
        'Hours by state; owed: ended, covered and not closed; provisional: closed, and waiting for older transactions.',
        ...by('state', { owed, running, partial, provisional }),
      ],
      [
        'hourhand_uncovered_hours',
        'Hours that have ended, hold calls, and are in no figure: neither covered nor closed.',
        [uncovered.hours],
      ],
      [
        'hourhand_warnings',
        'Warnings that stand, by kind: what is wrong and does not stop the work.',
        ...WARNING_KINDS.map((kind) => [warnings.filter((one) => one.kind === kind).length, { kind }] as const),
      ],
      ['hourhand_marks', 'Marks of late data, and of users asked for, that wait.', [marks]],
      [
        'hourhand_hour_duration_seconds',
        'From the start to the close of the hours that were fanned out and closed in the last 24 hours.',
        ...(durations ?? []).map((seconds, i) => [seconds, { percentile: PERCENTILES[i] ?? '' }] as const),
      ],
      ['hourhand_audit_differences', 'Hours found to differ from their calls, and not rolled up since.', [differing]],
      [
        'hourhand_stale_calls_24h',
        'Calls failed in the last 24 hours for hanging.',
        [(await failedLately(pool)).calls],
      ],
      ['hourhand_probes_1h', 'Probes of models in the last hour.', [lastHour]],
      [
        'hourhand_probe_credits_24h',
        'Credits that probes of models cost in the last 24 hours.',
        [Number(lastDayCredits)],
      ],
      [
        'hourhand_model_status',
        'The status of each model, as a label; always 1.',
        ...models.map(({ provider, model, type, status }) => [1, { provider, model, type, status }] as const),
      ],
    ];
  },

  async redis({ queues, ownership }) {
    const [depths, workers] = await Promise.all([depthsOf(queues), ownership.workersOn(queues.hours)]);
    return [
      [
        'hourhand_queue_jobs',
        'Jobs in each queue, by state.',
        ...depths.flatMap((depth) => STATES.map((state) => [depth[state], { queue: depth.queue, state }] as const)),
      ],
      [
        'hourhand_queue_paused',
        'Whether a queue is paused.',
        ...depths.map(({ queue, paused }) => [Number(paused), { queue }] as const),
      ],
      ['hourhand_workers', 'Worker processes, in the whole cluster.', ...known(workers?.length)],
    ];
  },

  /** Redis is compared with what Postgres says. One that is off, and so is not there, has no figure. */
  async schedulers({ pool, queues, config }) {
    const found = await Promise.all(wishes(queues, config).map((wish) => inspectScheduler(pool, wish)));
    const on = found.filter(({ state }) => state !== 'off');
    return [
      [
        'hourhand_scheduler_live',
        'Whether a scheduler stands as the newest deploy says; one that is off is left out.',
        ...on.map(({ id, state }) => [Number(state === 'live'), { scheduler: id }] as const),
      ],
      [
        'hourhand_scheduler_next_run_timestamp_seconds',
        "A scheduler's next tick.",
        ...on.flatMap(({ id, next }) => (next ? [[next.getTime() / 1_000, { scheduler: id }] as const] : [])),
      ],
    ];
  },
};

/** Of `hourFigures`' durations. */
const PERCENTILES = ['50', '95', '99'];

const ok = (source: string, value: number): Figure => [
  'hourhand_scrape_ok',
  'Whether a source answered within 2 s; the figures of one that did not are left out.',
  [value, { source }],
];

const known = (value: number | null | undefined) => (value == null ? [] : [[value] as const]);

const by = (label: string, values: Record<string, number>) =>
  Object.entries(values).map(([key, value]) => [value, { [label]: key }] as const);

/** As Prometheus reads it. A registry of its own each time: what is gone is not there any more. */
async function inWords(figures: readonly Figure[]): Promise<string> {
  const registry = new Registry();
  for (const [name, help, ...values] of figures) {
    for (const [value, labels = {}] of values) {
      const gauge =
        (registry.getSingleMetric(name) as Gauge | undefined) ?? // nothing else is in it
        new Gauge({ name, help, labelNames: Object.keys(labels), registers: [registry] });
      gauge.set(labels, value);
    }
  }
  return registry.metrics();
}
