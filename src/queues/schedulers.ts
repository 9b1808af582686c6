// Which schedulers are there? Apart from what drives them, for a command line that names them need not load BullMQ.

/** Every scheduler that hourhand has: its id, its variable, and its queue, which holds nothing but its ticks. */
export const SCHEDULERS = [
  ['model.call.stats', 'MODEL_CALL_STATS_CRON_TIME', 'ticks'],
  ['late.model.calls', 'LATE_DATA_SECONDS', 'lateTicks'],
  ['cleanup.stale.model.calls', 'CLEANUP_STALE_MODEL_CALLS_CRON_TIME', 'staleTicks'],
  ['check.model.status', 'CHECK_MODEL_STATUS_CRON_TIME', 'modelTicks'],
  ['audit.model.call.stats', 'AUDIT_MODEL_CALL_STATS_CRON_TIME', 'auditTicks'],
  ['retain.model.calls', 'RETAIN_MODEL_CALLS_CRON_TIME', 'retainTicks'],
] as const;

export type SchedulerId = (typeof SCHEDULERS)[number][0];

export const SCHEDULER_IDS: readonly SchedulerId[] = SCHEDULERS.map(([id]) => id);
