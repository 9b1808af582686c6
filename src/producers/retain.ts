// What is no longer kept?

import type { Queues } from '../queues/redis.ts';
import type { AuditResult } from '../store/audit.ts';
import { readClock, whyHeld } from '../store/clock.ts';
import type { Now, Pool } from '../store/db.ts';
import { hasSealedMarks, lateHours, rangeOfHour, sweepSealed } from '../store/late.ts';
import { detachPartition } from '../store/partition-changes.ts';
import { type Partition, partitionsBefore, spanOf } from '../store/partitions.ts';
import {
  forgetStats,
  hoursHeld,
  hoursStored,
  keptSince,
  type LateCalls,
  lateCalls,
  listUnlisted,
  type Removal,
  removableCalls,
  removeCalls,
  type StoredHour,
  unlistedCalls,
} from '../store/retain.ts';
import { sealHour } from '../store/seal.ts';
import { type Hour, startOf } from '../time/hour.ts';
import type { Kept } from '../time/kept.ts';
import { requestHour } from './hours.ts';

/** Calls that one transaction deletes: some seconds of work, which nobody waits for. */
const BATCH = 50_000;
const NAMED = 5;
const LATE_NAMED = 20;

/** What a retention did, or would do. */
export interface Retained {
  sealed: number;
  calls: number;
  callHours: number;
  /** The partitions that were detached whole, instead of deleting their calls. */
  readonly detached: string[];
  stats: number;
  statHours: number;
  /** The hours that stay as they are, by the reason; the first of them are named. */
  readonly passed: Record<string, { hours: number; first: Hour[] }>;
  /** Those whose figures are not what the calls add up to. */
  differing: number;
  /** Calls of sealed hours that are in no figure: they came after the seal, and stay. */
  late: { calls: number; hours: number; first: ({ hour: Hour } & LateCalls)[] };
  /** Nothing is left that could have been done. */
  complete: boolean;
  /** Why PostgreSQL's clock is not trusted to delete by. Nothing was done from then on; a dry run goes on. */
  held?: string;
}

export type Phase = 'calls' | 'statistics';

export interface RetainOptions {
  readonly kept: Kept;
  /** Say what would be done, and change nothing. */
  readonly dryRun?: boolean;
  readonly requestedBy: string;
  /** No new batch is begun once it has aborted. */
  readonly signal: AbortSignal;
  /** Called with the hours looked at so far, and all of them, of each phase. */
  readonly onProgress?: (phase: Phase, done: number, total: number) => Promise<void>;
  /** Called for each hour whose figures differ, before it is asked for. */
  readonly onDiffering?: (hour: Hour, found: AuditResult) => Promise<void>;
  readonly size?: number;
  readonly now?: Now;
}

interface Deps {
  readonly pool: Pool;
  readonly queues: Queues;
}
type HourOptions = Omit<RetainOptions, 'kept' | 'onProgress'>;

/**
 * Seal the hours that have ended long enough ago and are right, and delete their calls, then the statistics of sealed hours of
 * which no call is left. An hour that is not closed, not final or not right is passed over with all that it has; one that differs is asked for,
 * as the audit does.
 *
 * If the clock may have stepped, nothing is done. That is asked again before each hour.
 *
 * It may end between any two batches, or die in one: what is done stays done, and the next begins where it ended. Two at once
 * take turns at each hour.
 */
export async function retain(
  deps: Deps,
  { kept, onProgress = async () => {}, ...options }: RetainOptions,
): Promise<Retained> {
  const { pool } = deps;
  const { signal, dryRun = false } = options;
  const done: Retained = {
    sealed: 0,
    calls: 0,
    callHours: 0,
    detached: [],
    stats: 0,
    statHours: 0,
    passed: {},
    differing: 0,
    late: { calls: 0, hours: 0, first: [] },
    complete: false,
  };
  const emptied = new Set<Hour>();
  const askClock = async () => {
    const clock = await readClock(pool);
    const held = whyHeld(clock);
    if (held) done.held = held;
    return clock.now;
  };
  const stopped = async () => {
    if (!dryRun) await askClock();
    return signal.aborted || (!dryRun && done.held !== undefined);
  };
  // The reading that says whether the clock is trusted also says what is too old.
  const read = await askClock();
  const now = options.now ?? read;
  if (done.held && !dryRun) return done;
  if (kept.calls !== undefined) {
    const before = await keptSince(pool, kept.calls, now);
    const hours = await hoursHeld(pool, before);
    let looked = 0;
    for (const { partition, hours: those } of await parts(pool, hours, before)) {
      const sealed: Hour[] = [];
      const sealedBefore: Hour[] = []; // the others have been compared with their calls at this moment
      for (const hour of those) {
        if (await stopped()) return done;
        const newly = done.sealed;
        if (await sealOrPass(deps, hour, options, done)) sealed.push(hour);
        if (sealed.at(-1) === hour && done.sealed === newly) sealedBefore.push(hour);
        if (partition) await onProgress('calls', looked + sealed.length, hours.length);
      }
      const whole = partition !== undefined && sealed.length === those.length;
      const detached = whole && (await detachListed(pool, partition, sealedBefore, options, done));
      if (detached) done.detached.push(partition.name);
      for (const hour of sealed) {
        if (await stopped()) return done;
        if (detached || (await removeHour(deps, hour, options, done))) emptied.add(hour);
      }
      looked += those.length;
      await onProgress('calls', looked, hours.length);
    }
  }
  if (kept.stats !== undefined) {
    const hours = await hoursStored(pool, await keptSince(pool, kept.stats, now));
    for (const [i, stored] of hours.entries()) {
      if (await stopped()) return done;
      await retainStats(deps, stored, emptied.has(stored.hour), options, done);
      await onProgress('statistics', i + 1, hours.length);
    }
  }
  return { ...done, complete: !signal.aborted };
}

/** The hours of each partition that has ended by an instant, together, and each other hour by itself; the oldest first. */
async function parts(
  pool: Pool,
  hours: readonly Hour[],
  before: Date,
): Promise<{ partition?: Partition; hours: Hour[] }[]> {
  const partitions = await partitionsBefore(pool, before);
  const whole = partitions.map((partition) => ({
    partition,
    hours: hours.filter(
      (hour) => startOf(hour) < partition.end && (partition.start === null || startOf(hour) >= partition.start),
    ),
  }));
  const held = new Set(whole.flatMap((part) => part.hours));
  return [...whole, ...hours.filter((hour) => !held.has(hour)).map((hour) => ({ hours: [hour] }))];
}

/** Late calls may come in while a partition is being detached: they are listed, and it is tried again so often. */
const DETACH_ATTEMPTS = 3;

/**
 * Detach a partition whose hours are all sealed, after everything that came late for them has been listed: their
 * calls go with it.
 *
 * @param sealedBefore those that were not recounted just now, so that a call may be there that nothing is listed of
 * @returns whether it is detached, or would be
 */
async function detachListed(
  pool: Pool,
  partition: Partition,
  sealedBefore: readonly Hour[],
  { dryRun = false }: HourOptions,
  done: Retained,
): Promise<boolean> {
  const span = spanOf(partition);
  const unlisted = new Map<Hour, LateCalls>();
  for (const hour of sealedBefore) {
    if (dryRun) unlisted.set(hour, await unlistedCalls(pool, hour));
    else await listUnlisted(pool, hour);
  }
  if (!dryRun && !(await detachOnceListed(pool, partition))) return false;
  const listed = new Map((await lateHours(pool, span)).map((late) => [late.hour, late]));
  for (const hour of new Set([...listed.keys(), ...unlisted.keys()])) {
    const { writes = 0, users = [] } = listed.get(hour) ?? {};
    noteLate(done, hour, [{ calls: writes, users }, unlisted.get(hour) ?? { calls: 0, users: [] }]);
  }
  return true;
}

async function detachOnceListed(pool: Pool, partition: Partition): Promise<boolean> {
  const span = spanOf(partition);
  for (let attempt = 1; ; attempt += 1) {
    await sweepSealed(pool, span);
    if (await detachPartition(pool, partition)) return true;
    if (attempt === DETACH_ATTEMPTS || !(await hasSealedMarks(pool, span))) return false;
  }
}

/** @returns whether no call of the sealed hour is left, or would be */
async function removeHour(deps: Deps, hour: Hour, options: HourOptions, done: Retained): Promise<boolean> {
  const { dryRun = false, signal, size = BATCH } = options;
  if (!dryRun) await sweepSealed(deps.pool, rangeOfHour(hour));
  const gone = await lateCalls(deps.pool, hour);
  if (gone.calls > 0 && !dryRun) await listUnlisted(deps.pool, hour);
  const late = [gone];
  let calls = 0;
  for await (const batch of removals(deps.pool, hour, { dryRun, size })) {
    calls += batch.calls;
    late.push(batch.late);
    if (signal.aborted) break;
  }
  done.calls += calls;
  if (calls > 0) done.callHours += 1;
  return !noteLate(done, hour, late);
}

/**
 * An hour that never had a call, or nothing but rows of zeros, has not been sealed yet.
 *
 * @param emptied this run has taken its calls, or would
 */
async function retainStats(
  deps: Deps,
  { hour, rows, sealed, gone }: StoredHour,
  emptied: boolean,
  options: HourOptions,
  done: Retained,
): Promise<void> {
  if (!gone && !emptied) return pass(done, hour, `${sealed ? 'calls left' : 'not sealed'}: their statistics stay`);
  if (!sealed && !emptied && !(await sealOrPass(deps, hour, options, done))) return;
  done.stats += options.dryRun ? rows : await forgetStats(deps.pool, hour);
  done.statHours += 1;
}

/** @returns whether the hour is sealed now, or would be; else it is passed over */
async function sealOrPass(
  { pool, queues }: Deps,
  hour: Hour,
  { dryRun = false, requestedBy, onDiffering = async () => {}, now }: HourOptions,
  done: Retained,
): Promise<boolean> {
  const sealing = await sealHour(pool, hour, { dryRun, now });
  if (sealing.outcome === 'passed') {
    pass(done, hour, sealing.why);
    return false;
  }
  if (sealing.outcome === 'differs') {
    done.differing += 1;
    pass(done, hour, 'figures differ');
    await onDiffering(hour, sealing);
    if (!dryRun) await requestHour({ pool, queues }, hour, { reason: 'repair', requestedBy });
    return false;
  }
  if (sealing.outcome === 'sealed') done.sealed += 1;
  return true;
}

/** A dry run's one look at what is left of the hour, or each batch as it is deleted. */
async function* removals(
  pool: Pool,
  hour: Hour,
  { dryRun, size }: { dryRun: boolean; size: number },
): AsyncGenerator<Removal> {
  if (dryRun) return yield await removableCalls(pool, hour);
  for (;;) {
    const batch = await removeCalls(pool, hour, size);
    if (!batch) return;
    yield batch;
  }
}

function pass({ passed }: Retained, hour: Hour, why: string): void {
  const { hours, first } = passed[why] ?? { hours: 0, first: [] };
  passed[why] = { hours: hours + 1, first: [...first, hour].slice(0, NAMED) };
}

function noteLate({ late }: Retained, hour: Hour, found: readonly LateCalls[]): boolean {
  const calls = found.reduce((sum, one) => sum + one.calls, 0);
  if (calls === 0) return false;
  late.calls += calls;
  late.hours += 1;
  const users = found.flatMap((one) => one.users).slice(0, NAMED);
  if (late.first.length < LATE_NAMED) late.first.push({ hour, calls, users });
  return true;
}
