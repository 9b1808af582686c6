// What do the gateway's own calls say of its models?

import { type Db, Sql } from './db.ts';
import { callersFault, errorClass, type ModelError } from './model-errors.ts';
import type { ModelKey } from './models.ts';
import { callHour } from './scope.ts';

/** A model's ended calls of some minutes, without those that failed by their caller's fault. */
export interface CallsSeen extends ModelKey {
  readonly calls: number;
  readonly failed: number;
  /** Why most of the failed ones failed; null where none did. */
  readonly reason: ModelError | null;
  /** The median of the successful ones, to the first byte where the gateway says so; null where it says neither. */
  readonly latencyMs: number | null;
}

/**
 * The calls that began in `[until - seconds, until)` and have ended, for each model that has some; and, as time-outs, those that
 * hung until a clean-up failed them in that time, whenever they began. Reads no older hour.
 * Each text of an error is classified once, by its beginning: that costs more than all the rest.
 */
export async function callsSeen(db: Db, until: Date, seconds: number): Promise<CallsSeen[]> {
  const from = new Date(until.getTime() - seconds * 1_000);
  return db.$queryRaw<CallsSeen[]>`
    with ended as materialized (
      select "providerId", model, type, coalesce(ttfb, duration) as answered, case when status = 'failed' then coalesce(left("errorReason", 300), '') end as error
        from "ModelCall"
       where ${callHour} >= date_trunc('hour', ${from}::timestamptz at time zone 'UTC') and ${callHour} <= ${until}::timestamptz at time zone 'UTC'
         and "callTime" >= ${from}::timestamptz and "callTime" < ${until}::timestamptz and status <> 'processing'
         and not (status = 'failed' and "errorReason" like 'Timeout: Processing exceeded %')
      union all
      select h.provider, h.model, h.type, null, 'Timeout: Processing exceeded'
        from "StaleBatch" b,
             jsonb_to_recordset(b.models) as h(provider text, model text, type "ModelCallType", calls int),
             generate_series(1, h.calls)
       where b.at >= ${from}::timestamptz and b.at < ${until}::timestamptz
    ), errors as materialized (
      select error, ${errorClass(Sql.sql`error`)} as class from (select distinct error from ended where error is not null) as texts
    )
    select "providerId", model, type::text as type, count(*)::int as calls, count(class)::int as failed,
           mode() within group (order by class) as reason,
           round(1000 * percentile_cont(0.5) within group (order by answered::float8) filter (where class is null))::int as "latencyMs"
      from ended left join errors using (error)
     where class is null or class <> all(${[...callersFault]}::text[])
     group by "providerId", model, type`;
}
