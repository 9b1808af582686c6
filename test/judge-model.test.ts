import { describe, expect, test } from 'vitest';
import {
  type Evidence,
  type JudgePolicy,
  judge as judgeModel,
  sayOf,
  suspectProviders,
} from '../src/processors/judge-model.ts';
import type { ProbeResult } from '../src/store/checks.ts';
import type { CallsSeen } from '../src/store/model-calls.ts';
import { type ModelError, modelErrors } from '../src/store/model-errors.ts';

/** A model that its provider may be asked of at any time, unless the test says otherwise. */
const judge = (
  known: Omit<Parameters<typeof judgeModel>[0], 'retryAt'> & { retryAt?: Date | null },
  evidence: Evidence,
  by: JudgePolicy,
) => judgeModel({ retryAt: null, ...known }, evidence, by);

const policy = { minimumCalls: 3, slowSeconds: 60 };
const up = { status: 'up', failures: 0 } as const;
const never = { status: 'unknown', failures: 0 } as const;

const calls = (
  all: number,
  failed = 0,
  reason: ModelError | null = failed > 0 ? 'unavailable' : null,
): CallsSeen => ({
  providerId: 'openai',
  model: 'gpt',
  type: 'chatCompletion',
  calls: all,
  failed,
  reason,
  latencyMs: failed < all ? 800 : null,
});
const answered: ProbeResult = { ok: true, latencyMs: 120 };
const failed = (reason: ModelError = 'unavailable'): ProbeResult => ({
  ok: false,
  latencyMs: 90,
  reason,
  detail: 'HTTP 503',
});

describe('real calls', () => {
  test.each([
    [0, 0, 'silent'],
    [2, 2, 'silent'],
    [3, 0, 'up'],
    [3, 1, 'up'],
    [20, 2, 'up'],
    [10, 2, 'degraded'],
    [4, 2, 'degraded'],
    [3, 2, 'failing'],
    [50, 50, 'failing'],
  ])('of which %i ended and %i failed say %s', (all, bad, says) => {
    expect(sayOf(calls(all, bad), policy)).toBe(says);
  });

  test('of which a single one failed and too few others succeeded say nothing, however few are asked for', () => {
    const few = { ...policy, minimumCalls: 1 };
    expect(sayOf(calls(1, 0), few)).toBe('up');
    expect([sayOf(calls(1, 1), few), sayOf(calls(2, 1), few)]).toEqual(['silent', 'silent']);
    expect(judge({ status: 'down', failures: 2 }, { calls: calls(1, 1) }, few)).toBeUndefined();
  });

  test('leave it as it was when its provider may be asked again', () => {
    const retryAt = new Date('2026-08-20T13:10:00Z');
    expect(judge({ ...up, retryAt }, { calls: calls(9, 9) }, policy)).toMatchObject({ retryAt });
    expect(judge({ ...up, retryAt }, { calls: calls(9, 9), probe: answered }, policy)).toMatchObject({
      retryAt: null,
    });
  });

  test('judge a model that is in use, whatever it was', () => {
    expect(judge({ status: 'down', failures: 7 }, { calls: calls(100, 1) }, policy)).toEqual({
      status: 'up',
      reason: 'unavailable',
      detail: '1 of 100 calls failed',
      source: 'calls',
      latencyMs: 800,
      failures: 0,
      retryAt: null,
    });
  });

  test('that fail make it down at once, for they are many', () => {
    expect(judge(up, { calls: calls(10, 9) }, policy)).toMatchObject({
      status: 'down',
      reason: 'unavailable',
      source: 'calls',
      detail: '9 of 10 calls failed',
    });
  });

  test('that fail beside a probe that succeeds make it degraded', () => {
    expect(judge(up, { calls: calls(10, 9), probe: answered }, policy)).toMatchObject({
      status: 'degraded',
      detail: '9 of 10 calls failed; a probe succeeded',
    });
  });

  test('that fail beside a probe that was put off are not looked into before its provider wants to be asked again', () => {
    const retryAt = new Date('2026-08-20T14:00:00Z');
    const probe = { ...failed('rate limit'), retryAt };
    expect(judge(up, { calls: calls(10, 9), probe }, policy)).toMatchObject({ status: 'down', retryAt });
  });

  test('that are mostly limited in rate leave it degraded', () => {
    expect(judge(up, { calls: calls(10, 9, 'rate limit') }, policy)).toMatchObject({ status: 'degraded' });
  });

  test('that take longer than a model may make it degraded', () => {
    expect(judge(up, { calls: { ...calls(10), latencyMs: 60_001 } }, policy)).toMatchObject({
      status: 'degraded',
      detail: 'slow: 60.001 s to an answer, above 60 s',
    });
  });

  test('are not outvoted by a probe', () => {
    expect(judge(up, { calls: calls(100), probe: failed() }, policy)).toMatchObject({
      status: 'up',
      source: 'calls',
    });
  });
});

describe('one probe', () => {
  test('that succeeds brings a model up from anything', () => {
    for (const status of ['up', 'degraded', 'down', 'unknown'] as const) {
      expect(judge({ status, failures: 5 }, { probe: answered }, policy)).toMatchObject({
        status: 'up',
        failures: 0,
        source: 'probe',
        latencyMs: 120,
        reason: null,
      });
    }
  });

  test('that fails is not down: it shakes an up model, and says nothing new of another', () => {
    expect(judge(up, { probe: failed() }, policy)).toMatchObject({
      status: 'degraded',
      failures: 1,
      reason: 'unavailable',
    });
    expect(judge(never, { probe: failed() }, policy)).toMatchObject({ status: 'unknown', failures: 1 });
    expect(judge({ status: 'degraded', failures: 0 }, { probe: failed() }, policy)).toMatchObject({
      status: 'degraded',
    });
  });

  test('after another that failed is down, and down stays down without a success', () => {
    expect(judge({ status: 'degraded', failures: 1 }, { probe: failed() }, policy)).toMatchObject({
      status: 'down',
      failures: 2,
    });
    expect(judge({ status: 'unknown', failures: 1 }, { probe: failed('not found') }, policy)).toMatchObject({
      status: 'down',
    });
    expect(judge({ status: 'down', failures: 2 }, { probe: failed('rate limit') }, policy)).toMatchObject({
      status: 'down',
    });
    expect(judge({ status: 'down', failures: 2 }, {}, policy)).toBeUndefined();
  });

  test('that is limited in rate finds the model degraded, however often', () => {
    expect(judge({ status: 'degraded', failures: 0 }, { probe: failed('rate limit') }, policy)).toMatchObject({
      status: 'degraded',
      failures: 0,
    });
  });

  test.each<ModelError>(['no credentials', 'invalid argument', 'content policy'])(
    'that fails for %s says nothing of the model',
    (reason) => {
      expect(judge(up, { probe: failed(reason) }, policy)).toMatchObject({ status: 'unknown', reason, failures: 0 });
    },
  );

  test.each(
    modelErrors.filter(
      (reason) => !['no credentials', 'invalid argument', 'content policy', 'rate limit'].includes(reason),
    ),
  )('that fails twice for %s makes it down', (reason) => {
    const once = judge(up, { probe: failed(reason) }, policy);
    expect(once && judge(once, { probe: failed(reason) }, policy)).toMatchObject({ status: 'down', reason });
  });
});

describe('our own network', () => {
  const seen = (...evidence: [string, Evidence][]) =>
    evidence.map(([providerId, evidence]) => ({ providerId, evidence }));

  test('is suspect when every provider fails at once as a dead line would', () => {
    expect(
      suspectProviders(seen(['a', { probe: failed('connection') }], ['b', { probe: failed('network time-out') }])),
    ).toEqual(['a', 'b']);
    expect(
      suspectProviders(seen(['a', { probe: failed('unavailable') }], ['b', { calls: calls(9, 9, 'connection') }])),
    ).toEqual(['a', 'b']);
  });

  test('is suspect beside a provider that could not be asked for want of a key: that is no sign of life', () => {
    const dead: [string, Evidence][] = ['a', 'b'].map((id) => [id, { probe: failed('connection') }]);
    expect(suspectProviders(seen(...dead, ['c', { probe: failed('no credentials') }]))).toEqual(['a', 'b']);
  });

  test.each<[string, [string, Evidence][]]>([
    [
      'one of them answers',
      [
        ['a', { probe: failed('connection') }],
        ['b', { probe: answered }],
      ],
    ],
    [
      'one of them refuses in its own words',
      [
        ['a', { probe: failed('connection') }],
        ['b', { probe: failed('invalid key') }],
      ],
    ],
    [
      'some call got through',
      [
        ['a', { probe: failed('connection') }],
        ['b', { calls: calls(9, 8) }],
      ],
    ],
    [
      'there is but one',
      [
        ['a', { probe: failed('connection') }],
        ['a', { probe: failed('connection') }],
      ],
    ],
    [
      'the other was not asked',
      [
        ['a', { probe: failed('connection') }],
        ['b', {}],
      ],
    ],
    [
      'the other could not be asked',
      [
        ['a', { probe: failed('connection') }],
        ['b', { probe: failed('no credentials') }],
      ],
    ],
    ['nobody was asked', []],
  ])('is not when %s', (_, evidence) => {
    expect(suspectProviders(seen(...evidence))).toEqual([]);
  });
});
