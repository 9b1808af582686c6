// What may a field of an imported call say?

import type { CallColumn } from './store/import.ts';

export interface CallField {
  /** How the value is stored, in COPY's text format; nothing where it is not one. Equal values come out equal. */
  readonly read: (value: string) => string | undefined;
  readonly expected: string;
}

/** In COPY's text format. */
const NULL = '\\N';
const MAX_BIGINT = '9223372036854775807';
/** Longer ones do not fit into the indexes that they are keys of. */
const KEY_LIMIT = 512;

const types = ['chatCompletion', 'embedding', 'imageGeneration', 'audioGeneration', 'video', 'custom'];
const states = ['processing', 'success', 'failed'];
const utf8 = 'UTF-8 without NUL or U+FFFD';
const key = { read: readKey, expected: `1 to ${KEY_LIMIT} characters of ${utf8}` };
const tokens = { read: orNull(readInteger), expected: `an integer from 0 to ${MAX_BIGINT}, or nothing` };

export const idField: CallField = key;

/** In the order in which a row is staged. */
export const callFields: Readonly<Record<CallColumn, CallField>> = {
  call_time: {
    read: readInstant,
    expected: 'an ISO-8601 instant from 1970 to 9999 such as 2024-08-13T14:40:43.000Z',
  },
  user_did: key,
  app_did: { read: orNull(readText), expected: `${utf8}, or nothing` },
  provider: { read: (value) => readText(value || 'unknown'), expected: utf8 },
  model: { read: (value) => readText(value || 'unknown'), expected: utf8 },
  type: oneOf(types),
  input_tokens: tokens,
  output_tokens: tokens,
  credits: {
    read: (value) => readCredits(value || '0'),
    expected: 'a decimal from 0, below 10^12, of at most 8 decimal places',
  },
  status: oneOf(states),
  duration_s: { read: orNull(readSeconds), expected: 'a decimal number of seconds from 0, below 10^14, or nothing' },
};

/** Whether two stored numbers of tokens, or NULLs, add up to one that can be stored. */
export function sumFits(first: string, second: string): boolean {
  if (first.length < MAX_BIGINT.length && second.length < MAX_BIGINT.length) return true;
  if (first === NULL || second === NULL) return true;
  return BigInt(first) + BigInt(second) <= BigInt(MAX_BIGINT);
}

/** A value as a message shows it: cut short, and nothing in it that a terminal would obey. */
export function quoted(value: string): string {
  const characters = [...value.slice(0, 122)];
  const shown = characters.length > 60 ? `${characters.slice(0, 60).join('')}…` : value;
  return JSON.stringify(shown).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (character) => {
    return `\\u{${character.codePointAt(0)?.toString(16)}}`;
  });
}

function orNull(read: CallField['read']): CallField['read'] {
  return (value) => (value === '' ? NULL : read(value));
}

function oneOf(values: string[]): CallField {
  const known = new Set(values);
  return { read: (value) => (known.has(value) ? value : undefined), expected: `one of ${values.join(', ')}` };
}

const ORDINARY = /^[ -[\]-~]*$/;
const ESCAPES: Record<string, string> = { '\\': '\\\\', '\t': '\\t', '\n': '\\n', '\r': '\\r' };

function readText(value: string): string | undefined {
  if (ORDINARY.test(value)) return value;
  if (value.includes('\0') || value.includes('\uFFFD')) return undefined;
  return value.replace(/[\\\t\n\r]/g, (character) => ESCAPES[character] ?? character);
}

function readKey(value: string): string | undefined {
  return value === '' || value.length > KEY_LIMIT ? undefined : readText(value);
}

const INSTANT =
  /^(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d)(?:[.,](\d+))?)?(?:Z|([+-])([01]\d|2[0-3])(?::?([0-5]\d))?)?$/;
const YEAR_10000 = Date.UTC(10_000, 0);

/** To the microsecond, which a Date would lose; what is finer is cut, as rounding could move a call into the next hour. */
function readInstant(value: string): string | undefined {
  const match = INSTANT.exec(value);
  if (!match) return undefined;
  const [, year = '', month, day, hour, minute, second = '00', fraction = '', sign, hours, minutes = '0'] = match;
  const micros = fraction.length === 6 ? fraction : fraction.slice(0, 6).padEnd(6, '0');
  if (year < '1969') return undefined;
  const plain = year > '1969' && Number(day) < 29 && !sign;
  if (plain) return `${year}-${month}-${day}T${hour}:${minute}:${second}.${micros}Z`;
  const wall = Date.UTC(Number(year), Number(month) - 1, Number(day), Number(hour), Number(minute), Number(second));
  if (new Date(wall).getUTCDate() !== Number(day)) return undefined; // 30 February
  const offset = sign ? (Number(hours) * 60 + Number(minutes)) * (sign === '-' ? -60_000 : 60_000) : 0;
  const instant = wall - offset;
  if (instant < 0 || instant >= YEAR_10000) return undefined;
  return `${new Date(instant).toISOString().slice(0, 19)}.${micros}Z`;
}

function readInteger(value: string): string | undefined {
  if (!/^\d+$/.test(value)) return undefined;
  const digits = withoutZeros(value);
  if (digits.length < MAX_BIGINT.length) return digits;
  return digits.length === MAX_BIGINT.length && digits <= MAX_BIGINT ? digits : undefined;
}

/** Exact, digit by digit: money is never a floating-point number. */
function readCredits(value: string): string | undefined {
  const { whole, fraction } = readDecimal(value) ?? {};
  if (whole === undefined || fraction === undefined) return undefined;
  if (whole.length > 12 || /[^0]/.test(fraction.slice(8))) return undefined;
  return `${whole}.${fraction.slice(0, 8).padEnd(8, '0')}`;
}

/** Rounded to microseconds. */
function readSeconds(value: string): string | undefined {
  const { whole, fraction } = readDecimal(value) ?? {};
  if (whole === undefined || fraction === undefined || whole.length > 14) return undefined;
  if (fraction.length <= 6) return `${whole}.${fraction.padEnd(6, '0')}`;
  const micros = BigInt(whole + fraction.slice(0, 6)) + (fraction.charAt(6) < '5' ? 0n : 1n);
  const digits = micros.toString().padStart(7, '0');
  return digits.length > 20 ? undefined : `${digits.slice(0, -6)}.${digits.slice(-6)}`;
}

/** The digits before and after the point. Exponents are resolved: programs write 0E-8, 1.2E-7 and 1e-05 for small numbers. */
function readDecimal(value: string): { whole: string; fraction: string } | undefined {
  const match = /^(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d{1,3}))?$/.exec(value);
  if (!match) return undefined;
  const [, whole = '', fraction = '', exponent] = match;
  if (exponent === undefined) return { whole: withoutZeros(whole), fraction };
  const point = whole.length + Number(exponent);
  const digits = `${'0'.repeat(Math.max(1, 1 - point))}${whole}${fraction}`.padEnd(point + 1, '0');
  const start = Math.max(1, point + 1);
  return { whole: withoutZeros(digits.slice(0, start)), fraction: digits.slice(start) };
}

function withoutZeros(digits: string): string {
  return digits.charAt(0) === '0' ? digits.replace(/^0+(?=\d)/, '') : digits;
}
