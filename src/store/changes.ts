// What changed in hours that had been published, by how much, and why?

import type { Range } from '../time/range.ts';
import { type Db, instant, type Now, Sql } from './db.ts';
import { figures } from './figures.ts';
import { batches } from './stats.ts';

/** A user's figures of an hour became others. Whole numbers and amounts as text, for no float can hold them. */
export interface ChangeLine {
  readonly hour: string;
  readonly userDid: string;
  readonly revision: number;
  readonly reason: string;
  readonly at: Date;
  /** Only the figures that differ; `by` is null where they are no numbers. */
  readonly figures: { figure: string; before: string; after: string; by: string | null }[];
}

/** The changes of a range's hours, in the order of hours, revisions and users, in batches, all from one snapshot. Needs a transaction. */
export async function* changeLines(db: Db, { start, end }: Range): AsyncGenerator<ChangeLine[]> {
  yield* batches<ChangeLine>(
    db,
    Sql.sql`
    select to_char(hour at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as hour, "userDid", revision, reason::text, at,
           (select jsonb_agg(jsonb_build_object('figure', figure, 'before', before, 'after', after,
                                                'by', case when figure <> 'byType' then (after::numeric - before::numeric)::text end) order by place)
              from (select figure, place, coalesce(c.before ->> figure, ${zero}) as before, coalesce(c.after ->> figure, ${zero}) as after
                      from unnest(${[...figures]}::text[]) with ordinality as f(figure, place)) as one
             where case when figure = 'byType' then before <> after else before::numeric <> after::numeric end) as figures
      from "StatChange" c where c.hour >= ${start}::timestamptz and c.hour < ${end}::timestamptz
     order by c.hour, revision, "userDid" collate "C", seq`,
  );
}

/** No row and a row of zeros are the same figure. */
const zero = Sql.sql`case when figure = 'byType' then '{}' else '0' end`;

/** Forget the changes of more than so many days ago. */
export async function forgetChanges(db: Db, days: number, now?: Now): Promise<void> {
  await db.$executeRaw`delete from "StatChange" where at < ${instant(now)} - ${days}::int * interval '24 hours'`;
}
