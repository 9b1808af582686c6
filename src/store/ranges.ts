// Which hours are to be rolled up?

import type { Range } from '../time/range.ts';
import { type Db, instant, type Now, type Pool } from './db.ts';

/** Cover a range, in a transaction; ranges that touch or overlap become one. Covering twice leaves what covering once left. */
export async function cover(db: Db, { start, end }: Range): Promise<void> {
  await merge(db, start, end);
}

/** Open the live range, from the hour before this first start and without end, unless there is one. */
export async function coverFromNowOn(pool: Pool, now?: Now): Promise<void> {
  await pool.$transaction(async (db) => {
    const [live] = await db.$queryRaw<[{ start: Date | null }]>`
      select (select start from "StatRange" where "end" is null) as start`;
    if (live.start) return;
    const [{ start }] = await db.$queryRaw<[{ start: Date }]>`
      select date_trunc('hour', ${instant(now)}, 'UTC') - interval '1 hour' as start`;
    await merge(db, start, null);
  });
}

async function merge(db: Db, start: Date, end: Date | null): Promise<void> {
  // Two that merge at once could each miss the other's range.
  await db.$executeRaw`lock table "StatRange" in share row exclusive mode`;
  await db.$executeRaw`
    with touching as (
      delete from "StatRange" r
       where r.start <= coalesce(${end}::timestamptz, 'infinity')
         and coalesce(r."end", 'infinity') >= ${start}::timestamptz
      returning start, coalesce("end", 'infinity') as "end"
    )
    insert into "StatRange" (start, "end")
    select least(${start}::timestamptz, min(start)),
           nullif(greatest(coalesce(${end}::timestamptz, 'infinity'), max("end")), 'infinity')
      from touching`;
}
