// What does an operator mean by "from" and "to"?

import { DateTime } from 'luxon';
import { HOUR_MS, hourOf } from './hour.ts';

/** `[start, end)`, on whole hours. */
export interface Range {
  readonly start: Date;
  readonly end: Date;
}

/** A date, perhaps a time, perhaps where: what `fromISO` takes beyond it is today's by some clock, or an offset of days. */
const INSTANT = /^\d{4}-?\d\d-?\d\d(T\d\d(:?\d\d(:?\d\d(\.\d+)?)?)?(Z|[+-](0\d|1[0-4])(:?[0-5]\d)?)?)?$/;

/**
 * Read an instant: ISO-8601 (UTC where it names no zone; `2026-08-20T13` and `2026-08-20` will do) or Unix seconds.
 *
 * @param rounded what becomes of digits below the millisecond: a range's end goes `up`, so that nothing of it is lost
 * @throws {RangeError} saying what was expected and what was found
 */
export function parseInstant(text: string, rounded: 'up' | 'down' = 'down'): Date {
  const instant = /^\d{9,12}(\.\d+)?$/.test(text)
    ? DateTime.fromMillis(Math.floor(Number(text) * 1_000), { zone: 'utc' })
    : DateTime.fromISO(INSTANT.test(text) ? text : '', { zone: 'utc' });
  const year = instant.isValid ? instant.year : Number.NaN;
  if (year < 1970 || year > 9999 || Number.isNaN(year)) {
    throw new RangeError(`expected an ISO-8601 instant such as 2026-08-20T13:00:00Z, or Unix seconds, got "${text}"`);
  }
  const below = /\.\d{3}\d*[1-9]/.test(text);
  return new Date(instant.toMillis() + (below && rounded === 'up' ? 1 : 0));
}

/**
 * Widen `[from, to)` to whole hours.
 *
 * @throws {RangeError} where `to` is not after `from`
 */
export function wholeHours(from: Date, to: Date): Range {
  if (to <= from) {
    throw new RangeError(`expected an end after the start, got ${from.toISOString()} to ${to.toISOString()}`);
  }
  return {
    start: new Date(Math.floor(from.getTime() / HOUR_MS) * HOUR_MS),
    end: new Date(Math.ceil(to.getTime() / HOUR_MS) * HOUR_MS),
  };
}

export function hoursIn({ start, end }: Range): number {
  return Math.max(0, (end.getTime() - start.getTime()) / HOUR_MS);
}

/** The days of a range, each of 24 hours from the range's start on, oldest first; the last one may be shorter. */
export function* daysOf({ start, end }: Range): Generator<Range> {
  const DAY_MS = 24 * HOUR_MS;
  for (let from = start.getTime(); from < end.getTime(); from += DAY_MS) {
    yield { start: new Date(from), end: new Date(Math.min(from + DAY_MS, end.getTime())) };
  }
}

/** How a range is told to a person. */
export function spell({ start, end }: Range): string {
  return `[${hourOf(start)}, ${hourOf(end)})`;
}
