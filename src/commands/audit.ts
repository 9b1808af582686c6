// hourhand audit: recount the closed hours of a range now.

import type { Connections } from '../connections.ts';
import { requestHour } from '../producers/hours.ts';
import { auditable, auditHour } from '../store/audit.ts';
import { hoursIn, type Range, spell } from '../time/range.ts';
import { endedPart } from './backfill.ts';
import { openProgress } from './progress.ts';
import { say } from './say.ts';

/**
 * Recount each closed hour from its calls, as the scheduled audit does. An hour that differs is printed, and is
 * rolled up again.
 *
 * @returns the exit code: 1 if any hour differs, or if none has ended
 */
export async function audit(
  connections: Connections,
  asked: Range,
  { requestedBy }: { requestedBy: string },
): Promise<number> {
  const range = await endedPart(connections, asked);
  if (!range) return 1;
  const { pool } = connections;
  const { hours, sealed, open } = await auditable(pool, range);
  const progress = openProgress('hours', hours.length);
  let differing = 0;
  try {
    for (const [i, hour] of hours.entries()) {
      const result = await auditHour(pool, hour);
      if (result) {
        differing += 1;
        process.stdout.write(`${hour} ${result.found}\n`);
        await requestHour(connections, hour, { reason: 'repair', requestedBy: `audit of ${requestedBy}` });
      }
      progress.update(i + 1);
    }
  } finally {
    progress.stop();
  }
  const left = [
    sealed > 0 && `${sealed} sealed ones stay as they are`,
    open > 0 && `${open} are not closed or still provisional, and were not recounted`,
  ].filter(Boolean);
  const found = differing === 0 ? 'none differs' : `${differing} differ and are rolled up again`;
  say([`${spell(range)}: ${hours.length} of ${hoursIn(range)} hours recounted, ${found}`, ...left].join('; '));
  return differing > 0 ? 1 : 0;
}
