// hourhand import: load calls from a CSV file.

import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import type { Config } from '../config.ts';
import { importCalls } from '../import.ts';
import { CREDITS, SECONDS } from '../store/decimals.ts';
import { wholeHours } from '../time/range.ts';
import { openProgress } from './progress.ts';
import { say, sayRounded } from './say.ts';

/** @returns the exit code: 1 if a line was bad and nothing was imported, or if the rest of the file could not be read */
export async function importFile(config: Config, file: string, { skipBad }: { skipBad: boolean }): Promise<number> {
  const size = file === '-' ? undefined : (await stat(file)).size;
  const progress = openProgress(size === undefined ? 'rows' : 'bytes', size ?? 0);
  const stopping = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.once(signal, () => stopping.abort(new Error(`${signal}: nothing was imported`)));
  const result = await importCalls({
    databaseUrl: config.DATABASE_URL,
    input: file === '-' ? process.stdin : createReadStream(file),
    skipBad,
    onBad: ({ line, field, reason }) => say(`line ${line}: ${field}: ${reason}`),
    onProgress: (bytes, rows) => (size === undefined ? progress.update(rows, rows) : progress.update(bytes)),
    signal: stopping.signal,
  }).finally(() => progress.stop());

  if (result.bad > 0 && !skipBad) {
    say(`nothing imported: ${result.bad} of ${result.lines} lines are bad (--skip-bad imports the rest)`);
    return 1;
  }
  const skipped = result.bad > 0 ? `, ${result.bad} bad lines skipped` : '';
  say(`${result.imported} calls of ${result.users} users imported, ${result.repeated} were there already${skipped}`);
  sayRounded(result.roundedCredits, 'amount', CREDITS);
  sayRounded(result.roundedDurations, 'duration', SECONDS);
  const { sealed } = result;
  if (sealed.calls > 0) {
    say(`late, not applied: ${sealed.calls} of them fell into ${sealed.hours} sealed hours (hourhand late list)`);
  }
  if (result.imported > 0 && result.first && result.last) {
    const { start, end } = wholeHours(result.first, new Date(result.last.getTime() + 1));
    say(`their statistics: hourhand backfill --from ${start.toISOString()} --to ${end.toISOString()} --wait`);
  }
  if (result.unread) {
    say(
      'the file was not read to its end: mend its last bad line and import it again; what is there is not counted twice',
    );
    return 1;
  }
  return 0;
}
