// Reads decimal text as a numeric column of PostgreSQL stores it.

/** A column `numeric(digits, places)`. */
export interface NumericColumn {
  readonly digits: number;
  readonly places: number;
}

export const CREDITS: NumericColumn = { digits: 20, places: 8 };
export const SECONDS: NumericColumn = { digits: 20, places: 6 };

export interface Decimal {
  /** The stored value, as a whole number of the column's last decimal place. */
  readonly units: bigint;
  /** The column holds fewer decimal places than the text had: the stored value is another. */
  readonly rounded: boolean;
}

/**
 * Read a decimal from 0 as the column stores it: rounded half away from zero, as PostgreSQL rounds. The digits of the
 * text decide, never a float. Programs write 0E-8, 1.2E-7 and 1e-05 for small numbers.
 *
 * @returns `undefined` if the text is no such decimal, or if the column cannot hold the rounded value
 */
export function readDecimal(text: string, { digits, places }: NumericColumn): Decimal | undefined {
  const [, whole, fraction = '', exponent = '0'] = /^(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d{1,3}))?$/.exec(text) ?? [];
  if (whole === undefined) return undefined;
  const written = whole + fraction;
  // So many of the written digits are kept: those before the point, and the column's decimal places.
  const kept = whole.length + Number(exponent) + places;
  const significant = written.slice(0, Math.max(0, kept)).replace(/^0+/, '');
  const zeros = significant === '' ? 0 : Math.max(0, kept - written.length);
  if (significant.length + zeros > digits) return undefined;
  const below = BigInt(significant || '0') * 10n ** BigInt(zeros);
  const units = (written[kept] ?? '0') >= '5' ? below + 1n : below;
  if (units >= 10n ** BigInt(digits)) return undefined;
  return { units, rounded: /[1-9]/.test(written.slice(Math.max(0, kept))) };
}

/** The value as a person writes it: `0.12345679`, without zeros at its end. */
export function spellDecimal({ units }: Decimal, { places }: NumericColumn): string {
  const text = String(units).padStart(places + 1, '0');
  return `${text.slice(0, -places)}.${text.slice(-places)}`.replace(/\.?0+$/, '');
}
