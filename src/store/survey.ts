// What would a backfill find?

import type { Range } from '../time/range.ts';
import { type Db, type Now, Sql } from './db.ts';
import { hoursOfUser } from './marks.ts';
import { calledWithin } from './scope.ts';

export type Only = 'missing' | 'partial' | 'all';

/** Which of a range's hours, of which `l` is the ledger's row, a request is for. */
export function isAsked(only: Only): Sql.Sql {
  return {
    all: Sql.sql`true`,
    missing: Sql.sql`(l.hour is null or l.state = 'open')`,
    partial: Sql.sql`l.state = 'partial'`,
  }[only];
}

/** What a backfill would find in its range, and ask for. */
export interface Survey {
  readonly hours: number;
  /** By the ledger's state; `missing` are those without a row, `sealed` the closed ones that stay as they are. */
  readonly byState: Record<string, number>;
  readonly closed: number;
  readonly sealed: number;
  readonly asked: number;
  /** Users with a call in the range; `moreUsers`: at least so many, it was not counted further. */
  readonly users: number;
  readonly moreUsers: boolean;
}

export async function surveyBackfill(
  db: Db,
  range: Range,
  { only, user }: { only: Only; user?: string | undefined },
  now?: Now,
): Promise<Survey> {
  const found = await surveyHours(db, range, only);
  const sum = (key: 'hours' | 'asked') => found.reduce((sum, line) => sum + line[key], 0);
  const byState: Record<string, number> = Object.fromEntries(found.map(({ state, hours }) => [state, hours]));
  return {
    hours: sum('hours'),
    byState,
    closed: byState.closed ?? 0,
    sealed: byState.sealed ?? 0,
    asked: user === undefined ? sum('asked') : await countHoursOf(db, user, range, now),
    ...(await countUsers(db, range)),
  };
}

/** The hours of a range by state, and how many of each a request would be for. */
export async function surveyHours(db: Db, { start, end }: Range, only: Only) {
  return db.$queryRaw<{ state: string; hours: number; asked: number }[]>`
    select case when l."sealedAt" is not null then 'sealed' else coalesce(l.state::text, 'missing') end as state,
           count(*)::int as hours, count(*) filter (where ${isAsked(only)} and l."sealedAt" is null)::int as asked
      from generate_series(${start}::timestamptz, ${end}::timestamptz - interval '1 hour', interval '1 hour') as hour
           left join "StatHour" l using (hour)
     group by 1 order by 1`;
}

async function countHoursOf(db: Db, user: string, range: Range, now: Now): Promise<number> {
  const [{ hours }] = await db.$queryRaw<[{ hours: number }]>`
    select count(*)::int as hours from (${hoursOfUser(user, range, now)}) as present`;
  return hours;
}

/** Beyond so many users, or calls, nobody is told more than that there are more: about a second of work. */
const MOST_USERS = 100_000;
const MOST_CALLS = 1_000_000;

async function countUsers(db: Db, range: Range): Promise<{ users: number; moreUsers: boolean }> {
  const [{ users, calls }] = await db.$queryRaw<[{ users: number; calls: number }]>`
    select count(*)::int as users, coalesce(sum(calls), 0)::int as calls
      from (select count(*) as calls
              from (select "userDid" from "ModelCall" where ${calledWithin(range)} limit ${MOST_CALLS + 1}::int) as call
             group by "userDid") as present`;
  return { users: Math.min(users, MOST_USERS), moreUsers: users > MOST_USERS || calls > MOST_CALLS };
}
