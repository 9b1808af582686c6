// Are the partitions there into which the gateway will write?

import type { Now, Pool } from '../store/db.ts';
import { createPartition, dropAbandonedCheck, layoutOf, missingPartitions } from '../store/partitions.ts';
import type { Range } from '../time/range.ts';

export interface Kept {
  readonly created: (Range & { readonly moved: number })[];
  /** Periods whose calls lie in the default partition, too many to be moved in passing: somebody must see to them. */
  readonly stuck: Range[];
  /** What a killed `hourhand partition` had left behind was taken away. */
  readonly checkDropped: boolean;
}

/**
 * Make the partitions that are missing, where `ModelCall` is partitioned by us; else nothing. One query of the catalogue where all are
 * there. Any number of processes may ask at once: one of them makes them.
 *
 * @throws where a lock is not to be had at once: to be asked again
 */
export async function keepPartitions(pool: Pool, now?: Now): Promise<Kept> {
  const layout = await layoutOf(pool, now);
  const [created, stuck]: [Kept['created'], Range[]] = [[], []];
  if (layout.kind === 'plain')
    return { created, stuck, checkDropped: layout.spanCheck && (await dropAbandonedCheck(pool)) };
  if (layout.kind === 'foreign') return { created, stuck, checkDropped: false };
  for (const range of await missingPartitions(pool, layout, now)) {
    const outcome = await createPartition(pool, range);
    if (outcome === 'stuck') stuck.push(range);
    else if (outcome) created.push({ ...range, ...outcome });
  }
  return { created, stuck, checkDropped: false };
}
