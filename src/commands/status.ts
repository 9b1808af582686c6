// hourhand status: is everything in order?

import Table from 'cli-table3';
import type { Connections } from '../connections.ts';
import { tell } from '../dashboard/state.ts';
import { statusOf } from '../dashboard/status.ts';
import { hourOf } from '../time/hour.ts';

/** What `--json` prints. */
export async function gatherStatus(connections: Connections) {
  const found = await statusOf(connections);
  const { ledger, waiting, older, audit, layout, strays, alarms, schedulers, queues, workers } = found;
  if (found.redis !== null) throw new Error(found.redis);
  return {
    ok: found.state.ok,
    state: found.state.state,
    troubles: found.state.troubles,
    now: ledger.now,
    completeFrom: ledger.completeFrom && hourOf(ledger.completeFrom),
    watermark: ledger.watermark && hourOf(ledger.watermark),
    settled: found.settled && hourOf(found.settled),
    uncovered: found.uncovered,
    lookingBefore: found.lookingBefore && hourOf(found.lookingBefore),
    warnings: found.warnings,
    owed: ledger.owed,
    held: ledger.held,
    oldestOwed: ledger.oldestOwed && hourOf(ledger.oldestOwed),
    marks: found.marks,
    hours: ledger.unsettled,
    provisional: { hours: waiting, olderTransactions: older },
    audit,
    layout: layout.kind === 'ours' ? { ...layout, strays } : layout,
    alarms,
    schedulers,
    queues,
    workers: workers?.length ?? null,
  };
}

export async function status(connections: Connections, { json }: { json: boolean }): Promise<number> {
  const found = await gatherStatus(connections);
  process.stdout.write(json ? `${JSON.stringify(found, null, 2)}\n` : inWords(found));
  return 0;
}

function inWords(found: Awaited<ReturnType<typeof gatherStatus>>): string {
  const { watermark, completeFrom, uncovered, lookingBefore } = found;
  const looking = lookingBefore ? `; still looking before ${lookingBefore}` : '';
  const lines = [
    found.state,
    ...found.troubles.slice(1).map((trouble) => `also        ${tell(trouble)}`),
    watermark
      ? `watermark   ${watermark}   (every hour from ${completeFrom} to it is closed)`
      : 'watermark   none yet: no worker has ever started',
    `settled     ${found.settled ?? 'nothing yet'}`,
    `no figure   ${uncovered.hours} hours with calls${looking}`,
    `owed        ${found.owed} hours${found.oldestOwed ? `, the oldest ${found.oldestOwed}` : ''}; ${found.marks} marks`,
    ...(found.held > 0 ? [`held        ${found.held} hours, of backfills that are paused`] : []),
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
  lines.push(`audited     ${auditedInWords(found.audit.since)}`);
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

function auditedInWords(since: Date | null): string {
  return since ? `every closed hour since ${since.toISOString()}, except sealed ones` : 'not every closed hour yet';
}

function layoutInWords(layout: Awaited<ReturnType<typeof gatherStatus>>['layout']): string {
  if (layout.kind === 'plain') return 'ModelCall is one table';
  if (layout.kind === 'foreign') return 'ModelCall was partitioned by somebody else, who sees to its partitions';
  const { by, partitions, reaches, ahead, strays } = layout;
  const until = reaches ? `they reach to ${hourOf(reaches)}` : 'none is there for this moment';
  const rest = strays ? '; the default partition holds calls' : '';
  return `ModelCall in ${partitions} partitions by ${by}, ${ahead} ahead: ${until}${rest}`;
}
