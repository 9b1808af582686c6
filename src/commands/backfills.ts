// hourhand backfills: which were asked for, how far is each, and what is to become of it?

import Table from 'cli-table3';
import type { Connections } from '../connections.ts';
import { cancelBackfill, pauseBackfill, resumeBackfill, retryBackfill } from '../producers/backfills.ts';
import { type Backfill, backfillOf, finishBackfills, listBackfills } from '../store/backfills.ts';
import { spell } from '../time/range.ts';
import { say } from './say.ts';

/** So many are listed, the newest first. */
const LISTED = 20;

export async function backfills({ pool }: Connections, { json }: { json: boolean }): Promise<number> {
  await finishBackfills(pool);
  const found = await listBackfills(pool, LISTED);
  process.stdout.write(json ? `${JSON.stringify(found, null, 2)}\n` : inTable(found));
  return 0;
}

function inTable(found: readonly Backfill[]): string {
  const table = new Table({
    head: ['id', 'state', 'hours', 'of', 'done', 'failed', 'pending', 'by', 'from', 'at'],
    style: { head: [], border: [] },
  });
  for (const line of found) {
    const { id, state, hours, done, failed, pending, requestedBy, requestedFrom, requestedAt } = line;
    table.push([
      id,
      state,
      hours,
      forWhat(line),
      done,
      failed,
      pending,
      requestedBy,
      requestedFrom,
      requestedAt.toISOString(),
    ]);
  }
  return `${table.toString()}\n`;
}

function forWhat({ start, end, userDid, only }: Backfill): string {
  if (userDid !== null) return `${spell({ start, end })}, ${userDid} alone`;
  return spell({ start, end }) + (only === 'all' ? '' : `, ${only} ones only`);
}

export async function showBackfill({ pool }: Connections, id: number, { json }: { json: boolean }): Promise<number> {
  await finishBackfills(pool);
  const found = await backfillOf(pool, id);
  if (!found) return none(id);
  process.stdout.write(json ? `${JSON.stringify(found, null, 2)}\n` : inWords(found));
  return 0;
}

function inWords(found: NonNullable<Awaited<ReturnType<typeof backfillOf>>>): string {
  const { id, state, hours, done, failed, pending, givenBack, settledBy, failures } = found;
  const lines = [
    `backfill ${id}   ${state}${settledBy === null ? '' : `, ${settledBy} saw to it last`}`,
    `asked for    ${hours} hours of ${forWhat(found)}`,
    `by           ${found.requestedBy}, ${found.requestedFrom}, at ${found.requestedAt.toISOString()}`,
    `hours        ${done} done, ${failed} failed, ${pending} pending${givenBack > 0 ? `, ${givenBack} given back` : ''}`,
  ];
  if (found.finishedAt) lines.push(`over         since ${found.finishedAt.toISOString()}`);
  for (const { hour, error, nextAttemptAt } of failures) {
    lines.push(`failed       ${hour}: ${error}${nextAttemptAt ? `, again at ${nextAttemptAt.toISOString()}` : ''}`);
  }
  return `${lines.join('\n')}\n`;
}

/** What may become of a backfill, and what is said then. */
const changes = {
  pause: async (connections: Connections, id: number, by: string) =>
    (await pauseBackfill(connections, id, by)) && `backfill ${id} is paused: an hour that runs goes to its end`,
  resume: async (connections: Connections, id: number, by: string) =>
    (await resumeBackfill(connections, id, by)) && `backfill ${id} goes on`,
  cancel: async (connections: Connections, id: number, by: string) =>
    (await cancelBackfill(connections, id, by)) && `backfill ${id} is cancelled: an hour that runs goes to its end`,
  retry: async (connections: Connections, id: number, by: string) => {
    const hours = await retryBackfill(connections, id, by);
    return hours && `asked for ${hours.length} failed hours of backfill ${id} again`;
  },
};
export type Change = keyof typeof changes;

export async function changeBackfill(
  connections: Connections,
  change: Change,
  { id, by }: { id: number; by: string },
): Promise<number> {
  const done = await changes[change](connections, id, by);
  if (!done) return none(id);
  say(done);
  return 0;
}

function none(id: number): number {
  say(`there is no backfill ${id}`);
  return 1;
}
