// One sentence says how things are: what is wrong comes first, and nothing is said to be complete that is not.

import { expect, test } from 'vitest';
import { stateOf } from '../src/dashboard/state.ts';
import type { Facts } from '../src/dashboard/status.ts';
import { uncoveredFinding } from '../src/store/gaps.ts';
import { h } from './support/hourhand.ts';

const at = (text: string) => new Date(`${text}:00:00Z`);
const now = new Date('2026-08-20T15:20:00Z');

const ledger: Facts['ledger'] = {
  now,
  completeFrom: at('2026-08-01T00'),
  watermark: at('2026-08-20T15'),
  owed: 0,
  oldestOwed: null,
  newestOwed: null,
  held: 0,
  oldestHeld: null,
  newestHeld: null,
  partial: 0,
  unsettled: [],
};

/** All is well, but for what a test says. */
const facts = (differing: Partial<Facts> = {}): Facts => ({
  now,
  ledger,
  settled: at('2026-08-20T14'),
  marks: 0,
  waiting: [],
  provisional: { hours: 0, first: null, last: null },
  older: [],
  uncovered: { hours: 0, first: null, last: null, calls: 0, moreCalls: false },
  lookingBefore: null,
  warnings: [],
  audit: { since: null, last: null, findings: [] },
  models: [],
  spent: { lastHour: 0, lastDayCredits: '0' } as Facts['spent'], // the sentence does not speak of it
  stale: { calls: 0, at: null } as Facts['stale'], // nor of this
  alarms: [],
  layout: { kind: 'plain', spanCheck: false },
  strays: false,
  redis: null,
  schedulers: [],
  queues: [],
  workers: ['0.7.0'],
  ...differing,
});

const uncovered = {
  hours: 1_426,
  first: h('2026-05-01T00'),
  last: h('2026-07-31T23'),
  calls: 24_000,
  moreCalls: false,
};
const warningOf = (found: Parameters<typeof uncoveredFinding>[0]): Facts['warnings'] => {
  const finding = uncoveredFinding(found);
  return finding ? [{ kind: 'uncovered', since: now, ...finding }] : [];
};
const owed = { ...ledger, owed: 720, oldestOwed: at('2026-06-01T00'), newestOwed: at('2026-06-30T23') };

test.each<[string, Partial<Facts>, string, boolean]>([
  ['all is well', {}, 'OK: complete from 2026-08-01T00 to 2026-08-20T15; settled to 2026-08-20T14', true],
  [
    'an hour has just ended',
    {
      ledger: {
        ...ledger,
        watermark: at('2026-08-20T14'),
        owed: 1,
        oldestOwed: at('2026-08-20T14'),
        newestOwed: at('2026-08-20T14'),
      },
      now: new Date('2026-08-20T15:01Z'),
    },
    'OK: complete from 2026-08-01T00 to 2026-08-20T14; settled to 2026-08-20T14; 2026-08-20T14 has just ended and is on its way',
    true,
  ],
  [
    'hours are uncovered',
    { uncovered, warnings: warningOf(uncovered) },
    '1,426 hours with 24,000 calls are in no figure, from 2026-05-01T00 to 2026-08-01T00: type hourhand backfill --uncovered. Complete from 2026-08-01T00 to 2026-08-20T15; settled to 2026-08-20T14',
    false,
  ],
  [
    'an hour with more than a million calls is uncovered',
    { warnings: warningOf({ ...uncovered, hours: 1, last: uncovered.first, calls: 1_000_000, moreCalls: true }) },
    '1 hour with more than 1,000,000 calls is in no figure, from 2026-05-01T00 to 2026-05-01T01: type hourhand backfill --uncovered. Complete from 2026-08-01T00 to 2026-08-20T15; settled to 2026-08-20T14',
    false,
  ],
  [
    'past hours are owed',
    { ledger: owed },
    '720 hours are owed and on the way, from 2026-06-01T00 to 2026-07-01T00. Complete from 2026-08-01T00 to 2026-08-20T15; settled to 2026-08-20T14',
    false,
  ],
  [
    'the walk has not ended',
    { lookingBefore: at('2026-03-01T00') },
    'Complete from 2026-08-01T00 to 2026-08-20T15; settled to 2026-08-20T14; still looking before 2026-03-01T00 for calls in no figure',
    false,
  ],
  [
    'no worker is alive, and hours are owed',
    { ledger: owed, workers: [] },
    'No worker is alive: start one with hourhand worker; 1 other thing wants attention. Complete from 2026-08-01T00 to 2026-08-20T15; settled to 2026-08-20T14',
    false,
  ],
  [
    'nobody has ever started a worker',
    { ledger: { ...ledger, completeFrom: null, watermark: null }, settled: null },
    'No worker has ever started: start one with hourhand worker. Nothing is complete yet',
    false,
  ],
  [
    'nothing of the live range has closed, or settled',
    {
      ledger: { ...ledger, completeFrom: at('2026-08-20T14'), watermark: at('2026-08-20T15') },
      settled: at('2026-08-20T14'),
    },
    'OK: complete from 2026-08-20T14 to 2026-08-20T15; none of it is settled yet',
    true,
  ],
  [
    'an hour has been provisional for long',
    { provisional: { hours: 1, first: at('2026-08-20T11'), last: at('2026-08-20T11') } },
    '1 hour is provisional, 2026-08-20T11: hourhand status names the older transactions. Complete from 2026-08-01T00 to 2026-08-20T15; settled to 2026-08-20T14',
    false,
  ],
  [
    'an hour waits for a paused backfill',
    { ledger: { ...ledger, held: 2, oldestHeld: at('2026-06-01T00'), newestHeld: at('2026-06-03T00') } },
    '2 hours wait for a paused backfill, from 2026-06-01T00 to 2026-06-03T01: type hourhand backfills, then hourhand backfills resume ID. Complete from 2026-08-01T00 to 2026-08-20T15; settled to 2026-08-20T14',
    false,
  ],
])('%s', (_, differing, state, ok) => {
  expect(stateOf(facts(differing))).toMatchObject({ state, ok });
});

test('its key changes with what is wrong, and not with each hour that a backfill has done', () => {
  const keyOf = (differing: Partial<Facts>) => stateOf(facts(differing)).key;
  expect(keyOf({})).toBe('ok');
  expect(keyOf({ ledger: { ...ledger, watermark: at('2026-08-20T14') } })).toBe('ok');
  expect(keyOf({ ledger: { ...owed, owed: 719 } })).toBe(keyOf({ ledger: owed }));
  expect(keyOf({ warnings: warningOf(uncovered) })).not.toBe(
    keyOf({ warnings: warningOf({ ...uncovered, hours: 1_427 }) }),
  );
});
