// Gathers the warnings that stand at this moment.

import { type CallParts, clockOf, faultsOfCalls } from '../store/call-parts.ts';
import type { Pool } from '../store/db.ts';
import { type UncoveredSpan, uncoveredFinding } from '../store/gaps.ts';
import { openWarnings, type Warning } from '../store/warnings.ts';

/**
 * The warnings that stand. Uncovered hours, triggers and indexes are looked at now: they are told although no worker
 * looks. Since when, the last look of a worker knows; else it is now.
 */
export async function warningsNow(pool: Pool, parts: CallParts, uncovered: UncoveredSpan): Promise<Warning[]> {
  const [open, faults, at] = await Promise.all([openWarnings(pool), faultsOfCalls(pool, parts), clockOf(pool)]);
  const finding = uncoveredFinding(uncovered);
  const seen = [
    ...(finding ? [{ kind: 'uncovered' as const, ...finding }] : []),
    ...faults.map((fault) => ({ kind: 'triggers' as const, ...fault })),
  ];
  const sinceOf = ({ kind, subject }: Pick<Warning, 'kind' | 'subject'>) =>
    open.find((warning) => warning.kind === kind && warning.subject === subject)?.since ?? at;
  return [
    ...seen.map((warning) => ({ ...warning, since: sinceOf(warning) })),
    ...open.filter(({ kind }) => kind !== 'uncovered' && kind !== 'triggers'),
  ];
}
