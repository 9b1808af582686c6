// What is a model's status, by what a check saw of it?

import type { ProbeResult } from '../store/checks.ts';
import type { CallsSeen } from '../store/model-calls.ts';
import { callersFault, type ModelError } from '../store/model-errors.ts';
import type { Judgement, Known } from '../store/model-status.ts';

export interface JudgePolicy {
  readonly minimumCalls: number;
  readonly slowSeconds: number;
}

/** What one check saw of a model: its real calls, a probe, both, or neither. */
export interface Evidence {
  readonly calls?: CallsSeen;
  readonly probe?: ProbeResult;
}

/** So many failed looks in a row make a model down: one is none. */
const DOWN_AFTER = 2;
/** Of the calls that were not their caller's fault: from here on up, and below that failing; in between degraded. */
const UP_RATE = 0.9;
const FAILING_RATE = 0.5;

/** What real calls say alone; `silent` where they are too few to say anything. */
export function sayOf(
  calls: CallsSeen | undefined,
  { minimumCalls }: JudgePolicy,
): 'up' | 'degraded' | 'failing' | 'silent' {
  if (!calls || calls.calls < minimumCalls) return 'silent';
  const rate = 1 - calls.failed / calls.calls;
  if (rate >= UP_RATE) return 'up';
  // One that failed among few says neither that the model fails nor, without as many again, that it answers.
  if (calls.failed < DOWN_AFTER) return rate > FAILING_RATE ? 'up' : 'silent';
  return rate >= FAILING_RATE ? 'degraded' : 'failing';
}

/**
 * Judge a model. Real calls come first; a probe speaks where they are silent, and beside them where they fail.
 *
 * - Calls that fail, several of them by definition, make a model down, unless a probe of the same check succeeds: then it
 *   is degraded.
 * - One failed probe makes an up model degraded, and leaves any other as it was; the second in a row makes it down.
 * - Only a success, of calls or of a probe, brings a model back from down.
 * - A rate limit is an answer: the model is there, and degraded. What is our own fault (an argument that it does not take,
 *   no key) says nothing of the model: unknown, with the reason.
 *
 * @returns `undefined` without evidence: the status stays until it expires
 */
export function judge(
  known: Pick<Known, 'status' | 'failures' | 'retryAt'>,
  { calls, probe }: Evidence,
  policy: JudgePolicy,
): Judgement | undefined {
  const says = sayOf(calls, policy);
  if (calls && says !== 'silent') {
    // What a provider asked for holds whatever its calls say meanwhile.
    const byCalls = { ...told(calls), retryAt: probe ? (probe.retryAt ?? null) : known.retryAt };
    if (says === 'up') return { ...byCalls, ...alive(calls.latencyMs, policy), failures: 0 };
    if (says === 'degraded' || probe?.ok) {
      const detail = probe?.ok ? `${byCalls.detail}; a probe succeeded` : byCalls.detail;
      return { ...byCalls, detail, status: 'degraded', failures: 0 };
    }
    if (calls.reason === 'rate limit') return { ...byCalls, ...limited(known) };
    return { ...byCalls, status: 'down', failures: known.failures + DOWN_AFTER };
  }
  if (!probe) return undefined;
  const { ok, reason = null, detail = null, latencyMs, retryAt = null } = probe;
  const byProbe = { reason, detail, source: 'probe' as const, latencyMs: ok ? latencyMs : null, retryAt };
  if (ok) return { ...byProbe, ...alive(latencyMs, policy), failures: 0 };
  if (isOurs(reason)) return { ...byProbe, status: 'unknown', failures: known.failures };
  if (reason === 'rate limit') return { ...byProbe, ...limited(known) };
  const failures = known.failures + 1;
  return { ...byProbe, status: failures >= DOWN_AFTER ? 'down' : shaken(known.status), failures };
}

function told({ calls, failed, reason, latencyMs }: CallsSeen) {
  const detail = failed === 0 ? null : `${failed} of ${calls} calls failed`;
  return { reason: failed === 0 ? null : reason, detail, source: 'calls' as const, latencyMs };
}

function alive(latencyMs: number | null, { slowSeconds }: JudgePolicy) {
  if (latencyMs === null || latencyMs <= slowSeconds * 1_000) return { status: 'up' as const };
  return { status: 'degraded' as const, detail: `slow: ${latencyMs / 1_000} s to an answer, above ${slowSeconds} s` };
}

/** It answers, but not us, not now; one that was down has yet to show a success. */
function limited({ status, failures }: Pick<Known, 'status' | 'failures'>) {
  return { status: status === 'down' ? ('down' as const) : ('degraded' as const), failures };
}

function shaken(status: Known['status']): Known['status'] {
  return status === 'up' ? 'degraded' : status;
}

function isOurs(reason: ModelError | null): boolean {
  return reason === 'no credentials' || (reason !== null && callersFault.includes(reason));
}

/** What a dead line, a captive portal or a proxy of ours looks like; every other reason is a provider's own word. */
const NETWORK: readonly (ModelError | null)[] = [
  'connection',
  'network time-out',
  'unavailable',
  'malformed answer',
  'unknown',
  null,
];

/**
 * Whether our own network is suspect: two providers or more were asked, and not one of them gave a sign of life. With
 * one provider alone, its failure and our own cannot be told apart, and its users care for neither: it is judged.
 *
 * @returns the providers that fail, all that were asked; none where the network is not suspect
 */
export function suspectProviders(seen: readonly { providerId: string; evidence: Evidence }[]): string[] {
  const lives = new Map<string, boolean>();
  for (const { providerId, evidence } of seen) {
    const sign = signOfLife(evidence);
    if (sign !== undefined) lives.set(providerId, sign || (lives.get(providerId) ?? false));
  }
  return lives.size >= 2 && ![...lives.values()].includes(true) ? [...lives.keys()] : [];
}

/** `undefined` where nobody asked. */
function signOfLife({ calls, probe }: Evidence): boolean | undefined {
  const asked = probe && probe.reason !== 'no credentials' ? probe : undefined;
  if (!calls && !asked) return undefined;
  if (calls && (calls.failed < calls.calls || !NETWORK.includes(calls.reason))) return true;
  return asked !== undefined && (asked.ok || !NETWORK.includes(asked.reason ?? null));
}
