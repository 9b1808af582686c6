// hourhand schedule: see to the schedulers, and print them; pause one, resume it, or have it tick now.

import Table from 'cli-table3';
import { version } from '../config.ts';
import type { Connections } from '../connections.ts';
import {
  ensureScheduler,
  type Inspected,
  inspectScheduler,
  pauseScheduler,
  resumeScheduler,
  runNow,
  wishes,
} from '../producers/schedules.ts';
import { deployOf } from '../store/schedules.ts';
import { say } from './say.ts';

export async function schedule({ pool, queues, config }: Connections): Promise<number> {
  const now = await deployOf(pool, version);
  const table = new Table({
    head: ['scheduler', 'pattern (UTC)', 'next run', 'state', '', 'last run', 'paused'],
    style: { head: [], border: [] },
  });
  for (const wish of wishes(queues, config)) {
    // Typed in a shell that says nothing of it, this is no deploy: what the workers were started with stands.
    const deploy = config.given.has(wish.variable) ? now : { version: '0.0.0', startedAt: new Date(0) };
    const ensured = await ensureScheduler(pool, wish, deploy);
    const inspected = await inspectScheduler(pool, wish);
    const { id, pattern, next, state, lastAt } = inspected;
    const last = lastAt?.toISOString() ?? '';
    table.push([id, pattern ?? '', next?.toISOString() ?? '', state, ensured, last, pauseInWords(inspected)]);
  }
  process.stdout.write(`${table.toString()}\n`);
  return 0;
}

export async function pause(connections: Connections, id: string, by: string): Promise<number> {
  say(`${id} is paused ${pauseInWords(await pauseScheduler(connections, id, by))}`);
  return 0;
}

export async function resume(connections: Connections, id: string, by: string): Promise<number> {
  const { resumed, state, next } = await resumeScheduler(connections, id, by);
  const found = next ? `${state}, next ${next.toISOString()}` : state;
  say(resumed ? `${id} is resumed: ${found}` : `${id} was not paused: ${found}`);
  return 0;
}

export async function tickNow(connections: Connections, id: string): Promise<number> {
  await runNow(connections, id);
  say(`${id}: a tick is asked for, which the next free worker runs`);
  return 0;
}

function pauseInWords({ pausedAt, pausedBy }: Inspected): string {
  return pausedAt ? `by ${pausedBy} since ${pausedAt.toISOString()}` : '';
}
