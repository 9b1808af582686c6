// hourhand retain: seal old hours, and delete what is no longer kept of them.

import type { Connections } from '../connections.ts';
import { type Phase, retain } from '../producers/retain.ts';
import type { Kept } from '../time/kept.ts';
import { openProgress, type Progress } from './progress.ts';
import { say } from './say.ts';

export interface RetainOptions {
  readonly kept: Kept;
  readonly dryRun: boolean;
  readonly requestedBy: string;
}

/**
 * Ctrl-C ends it between two batches; a second one at once.
 *
 * @returns the exit code: 1 if figures differ, if it was stopped before its end, or if the clock cannot be trusted
 */
export async function retainCommand(
  { pool, queues }: Connections,
  { kept, dryRun, requestedBy }: RetainOptions,
): Promise<number> {
  const stopping = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stopping.abort());
  let shown: { phase: Phase; progress: Progress } | undefined;
  const done = await retain(
    { pool, queues },
    {
      kept,
      dryRun,
      requestedBy,
      signal: stopping.signal,
      onProgress: async (phase, looked, total) => {
        if (shown?.phase !== phase) {
          shown?.progress.stop();
          shown = { phase, progress: openProgress(`hours of ${phase}`, total) };
        }
        shown.progress.update(looked);
      },
      onDiffering: async (hour, { found }) => void process.stdout.write(`${hour} differs: ${found}\n`),
    },
  ).finally(() => shown?.progress.stop());

  const { sealed, calls, callHours, detached, stats, statHours, passed, differing, late, complete, held } = done;
  for (const { hour, calls, users } of late.first) {
    process.stdout.write(`${hour} ${calls} late calls, not applied: ${users.join(', ')}\n`);
  }
  for (const [why, { hours, first }] of Object.entries(passed)) {
    say(`passed over ${hours} hours: ${why} (${first.join(', ')}${hours > first.length ? ', …' : ''})`);
  }
  if (late.calls > 0) say(`late calls of sealed hours: ${late.calls} in ${late.hours} hours, not applied, and kept`);
  const [would, seal, remove] = dryRun ? ['would ', 'seal', 'delete'] : ['', 'sealed', 'deleted'];
  say(
    `${would}${seal} ${sealed} hours; ${would}${remove} ${calls} calls of ${callHours} hours and ${stats} statistics of ${statHours} hours${dryRun ? '; nothing was changed' : ''}`,
  );
  for (const name of detached) {
    say(dryRun ? `would detach ${name}` : `${name} detached: a table of its own now, to be archived or dropped`);
  }
  if (differing > 0 && !dryRun) say(`asked for ${differing} hours whose figures differ: they are repaired first`);
  if (held) say(`${dryRun ? 'would wait' : 'nothing more is sealed or deleted'}: ${held}`);
  else if (!complete) say('stopped: what is done stays done; the next one goes on from here');
  return differing > 0 || !complete ? 1 : 0;
}
