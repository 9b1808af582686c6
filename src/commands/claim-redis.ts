// hourhand claim-redis: take the prefix in Redis from the database that has it.

import type { Connections } from '../connections.ts';
import { nameOf } from '../ownership.ts';
import { claimPrefix, type Holding, MOVED_MS } from '../queues/owner.ts';
import type { Queues } from '../queues/redis.ts';
import { say } from './say.ts';

export interface ClaimOptions {
  /** Also while processes of the owner are there, and also if the prefix is ours already. */
  readonly force: boolean;
}

const PROGRESS_KEYS = 50_000;

/**
 * Removes every key under the prefix: jobs, schedulers, pauses of queues, counts of sign-ins. None of them is needed:
 * what this database owes is enqueued by the next look of a worker.
 *
 * @returns the exit code: 1 if processes of the owner are there, and then nothing was changed
 */
export async function claimRedis(connections: Connections, { force }: ClaimOptions): Promise<number> {
  const { redis, queues, config, ownership } = connections;
  const prefix = config.REDIS_PREFIX;
  const { holding } = await ownership.look();
  if (holding.state === 'ours' && !holding.owner.emptying && !force) {
    say(
      `the prefix ${prefix} is this database's already; nothing was removed (--force removes its keys all the same)`,
    );
    return 0;
  }
  const there = force ? [] : await whoIsThere(connections, holding, queues);
  if (there.length > 0) {
    say(`nothing was changed: ${there.join('; ')}: stop its processes, or use --force: they take no more jobs then`);
    return 1;
  }
  const own = await ownership.claimant();
  let said = 0;
  const removed = await claimPrefix(redis, prefix, own, (keys) => {
    if (keys - said < PROGRESS_KEYS) return;
    said = keys;
    say(`${keys} keys removed`);
  });
  say(`the prefix ${prefix} now belongs to ${nameOf(own)}; before, ${formerly(holding)}`);
  say(`${removed} keys removed; what is owed is enqueued by the next look of a worker`);
  return 0;
}

/** Who else uses the prefix at this moment, as far as Redis tells. */
async function whoIsThere({ ownership }: Connections, holding: Holding, { hours }: Queues): Promise<string[]> {
  const there: string[] = [];
  if ('owner' in holding && holding.state !== 'ours' && holding.owner.ageMs < MOVED_MS) {
    const seconds = Math.round(holding.owner.ageMs / 1_000);
    there.push(`the prefix is used by ${nameOf(holding.owner)}, seen ${seconds} s ago`);
  }
  const strangers = (await ownership.strangersOn(hours)) ?? 0;
  if (strangers > 0) there.push(`${strangers} workers are connected that are not known to be of this database`);
  return there;
}

function formerly(holding: Holding): string {
  if (holding.state === 'ours') return 'too';
  if ('owner' in holding) return `to ${nameOf(holding.owner)}`;
  return holding.state === 'unreadable' ? 'to somebody whom this version cannot read' : 'to nobody';
}
