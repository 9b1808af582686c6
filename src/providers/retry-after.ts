// When may a provider be asked again?

import { DateTime } from 'luxon';

const DAY_MS = 24 * 3_600_000;

/**
 * The instant that a `Retry-After` names, in seconds or as an HTTP date: at most a day from `now`, by our clock.
 * `undefined` where there is none, where it makes no sense, and where it has passed.
 */
export function readRetryAfter(value: string | null, now: Date): Date | undefined {
  const text = value?.trim() ?? '';
  const at = /^[0-9]+(\.[0-9]+)?$/.test(text)
    ? now.getTime() + Number(text) * 1_000
    : DateTime.fromHTTP(text, { zone: 'utc' }).toMillis(); // NaN where it is none
  return at > now.getTime() ? new Date(Math.min(at, now.getTime() + DAY_MS)) : undefined;
}
