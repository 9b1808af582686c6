// How is one model probed?

import { DelayedError } from 'bullmq';
import pLimit from 'p-limit';
import { askModel } from '../providers/ask.ts';
import { parseData } from '../queues/define-job.ts';
import { probeModel } from '../queues/models.ts';
import { type Beginning, beginProbe, endProbe, type ProbeResult } from '../store/checks.ts';
import type { Pool } from '../store/db.ts';
import type { ModelCallType } from '../store/models.ts';
import type { Context } from './context.ts';

export interface ProbePolicy {
  readonly timeoutSeconds: number;
  readonly generate: readonly ModelCallType[];
  readonly allowHttp: boolean;
}

/** A probe that its provider has had no place for within this time of its check is left to the next one. */
const PATIENCE_MS = 5 * 60_000;
/** Between two looks of one probe for a place, and of all that wait for the same provider together. */
const LOOK_MS = 250;
const LOOKS_MS = 10;
/** Beyond the time-out: after so long the place of a probe whose process died is free again. */
const GRACE_SECONDS = 5;

/** What a check takes beside its probes: its own jobs, and repeated attempts of theirs. */
const JOBS_SECONDS = 60;

/** Seconds after which a check is over: its last probe no longer waits for its provider, and has its answer. */
export function checkLimitSeconds({ timeoutSeconds }: Pick<ProbePolicy, 'timeoutSeconds'>): number {
  return PATIENCE_MS / 1_000 + timeoutSeconds + GRACE_SECONDS + JOBS_SECONDS;
}

export interface ProbeDeps {
  readonly pool: Pool;
  readonly policy: ProbePolicy;
  /** A variable of this process' environment: the key goes from there to the provider, and nowhere else. */
  readonly secretOf: (name: string) => string | undefined;
}

/**
 * Ask one model one question, within its provider's concurrency, and write down what came of it. A failing model is no
 * failing job. Never asked twice, whatever dies: what it costs may have been spent.
 */
export function probeModelProcessor(deps: ProbeDeps) {
  const { pool, policy } = deps;
  // One after the other: they wait for the same provider's lock, and each that waits would keep one of our connections.
  const inTurn = pLimit(1);
  return async ({ job, token, signal }: Context): Promise<unknown> => {
    const { probe } = parseData(probeModel, job);
    const begun = await inTurn(() => beginProbe(pool, probe, policy.timeoutSeconds + GRACE_SECONDS));
    if (begun.state === 'over') return { nothing: 'to do' };
    if (begun.state === 'busy') {
      if (Date.now() - begun.since.getTime() > PATIENCE_MS) return { nothing: 'begun: the provider was busy' };
      await job.moveToDelayed(Date.now() + Math.max(LOOK_MS, begun.ahead * LOOKS_MS), token);
      throw new DelayedError();
    }
    const result = await ask(deps, begun, signal);
    await endProbe(pool, probe, result);
    await job.log(result.ok ? `answered after ${result.latencyMs} ms` : `${result.reason}: ${result.detail}`);
    return result;
  };
}

async function ask(
  { policy: { timeoutSeconds, ...options }, secretOf }: ProbeDeps,
  { baseUrl, apiKeyEnv, model, type }: Extract<Beginning, { state: 'begun' }>,
  signal: AbortSignal,
): Promise<ProbeResult> {
  const key = secretOf(apiKeyEnv);
  if (key)
    return askModel({ baseUrl, key }, { model, type }, { ...options, timeoutMs: timeoutSeconds * 1_000, signal });
  return {
    ok: false,
    reason: 'no credentials',
    detail: `${apiKeyEnv} is not set where this worker runs`,
    latencyMs: 0,
  };
}
