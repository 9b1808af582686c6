// hourhand stats: the stored statistics of a range.

import Table from 'cli-table3';
import { stringify } from 'csv-stringify/sync';
import type { Connections } from '../connections.ts';
import { inOneSnapshot } from '../store/db.ts';
import { standingOf } from '../store/standing.ts';
import { type StatLine, statLines } from '../store/stats.ts';
import { type Range, spell } from '../time/range.ts';
import { say } from './say.ts';
import { jsonArray, type Writer, writeBatches } from './write.ts';

export interface StatsOptions {
  readonly by: 'user' | 'type';
  readonly format: 'csv' | 'json' | 'table';
  readonly zeros: boolean;
}

/** The columns of the report, and the words for them outside. */
const figures: readonly [keyof StatLine, string][] = [
  ['userDid', 'user_did'],
  ['hour', 'hour'],
  ['type', 'type'],
  ['totalCalls', 'total_calls'],
  ['successCalls', 'success_calls'],
  ['totalUsage', 'total_usage'],
  ['totalCredits', 'total_credits'],
];
/** Which figures these are, and whether they will stay. Not in the CSV, which others read by its columns: there it is said beside it. */
const standing: readonly [keyof StatLine, string][] = [
  ['revision', 'revision'],
  ['asOf', 'as_of'],
  ['final', 'final'],
];

/** Written batch by batch, as fast as it is read: no report is too long for memory, and all of it is one snapshot. */
export async function stats(
  { pool, policy }: Connections,
  range: Range,
  { by, format, zeros }: StatsOptions,
): Promise<number> {
  const columns = format === 'csv' ? figures : [...figures, ...standing];
  const shown = columns.filter(([key]) => key !== 'type' || by === 'type');
  const found = await inOneSnapshot(pool, async (db) => {
    const lines = statLines(db, range, { by, ...(zeros ? { zerosDays: policy.windowDays } : {}) });
    await writeBatches(writers[format](shown), lines);
    return standingOf(db, range);
  });
  const since = found.asOf ? ` as of ${found.asOf.toISOString()}` : '';
  say(`${spell(range)}: ${found.final} hours settled${since}, ${found.provisional} provisional`);
  for (const { hour, why } of found.reasons) say(`${hour} provisional: ${why}`);
  if (found.provisional > found.reasons.length) say('and further ones');
  return 0;
}

const writers: Record<StatsOptions['format'], (shown: typeof figures) => Writer<StatLine>> = {
  csv: (shown) => ({
    head: stringify([shown.map(([, name]) => name)]),
    batch: (lines) => stringify(lines.map((line) => shown.map(([key]) => line[key]))),
    tail: () => '',
  }),
  // Whole numbers and credits stay the strings that they are: a reader's floats must not round a bill.
  json: (shown) => jsonArray((line) => Object.fromEntries(shown.map(([key, name]) => [name, line[key]]))),
  table: (shown) => ({
    head: '',
    batch: (lines) => {
      const table = new Table({
        head: shown.map(([, name]) => name),
        colAligns: shown.map(([key]) => (/^(total|success)/.test(key) ? 'right' : 'left')),
        style: { head: [], border: [] },
      });
      table.push(...lines.map((line) => shown.map(([key]) => String(line[key] ?? ''))));
      return `${table.toString()}\n`;
    },
    tail: () => '',
  }),
};
