// Spells instants for PostgreSQL and reads those that it prints, whatever the session's zone is.

/** An instant as text that means the same in every zone and every DateStyle. */
export function spellInstant(instant: Date): string {
  return instant.toISOString().replace(/^\+0*/, ''); // a year above 9999 has a sign in ISO, and none in PostgreSQL
}

/** What a driver gets for a value: each `Date` in it as text, also within arrays. */
export function spellDates(value: unknown): unknown {
  if (value instanceof Date) return spellInstant(value);
  return Array.isArray(value) ? value.map(spellDates) : value;
}

/** Whether a `Date` is left in a value. */
export function holdsDate(value: unknown): boolean {
  return value instanceof Date || (Array.isArray(value) && value.some(holdsDate));
}

/** The parser of a type turns the text that PostgreSQL prints into a value. */
type Parse = (text: string) => unknown;

const TIMESTAMPTZ = 1184;
const TIMESTAMPTZ_ARRAY = 1185;
const TIMESTAMP = 1114;
const DATE = 1082;

/** The types whose text depends on the session, and how each is made independent of it. */
const independent: ReadonlyMap<number, (text: string) => string> = new Map([
  [TIMESTAMPTZ, inUtc],
  [TIMESTAMPTZ_ARRAY, (text) => text.replace(/"([^"]*)"/g, (_, item: string) => `"${inUtc(item)}"`)],
  [TIMESTAMP, iso],
  [DATE, iso],
]);

/** The types that `independently` changes anything for. */
export const DEPENDENT_TYPES: readonly number[] = [...independent.keys()];

/** The same parser for text of any zone: instants reach it in UTC. It throws if the text is not in DateStyle ISO. */
export function independently(oid: number, parse: Parse): Parse {
  const normalise = independent.get(oid);
  return normalise ? (text) => parse(normalise(text)) : parse;
}

const SPECIAL = new Set(['infinity', '-infinity']);
const ISO = /^(\d{4,6}-\d\d-\d\d)(?: (\d\d:\d\d:\d\d)(\.\d{1,6})?(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?)?)?$/;

function iso(text: string): string {
  parts(text);
  return text;
}

/** An instant in PostgreSQL's own spelling, turned into UTC by the offset that stands in it. */
function inUtc(text: string): string {
  const [, day, time, fraction = '', sign, hours = 0, minutes = 0, seconds = 0] = parts(text);
  if (SPECIAL.has(text) || text.endsWith('+00')) return text;
  if (sign === undefined) throw new Error(`expected an instant with its offset from PostgreSQL, found ${text}`);
  const offset = Number(hours) * 3_600 + Number(minutes) * 60 + Number(seconds);
  const utc = new Date(Date.parse(`${day}T${time}Z`) - (sign === '+' ? offset : -offset) * 1_000);
  return `${spellInstant(utc).slice(0, -5).replace('T', ' ')}${fraction}+00`;
}

function parts(text: string): readonly (string | undefined)[] {
  const found = SPECIAL.has(text) ? [] : ISO.exec(text);
  if (!found) throw new Error(`expected DateStyle ISO from PostgreSQL, found ${JSON.stringify(text)}`);
  return found;
}
