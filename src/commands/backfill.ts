// hourhand backfill: ask for past hours, and wait for them if wanted.

import { setTimeout as sleep } from 'node:timers/promises';
import { type Connections, serverOf } from '../connections.ts';
import { backfillHours, backfillUncovered, backfillUser } from '../producers/backfills.ts';
import { backfillOf, type FailedHour, finishBackfills } from '../store/backfills.ts';
import { uncoveredFinding, uncoveredNow, walkOf } from '../store/gaps.ts';
import { startOfRunningHour } from '../store/ledger.ts';
import { lastClosedAt } from '../store/progress.ts';
import { type Only, surveyBackfill } from '../store/survey.ts';
import { hourOf } from '../time/hour.ts';
import { type Range, spell } from '../time/range.ts';
import { openProgress } from './progress.ts';
import { say } from './say.ts';

export interface BackfillOptions {
  readonly user?: string | undefined;
  readonly only: Only;
  readonly dryRun: boolean;
  readonly wait: boolean;
  readonly requestedBy: string;
  readonly requestedFrom: string;
}

/** @returns the exit code: 1 if, waited for, anything failed */
export async function backfill(connections: Connections, asked: Range, options: BackfillOptions): Promise<number> {
  const range = await endedPart(connections, asked);
  if (!range) return 1;
  if (options.dryRun) return survey(connections, range, options);
  return options.user === undefined
    ? await wholeHours(connections, range, options)
    : await oneUser(connections, range, options.user, options);
}

/**
 * Ask for exactly the hours that are in no figure. Hours that become uncovered meanwhile are told, and left to the
 * next one.
 *
 * @returns the exit code: 1 if, waited for, anything failed
 */
export async function backfillUncoveredHours(
  connections: Connections,
  { dryRun, wait, requestedBy, requestedFrom }: Omit<BackfillOptions, 'user' | 'only'>,
): Promise<number> {
  const { pool } = connections;
  if (dryRun) {
    const finding = uncoveredFinding(await uncoveredNow(pool));
    say(finding ? finding.detail : 'no hour is known that holds calls and is in no figure');
    const { lookingBefore } = await walkOf(pool);
    if (lookingBefore) say(`hours before ${hourOf(lookingBefore)} are still to be looked at: there may be more`);
    say('nothing was changed');
    return 0;
  }
  const request = await backfillUncovered(connections, { requestedBy, requestedFrom });
  if (!request) {
    say('nothing to do: no hour is known that holds calls and is in no figure');
    return 0;
  }
  const { backfill, hours, range } = request;
  say(`asked for ${hours.length} hours of ${spell(range)} (backfill ${backfill})`);
  const code = wait && hours.length > 0 ? await waitFor(connections, backfill, hours.length) : 0;
  const more = uncoveredFinding(await uncoveredNow(pool));
  if (more) say(`meanwhile ${more.detail}: type it again`);
  return code;
}

/** The running hour is never rolled up: a range that names it, or the future, is cut short, aloud. */
export async function endedPart({ pool }: Pick<Connections, 'pool'>, asked: Range): Promise<Range | undefined> {
  const running = await startOfRunningHour(pool);
  if (asked.end <= running) return asked;
  if (asked.start >= running) {
    say(`nothing to do: ${spell(asked)} has not ended yet; the hour that runs began at ${running.toISOString()}`);
    return undefined;
  }
  const range = { start: asked.start, end: running };
  say(`cut short to ${spell(range)}: an hour is rolled up once it has ended`);
  return range;
}

async function survey({ pool }: Connections, range: Range, { only, user }: BackfillOptions): Promise<number> {
  const { hours, byState, asked, users, moreUsers } = await surveyBackfill(pool, range, { only, user });
  const states = Object.entries(byState).map(([state, count]) => `${count} ${state}`);
  say(
    `${spell(range)}: ${hours} hours: ${states.join(', ')}; ${moreUsers ? 'at least ' : ''}${users} users with calls`,
  );
  say(`would ask for ${user === undefined ? asked : `${user} in ${asked}`} of them; nothing was changed`);
  return 0;
}

async function wholeHours(connections: Connections, range: Range, options: BackfillOptions): Promise<number> {
  const { backfill, hours, sealed } = await backfillHours(connections, range, { reason: 'backfill', ...options });
  say(`asked for ${hours.length} hours of ${spell(range)} (backfill ${backfill})`);
  if (sealed.length > 0) say(`${sealed.length} hours are sealed and stay as they are, the first ${sealed[0]}`);
  return options.wait && hours.length > 0 ? waitFor(connections, backfill, hours.length) : 0;
}

async function oneUser(
  connections: Connections,
  range: Range,
  user: string,
  options: BackfillOptions,
): Promise<number> {
  const { backfill, hours } = await backfillUser(connections, user, range, options);
  say(`asked for ${user} in ${hours.length} hours of ${spell(range)} (backfill ${backfill})`);
  return options.wait && hours.length > 0 ? waitFor(connections, backfill, hours.length) : 0;
}

/** How long `--wait` waits, in milliseconds. */
export interface Patience {
  /** While no hour at all closes, and it is known why: no worker, a pause, a prefix in Redis that is another's. */
  readonly stopped: number;
  /** While no hour at all closes, and nothing is known to be wrong: one may be a long one. */
  readonly idle: number;
  /** While other hours close, but none of this backfill. */
  readonly behind: number;
  /** While nothing moves, until it is asked why, and again. */
  readonly ask: number;
}

const MINUTE_MS = 60_000;
export const PATIENCE: Patience = {
  stopped: 10 * MINUTE_MS,
  idle: 60 * MINUTE_MS,
  behind: 24 * 60 * MINUTE_MS,
  ask: 5_000,
};

const LOOK_MS = 250;
/**
 * Look until nothing of a backfill is pending, showing how far it is. Says what it waits for, and gives up if nothing
 * moves for too long. The backfill itself goes on: waiting for it is all that ends.
 *
 * @returns the exit code
 */
export async function waitFor(
  connections: Connections,
  id: number,
  total: number,
  patience: Patience = PATIENCE,
): Promise<number> {
  const { pool } = connections;
  const progress = openProgress('hours', total);
  const any = openStopwatch();
  const own = openStopwatch();
  let why: string | undefined;
  let askedAt = Date.now();
  try {
    for (;;) {
      const found = await backfillOf(pool, id);
      if (!found) throw new Error(`expected backfill ${id}, got none: its row was deleted`);
      const { state, hours, pending, settledBy } = found;
      if (state === 'cancelled') {
        progress.note(`backfill ${id} was cancelled by ${settledBy}`);
        return 1;
      }
      progress.update(hours - pending);
      if (pending === 0) {
        await finishBackfills(pool);
        progress.stop();
        return report(found);
      }
      const ownMs = own.since(pending);
      const anyMs = any.since(`${pending} ${(await lastClosedAt(pool))?.getTime()}`);
      const paused =
        state === 'paused'
          ? `backfill ${id} was paused by ${settledBy}; it goes on with hourhand backfills resume ${id}`
          : undefined;
      if (paused || anyMs < patience.ask || Date.now() - askedAt > patience.ask) {
        const now = paused ?? (anyMs < patience.ask ? undefined : await whyIdle(connections));
        if (now && now !== why) progress.note(now);
        why = now;
        askedAt = Date.now();
      }
      const limit = why ? patience.stopped : patience.idle;
      const idleMs = paused ? ownMs : anyMs;
      if (idleMs > limit || ownMs > patience.behind) {
        const [what, ms] =
          idleMs > limit ? ['nothing has moved', limit] : ['none of its hours has closed', patience.behind];
        const said = why ?? 'hourhand status shows what the workers are at';
        progress.note(`gave up waiting: ${what} for ${inWords(ms)}: ${said}. Backfill ${id} stays asked for`);
        return 1;
      }
      await sleep(LOOK_MS);
    }
  } finally {
    progress.stop();
  }
}

/** How long something has stayed as it is. */
function openStopwatch(): { since(sign: string | number): number } {
  let last: string | number | undefined;
  let at = Date.now();
  return {
    since(sign) {
      if (sign !== last) at = Date.now();
      last = sign;
      return Date.now() - at;
    },
  };
}

function inWords(ms: number): string {
  return ms >= MINUTE_MS ? `${Math.round(ms / MINUTE_MS)} minutes` : `${ms / 1_000} s`;
}

/** What keeps hours from being rolled up, and what to type; undefined if nothing is known to be wrong. */
async function whyIdle({ queues, ownership }: Connections): Promise<string | undefined> {
  try {
    const { foreign } = await ownership.look();
    if (foreign) return `${foreign.detail}: ${foreign.remedy}`;
    const workers = await ownership.workersOn(queues.hours);
    if (workers?.length === 0) return 'no worker is there to roll them up: start one with hourhand worker';
    for (const queue of [queues.hours, queues.users, queues.marks]) {
      if (await queue.isPaused()) return `the queue ${queue.name} is paused: resume it in the board`;
    }
    return undefined;
  } catch (error) {
    if (serverOf(error) === 'Redis')
      return 'Redis does not answer: what is asked for is enqueued when it is there again';
    throw error;
  }
}

function report({ failed, failures }: { failed: number; failures: readonly FailedHour[] }): number {
  for (const { hour, error } of failures) say(`${hour} partial: ${error}`);
  say(failed === 0 ? 'all closed' : `${failed} hours could not be closed; they are tried again by themselves`);
  return failed === 0 ? 0 : 1;
}
