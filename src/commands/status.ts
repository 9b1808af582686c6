// hourhand status: is everything in order?

import Table from 'cli-table3';
import type { Connections } from '../connections.ts';
import { inspectScheduler, wishes } from '../producers/schedules.ts';
import { workersOn } from '../queues/redis.ts';
import { openAlarms } from '../store/alarms.ts';
import { auditStatus } from '../store/audit.ts';
import { hasStrays, layoutOf } from '../store/partitions.ts';
import { ledgerStatus } from '../store/progress.ts';
import { olderTransactions } from '../store/seam.ts';
import { waitingHours } from '../store/standing.ts';
import { hourOf } from '../time/hour.ts';

/** The ledger, the schedulers and the queues at one look; what `--json` prints. */
export async function gatherStatus({ pool, queues, config }: Connections) {
  const ledger = await ledgerStatus(pool, 20);
  const waiting = await waitingHours(pool, 20);
  const older = waiting.length > 0 ? await olderTransactions(pool) : [];
  const audit = await auditStatus(pool, 20);
  const layout = await layoutOf(pool);
  const strays = layout.kind === 'ours' && (await hasStrays(pool));
  const schedulers = await Promise.all(wishes(queues, config).map((wish) => inspectScheduler(pool, wish)));
  const counts = await Promise.all(
    Object.values(queues).map(async (queue) => ({
      queue: queue.name as string,
      paused: (await queue.isPaused()) as boolean,
      ...((await queue.getJobCounts(
        'waiting',
        'prioritized',
        'active',
        'delayed',
        'waiting-children',
        'failed',
      )) as Record<string, number>),
    })),
  );
  const workers = (await workersOn(queues.hours)) ?? null;
  return {
    now: ledger.now,
    watermark: ledger.watermark && hourOf(ledger.watermark),
    owed: ledger.owed,
    oldestOwed: ledger.oldestOwed && hourOf(ledger.oldestOwed),
    marks: ledger.marks,
    hours: ledger.unsettled,
    provisional: { hours: waiting, olderTransactions: older },
    audit,
    layout: layout.kind === 'ours' ? { ...layout, strays } : layout,
    alarms: await openAlarms(pool),
    schedulers,
    queues: counts,
    workers,
  };
}

export async function status(connections: Connections, { json }: { json: boolean }): Promise<number> {
  const found = await gatherStatus(connections);
  process.stdout.write(json ? `${JSON.stringify(found, null, 2)}\n` : inWords(found));
  return 0;
}

function inWords(found: Awaited<ReturnType<typeof gatherStatus>>): string {
  const lines = [
    `watermark   ${found.watermark ?? 'none yet: no worker has ever started'}   (everything before it is closed)`,
    `owed        ${found.owed} hours${found.oldestOwed ? `, the oldest ${found.oldestOwed}` : ''}; ${found.marks} marks`,
    `workers     ${found.workers ?? 'unknown'}`,
  ];
  for (const { hour, state, run, error, nextAttemptAt } of found.hours) {
    const next = nextAttemptAt ? `, again at ${nextAttemptAt.toISOString()}` : '';
    lines.push(`${state.padEnd(11)} ${hour} run ${run}${error ? `: ${error}` : ''}${next}`);
  }
  for (const hour of found.provisional.hours) lines.push(`provisional ${hour} waits for older transactions`);
  for (const { pid, role, application, state, since } of found.provisional.olderTransactions) {
    const who = [pid && `pid ${pid}`, role, application].filter(Boolean).join(', ');
    lines.push(
      `older       transaction of ${who}: ${state ?? 'its state is hidden from this role'}, since ${since?.toISOString() ?? '?'}`,
    );
  }
  for (const { hour, at, found: what, repaired } of found.audit.findings) {
    lines.push(`audit       ${hour} at ${at.toISOString()}: ${what}${repaired ? '; repaired since' : ''}`);
  }
  lines.push(
    `audited     ${found.audit.since ? `every closed hour since ${found.audit.since.toISOString()}` : 'not every closed hour yet'}`,
  );
  lines.push(`layout      ${layoutInWords(found.layout)}`);
  for (const { kind, subject, detail } of found.alarms) {
    lines.push(`alarm       ${[kind, subject].filter(Boolean).join(' ')}: ${detail}`);
  }
  for (const { id, pattern, next, state, lastAt, pausedAt, pausedBy } of found.schedulers) {
    const runs = `${lastAt ? `, last ${lastAt.toISOString()}` : ''}${next ? `, next ${next.toISOString()}` : ''}`;
    const paused = pausedAt ? `, paused by ${pausedBy} since ${pausedAt.toISOString()}` : '';
    lines.push(`scheduler   ${id} ${state}, "${pattern ?? 'not set yet'}"${runs}${paused}`);
  }
  const table = new Table({
    head: ['queue', 'waiting', 'active', 'delayed', 'waiting for children', 'failed', ''],
    style: { head: [], border: [] },
  });
  for (const counts of found.queues) {
    const n = (key: string) => Number(Object(counts)[key] ?? 0);
    table.push([
      counts.queue,
      n('waiting') + n('prioritized'),
      n('active'),
      n('delayed'),
      n('waiting-children'),
      n('failed'),
      counts.paused ? 'paused' : '',
    ]);
  }
  return `${lines.join('\n')}\n${table.toString()}\n`;
}

function layoutInWords(layout: Awaited<ReturnType<typeof gatherStatus>>['layout']): string {
  if (layout.kind === 'plain') return 'ModelCall is one table';
  if (layout.kind === 'foreign') return 'ModelCall was partitioned by somebody else, who sees to its partitions';
  const { by, partitions, reaches, ahead, strays } = layout;
  const until = reaches ? `they reach to ${hourOf(reaches)}` : 'none is there for this moment';
  const rest = strays ? '; the default partition holds calls' : '';
  return `ModelCall in ${partitions} partitions by ${by}, ${ahead} ahead: ${until}${rest}`;
}
