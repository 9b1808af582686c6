// Into which shards is an hour cut?

import { type Hour, startOf } from '../time/hour.ts';
import { type Db, type Now, type Pool, Sql } from './db.ts';
import { type Allotted, allot } from './ledger.ts';
import { BUCKETS, bucket, calledIn } from './scope.ts';
import { presentUsers } from './stats.ts';

/** How an hour is cut: one child a user up to so many users, ranges of buckets of about this size above. */
export interface CutPolicy {
  readonly maxUserJobs: number;
  /** Of no more calls, one statement costs less than the jobs and round trips that would share its work. */
  readonly minCalls: number;
}
const CALLS_PER_SHARD = 250_000;
const USERS_PER_SHARD = 25_000;

/** Users and calls of an hour, as near as its cut needs them. */
export interface Size {
  readonly users: number;
  readonly calls: number;
}

/** One in so many users stands for all where it is about sizes. */
const SAMPLE = 16;
/** So many calls are looked at, at most, to tell few users from many. */
const LOOK = 20_000;

/**
 * How large an hour is. A sixteenth of the buckets tells it well enough of many users; of few, the calls are looked at, but for those
 * beyond what is of interest. A moment later there may be more.
 */
export async function sizeOf(db: Db, hour: Hour, { maxUserJobs, minCalls }: CutPolicy): Promise<Size> {
  const most = Math.max(LOOK, minCalls);
  const sized = (calls: Sql.Sql) => db.$queryRaw<[Size]>`
    select count(*)::int as users, coalesce(sum(calls), 0)::float8 as calls
      from (select "userDid", count(*) as calls from (${calls}) as call group by "userDid") as present`;
  const [sample] = await sized(Sql.sql`
    select "userDid" from "ModelCall" where ${calledIn(hour)} and ${bucket} between 0 and ${BUCKETS / SAMPLE - 1}::int`);
  const users = sample.users * SAMPLE;
  const calls = sample.calls * SAMPLE;
  if (users > 2 * maxUserJobs) return { users, calls };
  const [look] = await sized(Sql.sql`
    select "userDid" from "ModelCall" where ${calledIn(hour)} limit ${most + 1}::int`);
  return look.calls > most ? { users: look.users, calls: Math.max(look.calls, calls) } : look;
}

/** Whether an hour is better rolled up by one statement than fanned out: few calls, of more users than have a child each. */
export function fitsAtOnce({ users, calls }: Size, { maxUserJobs, minCalls }: CutPolicy): boolean {
  return users > maxUserJobs && calls <= minCalls;
}

/**
 * Allot a run as `allot` does, and store its shards. Where the size tells of too many users for a child each, it also says how many
 * ranges there are; else the hour's users are named, and counted.
 *
 * @returns also whether all the hour's calls are few enough for one statement
 */
export async function allotRun(
  pool: Pool,
  hour: Hour,
  { maxUserJobs, minCalls }: CutPolicy,
  { size, ...options }: { size?: Size; job?: string; again?: boolean; now?: Now } = {},
): Promise<(Allotted & { together: boolean }) | undefined> {
  return pool.$transaction(async (db) => {
    const start = startOf(hour);
    const allotted = await allot(db, hour, options);
    if (!allotted) return undefined;
    // None of an earlier run counts any more; and an hour whose row was deleted counts its runs from 1 again.
    await db.$executeRaw`delete from "StatShard" where hour = ${start}::timestamptz`;
    if (size && size.users > maxUserJobs) {
      await db.$executeRaw`
        with size as (
          select ${rangesOf} as ranges from (values (${size.users}::int, ${size.calls}::float8)) as size (users, calls)
        ) ${rangeShards(hour, allotted.run, Sql.sql`true`)}`;
      return { ...allotted, together: false };
    }
    const [cut] = await db.$queryRaw<[{ together: boolean }]>`
      with present as materialized (
        select "userDid", sum(calls) as calls from (${presentUsers(hour)}) as p group by "userDid"
      ), size as (
        select users, ${rangesOf} as ranges from (select count(*) as users, sum(calls) as calls from present) as present
      ), by_user as (
        insert into "StatShard" (hour, run, shard, lo, hi, "userDid")
        select ${start}::timestamptz, ${allotted.run}::int, row_number() over (order by "userDid") - 1, ${bucket}, ${bucket}, "userDid"
          from present, size where users <= ${maxUserJobs}::int
      ), by_range as (
        ${rangeShards(hour, allotted.run, Sql.sql`users > ${maxUserJobs}::int`)}
      )
      select coalesce(sum(calls), 0) <= ${minCalls}::int as together from present`;
    return { ...allotted, ...cut };
  });
}

/** How many ranges make shards of a good size, from `users` and `calls`. */
const rangesOf = Sql.sql`
  greatest(2, least(${BUCKETS}::int, greatest(ceil(users / ${USERS_PER_SHARD}::numeric), ceil(calls / ${CALLS_PER_SHARD}::numeric))))::int`;

/** Store a run's shards as so many ranges of buckets as `size` says. */
function rangeShards(hour: Hour, run: number, where: Sql.Sql): Sql.Sql {
  return Sql.sql`
    insert into "StatShard" (hour, run, shard, lo, hi)
    select ${startOf(hour)}::timestamptz, ${run}::int, i, i * ${BUCKETS}::int / ranges, (i + 1) * ${BUCKETS}::int / ranges - 1
      from size, generate_series(0, ranges - 1) i where ${where}`;
}
