// What waits until somebody resumes its backfill?

import { Sql } from './db.ts';

/**
 * Whether the newest request for this hour or mark is of a backfill that is paused. An hour that was answered is closed, and owed
 * by nobody; asked for again by anybody else, it is not of that backfill any more.
 *
 * An array, made once for the statement: few backfills are paused, and none is looked up for each hour.
 */
export const isHeld = (backfillId: Sql.Sql) => Sql.sql`
  (${backfillId} is not null and ${backfillId} = any(array(select id from "Backfill" where state = 'paused')))`;
