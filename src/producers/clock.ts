// Watches PostgreSQL's clock from a worker process, and opens the hours again that a step of it closed too early.

import type { Logger } from 'pino';
import {
  type ClockReading,
  mendInstants,
  noteLook,
  readClock,
  reopenEarly,
  SLACK_MS,
  type Suspect,
  stepInWords,
  whyHeld,
} from '../store/clock.ts';
import type { Pool } from '../store/db.ts';
import { coverPresent } from '../store/ranges.ts';
import { unsealEarly } from '../store/seal.ts';
import { settleWarnings } from '../store/warnings.ts';

/** A smaller difference of the two clocks is no step: clocks drift, and are slewed. */
const TOLERANCE_MS = 2_000;
/** A slower answer says little about when the clock was read, so the next look is compared with an earlier one. */
const PROMPT_MS = 1_000;
/** But not with one that is older than this, because the two clocks drift apart. */
const OLD_MS = 600_000;
/** One look unseals at most this many hours, because it counts the calls of each. */
const UNSEALED = 20;

/**
 * PostgreSQL's clock, read at some moment between two readings of our own, which never steps; all in milliseconds.
 */
export interface Look {
  readonly at: number;
  readonly before: number;
  readonly after: number;
}

/**
 * By how many milliseconds, at the least, PostgreSQL's clock stepped between two looks; 0 if both clocks may have
 * gone alike. A slow answer is no step: each clock was read at some moment between the question and the answer.
 */
export function stepBetween(earlier: Look, later: Look): number {
  const passed = later.at - earlier.at;
  const least = later.before - earlier.after;
  const most = later.after - earlier.before;
  const step = passed > most ? passed - most : Math.min(0, passed - least);
  return Math.abs(step) > TOLERANCE_MS ? step : 0;
}

export interface ClockLook {
  /** PostgreSQL's clock. */
  readonly now: Date;
  /** The clock may be relied on: no step was seen in the last 15 minutes. */
  readonly trusted: boolean;
}

interface Deps {
  readonly pool: Pool;
  readonly log: Pick<Logger, 'warn'>;
  readonly backOffMaxSeconds: number;
  /** Our own clock, in milliseconds. */
  readonly monotonic?: () => number;
}

/**
 * Make the looks of one worker process, each compared with the last. Any number of processes may look at once. If two
 * of them open the same hour again, it is rolled up twice at most.
 *
 * A process that was asleep may see a step forward that was none, because its own clock stood still. That costs a
 * roll-up of the hours that other processes closed meanwhile, and 15 minutes without retention.
 */
export function clockWatch({ pool, log, backOffMaxSeconds, monotonic = () => performance.now() }: Deps) {
  let last: Look | undefined;
  // When a step is noticed, a process may be closing an hour by the old clock. So the next look opens these hours
  // again.
  let suspect: Suspect | undefined;
  let first = true;

  return async (): Promise<ClockLook> => {
    const before = monotonic();
    const reading = await readClock(pool);
    const look: Look = { at: reading.now.getTime(), before, after: monotonic() };
    const step = (last && stepBetween(last, look)) || behindOthers(reading);
    const fresh = step === 0 ? undefined : suspectAfter(step, look, last);

    const hours = await reopenEarly(pool, backOffMaxSeconds, joined(fresh, suspect));
    const known = await noteLook(pool, { step: step / 1_000, agrees: last !== undefined && step === 0 });
    const prompt = look.after - look.before <= PROMPT_MS;
    if (fresh || !last || prompt || look.before - last.after > OLD_MS) last = look;
    suspect = fresh;

    const found = { hours: hours.length, first: hours[0] };
    if (step !== 0) {
      const clock = "PostgreSQL's clock stepped, or this process slept: nothing is sealed or deleted for 15 minutes";
      log.warn({ seconds: Math.round(step / 1_000), ...found }, clock);
    } else if (hours.length > 0) {
      log.warn(found, "hours opened again: PostgreSQL's clock was fast when they were closed");
    }
    if (first || known.step !== null || reading.step !== null) {
      await settleWarnings(pool, 'clock', findingsOf(known));
    }
    const trusted = whyHeld(known) === undefined;
    if (trusted && (first || reading.steppedAt !== null)) await mendInstants(pool);
    first = false;
    if (trusted) {
      const unsealed = await unsealEarly(pool, UNSEALED);
      const hours = { hours: unsealed.length, first: unsealed[0] };
      if (unsealed.length > 0) log.warn(hours, 'hours unsealed that a fast clock had sealed');
    }
    const start = await coverPresent(pool, trusted);
    if (start) log.warn({ start }, 'the live range began in the future: now it begins with the hour before this one');
    return { now: known.now, trusted };
  };
}

/** How far the clock lies behind the last look of another process, which is a step too; never positive. */
function behindOthers({ now, lookedAt }: ClockReading): number {
  const behind = lookedAt === null ? 0 : now.getTime() - lookedAt.getTime();
  return behind < -SLACK_MS ? behind : 0;
}

function suspectAfter(step: number, { at, after }: Look, last: Look | undefined): Suspect {
  const passed = last ? after - last.before : 0;
  return {
    closedSince: new Date(Math.min(last?.at ?? at, at - passed) - SLACK_MS),
    endedSince: new Date(at - Math.abs(step) - passed - SLACK_MS),
  };
}

function joined(one: Suspect | undefined, other: Suspect | undefined): Suspect | undefined {
  if (!one || !other) return one ?? other;
  const earlier = (key: keyof Suspect) => (one[key] < other[key] ? one[key] : other[key]);
  return { closedSince: earlier('closedSince'), endedSince: earlier('endedSince') };
}

function findingsOf({ steppedAt, step }: ClockReading) {
  if (steppedAt === null || step === null) return [];
  return [
    {
      subject: '',
      detail:
        `${stepInWords(step, steppedAt)}. Hours that it closed too early are rolled up again; ` +
        'nothing is sealed or deleted until 15 minutes have passed without another step',
      remedy:
        "Let chrony or NTP slew the clock of PostgreSQL's machine (timedatectl shows its state). " +
        'If that machine or a worker was asleep, or another server took over, there is nothing to do.',
    },
  ];
}
