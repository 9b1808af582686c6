// What is the state of everything?

import { type Connections, within } from '../connections.ts';
import { compareScheduler, type Inspected, wishes } from '../producers/schedules.ts';
import { depthsOf } from '../queues/redis.ts';
import { openAlarms } from '../store/alarms.ts';
import { auditStatus } from '../store/audit.ts';
import { probesSpent } from '../store/checks.ts';
import { reasonOf } from '../store/db.ts';
import { uncoveredNow, walkOf } from '../store/gaps.ts';
import { waitingMarks } from '../store/marks.ts';
import { statusLines } from '../store/model-status.ts';
import { hasStrays, layoutOf } from '../store/partitions.ts';
import { ledgerStatus } from '../store/progress.ts';
import { allSchedules } from '../store/schedules.ts';
import { olderTransactions } from '../store/seam.ts';
import { failedLately } from '../store/stale.ts';
import { settledUntil, waitingHours, waitingSpan } from '../store/standing.ts';
import { type State, stateOf } from './state.ts';
import { warningsNow } from './warnings.ts';

/** So many hours are named of each kind. */
const NAMED = 20;
/** Redis is not waited for longer. */
const LIMIT_MS = 2_000;

/** All that is known before it is made into a sentence. */
export type Facts = Awaited<ReturnType<typeof factsOf>>;
export type Status = Facts & { readonly state: State };

/** The ledger, what waits for it, the audits, models, schedulers, queues and workers at one look. Redis may be away: `redis` says why. */
export async function statusOf(connections: Connections): Promise<Status> {
  const facts = await factsOf(connections);
  return { ...facts, state: stateOf(facts) };
}

async function factsOf(connections: Connections) {
  const { pool, modelPolicy } = connections;
  const [ledger, marks, waiting, provisional, uncovered, walk, audit, models, spent, stale, alarms, layout, ofRedis] =
    await Promise.all([
      ledgerStatus(pool, NAMED),
      waitingMarks(pool),
      waitingHours(pool, NAMED),
      waitingSpan(pool),
      uncoveredNow(pool),
      walkOf(pool),
      auditStatus(pool, NAMED),
      modelPolicy.interval().then((interval) => statusLines(pool, interval)),
      probesSpent(pool),
      failedLately(pool),
      openAlarms(pool),
      layoutOf(pool),
      redisStatus(connections),
    ]);
  const warnings = await warningsNow(connections, uncovered);
  const { completeFrom, watermark } = ledger;
  const settled = completeFrom && watermark && (await settledUntil(pool, { start: completeFrom, end: watermark }));
  const older = waiting.length > 0 ? await olderTransactions(pool) : [];
  const strays = layout.kind === 'ours' && (await hasStrays(pool));
  return {
    now: ledger.now,
    ledger,
    settled,
    marks,
    waiting,
    provisional,
    older,
    uncovered,
    ...walk,
    warnings,
    audit,
    models,
    spent,
    stale,
    alarms,
    layout,
    strays,
    ...ofRedis,
  };
}

/** `redis`: why it does not answer, or null. */
interface RedisStatus {
  readonly redis: string | null;
  readonly schedulers: Inspected[];
  readonly queues: Awaited<ReturnType<typeof depthsOf>>;
  /** The version of each worker process; undefined if Redis does not say. */
  readonly workers: string[] | undefined;
}

/** Postgres is asked before, so that its errors and its delays are not taken for those of Redis. */
async function redisStatus({ pool, queues, config, ownership }: Connections): Promise<RedisStatus> {
  const [known, own] = await Promise.all([allSchedules(pool), ownership.claimant()]);
  const scheduleOf = (id: string) => known.find((schedule) => schedule.id === id);
  const asked = async () => ({
    redis: null,
    schedulers: await Promise.all(wishes(queues, config).map((wish) => compareScheduler(scheduleOf(wish.id), wish))),
    queues: await depthsOf(queues),
    workers: (await ownership.workersOn(queues.hours, own))?.map(({ version }) => version),
  });
  try {
    return await within(LIMIT_MS, 'Redis', asked());
  } catch (error) {
    return { redis: reasonOf(error), schedulers: [], queues: [], workers: undefined };
  }
}
