// How is it said that something is wrong for too long?

import type { Logger } from 'pino';
import { type Alarm, type AlarmPolicy, markTold, settleAlarms, takeUntold } from '../store/alarms.ts';
import { type Now, type Pool, reasonOf } from '../store/db.ts';
import { tellWebhook, type WebhookTarget } from './tell-webhook.ts';

export interface WatchDeps {
  readonly pool: Pool;
  readonly log: Logger;
  readonly policy: AlarmPolicy;
  readonly webhook: WebhookTarget | undefined;
}

/** Alarms that one look tells of at most, all at once, so that a webhook that hangs keeps it for seconds. */
const TELL = 20;
const TIMEOUT_MS = 5_000;

/**
 * One look: raise and end alarms, a line in the log for each, and tell the webhook what it has not taken yet. It needs no Redis, which may
 * be what is broken, and any number of processes may do it at once. Killed on any line, it is made up for by the next look.
 */
export async function watchAlarms(deps: WatchDeps, signal: AbortSignal, now?: Now): Promise<void> {
  const { pool, log, policy, webhook } = deps;
  const { raised, ended } = await settleAlarms(pool, policy, now);
  for (const { kind, subject, since, detail } of raised) log.error({ kind, subject, since, detail }, 'alarm raised');
  for (const { kind, subject, since, endedAt } of ended) log.info({ kind, subject, since, endedAt }, 'alarm ended');
  if (!webhook) return;
  const untold = await takeUntold(pool, TELL, now);
  const told = await Promise.allSettled(untold.map((alarm) => tellAlarm(deps, webhook, alarm, signal, now)));
  const refused = told.filter((one) => one.status === 'rejected');
  if (refused.length > 0) {
    const [first] = refused;
    log.warn({ alarms: refused.length, reason: reasonOf(first?.reason) }, 'alarms not told: again at the next look');
  }
}

/** What is to be told of one alarm, in order: that it was raised, and that it ended. At least once each. */
async function tellAlarm(
  { pool }: WatchDeps,
  webhook: WebhookTarget,
  { seq, toldAt, endToldAt: _, ...alarm }: Alarm,
  signal: AbortSignal,
  now: Now,
): Promise<void> {
  const { endedAt, raisedAt } = alarm;
  const tell = async (what: 'raised' | 'ended', timestamp: Date) => {
    const said = { id: `hourhand-alarm-${seq}-${what}`, type: `alarm.${what}`, timestamp, data: alarm };
    await tellWebhook(webhook, said, { signal, timeoutMs: TIMEOUT_MS });
    await markTold(pool, seq, what, now);
  };
  if (!toldAt) await tell('raised', raisedAt);
  if (endedAt) await tell('ended', endedAt);
}
