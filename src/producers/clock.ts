// Watches PostgreSQL's clock from a worker, and has the hours rolled up again that a step of it closed too early.

import type { Logger } from 'pino';
import {
  type ClockReading,
  mendInstants,
  noteLook,
  readClock,
  reopenEarly,
  type Suspect,
  saidOfStep,
  whyHeld,
} from '../store/clock.ts';
import type { Pool } from '../store/db.ts';
import { coverPresent } from '../store/ranges.ts';
import { unsealEarly } from '../store/seal.ts';
import { settleWarnings } from '../store/warnings.ts';

/** A difference of the two clocks that is no step: clocks are slewed, and drift. */
const TOLERANCE_MS = 2_000;
/** A look whose answer took longer says little about when the clock was read: the next is compared with the one before it. */
const PROMPT_MS = 1_000;
/** But not for ever: the two clocks drift apart. */
const OLD_MS = 600_000;
/** By so much a clock may be set back without any harm: no hour is looked at earlier after its end. */
const SLACK_MS = 5_000;
/** Hours that one look unseals: each is counted first. */
const UNSEALED = 20;

/** PostgreSQL's clock, read at some moment between two of our own, which never steps; all in milliseconds. */
export interface Look {
  readonly at: number;
  readonly before: number;
  readonly after: number;
}

/**
 * By how many milliseconds PostgreSQL's clock stepped between two looks, at the least; 0 if both clocks may have gone alike. However
 * slow the answers were, they are no step: each was read between the question and the answer.
 */
export function stepBetween(earlier: Look, later: Look): number {
  const passed = later.at - earlier.at;
  const least = later.before - earlier.after;
  const most = later.after - earlier.before;
  const step = passed > most ? passed - most : Math.min(0, passed - least);
  return Math.abs(step) > TOLERANCE_MS ? step : 0;
}

/** Which hours a step makes suspect; `slept`: the longest that may have passed since the earlier look. */
function suspectOf(step: number, { at, from, passed }: { at: number; from: number; passed: number }): Suspect {
  return {
    closedSince: new Date(Math.min(from, at - passed) - SLACK_MS),
    endedSince: new Date(at - Math.abs(step) - passed - SLACK_MS),
  };
}

export interface ClockLook {
  /** PostgreSQL's clock. */
  readonly now: Date;
  /** It may be relied on: no step was seen in the last 15 minutes. */
  readonly trusted: boolean;
}

interface Deps {
  readonly pool: Pool;
  readonly log: Pick<Logger, 'info' | 'warn'>;
  readonly backOffMaxSeconds: number;
  /** Our own clock, in milliseconds. */
  readonly monotonic?: () => number;
}

/**
 * Make the looks of one worker process, each comparing with the last. Any number of processes look at once: an hour that two of
 * them open again is rolled up twice at the most.
 *
 * A process that was asleep sees a step forward: its own clock may have stood still. That costs a roll-up of the hours that others
 * closed meanwhile, and 15 minutes without retention.
 */
export function clockWatch({ pool, log, backOffMaxSeconds, monotonic = () => performance.now() }: Deps) {
  let last: Look | undefined;
  /** Whoever was closing an hour while the step was noticed had begun by the old clock: the next look asks again. */
  let suspect: Suspect | undefined;
  let first = true;

  return async (): Promise<ClockLook> => {
    const before = monotonic();
    const reading = await readClock(pool);
    const look: Look = { at: reading.now.getTime(), before, after: monotonic() };
    const step = (last && stepBetween(last, look)) || backwards(reading);
    const agrees = last !== undefined && step === 0;
    const fresh = step === 0 ? undefined : suspectOf(step, sinceOf(look, last));

    const reopened = await reopenEarly(pool, backOffMaxSeconds, joined(fresh, suspect));
    const known = await noteLook(pool, { step: step / 1_000, agrees });
    if (fresh || !last || look.after - look.before <= PROMPT_MS || look.before - last.after > OLD_MS) last = look;
    suspect = fresh;

    const hours = reopened.map(({ hour }) => hour);
    if (step !== 0) {
      log.warn(
        { seconds: Math.round(step / 1_000), hours: hours.length, first: hours[0] },
        "PostgreSQL's clock stepped (or this process slept): nothing is sealed or deleted for 15 minutes",
      );
    }
    if (hours.length > 0)
      log.warn({ hours: hours.length, first: hours[0] }, 'hours opened again, for the clock stepped');
    const trusted = whyHeld(known) === undefined;
    const settled = trusted && (first || reading.steppedAt !== null);
    if (known.step !== null || first || reading.step !== null) await settleWarnings(pool, 'clock', findingsOf(known));
    if (settled) await mendInstants(pool);
    if (trusted) {
      const unsealed = await unsealEarly(pool, UNSEALED);
      if (unsealed.length > 0) {
        log.warn({ hours: unsealed.length, first: unsealed[0] }, 'hours unsealed that a fast clock had sealed');
      }
    }
    const start = await coverPresent(pool, trusted);
    if (start) log.warn({ start }, 'the live range began in the future: it begins with the hour before this one now');
    first = false;
    return { now: known.now, trusted };
  };
}

/** The clock lies behind the last look of another process: all that one knows who looks for the first time. */
function backwards({ now, lookedAt }: ClockReading): number {
  const behind = lookedAt === null ? 0 : now.getTime() - lookedAt.getTime();
  return behind < -SLACK_MS ? behind : 0;
}

function sinceOf({ at, after }: Look, last: Look | undefined) {
  return last ? { at, from: last.at, passed: after - last.before } : { at, from: at, passed: 0 };
}

function joined(one: Suspect | undefined, other: Suspect | undefined): Suspect | undefined {
  if (!one || !other) return one ?? other;
  const earliest = (key: keyof Suspect) => new Date(Math.min(one[key].getTime(), other[key].getTime()));
  return { closedSince: earliest('closedSince'), endedSince: earliest('endedSince') };
}

function findingsOf({ steppedAt, step }: ClockReading) {
  if (steppedAt === null || step === null) return [];
  return [
    {
      subject: '',
      detail:
        `${saidOfStep(step, steppedAt)}. Hours that it closed too early are rolled up again; ` +
        'nothing is sealed or deleted until 15 minutes have passed without another step',
      remedy:
        "Have the clock of PostgreSQL's machine kept by chrony or NTP, which slews it (timedatectl shows its state). " +
        'If that machine or a worker was asleep, or another server took over, there is nothing to do.',
    },
  ];
}
