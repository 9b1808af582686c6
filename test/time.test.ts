import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { home } from '../src/config.ts';
import { endOf, epochOf, hourOf, isHour, ordinalOf, startOf } from '../src/time/hour.ts';
import { checkKept, parseKept } from '../src/time/kept.ts';
import { firingAfter, intervalOf, nextRun, parsePattern } from '../src/time/pattern.ts';
import { hoursIn, parseInstant, spell, wholeHours } from '../src/time/range.ts';
import { h } from './support/hourhand.ts';

const zone = process.env.TZ;
afterEach(() => {
  if (zone === undefined) delete process.env.TZ;
  else process.env.TZ = zone;
});

describe('an hour', () => {
  test('is [start, end) in UTC, whatever the zone of the machine', () => {
    process.env.TZ = 'Asia/Kolkata'; // half an hour beside UTC
    expect(new Date('2026-08-20T13:00:00Z').getTimezoneOffset()).toBe(-330);
    expect(hourOf(new Date('2026-08-20T13:00:00.000Z'))).toBe('2026-08-20T13');
    expect(hourOf(new Date('2026-08-20T13:59:59.999Z'))).toBe('2026-08-20T13');
    expect(hourOf(new Date('2026-08-20T14:00:00.000Z'))).toBe('2026-08-20T14');
    expect(startOf(h('2026-08-20T13')).toISOString()).toBe('2026-08-20T13:00:00.000Z');
    expect(endOf(h('2026-12-31T23')).toISOString()).toBe('2027-01-01T00:00:00.000Z');
  });

  test('has a number in seconds for its ids, and one in hours for its locks', () => {
    expect(epochOf(h('2026-08-20T13'))).toBe(Date.UTC(2026, 7, 20, 13) / 1_000);
    expect(ordinalOf(h('1970-01-01T00'))).toBe(0);
    expect(ordinalOf(h('1970-01-02T01'))).toBe(25);
  });

  test.each(['2026-08-20T13', '2024-02-29T00', '1970-01-01T23'])('%s is one', (text) => {
    expect(isHour(text)).toBe(true);
  });

  test.each([
    '',
    'yesterday',
    '2026-08-20',
    '2026-08-20T24',
    '2026-02-30T00',
    '2026-08-20T13:00',
    '2026-13-01T00',
    '2026-8-20T13',
    '2026-08-20T13Z',
    ' 2026-08-20T13',
  ])('"%s" is none', (text) => expect(isHour(text)).toBe(false));
});

describe('an instant', () => {
  test.each([
    ['2026-08-20T13:05:06Z', '2026-08-20T13:05:06.000Z'],
    ['2026-08-20T13:05:06.789Z', '2026-08-20T13:05:06.789Z'],
    ['2026-08-20T13:05', '2026-08-20T13:05:00.000Z'],
    ['2026-08-20T13', '2026-08-20T13:00:00.000Z'],
    ['2026-08-20', '2026-08-20T00:00:00.000Z'],
    ['20260820T1305Z', '2026-08-20T13:05:00.000Z'],
    ['2026-08-20T13:00+02:00', '2026-08-20T11:00:00.000Z'],
    ['2026-08-20T13:00-0530', '2026-08-20T18:30:00.000Z'],
    ['2026-08-20T24:00', '2026-08-21T00:00:00.000Z'],
    ['1970-01-01', '1970-01-01T00:00:00.000Z'],
    ['9999-12-31T23:59:59Z', '9999-12-31T23:59:59.000Z'],
    ['1787230800', '2026-08-20T13:00:00.000Z'],
    ['1787230800.5', '2026-08-20T13:00:00.500Z'],
    ['999999999', '2001-09-09T01:46:39.000Z'],
  ])('%s is %s, in a machine of any zone', (text, expected) => {
    process.env.TZ = 'America/Santiago';
    expect(parseInstant(text).toISOString()).toBe(expected);
  });

  test.each([
    ['', 'nothing'],
    ['yesterday', 'a word'],
    ['NaN', 'no number'],
    ['-1', 'before the epoch'],
    ['1969-12-31', 'before the epoch'],
    ['1e9', 'no plain number'],
    ['1787230800000', 'milliseconds'],
    ['999999999999', 'seconds, but of the year 33658'],
    ['+010000-01-01', 'after what can be stored'],
    ['2026-02-30', 'no day'],
    ['2026-08-20T25', 'no hour'],
    ['2026-08-20T13:00:60Z', 'no second'],
    ['2026-08-20 13:00', 'two words'],
    ['13:00', 'no date'],
    ['2026-08-20T13:00-99:00', 'no offset'],
    [' 2026-08-20T13', 'a blank before it'],
  ])('"%s" is none: %s', (text) => {
    expect(() => parseInstant(text)).toThrow(
      new RangeError(`expected an ISO-8601 instant such as 2026-08-20T13:00:00Z, or Unix seconds, got "${text}"`),
    );
  });
});

test('digits below the millisecond are cut at a start, and round an end up', () => {
  const text = '2026-08-20T14:00:00.0005Z';
  expect(parseInstant(text).toISOString()).toBe('2026-08-20T14:00:00.000Z');
  expect(parseInstant(text, 'up').toISOString()).toBe('2026-08-20T14:00:00.001Z');
  expect(parseInstant('2026-08-20T14:00:00.0000Z', 'up').toISOString()).toBe('2026-08-20T14:00:00.000Z');
});

describe('a range', () => {
  const range = (from: string, to: string) => spell(wholeHours(new Date(from), new Date(to)));

  test('on whole hours stays as it is', () => {
    expect(range('2026-08-20T13:00:00Z', '2026-08-20T15:00:00Z')).toBe('[2026-08-20T13, 2026-08-20T15)');
  });

  test('is widened to whole hours on both sides', () => {
    expect(range('2026-08-20T13:59:59.999Z', '2026-08-20T14:00:00.001Z')).toBe('[2026-08-20T13, 2026-08-20T15)');
    expect(range('2026-08-20T13:10:00Z', '2026-08-20T13:20:00Z')).toBe('[2026-08-20T13, 2026-08-20T14)');
  });

  test.each([
    ['2026-08-20T13:00:00.000Z', '2026-08-20T13:00:00.000Z'],
    ['2026-08-20T13:30:00.000Z', '2026-08-20T13:10:00.000Z'],
  ])('from %s to %s is none', (from, to) => {
    expect(() => wholeHours(new Date(from), new Date(to))).toThrow(
      new RangeError(`expected an end after the start, got ${from} to ${to}`),
    );
  });

  test('knows how many hours it has', () => {
    expect(hoursIn(wholeHours(new Date('2026-08-20T13:59Z'), new Date('2026-08-21T13:01Z')))).toBe(25);
    expect(hoursIn({ start: new Date('2026-08-20T14:00Z'), end: new Date('2026-08-20T13:00Z') })).toBe(0);
  });
});

describe('a pattern', () => {
  test.each([
    ['0 1 * * * *', '0 1 * * * *'],
    ['* * * * * *', '* * * * * *'],
    ['1 * * * *', '0 1 * * * *'],
    ['  0   1 *\t* * * ', '0 1 * * * *'],
    ['0 0 0 29 2 *', '0 0 0 29 2 *'],
    ['0 0 0 1 Mar *', '0 0 0 1 Mar *'],
    ['0 0 0 1 mar,jun *', '0 0 0 1 mar,jun *'],
    ['0 0 0 * * Thu', '0 0 0 * * Thu'],
    ['0 0 0 * * thu', '0 0 0 * * thu'],
    ['0 0 0 * MAR THU-SAT', '0 0 0 * MAR THU-SAT'],
    ['off', 'off'],
    [' off ', 'off'],
  ])('"%s" is read as "%s"', (text, pattern) => {
    expect(parsePattern(text)).toBe(pattern);
  });

  test.each([
    ['', 'which BullMQ takes for every minute'],
    ['   ', 'nothing'],
    ['* * *', 'which BullMQ takes for every minute'],
    ['* * * *', 'four fields'],
    ['0 0 0 * * * 2026', 'seven fields'],
    ['H * * * * *', 'for which BullMQ draws a number'],
    ['0 h * * * *', 'for which BullMQ draws a number'],
    ['0 H(1-5) * * * *', 'for which BullMQ draws a number'],
    ['0 0 0 * * thu,H', 'for which BullMQ draws a number'],
    ['0 H/5 * * *', 'for which BullMQ draws a number'],
    ['@hourly', 'a nickname'],
    ['@every 5s', 'a nickname'],
    ['0 0 0 30 2 *', 'the 30th of February, which never comes'],
    ['0 0 0 31 4,6,9,11 *', 'days that never come'],
    ['60 * * * * *', 'no second'],
    ['0 0 24 * * *', 'no hour'],
    ['*/0 * * * * *', 'no step'],
    ['0 0 0 * * 8', 'no day'],
    ['nonsense', 'a word'],
    ['every hour on the hour please', 'words'],
    ['OFF', 'a word'],
  ])('"%s" is refused: %s', (text) => {
    expect(() => parsePattern(text)).toThrow(RangeError);
    expect(() => parsePattern(text)).toThrow(
      `expected six cron fields in UTC, seconds first (five: minute first), or off, got "${text}"`,
    );
  });

  test('fires after an instant, never at it', () => {
    const at = new Date('2026-08-20T13:01:00.000Z');
    expect(nextRun('0 1 * * * *', new Date(at.getTime() - 1))).toEqual(at);
    expect(nextRun('0 1 * * * *', at).toISOString()).toBe('2026-08-20T14:01:00.000Z');
  });

  test.each([
    ['0 1 * * * *', '13:01:00.000Z', '14:01:00.000Z'],
    ['0 1 * * * *', '13:01:00.250Z', '14:01:00.000Z'],
    ['0 1 * * * *', '13:01:12Z', '14:01:00.000Z'],
    ['0 1 * * * *', '12:56:00Z', '14:01:00.000Z'],
    ['0 1 * * * *', '13:50:59Z', '14:01:00.000Z'],
    ['0 1 * * * *', '13:51:01Z', '15:01:00.000Z'],
    ['0 */10 * * * *', '13:04:59Z', '13:10:00.000Z'],
    ['0 */10 * * * *', '13:05:01Z', '13:20:00.000Z'],
    ['0 0,5 * * * *', '13:00:01Z', '13:05:00.000Z'],
    ['*/15 * * * * *', '13:00:14.900Z', '13:00:30.000Z'],
  ])('"%s" fires, after the firing that a tick at %s was of, at %s', (pattern, tick, next) => {
    expect(firingAfter(pattern, new Date(`2026-08-20T${tick}`)).toISOString()).toBe(`2026-08-20T${next}`);
  });

  test.each([
    ['0 */15 * * * *', 900],
    ['0 0 8,9 * * *', 23 * 3_600],
    ['0 0 8 * * 1-5', 3 * 24 * 3_600],
  ])('"%s" leaves at most %i seconds between two firings', (pattern, seconds) => {
    expect(intervalOf(pattern, new Date('2026-08-20T13:01:00Z'))).toBe(seconds);
  });

  // Hourly in Lord Howe has no next run at this edge, and midnight in Santiago and Hebron skips a day: in UTC neither does.
  test.each([
    ['Australia/Lord_Howe', '2024-10-05T12:00:00Z'],
    ['Australia/Lord_Howe', '2024-04-06T12:00:00Z'],
    ['America/Santiago', '2024-09-07T22:00:00Z'],
    ['Asia/Hebron', '2024-04-19T18:00:00Z'],
    ['Africa/Cairo', '2024-04-25T18:00:00Z'],
  ])('fires every hour and every midnight of UTC on a machine in %s when the clocks change (%s)', (tz, from) => {
    process.env.TZ = tz;
    let at = new Date(from);
    for (let i = 1; i <= 12; i++) {
      at = nextRun('0 0 * * * *', at);
      expect(at).toEqual(new Date(Date.parse(from) + i * 3_600_000));
    }
    expect(nextRun('0 0 0 * * *', new Date(from)).toISOString()).toBe(
      new Date(Date.parse(from.slice(0, 10)) + 86_400_000).toISOString(),
    );
  });
});

interface Vector {
  id: number;
  pattern: string;
  tz: string;
  from: string;
  expected_next: string[];
  class: string;
}

const file = path.join(home, '..', 'shared', 'data', 'cron_vectors.json');
if (!existsSync(file)) console.warn(`skipped: the cron vectors of four projects, for ${file} is not there`);

describe.skipIf(!existsSync(file))('what four cron projects say of UTC', () => {
  const vectors = existsSync(file) ? (JSON.parse(readFileSync(file, 'utf8')).vectors as Vector[]) : [];
  const ours = vectors.filter((vector) => vector.tz === 'UTC' && vector.class === 'use');

  test('is there', () => expect(ours.length).toBeGreaterThan(30));

  test.each(ours)('$id: "$pattern" after $from', ({ pattern, from, expected_next }) => {
    process.env.TZ = 'America/New_York';
    let at = new Date(from);
    const runs = expected_next.map(() => {
      at = nextRun(parsePattern(pattern), at);
      return at.toISOString();
    });
    expect(runs).toEqual(expected_next);
  });
});

describe('what is kept', () => {
  test.each([
    ['48h', 48],
    ['2d', 48],
    ['90d', 2_160],
    ['12w', 2_016],
    ['2y', 17_520],
    ['1000y', 8_760_000],
  ])('%s is %i hours', (text, hours) => {
    expect(parseKept(text)).toBe(hours);
  });

  test.each(['', '0d', '1d', '47h', '90', 'd', '90 d', '-90d', '1.5y', '90D', '3m', '1001y', '99999999d'])(
    '"%s" is refused',
    (text) => {
      expect(() => parseKept(text)).toThrow(
        `expected at least 2d, in hours, days, weeks or years, such as 90d or 2y, got "${text}"`,
      );
    },
  );

  test('is statistics at least as long as calls', () => {
    expect(() => checkKept({ calls: 48, stats: 47 })).toThrow('at least as long as calls (48 hours), got 47 hours');
    for (const kept of [{}, { calls: 48 }, { stats: 48 }, { calls: 48, stats: 48 }]) checkKept(kept);
  });
});
