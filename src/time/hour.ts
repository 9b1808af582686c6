// What is an hour?

declare const hourBrand: unique symbol;

/** An hour bucket, `[start, end)` in UTC, written `2026-08-20T13`. Such texts sort as the hours do. */
export type Hour = string & { readonly [hourBrand]: true };

export const HOUR_MS = 3_600_000;

/** The hour that an instant lies in. */
export function hourOf(instant: Date): Hour {
  return instant.toISOString().slice(0, 13) as Hour;
}

export function startOf(hour: Hour): Date {
  return new Date(`${hour}:00:00Z`);
}

export function endOf(hour: Hour): Date {
  return new Date(startOf(hour).getTime() + HOUR_MS);
}

/** Seconds from the epoch to the hour's start: how job ids and deduplication ids name it. */
export function epochOf(hour: Hour): number {
  return startOf(hour).getTime() / 1000;
}

/** Hours from the epoch to this hour: the first half of its advisory locks' keys. */
export function ordinalOf(hour: Hour): number {
  return startOf(hour).getTime() / HOUR_MS;
}

export function isHour(text: string): text is Hour {
  const start = new Date(`${text}:00:00Z`);
  // From 1970 on, as every instant; there and back again: a date such as February 30th is read as one in March.
  return /^\d{4}-\d\d-\d\dT\d\d$/.test(text) && start.getTime() >= 0 && hourOf(start) === text;
}
