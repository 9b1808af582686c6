// Looks for what is wrong with the calls and their triggers, and says so once.

import type { Logger } from 'pino';
import {
  type CallParts,
  clockOf,
  faultsOfCalls,
  isTriggerFault,
  type Silence,
  unaudited,
} from '../store/call-parts.ts';
import type { Now, Pool } from '../store/db.ts';
import { beginWalk, forgetCovered, type Uncovered, uncoveredFinding, uncoveredNow, walkOn } from '../store/gaps.ts';
import { type Finding, openWarnings, settleWarnings, type Warning, type WarningKind } from '../store/warnings.ts';
import { hourOf, startOf } from '../time/hour.ts';
import { wholeHours } from '../time/range.ts';

export interface WarningDeps {
  readonly pool: Pool;
  readonly log: Logger;
  readonly callParts: CallParts;
}

/** One look, in any process; a second one at once changes nothing. @returns what is uncovered */
export async function lookForWarnings(deps: WarningDeps, now?: Now): Promise<Uncovered> {
  await lookAtTriggers(deps, now);
  return lookForUncovered(deps, now);
}

/** Go on with the walk, and settle the warning of uncovered hours. */
async function lookForUncovered(deps: WarningDeps, now: Now): Promise<Uncovered> {
  const { pool } = deps;
  await beginWalk(pool, { again: false }, now);
  await walkOn(pool, { now });
  await forgetCovered(pool);
  const found = await uncoveredNow(pool, now);
  const finding = uncoveredFinding(found);
  await settle(deps, 'uncovered', finding ? [finding] : [], now);
  return found;
}

/**
 * Settle the warnings of triggers and indexes. Once a trigger fires again, the hours since it was first seen not to
 * fire are to be audited: that is a warning of its own, until they are. It is written down first: whoever dies in
 * between finds the trigger's warning.
 */
async function lookAtTriggers(deps: WarningDeps, now: Now): Promise<void> {
  const { pool, callParts } = deps;
  const faults = await faultsOfCalls(pool, callParts);
  const open = await openWarnings(pool);
  const mended = open.filter(
    (warning) =>
      warning.kind === 'triggers' &&
      isTriggerFault(warning, callParts) &&
      !faults.some(({ subject }) => subject === warning.subject),
  );
  const known = open.filter(({ kind }) => kind === 'unaudited');
  if (mended.length + known.length > 0) {
    const at = await clockOf(pool, now);
    const silences = new Map<string, Silence>();
    for (const { subject, since } of known) silences.set(subject, { from: new Date(subject), until: since });
    for (const { since } of mended) silences.set(since.toISOString(), { from: since, until: at });
    await settle(deps, 'unaudited', (await unaudited(pool, [...silences.values()])).map(silenceFinding), now);
  }
  await settle(deps, 'triggers', faults, now);
}

/** Calls that come late are mostly of the hour before. */
function silenceFinding({ from, until }: Silence): Finding {
  const before = new Date(startOf(hourOf(from)).getTime() - 1);
  const range = wholeHours(before, until);
  return {
    subject: from.toISOString(),
    detail: [
      `calls that came late between ${from.toISOString()} and ${until.toISOString()} left no mark,`,
      'and the hours since then are not all audited',
    ].join(' '),
    remedy: `type hourhand audit --from ${hourOf(range.start)} --to ${hourOf(range.end)}`,
  };
}

/** Settle the warnings of a kind, with a line in the log for each that was raised or ended. */
async function settle(
  { pool, log }: WarningDeps,
  kind: WarningKind,
  findings: readonly Finding[],
  now: Now,
): Promise<void> {
  const { raised, ended } = await settleWarnings(pool, kind, findings, now);
  for (const warning of raised) log[kind === 'triggers' ? 'error' : 'warn'](lineOf(warning), 'warning raised');
  for (const warning of ended) log.info(lineOf(warning), 'warning ended');
}

const lineOf = ({ kind, subject, since, detail, remedy }: Warning) => ({ kind, subject, since, detail, remedy });
