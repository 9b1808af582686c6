// What do the calls add up to?

import { Sql } from './db.ts';

/**
 * A user's calls of an hour, added up: the one definition of every figure, for the roll-up and for `verify`.
 *
 * `calls` is `from … where …` over `ModelCall`; `keys` are the columns before `type` that a row stands for.
 * Nothing is cast to the width of its column here: a sum that does not fit is refused where it is stored.
 * Grouped by type and sorted inside, by user outside: sorted input makes the second grouping cheap.
 *
 * Every status counts in the totals. Images are `usageMetrics.numberOfImages` of an image generation, and one for a
 * successful call that does not say.
 */
export function figuresOf(keys: Sql.Sql, calls: Sql.Sql): Sql.Sql {
  return Sql.sql`
    select ${keys},
           sum(usage) as "totalUsage", sum(input) as "inputTokens", sum(output) as "outputTokens",
           sum(images) as "imageGenerations", sum(credits) as "totalCredits", sum(calls) as "totalCalls",
           sum(success) as "successCalls", sum(failed) as "failedCalls", sum(calls) - sum(success) - sum(failed) as "processingCalls",
           sum(duration) as "totalDuration",
           jsonb_object_agg(type, jsonb_build_object('totalUsage', usage, 'totalCredits', credits::text,
                                                     'totalCalls', calls, 'successCalls', success)) as "byType"
      from (select ${keys}, type,
                   sum("totalUsage") as usage,
                   coalesce(sum("inputTokens"), 0) as input, coalesce(sum("outputTokens"), 0) as output,
                   sum(case when type <> 'imageGeneration' then 0
                            when "usageMetrics" ->> 'numberOfImages' ~ '^[0-9]{1,9}$' then ("usageMetrics" ->> 'numberOfImages')::int
                            when status = 'success' then 1 else 0 end) as images,
                   sum(credits) as credits, count(*) as calls,
                   count(*) filter (where status = 'success') as success,
                   count(*) filter (where status = 'failed') as failed,
                   coalesce(sum(duration), 0) as duration
              from ${calls}
             group by ${keys}, type
             order by ${keys}) as by_type
     group by ${keys}`;
}

export const figures = [
  'totalUsage',
  'inputTokens',
  'outputTokens',
  'imageGenerations',
  'totalCredits',
  'totalCalls',
  'successCalls',
  'failedCalls',
  'processingCalls',
  'totalDuration',
  'byType',
] as const;
export type Figure = (typeof figures)[number];

/** The figures' columns, for instance `s."totalUsage", s."inputTokens", …`. */
export function columns(alias?: string): Sql.Sql {
  return Sql.raw(figures.map((figure) => `${alias ? `${alias}.` : ''}"${figure}"`).join(', '));
}

/** A row's figures as one value, for instance `jsonb_build_object('totalUsage', s."totalUsage", …)`. */
export function asJson(alias: string): Sql.Sql {
  return Sql.raw(`jsonb_build_object(${figures.map((figure) => `'${figure}', ${alias}."${figure}"`).join(', ')})`);
}
