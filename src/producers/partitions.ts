// Keeps the partitions there into which the gateway will write.

import { type Now, type Pool, reasonOf } from '../store/db.ts';
import { type Holder, remedyFor, spellHolder } from '../store/holders.ts';
import { createPartition, draftsOf, dropAbandonedCheck, dropDrafts, obstacleTo } from '../store/partition-changes.ts';
import {
  DEFAULT_PARTITION,
  layoutOf,
  type MissingPeriod,
  missingPartitions,
  nameOf,
  type Plan,
  SPAN_CHECK,
} from '../store/partitions.ts';
import { type Finding, settleWarnings, type Warning } from '../store/warnings.ts';
import type { Range } from '../time/range.ts';

export interface Kept {
  readonly created: (Range & { readonly moved: number })[];
  /** Somebody must see to these periods: a warning says what to do. */
  readonly stuck: Range[];
  /** These were left to a later look, because the table was in use. */
  readonly waiting: Range[];
  /** What a killed `hourhand partition` had left behind was taken away. */
  readonly checkDropped: boolean;
  /** The warnings that this look raised, and those that it ended. */
  readonly raised: Warning[];
  readonly ended: Warning[];
}

interface Options {
  readonly now?: Now;
  /**
   * Asked before the table is locked for a partition that is not needed soon: the gateway may have to wait for a
   * moment. A worker says yes once in ten minutes.
   */
  readonly mayLock?: () => Promise<boolean>;
}

/**
 * Make the partitions that are missing, if `ModelCall` is partitioned by us. It is one query of the catalogue if all
 * are there. Any number of processes may do it at once: one of them makes them.
 *
 * @throws what PostgreSQL says, if it is no lack of a lock; the other partitions are made all the same
 */
export async function keepPartitions(pool: Pool, { now, mayLock }: Options = {}): Promise<Kept> {
  const layout = await layoutOf(pool, now);
  const look =
    layout.kind === 'ours'
      ? await makeMissing(pool, layout, { now, mayLock })
      : { created: [], stuck: [], waiting: [], findings: [] };
  const { findings, failure, ...made } = { failure: undefined, ...look };
  const check = layout.kind === 'plain' && layout.spanCheck ? await dropAbandonedCheck(pool, now) : undefined;
  if (check?.outcome === 'busy') findings.push(ofCheck(check.holder));
  const settled = await settleWarnings(pool, 'partitions', findings, now);
  if (failure) throw failure.error;
  return { ...made, ...settled, checkDropped: check?.outcome === 'gone' };
}

/** What a look came to; `failure` is the first error. */
interface Look {
  readonly created: Kept['created'];
  readonly stuck: Range[];
  readonly waiting: Range[];
  readonly findings: Finding[];
  readonly failure?: { readonly error: unknown };
}

async function makeMissing(pool: Pool, plan: Plan, { now, mayLock = async () => true }: Options): Promise<Look> {
  const look = { created: [], stuck: [], waiting: [], findings: [] } as Look; // the arrays are filled below
  const missing = await missingPartitions(pool, plan, now);
  const names = new Set(missing.map(({ start }) => nameOf(start)));
  await dropDrafts(
    pool,
    (await draftsOf(pool)).filter((name) => !names.has(name)), // the others are replaced
  );
  let failure: Look['failure'];
  let inUse = false;
  let allowed: Promise<boolean> | undefined; // asked once in a look
  for (const period of missing) {
    const subject = nameOf(period.start);
    const obstacle = await obstacleTo(pool, period);
    if (obstacle) {
      look.stuck.push(period);
      look.findings.push({ subject, ...obstacle });
      continue;
    }
    if (inUse) {
      look.waiting.push(period);
      continue;
    }
    const urgent = isUrgent(period);
    const ask = () => {
      allowed ??= mayLock();
      return allowed;
    };
    try {
      const making = await createPartition(pool, period, { urgent, mayLock: urgent ? undefined : ask });
      if (making.outcome === 'made') look.created.push({ ...period, moved: making.moved });
      if (making.outcome !== 'busy') continue;
      if (urgent) look.findings.push({ subject, ...inTheWay(period, making.holder) });
    } catch (error) {
      failure ??= { error };
      if (urgent) look.findings.push({ subject, ...refused(period, error) });
    }
    inUse = true;
    look.waiting.push(period);
  }
  return failure ? { ...look, failure } : look;
}

/** The partitions that are there reach less than a whole period ahead: it is missing now, or it is the next one. */
function isUrgent({ ahead }: MissingPeriod): boolean {
  return ahead <= 1;
}

function inTheWay(period: MissingPeriod, holder: Holder | undefined): Omit<Finding, 'subject'> {
  const who = holder ? `${spellHolder(holder)} holds ModelCall` : 'ModelCall was in use';
  return {
    detail: `${noPartition(period)}: ${who}`,
    remedy: holder ? remedyFor(holder) : 'nothing: it is tried again',
  };
}

function refused(period: MissingPeriod, error: unknown): Omit<Finding, 'subject'> {
  return {
    detail: `${noPartition(period)}: ${reasonOf(error)}`,
    remedy: 'see to what PostgreSQL says; it is tried again at each look',
  };
}

function noPartition({ start, end }: MissingPeriod): string {
  return `calls from ${start.toISOString()} to ${end.toISOString()} have no partition but ${DEFAULT_PARTITION}`;
}

function ofCheck(holder: Holder | undefined): Finding {
  return {
    subject: SPAN_CHECK,
    detail: `a check that an interrupted "hourhand partition" left will refuse calls, and cannot be dropped: ${
      holder ? `${spellHolder(holder)} holds ModelCall` : 'ModelCall was in use'
    }`,
    remedy: holder ? remedyFor(holder) : 'nothing: it is tried again',
  };
}
