// hourhand verify: recount from the calls, and list what does not agree.

import type { Connections } from '../connections.ts';
import { inOneSnapshot } from '../store/db.ts';
import { repeatedIds } from '../store/partitions.ts';
import { unclosedHours } from '../store/progress.ts';
import { differences } from '../store/stats.ts';
import { ledgerDifferences, modelDifferences } from '../store/totals.ts';
import { hourOf } from '../time/hour.ts';
import { hoursIn, type Range, spell } from '../time/range.ts';
import { endedPart } from './backfill.ts';
import { say } from './say.ts';

/** @returns the exit code: 1 if a figure or a total differs, an hour is not closed, or an id is repeated */
export async function verify(connections: Connections, asked: Range): Promise<number> {
  const range = await endedPart(connections, asked);
  if (!range) return 1;
  let [differing, totals, open, sealed, repeated] = [0, 0, 0, 0, 0];
  await inOneSnapshot(connections.pool, async (db) => {
    for (const { hour, state, error, sealed: isSealed, late } of await unclosedHours(db, range)) {
      if (isSealed) sealed += 1;
      else open += 1;
      process.stdout.write(
        isSealed
          ? `${hour} sealed${late > 0 ? `; ${late} late calls, not applied` : ''}\n`
          : `${hour} ${state}${error ? `: ${error}` : ''}\n`,
      );
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
  return differing + totals + open + repeated > 0 ? 1 : 0;
}
