// When does a schedule fire next?

import { CronExpressionParser } from 'cron-parser';

/** Six cron fields, seconds first, read in UTC; or `off`. */
export type Pattern = string;

/**
 * Read a pattern before Redis sees it: BullMQ takes `''` and `'* * *'` for every minute, `H` for a number that it draws,
 * and a pattern without a next run for a schedule that never fires again.
 *
 * @returns six fields (five are read as minute first), or `off`
 * @throws {RangeError} saying what was expected and what was found
 */
export function parsePattern(text: string): Pattern {
  const fields = text.trim().split(/\s+/);
  if (text.trim() === 'off') return 'off';
  const expected = 'expected six cron fields in UTC, seconds first (five: minute first), or off';
  if (fields.length < 5 || fields.length > 6 || fields.some((field) => /h/i.test(field.replace(/thu/gi, '')))) {
    throw new RangeError(`${expected}, got "${text}"`);
  }
  const pattern = (fields.length === 5 ? ['0', ...fields] : fields).join(' ');
  try {
    nextRun(pattern, new Date());
  } catch (cause) {
    throw new RangeError(`${expected}, got "${text}": ${cause instanceof Error ? cause.message : cause}`, { cause });
  }
  return pattern;
}

/** The first instant after `from` at which the pattern fires, by the parser that BullMQ asks. */
export function nextRun(pattern: Pattern, from: Date): Date {
  return CronExpressionParser.parse(pattern, { tz: 'UTC', currentDate: from }).next().toDate();
}

/** So much before its firing a tick may be written down: by as much the clock by which it fires may be fast. */
const FAST_MS = 10 * 60_000;

/** The first firing after the one that a tick was of, which is the one before it, or the next where that is nearer, and near. */
export function firingAfter(pattern: Pattern, tick: Date): Date {
  const next = nextRun(pattern, tick);
  const before = CronExpressionParser.parse(pattern, { tz: 'UTC', currentDate: tick }).prev().toDate();
  const early = next.getTime() - tick.getTime();
  return early < Math.min(tick.getTime() - before.getTime(), FAST_MS) ? nextRun(pattern, next) : next;
}

/** The longest of the next gaps between two firings, in seconds: 900 for each quarter of an hour. */
export function intervalOf(pattern: Pattern, from: Date): number {
  const expression = CronExpressionParser.parse(pattern, { tz: 'UTC', currentDate: from });
  const runs = expression.take(11).map((run) => run.getTime());
  return Math.max(...runs.slice(1).map((run, i) => (run - (runs[i] ?? run)) / 1_000));
}
