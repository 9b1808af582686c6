// The tests' calls of August in partitions: as if somebody had asked for it then.

import { keepPartitions } from '../../src/producers/partitions.ts';
import type { Period } from '../../src/store/partitions.ts';
import { partitionCalls } from '../../src/store/repartition.ts';
import type { Hourhand } from './hourhand.ts';

/** The first partition ends on the 20th (a Thursday), by day; those of the days after it follow. */
export const ASKED = new Date('2026-08-18T12:00:00Z');

/** Have the calls kept in partitions, as `hourhand partition` does. */
export async function inPartitions(
  { environment, pool }: { environment: { DATABASE_URL: string }; pool: Hourhand['pool'] },
  { by = 'day', ahead = 7, now = ASKED }: { by?: Period; ahead?: number; now?: Date } = {},
): Promise<void> {
  await partitionCalls({
    databaseUrl: environment.DATABASE_URL,
    plan: { by, ahead },
    dryRun: false,
    onProspect: () => {},
    onStep: () => {},
    now,
  });
  await keepPartitions(pool, { now });
}
