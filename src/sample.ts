// What does a newcomer see before any gateway writes?

import { readFile } from 'node:fs/promises';
import { Readable } from 'node:stream';
import { importCalls } from './import.ts';
import type { Db } from './store/db.ts';
import { hasCalls } from './store/import.ts';
import { endOf, hourOf, startOf } from './time/hour.ts';
import { type Range, wholeHours } from './time/range.ts';

export interface SampleOptions {
  readonly databaseUrl: string;
  /** A CSV as `import` takes it, with `call_time` first, in UTC, and not quoted. */
  readonly file: string;
  readonly now: Date;
}

export interface Sample {
  readonly calls: number;
  readonly users: number;
  /** The hours that the calls lie in. */
  readonly range: Range;
}

/**
 * Load the sample into a database that has no call at all, else do nothing and return `undefined`.
 *
 * Its times are moved by whole hours, so that the newest of them is the hour that has just ended by `now` (of Postgres),
 * and each of its calls carries `{"sample": true}` in its metadata.
 */
export async function loadSample({ databaseUrl, file, now }: SampleOptions): Promise<Sample | undefined> {
  if (await hasCalls(databaseUrl)) return undefined;
  const { imported, users, first, last } = await importCalls({
    databaseUrl,
    input: Readable.from([Buffer.from(movedTo(now, await readFile(file, 'utf8')))]),
    skipBad: false,
    onBad: ({ line, field, reason }) => {
      throw new Error(`${file}: line ${line}: ${field}: ${reason}`);
    },
    label: { sample: true },
  });
  if (!first || !last) return undefined;
  return { calls: imported, users, range: wholeHours(first, new Date(last.getTime() + 1)) };
}

function movedTo(now: Date, csv: string): string {
  const times = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z/gm;
  const instants = Array.from(csv.matchAll(times), ([time]) => Date.parse(time));
  const newest = hourOf(new Date(Math.max(0, ...instants)));
  const shift = startOf(hourOf(now)).getTime() - endOf(newest).getTime();
  return csv.replace(times, (time) => new Date(Date.parse(time) + shift).toISOString());
}

/** Whether the database began with the sample: it is loaded into an empty one only, and so its calls are the first. */
export async function holdsSample(db: Db): Promise<boolean> {
  const [first] = await db.$queryRaw<{ sample: boolean }[]>`
    select metadata @> '{"sample": true}' is true as sample from "ModelCall" limit 1`;
  return first?.sample ?? false;
}
