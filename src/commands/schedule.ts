// hourhand schedule: see to the schedulers, and print them.

import Table from 'cli-table3';
import { version } from '../config.ts';
import type { Connections } from '../connections.ts';
import { ensureScheduler, inspectScheduler, wishes } from '../producers/schedules.ts';
import { deployOf } from '../store/schedules.ts';

export async function schedule({ pool, queues, config }: Connections): Promise<number> {
  const now = await deployOf(pool, version);
  const table = new Table({
    head: ['scheduler', 'pattern (UTC)', 'next run', 'state', ''],
    style: { head: [], border: [] },
  });
  for (const wish of wishes(queues, config)) {
    // Typed in a shell that says nothing of it, this is no deploy: what the workers were started with stands.
    const deploy = config.given.has(wish.variable) ? now : { version: '0.0.0', startedAt: new Date(0) };
    const ensured = await ensureScheduler(pool, wish, deploy);
    const { id, pattern, next, state } = await inspectScheduler(pool, wish);
    table.push([id, pattern ?? '', next?.toISOString() ?? '', state, ensured]);
  }
  process.stdout.write(`${table.toString()}\n`);
  return 0;
}
