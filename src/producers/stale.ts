// How are all the calls that hang failed, batch by batch?

import { randomUUID } from 'node:crypto';
import type { Now, Pool } from '../store/db.ts';
import {
  accountOf,
  type CleanUp,
  countUnfinished,
  failBatch,
  failedInADay,
  type Place,
  recordBatch,
} from '../store/stale.ts';
import type { Limits } from '../time/limits.ts';

export interface StalePolicy {
  readonly limits: Limits;
  /** Seconds from one clean-up to the next. */
  readonly everySeconds: number;
}

/** Long enough to be fast, short enough that nobody who waits for one of its rows would notice: see docs/decisions/0005-unfinished-calls.md. */
export const BATCH = 2_000;

/** A clean-up of fewer calls is no rise, however few are usual. */
const RISE_CALLS = 20;
const RISE_FACTOR = 3;
const DAY_SECONDS = 24 * 3600;

/**
 * Fail every call that has been processing for longer than its limit, oldest first, each batch a transaction of its own
 * that writes it down as well. What is done when it ends early
 * stays done, and another may run beside it: each call is failed once.
 *
 * A rise: at least 20 calls, and more than three times the usual, which is what others failed in the day before comes to
 * in the time from one clean-up to the next.
 *
 * @param cleanup whose account the batches go to: that of an earlier attempt goes on
 * @param signal no new batch is begun once it has aborted
 * @param onProgress called after each batch, with the unfinished calls looked at so far and all of them
 */
export async function cleanUp(
  { pool, policy }: { pool: Pool; policy: StalePolicy },
  {
    cleanup = randomUUID(),
    requestedBy,
    signal,
    onProgress = async () => {},
    size = BATCH,
    now,
  }: {
    cleanup?: string;
    requestedBy: string | null;
    signal: AbortSignal;
    onProgress?: (done: number, total: number) => Promise<void>;
    size?: number;
    now?: Now;
  },
): Promise<{ done: CleanUp; complete: boolean; usual: number; rise: boolean }> {
  const { limits, everySeconds } = policy;
  const total = await countUnfinished(pool, limits, now);
  let after: Place | null | undefined;
  for (let looked = 0; after !== null && !signal.aborted; ) {
    const batch = await pool.$transaction(async (db) => {
      const failed = await failBatch(db, limits, { after, size, now });
      if (failed.calls > 0) await recordBatch(db, failed, { cleanup, requestedBy }, now);
      return failed;
    });
    looked += size;
    after = batch.next;
    await onProgress(after ? Math.min(looked, total) : total, total);
  }
  const done = await accountOf(pool, cleanup);
  const usual = ((await failedInADay(pool, cleanup, now)) * everySeconds) / DAY_SECONDS;
  return {
    done,
    complete: after === null,
    usual,
    rise: done.calls >= RISE_CALLS && done.calls > RISE_FACTOR * usual,
  };
}
