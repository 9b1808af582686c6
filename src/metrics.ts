// What is counted in a process?

import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import { version } from './config.ts';

/** How an attempt ended: failed for good, to be retried, or moved on by one of BullMQ's signals, as to its children. */
const OUTCOMES = ['completed', 'failed', 'retried', 'moved'] as const;
export type Outcome = (typeof OUTCOMES)[number];

/** The counts of one queue in this process. */
export interface QueueCounts {
  /** @param step that the job's data named when the attempt began */
  attempt(step: string, outcome: Outcome, seconds: number): void;
  stalled(): void;
}

export interface Metrics {
  /** All that this process counts, and what Node says of it. */
  readonly registry: Registry;
  /** From now on each of its counts is there, as 0: a count that is born as 1 never rises. */
  of(queue: string): QueueCounts;
}

/** From a statement of a few milliseconds to the longest deadline's order. */
const BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900];

/** A registry of this process' own. Opened only where it is served: what Node says of a process is not free. */
export function openMetrics(): Metrics {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ register: registry, prefix: 'hourhand_' });
  new Gauge({
    name: 'hourhand_info',
    help: 'The version that runs; always 1.',
    labelNames: ['version'],
    registers,
  }).set({ version }, 1);
  const durations = new Histogram({
    name: 'hourhand_job_duration_seconds',
    help: 'Seconds that attempts at jobs took in this process, by the step at which they began.',
    labelNames: ['queue', 'step', 'outcome'],
    buckets: BUCKETS,
    registers,
  });
  const attempts = new Counter({
    name: 'hourhand_job_attempts_total',
    help: 'Attempts at jobs that ended in this process; failed: for good, moved: to wait, as for children.',
    labelNames: ['queue', 'outcome'],
    registers,
  });
  const stalled = new Counter({
    name: 'hourhand_jobs_stalled_total',
    help: 'Jobs whose worker was lost, found by this process and taken over.',
    labelNames: ['queue'],
    registers,
  });
  return {
    registry,
    of(queue) {
      for (const outcome of OUTCOMES) attempts.inc({ queue, outcome }, 0);
      stalled.inc({ queue }, 0);
      return {
        attempt(step, outcome, seconds) {
          durations.observe({ queue, step, outcome }, seconds);
          attempts.inc({ queue, outcome });
        },
        stalled: () => stalled.inc({ queue }),
      };
    },
  };
}
