// How are all the calls that hang failed, batch by batch?

import type { Queues } from '../queues/redis.ts';
import type { Now, Pool } from '../store/db.ts';
import {
  countUnfinished,
  failBatch,
  holdRanges,
  type Place,
  recordCleanup,
  type StaleCalls,
} from '../store/stale.ts';
import type { Hour } from '../time/hour.ts';
import type { Limits } from '../time/limits.ts';
import { enqueueMarks } from './hours.ts';

export interface StalePolicy {
  readonly limits: Limits;
  /** Seconds from one clean-up to the next. */
  readonly everySeconds: number;
}

/** What a clean-up did. Models and hours beyond those that are named are counted together, and only if there are any. */
export interface CleanUp {
  readonly calls: number;
  readonly models: StaleCalls[];
  readonly hours: Record<Hour, number>;
  /** Calls of further models. */
  readonly otherModels?: number;
  /** Calls in further hours. */
  readonly otherHours?: number;
}

/** Long enough to be fast, short enough that nobody who waits for one of its rows would notice: see docs/decisions/0005-unfinished-calls.md. */
export const BATCH = 2_000;
const MAX_MODELS = 100;
const MAX_HOURS = 200;

/** A clean-up of fewer calls is no rise, however few are usual. */
const RISE_CALLS = 20;
const RISE_FACTOR = 3;
const DAY_SECONDS = 24 * 3600;

/**
 * Fail every call that has been processing for longer than its limit, oldest first, each batch a transaction of its own;
 * then write it down and enqueue the marks, which the next look would find as well. What is done when it ends early stays
 * done, and another may run beside it: each call is failed once.
 *
 * A rise: at least 20 calls, and more than three times the usual, which is what the day before comes to in the time from
 * one clean-up to the next.
 *
 * @param signal no new batch is begun once it has aborted; what was done is written down and returned all the same
 * @param onProgress called after each batch, with the unfinished calls looked at so far and all of them
 */
export async function cleanUp(
  { pool, queues, policy }: { pool: Pool; queues: Queues; policy: StalePolicy },
  {
    requestedBy,
    signal,
    onProgress = async () => {},
    size = BATCH,
    now,
  }: {
    requestedBy: string | null;
    signal: AbortSignal;
    onProgress?: (done: number, total: number) => Promise<void>;
    size?: number;
    now?: Now;
  },
): Promise<{ done: CleanUp; complete: boolean; usual: number; rise: boolean }> {
  const { limits, everySeconds } = policy;
  const models = tally(MAX_MODELS);
  const hours = tally(MAX_HOURS);
  const marked = new Set<Hour>();
  const total = await countUnfinished(pool, limits, now);
  let calls = 0;
  let after: Place | null | undefined;
  for (let looked = 0; after !== null && !signal.aborted; ) {
    const batch = await pool.$transaction(async (db) => {
      await holdRanges(db);
      return failBatch(db, limits, { after, size, now });
    });
    calls += batch.calls;
    for (const { calls, ...model } of batch.models) models.add(JSON.stringify(model), calls);
    for (const { hour, calls } of batch.hours) hours.add(hour, calls);
    for (const hour of batch.marked) if (marked.size < MAX_HOURS) marked.add(hour);
    looked += size;
    after = batch.next;
    await onProgress(after ? Math.min(looked, total) : total, total);
  }
  const usual =
    calls > 0 ? ((await recordCleanup(pool, { calls, requestedBy }, now)) * everySeconds) / DAY_SECONDS : 0;
  await enqueueMarks(queues, [...marked]);
  const done = {
    calls,
    models: models.named().map(([model, calls]): StaleCalls => ({ ...JSON.parse(model), calls })),
    hours: Object.fromEntries(hours.named()),
    ...(models.others() > 0 ? { otherModels: models.others() } : {}),
    ...(hours.others() > 0 ? { otherHours: hours.others() } : {}),
  };
  return { done, complete: after === null, usual, rise: calls >= RISE_CALLS && calls > RISE_FACTOR * usual };
}

/** Counts by name, of the first `max` names that come; all others are counted together, so that it never grows beyond. */
function tally(max: number) {
  const counts = new Map<string, number>();
  let others = 0;
  return {
    add(name: string, calls: number): void {
      if (counts.size < max || counts.has(name)) counts.set(name, (counts.get(name) ?? 0) + calls);
      else others += calls;
    },
    named: () => [...counts],
    others: () => others,
  };
}
