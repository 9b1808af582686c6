// Keeps the prefix in Redis to one database.

import { Cluster } from 'ioredis';
import { z } from 'zod';
import type { RedisConnection } from './redis.ts';

/** A database that asks for a prefix. */
export interface Claimant {
  readonly id: string;
  /** Null if PostgreSQL does not tell us: then it is not compared. */
  readonly system: string | null;
  readonly oid: string;
  /** For people: where its PostgreSQL is, and its name. */
  readonly host: string;
  readonly database: string;
}

/** What is under `{prefix}:owner`. */
const ownerSchema = z.object({
  id: z.string(),
  system: z.string().nullable(),
  oid: z.string(),
  host: z.string(),
  database: z.string(),
  /** Milliseconds by Redis' clock. */
  seen: z.number(),
  /** A claim has not removed all keys of the former owner yet. */
  emptying: z.boolean().optional(),
});
type Owner = z.infer<typeof ownerSchema>;

/** The owner of a prefix, and how long ago it last looked. */
export type Seen = Owner & { readonly ageMs: number };

/** An owner that was not seen for this long may have moved. */
export const MOVED_MS = 120_000;

/**
 * What came of asking for a prefix.
 *
 * - `free`: it has no owner; only a look leaves it so
 * - `ours`: it is this database's; `taken` just now
 * - `moved`: this database's id, from another place that was not seen for two minutes; ours now, or by the next hold
 * - `copy`: this database's id, from another place that was seen just now
 * - `other`: another database's, whatever its age
 * - `unreadable`: what is there is no owner
 */
export type Holding =
  | { readonly state: 'free' | 'taken' | 'unreadable' }
  | { readonly state: 'ours' | 'moved' | 'copy' | 'other'; readonly owner: Seen };

/**
 * One script, for comparing and writing must be one step, and one key, so that it works on a Cluster.
 * Redis' own clock says when an owner was seen: the clocks of our machines may differ.
 *
 * ARGV: id, system or '', oid, host, database, how, milliseconds until an owner may have moved.
 * How: `look` writes nothing; `hold` takes what is free, ours or moved; `claim` takes it from anybody, and
 * `settle` ends the claim.
 */
const SCRIPT = `
local id, system, oid, host, database, how, limit = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local text = redis.pcall('GET', KEYS[1])
local state, owner = 'free', nil
if text then
  state = 'unreadable'
  if type(text) == 'string' then
    local read, found = pcall(cjson.decode, text)
    if read and type(found) == 'table' and type(found.id) == 'string' then owner = found end
  end
end
if owner then
  local known = type(owner.system) == 'string'
  local same = owner.oid == oid and (not known or system == '' or owner.system == system)
  if owner.id ~= id then
    state = 'other'
  elseif same then
    state = 'ours'
    if known and system == '' then system = owner.system end
  elseif type(owner.seen) == 'number' and now - owner.seen < tonumber(limit) then
    state = 'copy'
  else
    state = 'moved'
  end
end
local takes = state == 'free' or state == 'ours' or state == 'moved'
if how == 'claim' or (how ~= 'look' and takes) then
  local mine = { id = id, oid = oid, host = host, database = database, seen = now }
  mine.system = system ~= '' and system or cjson.null
  if how == 'claim' or (how == 'hold' and owner and owner.emptying == true) then mine.emptying = true end
  redis.call('SET', KEYS[1], cjson.encode(mine))
  if state == 'free' then state = 'taken' end
end
return { state, type(text) == 'string' and text or '', tostring(now) }
`;

/**
 * Ask whose a prefix is.
 *
 * @param how `look` changes nothing; `hold` is for whoever works or changes something: it takes what nobody has, and
 *   notes that this database lives
 */
export async function askOwner(
  redis: RedisConnection,
  prefix: string,
  claimant: Claimant,
  how: 'look' | 'hold',
): Promise<Holding> {
  return ask(redis, prefix, claimant, how);
}

async function ask(
  redis: RedisConnection,
  prefix: string,
  { id, system, oid, host, database }: Claimant,
  how: 'look' | 'hold' | 'claim' | 'settle',
): Promise<Holding> {
  const answer = await redis.eval(
    SCRIPT,
    1,
    ownerKey(prefix),
    id,
    system ?? '',
    oid,
    host,
    database,
    how,
    `${MOVED_MS}`,
  );
  const [state, text, now] = z
    .tuple([z.enum(['free', 'taken', 'ours', 'moved', 'copy', 'other', 'unreadable']), z.string(), z.string()])
    .parse(answer);
  if (state === 'free' || state === 'taken' || state === 'unreadable') return { state };
  const owner = ownerSchema.safeParse(parse(text));
  if (!owner.success) return { state: 'unreadable' };
  return { state, owner: { ...owner.data, ageMs: Math.max(0, Number(now) - owner.data.seen) } };
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function ownerKey(prefix: string): string {
  return `${prefix}:owner`;
}

const BATCH = 1_000;

/**
 * Take a prefix from whoever has it, and remove every other key under it. The claim comes first, so that the former
 * owner cannot take it back meanwhile; if this process dies, the next claim removes the rest.
 *
 * @param onProgress called after each batch, with the number of keys that were removed so far
 * @returns the number of removed keys
 */
export async function claimPrefix(
  redis: RedisConnection,
  prefix: string,
  claimant: Claimant,
  onProgress: (removed: number) => void = () => {},
): Promise<number> {
  await ask(redis, prefix, claimant, 'claim');
  let removed = 0;
  // All keys of a prefix are on one node of a Cluster, and it may become another node while we look.
  for (const node of redis instanceof Cluster ? redis.nodes('master') : [redis]) {
    let cursor = '0';
    do {
      const [next, keys] = await node.scan(cursor, 'MATCH', `${prefix}:*`, 'COUNT', BATCH);
      const others = keys.filter((key) => key !== ownerKey(prefix));
      if (others.length > 0) removed += await redis.unlink(...others);
      if (others.length > 0) onProgress(removed);
      cursor = next;
    } while (cursor !== '0');
  }
  await ask(redis, prefix, claimant, 'settle');
  return removed;
}
