// What may a field of an imported call say?

import { ModelCallStatus, ModelCallType } from './generated/prisma/enums.ts';
import { CREDITS, type NumericColumn, readDecimal, SECONDS } from './store/decimals.ts';
import type { CallColumn } from './store/import.ts';

export interface CallField {
  /** How the value is stored, in COPY's text format; nothing where it is not one. Equal values come out equal. */
  readonly read: (value: string) => string | undefined;
  readonly expected: string;
  /** Whether a value that can be read has more decimal places than the column, so that what is stored is another. */
  readonly isRounded?: (value: string) => boolean;
}

/** In COPY's text format. */
const NULL = '\\N';
const MAX_BIGINT = 9_223_372_036_854_775_807n;

/** Longer ones do not fit into the indexes that they are keys of. */
const key = textOf(1, 512);
const text = textOf(0, 65_536);
const credits = decimal(CREDITS);
const tokens = orNothing({ read: readInteger, expected: `an integer from 0 to ${MAX_BIGINT}` });

export const idField: CallField = key;

/** In the order in which a row is staged. */
export const callFields: Readonly<Record<CallColumn, CallField>> = {
  call_time: {
    read: readInstant,
    expected: 'an ISO-8601 instant from 1970 to 9999 such as 2024-08-13T14:40:43.000Z',
  },
  user_did: key,
  app_did: orNothing(text),
  provider: { ...text, read: (value) => text.read(value || 'unknown') },
  model: { ...text, read: (value) => text.read(value || 'unknown') },
  type: oneOf(Object.keys(ModelCallType)),
  input_tokens: tokens,
  output_tokens: tokens,
  credits: {
    ...credits,
    read: (value) => credits.read(value || '0'),
    expected: 'a decimal from 0, below 10^12 when rounded to 8 decimals',
  },
  status: oneOf(Object.keys(ModelCallStatus)),
  duration_s: orNothing({
    ...decimal(SECONDS),
    expected: 'a decimal number of seconds from 0, below 10^14 when rounded to 6 decimals',
  }),
};

/** Whether two stored numbers of tokens, or NULLs, add up to one that can be stored. */
export function sumFits(first: string, second: string): boolean {
  return first === NULL || second === NULL || BigInt(first) + BigInt(second) <= MAX_BIGINT;
}

/** A value as a message shows it: cut short, and nothing in it that a terminal would obey. */
export function quoted(value: string): string {
  const characters = [...value.slice(0, 122)];
  const shown = characters.length > 60 ? `${characters.slice(0, 60).join('')}…` : value;
  return JSON.stringify(shown).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (character) => {
    return `\\u{${character.codePointAt(0)?.toString(16)}}`;
  });
}

function orNothing({ read, expected, ...field }: CallField): CallField {
  return { ...field, read: (value) => (value === '' ? NULL : read(value)), expected: `${expected}, or nothing` };
}

/** Stored as a whole number of the last decimal place: ids are hashes of this text, and must stay what they are. */
function decimal(column: NumericColumn): Pick<CallField, 'read' | 'isRounded'> {
  return {
    read: (value) => {
      const read = readDecimal(value, column);
      return read && `${read.units}E-${column.places}`;
    },
    // Shorter text has no more decimal places, unless it has an exponent: most values are told by that.
    isRounded: (value) =>
      (value.length > column.places + 2 || /e/i.test(value)) && (readDecimal(value, column)?.rounded ?? false),
  };
}

function oneOf(values: string[]): CallField {
  return { read: (value) => (values.includes(value) ? value : undefined), expected: `one of ${values.join(', ')}` };
}

const ESCAPES: Record<string, string> = { '\\': '\\\\', '\t': '\\t', '\n': '\\n', '\r': '\\r' };

function textOf(min: number, max: number): CallField {
  const read = (value: string) => {
    if (value.length < min || value.length > max || /[\0\uFFFD]/.test(value)) return undefined;
    return value.replace(/[\\\t\n\r]/g, (character) => ESCAPES[character] ?? character);
  };
  return { read, expected: `${min} to ${max} characters of UTF-8 without NUL or U+FFFD` };
}

const INSTANT =
  /^(\d{4}-\d\d-(\d\d))T((?:[01]\d|2[0-3]):[0-5]\d)(?::([0-5]\d)(?:[.,](\d+))?)?(?:Z|([+-](?:[01]\d|2[0-3]))(?::?([0-5]\d))?)?$/;
const YEAR_10000 = Date.UTC(10_000, 0);

/** To the microsecond, which a Date would lose; what is finer is cut, as rounding could move a call into the next hour. */
function readInstant(value: string): string | undefined {
  const [, date, day = '', minute, second = '00', fraction = '', hours = '+00', minutes = '00'] =
    INSTANT.exec(value) ?? [];
  if (day > '28' && new Date(`${date}T00:00Z`).getUTCDate() !== Number(day)) return undefined; // 30 February
  const instant = Date.parse(`${date}T${minute}:${second}${hours}:${minutes}`);
  if (!(instant >= 0 && instant < YEAR_10000)) return undefined; // NaN where nothing matched
  return `${new Date(instant).toISOString().slice(0, -4)}${fraction.slice(0, 6).padEnd(6, '0')}Z`;
}

function readInteger(value: string): string | undefined {
  const integer = /^\d+$/.test(value) ? BigInt(value) : undefined;
  return integer !== undefined && integer <= MAX_BIGINT ? String(integer) : undefined;
}
