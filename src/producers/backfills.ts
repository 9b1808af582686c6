// How does somebody ask for past hours at once, and change their mind?

import type { Queues } from '../queues/redis.ts';
import {
  analyzeHours,
  type BackfillState,
  countHours,
  insertBackfill,
  lockBackfill,
  type NewBackfill,
  pendingHours,
  settle,
} from '../store/backfills.ts';
import type { Db, Now, Pool } from '../store/db.ts';
import { beginWalk, uncoveredHours, walkOn } from '../store/gaps.ts';
import { closeEmptyHours, type Reason, type RequestedHour, requestHours } from '../store/ledger.ts';
import { endBackOff, markUser, sweepMarks } from '../store/marks.ts';
import { giveBack, noteFailed, noteHours, noteThese } from '../store/prior.ts';
import { lockRanges } from '../store/ranges.ts';
import { sealedHours } from '../store/seal.ts';
import type { Only } from '../store/survey.ts';
import { endOf, type Hour, startOf } from '../time/hour.ts';
import type { Range } from '../time/range.ts';
import { enqueueHours, enqueueMarks, type HoursPolicy, SWEEP } from './hours.ts';

/** What a backfill asked for. */
export interface Request {
  /** Its id. */
  readonly backfill: number;
  readonly hours: RequestedHour[];
  /** Hours of the range that are sealed: never run again. */
  readonly sealed: Hour[];
}

/** From where somebody asks who does not say so. */
const COMMAND_LINE = 'command line';
/** So many hours that how they are looked up matters. */
const MANY = 1_000;

/**
 * A backfill: write it down with what its hours were, cover them and ask for them, in the ledger first and in one transaction, then
 * enqueue them. What happens to Redis after the ledger knows does not matter: the next look finds them owed.
 *
 * @param range whole hours that have ended
 */
export async function backfillHours(
  { pool, queues, policy }: { pool: Pool; queues: Queues; policy: HoursPolicy },
  range: Range,
  {
    only,
    reason,
    requestedBy,
    requestedFrom = COMMAND_LINE,
  }: Omit<NewBackfill, 'userDid' | 'requestedFrom' | 'only'> & { only: Only; reason: Reason; requestedFrom?: string },
  now?: Now,
): Promise<Request> {
  const request = await pool.$transaction(async (db) => {
    const id = await insertBackfill(db, range, { only, requestedBy, requestedFrom }, now);
    const noted = await noteHours(db, id, range, only, now);
    const hours = await requestHours(db, noted, { reason, requestedBy, backfill: id }, now);
    await countHours(db, id, hours.length);
    return { backfill: Number(id), hours, sealed: await sealedHours(db, range) };
  });
  if (request.hours.length >= MANY) await analyzeHours(pool);
  await enqueueUnlessEmpty({ pool, queues, policy }, request.hours, now);
  return request;
}

/**
 * A backfill of exactly the hours that are uncovered now, however they lie. What is not known of them yet is found
 * first: marks are swept, and a walk is made to its end. Asked for twice at once, the second finds none left.
 *
 * @returns what was asked for; `undefined` if no hour is uncovered
 */
export async function backfillUncovered(
  deps: { pool: Pool; queues: Queues; policy: HoursPolicy },
  { requestedBy, requestedFrom }: { requestedBy: string; requestedFrom: string },
  now?: Now,
): Promise<(Pick<Request, 'backfill' | 'hours'> & { range: Range }) | undefined> {
  const { pool } = deps;
  while ((await sweepMarks(pool, SWEEP, now)).marks === SWEEP);
  await beginWalk(pool, { again: true }, now);
  while (!(await walkOn(pool, { now })));
  const request = await pool.$transaction(async (db) => {
    await lockRanges(db);
    const [first, ...rest] = await uncoveredHours(db, now);
    if (!first) return undefined;
    const range = { start: startOf(first), end: endOf(rest.at(-1) ?? first) };
    const id = await insertBackfill(db, range, { only: 'uncovered', requestedBy, requestedFrom }, now);
    const noted = await noteThese(db, id, [first, ...rest]);
    const hours = await requestHours(db, noted, { reason: 'backfill', requestedBy, backfill: id }, now);
    await countHours(db, id, hours.length);
    return { backfill: Number(id), hours, range };
  });
  if (!request) return undefined;
  if (request.hours.length >= MANY) await analyzeHours(pool);
  await enqueueUnlessEmpty(deps, request.hours, now);
  return request;
}

/** Close those hours in which there is nothing, and enqueue the others. */
async function enqueueUnlessEmpty(
  { pool, queues, policy }: { pool: Pool; queues: Queues; policy: HoursPolicy },
  hours: readonly RequestedHour[],
  now: Now,
): Promise<void> {
  const closed = new Set<Hour>();
  for (let i = 0; i < hours.length; i += policy.maxHoursPerTick) {
    const some = hours.slice(i, i + policy.maxHoursPerTick).map(({ hour }) => hour);
    for (const hour of await closeEmptyHours(pool, some, policy, now)) closed.add(hour);
  }
  await enqueueHours(
    queues,
    hours.filter(({ hour }) => !closed.has(hour)),
  );
}

/** A backfill of one user: marks, in the ledger first, then one job for each hour that holds some. */
export async function backfillUser(
  { pool, queues }: { pool: Pool; queues: Queues },
  userDid: string,
  range: Range,
  { requestedBy, requestedFrom = COMMAND_LINE }: { requestedBy: string; requestedFrom?: string },
  now?: Now,
): Promise<{ backfill: number; hours: Hour[] }> {
  const marked = await pool.$transaction(async (db) => {
    const id = await insertBackfill(db, range, { only: 'all', userDid, requestedBy, requestedFrom }, now);
    const hours = await markUser(db, userDid, range, { backfill: id, now });
    await countHours(db, id, hours.length);
    return { backfill: Number(id), hours };
  });
  await enqueueMarks(queues, marked.hours);
  return marked;
}

/**
 * Pause a backfill: until it is resumed, nobody owes its hours that are not answered yet, nor its marks. An hour that runs goes to its end.
 *
 * @returns false where there is none of this id
 * @throws {WrongStateError} where it is over
 */
export async function pauseBackfill({ pool }: { pool: Pool }, id: number, by: string, now?: Now): Promise<boolean> {
  const found = await change(pool, id, ['running', 'paused'], now, (db) => settle(db, id, 'paused', by, now));
  return found !== undefined;
}

/** Resume a backfill, and enqueue what is pending of it. As `pauseBackfill` otherwise. */
export async function resumeBackfill(
  deps: { pool: Pool; queues: Queues },
  id: number,
  by: string,
  now?: Now,
): Promise<boolean> {
  const found = await change(deps.pool, id, ['running', 'paused'], now, (db) => settle(db, id, 'running', by, now));
  if (found) await enqueuePending(deps, id, found, now);
  return found !== undefined;
}

/**
 * Cancel a backfill: its hours that nothing has answered become again what they were, and its marks are gone; what runs goes to its
 * end, what was answered stays. As `pauseBackfill` otherwise.
 */
export async function cancelBackfill({ pool }: { pool: Pool }, id: number, by: string, now?: Now): Promise<boolean> {
  const found = await change(pool, id, ['running', 'paused'], now, async (db) => {
    await giveBack(db, id);
    await settle(db, id, 'cancelled', by, now);
  });
  return found !== undefined;
}

/**
 * Ask for the failed hours of a backfill anew; of one user's, try the marks that are left without waiting for the back-off. Where some
 * failed it runs again, under its own id.
 *
 * @returns the hours; `undefined` where there is none of this id
 * @throws {WrongStateError} where it is paused or cancelled
 */
export async function retryBackfill(
  deps: { pool: Pool; queues: Queues },
  id: number,
  by: string,
  now?: Now,
): Promise<Hour[] | undefined> {
  let hours: Hour[] = [];
  const found = await change(deps.pool, id, ['running', 'finished'], now, async (db, { userDid }) => {
    hours = userDid === null ? await requestFailed(db, BigInt(id), by, now) : await endBackOff(db, id);
    if (hours.length > 0) await settle(db, id, 'running', by, now);
  });
  if (!found) return undefined;
  await enqueuePending(deps, id, found, now);
  return hours;
}

async function requestFailed(db: Db, id: bigint, by: string, now: Now): Promise<Hour[]> {
  const hours = await noteFailed(db, id);
  await requestHours(db, hours, { reason: 'backfill', requestedBy: by, backfill: id }, now);
  return hours;
}

/** Do something to a backfill that is in one of these states, in one transaction; `undefined` where there is none of this id. */
async function change(
  pool: Pool,
  id: number,
  expected: readonly BackfillState[],
  now: Now,
  work: (db: Db, backfill: { userDid: string | null }) => Promise<void>,
): Promise<{ userDid: string | null } | undefined> {
  return pool.$transaction(async (db) => {
    const found = await lockBackfill(db, id, expected, now);
    if (found) await work(db, found);
    return found;
  });
}

async function enqueuePending(
  { pool, queues }: { pool: Pool; queues: Queues },
  id: number,
  { userDid }: { userDid: string | null },
  now: Now,
): Promise<void> {
  const pending = await pendingHours(pool, id, now);
  if (userDid === null) return enqueueHours(queues, pending);
  return enqueueMarks(
    queues,
    pending.map(({ hour }) => hour),
  );
}
