// What does an operator mean by "from" and "to"?

import { DateTime } from 'luxon';
import { HOUR_MS, hourOf } from './hour.ts';

/** `[start, end)`, on whole hours. */
export interface Range {
  readonly start: Date;
  readonly end: Date;
}

/**
 * Read an instant: ISO-8601 (UTC where it names no zone; `2026-08-20T13` and `2026-08-20` will do) or Unix seconds.
 *
 * @throws {RangeError} saying what was expected and what was found
 */
export function parseInstant(text: string): Date {
  const instant = /^\d{9,12}(\.\d+)?$/.test(text)
    ? DateTime.fromSeconds(Number(text), { zone: 'utc' })
    : DateTime.fromISO(text, { zone: 'utc' });
  const year = instant.isValid ? instant.year : Number.NaN;
  if (year >= 1970 && year <= 9999) return instant.toJSDate();
  throw new RangeError(`expected an ISO-8601 instant such as 2026-08-20T13:00:00Z, or Unix seconds, got "${text}"`);
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

/** How a range is told to a person. */
export function spell({ start, end }: Range): string {
  return `[${hourOf(start)}, ${hourOf(end)})`;
}
