// Who notices that nothing happens any more?

import { type Connections, quiet } from './connections.ts';
import { targetOf } from './processors/tell-webhook.ts';
import { watchAlarms } from './processors/watch-alarms.ts';
import { repeat } from './repeat.ts';
import { settleWarnings } from './store/warnings.ts';

const WATCH_MS = 30_000;

/**
 * Look every 30 seconds whether something is wrong for too long, until `stop`: in each process that stays, workers and dashboards, so
 * that it is noticed where no worker lives. Apart from the worker's own look: neither a Redis that is away nor a webhook that hangs keeps
 * the one from the other. The first look is not at once, so that what waited while nobody was there is done first.
 */
export function startWatch(connections: Connections, everyMs = WATCH_MS): { stop(): Promise<void> } {
  const { pool, log, config, alarmPolicy: policy } = connections;
  const onError = quiet(log)('alarms');
  const deps = { pool, log, policy, webhook: targetOf(config.ALARM_WEBHOOK_URL, config.ALARM_WEBHOOK_SECRET) };
  const stopping = new AbortController();
  const onOwner = quiet(log)('owner of the prefix');
  void repeat(everyMs, stopping.signal, async () => {
    await Promise.all([
      watchAlarms(deps, stopping.signal).catch(onError),
      watchOwner(connections).catch(onOwner), // of a Redis that is away nobody knows
    ]);
  });
  return { stop: async () => stopping.abort() };
}

/** Warn if the prefix in Redis belongs to another database, also if none of our workers lives: they were refused. */
async function watchOwner({ pool, queues, ownership }: Connections): Promise<void> {
  const look = await ownership.look();
  await settleWarnings(pool, 'redis-owner', await ownership.findings(look, queues));
}
