// hourhand stale: show the calls that hang, or fail them.

import Table from 'cli-table3';
import type { Connections } from '../connections.ts';
import { cleanUp } from '../producers/stale.ts';
import { type StaleCalls, staleCalls } from '../store/stale.ts';
import { openProgress, type Progress } from './progress.ts';
import { say } from './say.ts';

export interface StaleOptions {
  readonly dryRun: boolean;
  readonly requestedBy: string;
}

const MAX_LINES = 1_000;

/** @returns the exit code: 1 if it was stopped before the last batch */
export async function stale(connections: Connections, { dryRun, requestedBy }: StaleOptions): Promise<number> {
  return dryRun ? show(connections) : fail(connections, requestedBy);
}

async function show({ pool, stalePolicy: { limits } }: Connections): Promise<number> {
  const lines = await staleCalls(pool, limits, MAX_LINES);
  if (lines.length > 0)
    print(
      ['oldest'],
      lines.map((line) => [line, line.oldest.toISOString()] as const),
    );
  const calls = lines.reduce((sum, line) => sum + line.calls, 0);
  const more = lines.length === MAX_LINES ? `, and those of further models` : '';
  say(`would fail ${calls} calls${more}; nothing was changed`);
  return 0;
}

/** Ctrl-C ends it between two batches; a second one at once. */
async function fail({ pool, stalePolicy }: Connections, requestedBy: string): Promise<number> {
  const stopping = new AbortController();
  const stop = () => stopping.abort();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, stop);
  let progress: Progress | undefined;
  const { done, complete } = await cleanUp(
    { pool, policy: stalePolicy },
    {
      requestedBy,
      signal: stopping.signal,
      onProgress: async (looked, total) => {
        if (total > 0) progress ??= openProgress('calls', total);
        progress?.update(looked);
      },
    },
  ).finally(() => progress?.stop());
  const hours = Object.entries(done.hours);
  if (done.calls > 0)
    print(
      [],
      done.models.map((line) => [line] as const),
    );
  for (const [hour, calls] of hours) process.stdout.write(`${hour}  ${calls}\n`);
  if (done.otherModels) say(`${done.otherModels} of further models`);
  if (done.otherHours) say(`${done.otherHours} in further hours`);
  say(`${done.calls} calls failed`);
  if (!complete) say('stopped: what is failed stays failed; the rest waits for the next clean-up');
  return complete ? 0 : 1;
}

function print(further: readonly string[], lines: readonly (readonly [StaleCalls, ...string[]])[]): void {
  const table = new Table({
    head: ['provider', 'model', 'type', 'limit', 'calls', ...further],
    style: { head: [], border: [] },
  });
  for (const [{ provider, model, type, limitMinutes, calls }, ...rest] of lines) {
    table.push([provider, model, type, `${limitMinutes} minutes`, calls, ...rest]);
  }
  process.stdout.write(`${table.toString()}\n`);
}
