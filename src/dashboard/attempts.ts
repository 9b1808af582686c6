// How often may somebody try to sign in?

import { hash } from 'node:crypto';
import { isIPv6 } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { type RateLimiterAbstract, RateLimiterMemory, RateLimiterRedis, RateLimiterRes } from 'rate-limiter-flexible';
import type { RedisConnection } from '../queues/redis.ts';

const QUARTER_HOUR = 15 * 60;
/** A Redis that is silent for longer is away. */
const LIMIT_MS = 1_000;

export interface Attempts {
  /** Counts one more. @returns the seconds to wait, where there were too many */
  take(address: string, name: string): Promise<number | undefined>;
  /** It was no guess. */
  forgive(address: string, name: string): Promise<void>;
}

/**
 * In a quarter of an hour 20 attempts from one network, 5 that fail of one name from there, and 30 of one name from everywhere: so
 * that nobody guesses from many places, and hardly anybody locks others out. Counted in Redis by all dashboards together; while it is
 * away, by each for itself.
 */
export function attempts(redis: RedisConnection, prefix: string): Attempts {
  const limiter = (what: string, points: number) => {
    const limit = { points, duration: QUARTER_HOUR, keyPrefix: `${prefix}:sign-in:${what}` };
    const alone = new RateLimiterMemory(limit);
    const together = new RateLimiterRedis({
      ...limit,
      storeClient: redis,
      rejectIfRedisNotReady: true,
      insuranceLimiter: alone,
    });
    return <T>(ask: (limiter: RateLimiterAbstract) => Promise<T>): Promise<T> => {
      const answered = new AbortController();
      const late = sleep(LIMIT_MS, undefined, { signal: answered.signal }).then(() => ask(alone));
      return Promise.race([ask(together), late]).finally(() => answered.abort());
    };
  };
  const [ofNetwork, ofPair, ofName] = [limiter('network', 20), limiter('pair', 5), limiter('name', 30)];
  // Known or not: else who is known could be told by who has to wait. Hashed: it may be a password, typed into the wrong field.
  const keyOf = (name: string) => hash('sha256', name).slice(0, 32);
  const pair = (address: string, name: string) => `${networkOf(address)} ${keyOf(name)}`;
  return {
    async take(address, name) {
      for (const [limiter, key] of [
        [ofNetwork, networkOf(address)],
        [ofPair, pair(address, name)],
        [ofName, keyOf(name)],
      ] as const) {
        const seconds = await limiter((of) => of.consume(key)).then(() => undefined, secondsLeft);
        if (seconds !== undefined) return seconds;
      }
      return undefined;
    },
    async forgive(address, name) {
      await Promise.all([ofPair((of) => of.delete(pair(address, name))), ofName((of) => of.reward(keyOf(name)))]);
    },
  };
}

function secondsLeft(refused: unknown): number {
  if (refused instanceof RateLimiterRes) return Math.max(1, Math.ceil(refused.msBeforeNext / 1_000));
  throw refused;
}

/** Whoever has one address of IPv6 has all of its /64. */
function networkOf(address: string): string {
  if (!isIPv6(address)) return address;
  const [left = [], right = []] = address.split('::').map((part) => part.split(':').filter((group) => group !== ''));
  const zeros = Array<string>(Math.max(0, 8 - left.length - right.length)).fill('0');
  return `${[...left, ...zeros, ...right].slice(0, 4).join(':')}::/64`;
}
