// Gathers the warnings that stand at this moment.

import { type Connections, within } from '../connections.ts';
import { clockOf, faultsOfCalls } from '../store/call-parts.ts';
import { type UncoveredSpan, uncoveredFinding } from '../store/gaps.ts';
import { openWarnings, type Warning } from '../store/warnings.ts';

/** Redis is not waited for longer. */
const LIMIT_MS = 1_000;

/** Why the prefix in Redis is not ours; undefined if it is, or if Redis does not answer. */
async function foreignNow({ ownership }: Pick<Connections, 'ownership'>) {
  const look = await within(LIMIT_MS, 'Redis', ownership.look()).catch(() => undefined);
  return look?.foreign;
}

/**
 * The warnings that stand. The owner of the prefix, uncovered hours, triggers and indexes are looked at now: they are
 * told although no worker looks. Since when, the last look of a worker knows; else it is now. A prefix that is not
 * ours comes first: until that is mended, what else there is to type is refused.
 */
export async function warningsNow(
  { pool, callParts, ownership }: Pick<Connections, 'pool' | 'callParts' | 'ownership'>,
  uncovered: UncoveredSpan,
): Promise<Warning[]> {
  const [open, faults, at, foreign] = await Promise.all([
    openWarnings(pool),
    faultsOfCalls(pool, callParts),
    clockOf(pool),
    foreignNow({ ownership }),
  ]);
  const finding = uncoveredFinding(uncovered);
  const seen = [
    ...(foreign ? [{ kind: 'redis-owner' as const, subject: '', ...foreign }] : []),
    ...(finding ? [{ kind: 'uncovered' as const, ...finding }] : []),
    ...faults.map((fault) => ({ kind: 'triggers' as const, ...fault })),
  ];
  const sinceOf = ({ kind, subject }: Pick<Warning, 'kind' | 'subject'>) =>
    open.find((warning) => warning.kind === kind && warning.subject === subject)?.since ?? at;
  return [
    ...seen.map((warning) => ({ ...warning, since: sinceOf(warning) })),
    ...open.filter(
      ({ kind, subject }) =>
        kind !== 'uncovered' && kind !== 'triggers' && !(foreign && kind === 'redis-owner' && subject === ''),
    ),
  ];
}
