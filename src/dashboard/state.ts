// Makes the one sentence that says how things are.

import { HOUR_MS, type Hour, hourOf } from '../time/hour.ts';
import type { Facts } from './status.ts';

/** Something that wants attention. */
export interface Trouble {
  readonly kind: string;
  /** What is wrong, as a part of a sentence. */
  readonly what: string;
  /** What to type or to do; null if that is being done. */
  readonly remedy: string | null;
}

export interface State {
  /** Nothing is wrong, and nothing is left to be looked at. */
  readonly ok: boolean;
  /** The sentence, in one line. */
  readonly state: string;
  /** Everything that is wrong, the worst first. The sentence tells the first. */
  readonly troubles: readonly Trouble[];
  /** Changes if something else is wrong, and not with each hour or number. */
  readonly key: string;
}

/** An hour that has just ended is owed for a moment: nothing is wrong with that. */
const ON_ITS_WAY_MS = 10 * 60_000;
/**
 * An hour is provisional for a moment, until older transactions end; if one lasts for so long, somebody should see to
 * it.
 */
const LASTING_MS = HOUR_MS;

/**
 * How things are: *OK: complete from A to B; settled to C*, or what is wrong first, and what to type. B and C are the
 * ends of what they speak of: the hours before them. An hour that nobody covers is never said to be complete.
 */
export function stateOf(facts: Facts): State {
  const troubles = troublesOf(facts);
  const { lookingBefore } = facts;
  const looking = lookingBefore && `still looking before ${hourOf(lookingBefore)} for calls in no figure`;
  const tail = [completeness(facts), justEnded(facts), looking].filter(Boolean).join('; ');
  const [first] = troubles;
  const more = troubles.length - 1;
  const others = more > 0 ? `; ${count(more, 'other thing wants', 'other things want')} attention` : '';
  const ok = troubles.length === 0 && !looking;
  return {
    ok,
    state: first ? `${capital(tell(first))}${others}. ${capital(tail)}` : ok ? `OK: ${tail}` : capital(tail),
    troubles,
    key: [looking && 'looking', ...troubles.map(keyOf)].filter(Boolean).join(', ') || 'ok',
  };
}

/** The same where a worker runs in this very process: Redis may not list it yet. */
export function stateAtWork(facts: Facts): State {
  return stateOf(facts.workers?.length === 0 ? { ...facts, workers: undefined } : facts);
}

/** What is wrong, and what to do about it. */
export function tell({ what, remedy }: Trouble): string {
  return [what.replace(/\.$/, ''), remedy].filter(Boolean).join(': ');
}

/** Numbers that only shrink or grow while work goes on are no change; an hour that becomes uncovered is. */
function keyOf({ kind, what }: Trouble): string {
  return /^(owed|held|partial|provisional)$/.test(kind) ? kind : `${kind} ${what}`;
}

/** *complete from A to B; settled to C* */
function completeness({ ledger: { completeFrom, watermark }, settled }: Facts): string {
  if (!completeFrom || !watermark || watermark <= completeFrom) return 'nothing is complete yet';
  const span = `complete from ${hourOf(completeFrom)} to ${hourOf(watermark)}`;
  const some = settled && settled > completeFrom;
  return `${span}; ${some ? `settled to ${hourOf(settled)}` : 'none of it is settled yet'}`;
}

/** The hour that has just ended is the only one that is owed. */
function isJustEnded({ ledger: { oldestOwed }, now }: Facts): boolean {
  return oldestOwed !== null && now.getTime() - oldestOwed.getTime() < HOUR_MS + ON_ITS_WAY_MS;
}

function justEnded(facts: Facts): string | undefined {
  const { oldestOwed, newestOwed } = facts.ledger;
  if (!oldestOwed || !isJustEnded(facts)) return undefined;
  return `${spanOf(oldestOwed, newestOwed)} has just ended and is on its way`;
}

function troublesOf(facts: Facts): Trouble[] {
  const { ledger, audit, alarms, warnings, provisional, now } = facts;
  const found: (Trouble | false | undefined | null)[] = [
    ...warnings.map(({ kind, detail, remedy }) => ({ kind, what: detail, remedy })),
    audit.findings.some(({ repaired }) => !repaired) && {
      kind: 'audit',
      what: 'an audit found figures that are not what the calls add up to',
      remedy: 'they are rolled up again by themselves',
    },
    ...troublesOfServers(facts),
    ledger.partial > 0 && {
      kind: 'partial',
      what: `${count(ledger.partial, 'hour is', 'hours are')} partial`,
      remedy: 'hourhand status and the page of the hour name the users that cannot be stored, and why',
    },
    ...alarms.map(({ kind, subject, detail }) => ({
      kind: 'alarm',
      what: `alarm ${[kind, subject].filter(Boolean).join(' ')}: ${detail}`,
      remedy: null,
    })),
    ledger.owed > 0 &&
      !isJustEnded(facts) && {
        kind: 'owed',
        what: [
          count(ledger.owed, 'hour is', 'hours are'),
          `owed and on the way, ${spanOf(ledger.oldestOwed, ledger.newestOwed)}`,
        ].join(' '),
        remedy: null,
      },
    ledger.held > 0 && {
      kind: 'held',
      what: [
        count(ledger.held, 'hour waits', 'hours wait'),
        `for a paused backfill, ${spanOf(ledger.oldestHeld, ledger.newestHeld)}`,
      ].join(' '),
      remedy: 'type hourhand backfills, then hourhand backfills resume ID',
    },
    ...troublesOfWork(facts),
    provisional.first !== null &&
      now.getTime() - provisional.first.getTime() > HOUR_MS + LASTING_MS && {
        kind: 'provisional',
        what: [
          count(provisional.hours, 'hour is', 'hours are'),
          `provisional, ${spanOf(provisional.first, provisional.last)}`,
        ].join(' '),
        remedy: 'hourhand status names the older transactions',
      },
    ...troublesOfModels(facts),
  ];
  return found.filter((trouble) => typeof trouble === 'object' && trouble !== null);
}

function troublesOfServers({ ledger, redis, workers }: Facts): Trouble[] {
  const start = { kind: 'worker', remedy: 'start one with hourhand worker' };
  if (redis !== null) {
    return [{ kind: 'redis', what: redis, remedy: 'nothing is rolled up until it answers; what is owed stays owed' }];
  }
  if (ledger.watermark === null) return [{ ...start, what: 'no worker has ever started' }];
  return workers?.length === 0 ? [{ ...start, what: 'no worker is alive' }] : [];
}

function troublesOfWork({ schedulers, queues }: Facts): Trouble[] {
  return [
    ...schedulers
      .filter(({ state }) => ['missing', 'changed', 'broken'].includes(state))
      .map(({ id, state }) => ({
        kind: 'scheduler',
        what: `scheduler ${id} is ${state}`,
        remedy: 'a worker mends it within 30 seconds; hourhand schedule does so now',
      })),
    ...schedulers
      .filter(({ state }) => state === 'paused')
      .map(({ id, pausedBy }) => ({
        kind: 'scheduler',
        what: `scheduler ${id} is paused by ${pausedBy}`,
        remedy: `nothing is asked for by it until you type hourhand schedule resume ${id}`,
      })),
    ...queues
      .filter(({ paused }) => paused)
      .map(({ queue }) => ({
        kind: 'queue',
        what: `queue ${queue} is paused`,
        remedy: 'its jobs wait until it is resumed, under Queues on the page',
      })),
  ];
}

const MODELS_NAMED = 5;

function troublesOfModels({ models }: Facts): Trouble[] {
  const down = models.filter(({ status }) => status === 'down');
  if (down.length === 0) return [];
  const named = down.slice(0, MODELS_NAMED).map(({ provider, model }) => `${provider}/${model}`);
  const rest = down.length > MODELS_NAMED ? ` and ${down.length - MODELS_NAMED} more` : '';
  return [{ kind: 'models', what: `down: ${named.join(', ')}${rest}`, remedy: 'hourhand models status says why' }];
}

/** One hour by its name, several as the range that they lie in. */
function spanOf(first: Date | null, last: Date | null): string {
  if (!first || !last) return '';
  const [from, to]: [Hour, Hour] = [hourOf(first), hourOf(new Date(last.getTime() + HOUR_MS))];
  return first.getTime() === last.getTime() ? from : `from ${from} to ${to}`;
}

const count = (n: number, one: string, many: string) => `${n.toLocaleString('en')} ${n === 1 ? one : many}`;

const capital = (text: string) => text.slice(0, 1).toUpperCase() + text.slice(1);
