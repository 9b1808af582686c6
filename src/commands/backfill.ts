// hourhand backfill: ask for past hours, and wait for them if wanted.

import { setTimeout as sleep } from 'node:timers/promises';
import type { Connections } from '../connections.ts';
import { backfillHours, backfillUser } from '../producers/hours.ts';
import { workersOn } from '../queues/redis.ts';
import { type Only, startOfRunningHour, surveyHours } from '../store/ledger.ts';
import { marksLeft } from '../store/marks.ts';
import { type HourLine, settledHours } from '../store/progress.ts';
import { hoursIn, type Range, spell } from '../time/range.ts';
import { openProgress } from './progress.ts';
import { say } from './say.ts';

export interface BackfillOptions {
  readonly user?: string;
  readonly only: Only;
  readonly dryRun: boolean;
  readonly wait: boolean;
  readonly requestedBy: string;
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
  const found = await surveyHours(pool, range);
  const chosen = found.filter(({ state, sealed }) => {
    if (sealed) return false;
    return only === 'all' || (only === 'missing' ? ['missing', 'open'].includes(state) : state === only);
  });
  const hours = chosen.reduce((sum, line) => sum + line.hours, 0);
  const states = found.map((line) => `${line.hours} ${line.sealed ? 'sealed' : line.state}`).join(', ');
  say(`${spell(range)}: ${hoursIn(range)} hours: ${states}`);
  say(
    user === undefined
      ? `would ask for ${hours} of them; nothing was changed`
      : `would ask for ${user} in them; nothing was changed`,
  );
  return 0;
}

async function wholeHours(
  connections: Connections,
  range: Range,
  { only, requestedBy, wait }: BackfillOptions,
): Promise<number> {
  const { hours, sealed } = await backfillHours(connections, range, { only, reason: 'backfill', requestedBy });
  say(`asked for ${hours.length} hours of ${spell(range)}`);
  if (sealed.length > 0) say(`${sealed.length} hours are sealed and stay as they are, the first ${sealed[0]}`);
  if (!wait || hours.length === 0) return 0;
  const settled: HourLine[] = [];
  let left = hours;
  await until(connections, hours.length, async () => {
    const lines = await settledHours(connections.pool, left);
    const done = new Set(lines.map((line) => line.hour));
    left = left.filter(({ hour }) => !done.has(hour));
    settled.push(...lines);
    return settled.length;
  });
  return report(settled);
}

async function oneUser(
  connections: Connections,
  range: Range,
  user: string,
  { wait }: BackfillOptions,
): Promise<number> {
  const { pool } = connections;
  const { hours, seq } = await backfillUser(connections, user, range);
  say(`asked for ${user} in ${hours.length} hours of ${spell(range)}`);
  if (!wait || hours.length === 0) return 0;
  let failed: HourLine[] = [];
  await until(connections, hours.length, async () => {
    // A mark is left, and its hour names the user and is in back-off again: it was tried, and could not be stored.
    const left = await marksLeft(pool, user, hours, seq);
    const wanted = left.map((hour) => ({ hour, wanted: 0 }));
    failed = (await settledHours(pool, wanted)).filter((line) => line.nextAttemptAt && line.error?.includes(user));
    return hours.length - left.length + failed.length;
  });
  return report(failed);
}

/** Look until `total` are done, showing how far it is. Says so when nobody works. */
async function until(connections: Connections, total: number, look: () => Promise<number>): Promise<void> {
  const progress = openProgress('hours', total);
  let idleLooks = 0;
  try {
    for (let before = -1; ; ) {
      const found = await look();
      progress.update(found);
      if (found >= total) return;
      idleLooks = found === before ? idleLooks + 1 : 0;
      before = found;
      // Asked for again and again, for Redis may be away: what counts is in Postgres.
      if (idleLooks % 40 === 20 && (await workersOn(connections.queues.hours)) === 0) {
        progress.note('no worker is there to roll them up: start one with hourhand worker');
      }
      await sleep(250);
    }
  } finally {
    progress.stop();
  }
}

function report(lines: readonly HourLine[]): number {
  const failed = lines.filter((line) => line.state === 'partial');
  for (const line of failed) say(`${line.hour} partial: ${line.error}`);
  say(
    failed.length === 0
      ? 'all closed'
      : `${failed.length} hours could not be closed; they are tried again by themselves`,
  );
  return failed.length === 0 ? 0 : 1;
}
