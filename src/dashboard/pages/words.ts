// How are figures and instants written for a person?

const compact = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 2 });

/** Whole numbers as they are, with thousands divided: `9,120`. */
export function whole(value: bigint | number | string): string {
  return BigInt(value).toLocaleString('en');
}

/** As much as fits beside a chart: `9.1K`. */
export function short(value: number): string {
  return compact.format(value);
}

/** An exact amount without the zeros at its end: `0.0312`. */
export function amount(text: string): string {
  const [left = '0', right = ''] = text.split('.');
  const decimals = right.replace(/0+$/, '');
  return decimals ? `${whole(left)}.${decimals}` : whole(left);
}

/** `2026-08-20 13:05:09`, UTC, as everything here. */
export function instant(at: Date): string {
  return at.toISOString().slice(0, 19).replace('T', ' ');
}

/** How long: `45 s`, `12 min`, `3 h 20 min`, `2 days`. */
export function span(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1_000));
  if (seconds < 90) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return `${Math.round(hours / 24)} days`;
}

/** `1 hour`, `2 hours`. */
export function count(n: number, one: string, many = `${one}s`): string {
  return `${whole(n)} ${n === 1 ? one : many}`;
}

/** Of those that ended, how many succeeded, in percent; undefined where none has ended. */
export function successRate(success: bigint, failed: bigint): number | undefined {
  const ended = success + failed;
  return ended === 0n ? undefined : Number((success * 10_000n) / ended) / 100;
}

/** A sentence begins with a capital letter. */
export function capital(text: string): string {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}
