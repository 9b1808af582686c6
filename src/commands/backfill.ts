// hourhand backfill: ask for past hours, and wait for them if wanted.

import { setTimeout as sleep } from 'node:timers/promises';
import type { Connections } from '../connections.ts';
import { backfillHours, backfillUser } from '../producers/backfills.ts';
import { workersOn } from '../queues/redis.ts';
import { backfillOf, type FailedHour, finishBackfills } from '../store/backfills.ts';
import { startOfRunningHour } from '../store/ledger.ts';
import { type Only, surveyBackfill } from '../store/survey.ts';
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

/** Look until nothing of a backfill is pending, showing how far it is. Says when it is paused, and when nobody works. */
async function waitFor(connections: Connections, id: number, total: number): Promise<number> {
  const { pool, queues } = connections;
  const progress = openProgress('hours', total);
  let idleLooks = 0;
  let paused = false;
  try {
    for (let before = -1; ; ) {
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
      if (state === 'paused' && !paused) {
        progress.note(`backfill ${id} was paused by ${settledBy}; it goes on with hourhand backfills resume ${id}`);
      }
      paused = state === 'paused';
      idleLooks = pending === before && !paused ? idleLooks + 1 : 0;
      before = pending;
      // Asked for again and again, for Redis may be away: what counts is in Postgres.
      if (idleLooks % 40 === 20 && (await workersOn(queues.hours)) === 0) {
        progress.note('no worker is there to roll them up: start one with hourhand worker');
      }
      await sleep(250);
    }
  } finally {
    progress.stop();
  }
}

function report({ failed, failures }: { failed: number; failures: readonly FailedHour[] }): number {
  for (const { hour, error } of failures) say(`${hour} partial: ${error}`);
  say(failed === 0 ? 'all closed' : `${failed} hours could not be closed; they are tried again by themselves`);
  return failed === 0 ? 0 : 1;
}
