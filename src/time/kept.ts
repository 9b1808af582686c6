// How long is something kept?

const HOURS = { h: 1, d: 24, w: 7 * 24, y: 365 * 24 } as const;

/** Whoever keeps less than this has hours that may still change among those that are to go. */
const LEAST_HOURS = 48;
const MOST_HOURS = 1_000 * HOURS.y;

/**
 * Read for how long: hours, days, weeks or years of 365 days, such as `72h`, `90d`, `12w` or `2y`.
 *
 * @returns hours
 * @throws {RangeError} saying what was expected and what was found; less than two days is refused
 */
export function parseKept(text: string): number {
  const [, digits = '', unit] = /^([1-9]\d{0,6})([hdwy])$/.exec(text) ?? [];
  const hours = Number(digits) * HOURS[(unit ?? 'h') as keyof typeof HOURS]; // the pattern lets no other through
  if (hours < LEAST_HOURS || hours > MOST_HOURS) {
    throw new RangeError(`expected at least 2d, in hours, days, weeks or years, such as 90d or 2y, got "${text}"`);
  }
  return hours;
}

/** What is kept, in hours; what is not named is kept for ever. */
export interface Kept {
  readonly calls?: number;
  readonly stats?: number;
}

/** @throws {RangeError} where statistics would go before the calls that they were made from */
export function checkKept({ calls, stats }: Kept): void {
  if (calls !== undefined && stats !== undefined && stats < calls) {
    throw new RangeError(
      `expected statistics to be kept at least as long as calls (${calls} hours), got ${stats} hours`,
    );
  }
}
