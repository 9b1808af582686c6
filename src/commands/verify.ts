// hourhand verify: recount from the calls, and list what does not agree.

import type { Connections } from '../connections.ts';
import { type Db, inOneSnapshot } from '../store/db.ts';
import { uncoveredHours } from '../store/gaps.ts';
import { type LateHour, lateHours } from '../store/late.ts';
import { repeatedIds } from '../store/partitions.ts';
import { unclosedHours } from '../store/progress.ts';
import { unlistedCalls } from '../store/retain.ts';
import { differences } from '../store/stats.ts';
import { ledgerDifferences, modelDifferences } from '../store/totals.ts';
import { type Hour, hourOf } from '../time/hour.ts';
import { hoursIn, type Range, spell } from '../time/range.ts';
import { endedPart } from './backfill.ts';
import { namesOf } from './late.ts';
import { say } from './say.ts';

/**
 * @returns the exit code: 1 if a figure or a total differs, an hour is not closed, an id is repeated, or something
 *   came late for a sealed hour that nobody has accepted
 */
export async function verify(connections: Connections, asked: Range): Promise<number> {
  const range = await endedPart(connections, asked);
  if (!range) return 1;
  let [differing, totals, open, sealed, late, repeated] = [0, 0, 0, 0, 0, 0];
  await inOneSnapshot(connections.pool, async (db) => {
    const cameLate = new Map((await lateHours(db, range)).map((found) => [found.hour, found]));
    for (const { hour, state, error, sealed: isSealed } of await unclosedHours(db, range)) {
      if (isSealed) {
        const { words, settled } = await sealedInWords(db, hour, cameLate.get(hour));
        sealed += 1;
        late += settled ? 0 : 1;
        process.stdout.write(`${hour} sealed${words}\n`);
      } else {
        open += 1;
        process.stdout.write(`${hour} ${state}${error ? `: ${error}` : ''}\n`);
      }
    }
    const ofUsers = new Set<number>(); // where the rows of users differ, the totals would only say it again
    for await (const batch of differences(db, range)) {
      differing += batch.length;
      for (const { hour, userDid, differing: figures, pending } of batch) {
        ofUsers.add(hour.getTime());
        process.stdout.write(`${hourOf(hour)} ${userDid} ${pending ? 'pending ' : ''}${figures.join('; ')}\n`);
      }
    }
    for (const compare of [ledgerDifferences, modelDifferences]) {
      for await (const batch of compare(db, range)) {
        for (const { hour, what, differing: figures, pending } of batch) {
          if (ofUsers.has(hour.getTime())) continue;
          totals += 1;
          process.stdout.write(`${hourOf(hour)} ${pending ? 'pending ' : ''}${what}: ${figures.join('; ')}\n`);
        }
      }
    }
    for await (const batch of repeatedIds(db, range)) {
      repeated += batch.length;
      for (const { id, times } of batch) {
        process.stdout.write(`repeated id ${id}: ${times.map((time) => time.toISOString()).join(', ')}\n`);
      }
    }
  });
  const verified = hoursIn(range) - open - sealed;
  const ids = repeated > 0 ? `; ${repeated} ids are those of several calls` : '';
  const sums = totals > 0 ? `; ${totals} totals differ` : '';
  const hours = `${verified} hours closed, ${open} not closed, ${sealed} sealed`;
  say(`${spell(range)}: ${hours}; ${differing} user-hours differ${sums}${ids}`);
  const uncovered = open === 0 ? [] : (await uncoveredHours(connections.pool)).filter(isWithin(range));
  if (uncovered.length > 0) {
    say(`${uncovered.length} of the open hours hold calls and are in no figure: type hourhand backfill --uncovered`);
  }
  if (late > 0) {
    say(`late, not applied: for ${late} sealed hours; "hourhand late accept HOUR…" accepts what came for them`);
  }
  return differing + totals + open + late + repeated > 0 ? 1 : 0;
}

/**
 * What came late for a sealed hour, and whether that is a reason for concern: its figures stay, so somebody has to
 * know of it.
 */
async function sealedInWords(
  db: Db,
  hour: Hour,
  found: LateHour | undefined,
): Promise<{ words: string; settled: boolean }> {
  const unlisted = await unlistedCalls(db, hour);
  const parts = [
    ...(found && found.writes > 0 ? [`late, not applied: ${found.writes} writes (${namesOf(found.users)})`] : []),
    ...(unlisted.calls > 0
      ? [`late, not applied: ${unlisted.calls} calls that left no mark (${namesOf(unlisted.users)})`]
      : []),
    ...(found && found.accepted > 0 ? [`late, accepted: ${found.accepted} writes`] : []),
  ];
  return {
    words: parts.map((part) => `; ${part}`).join(''),
    settled: (found?.writes ?? 0) + unlisted.calls === 0,
  };
}

const isWithin =
  ({ start, end }: Range) =>
  (hour: Hour) =>
    hour >= hourOf(start) && hour < hourOf(end);
