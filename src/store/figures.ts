// What do the calls add up to?

import { Sql } from './db.ts';

/**
 * A user's calls of an hour, added up: the one definition of every figure, for the roll-up and for `verify`.
 *
 * `calls` is `from … where …` over `ModelCall`; `keys` are the columns before `type` that a row stands for.
 * Nothing is cast to the width of its column here: a sum that does not fit is refused where it is stored.
 * Grouped by type and sorted inside, by user outside: sorted input makes the second grouping cheap.
 *
 * Every status counts in the totals.
 *
 * @param formerly adds a column `formerImages`: the images by the former formula
 */
export function figuresOf(keys: Sql.Sql, calls: Sql.Sql, { formerly = false } = {}): Sql.Sql {
  const [former, unread] = formerly
    ? [Sql.sql`sum(images) - sum(unread) as "formerImages",`, Sql.sql`sum(${unreadFormerly}) as unread,`]
    : [Sql.empty, Sql.empty];
  return Sql.sql`
    select ${keys},
           sum(usage) as "totalUsage", sum(input) as "inputTokens", sum(output) as "outputTokens",
           sum(images) as "imageGenerations", ${former} sum(credits) as "totalCredits", sum(calls) as "totalCalls",
           sum(success) as "successCalls", sum(failed) as "failedCalls", sum(calls) - sum(success) - sum(failed) as "processingCalls",
           sum(duration) as "totalDuration",
           jsonb_object_agg(type, jsonb_build_object('totalUsage', usage, 'totalCredits', credits::text,
                                                     'totalCalls', calls, 'successCalls', success)) as "byType"
      from (select ${keys}, type,
                   sum("totalUsage") as usage,
                   coalesce(sum("inputTokens"), 0) as input, coalesce(sum("outputTokens"), 0) as output,
                   sum(${images}) as images, ${unread}
                   sum(credits) as credits, count(*) as calls,
                   count(*) filter (where status = 'success') as success,
                   count(*) filter (where status = 'failed') as failed,
                   coalesce(sum(duration), 0) as duration
              from ${calls}
             group by ${keys}, type
             order by ${keys}) as by_type
     group by ${keys}`;
}

/** The number of the formula, kept in the ledger for each hour's last run (`StatHour.formula`). The former one is 1. */
export const FORMULA = 2;

const said = Sql.sql`"usageMetrics" ->> 'numberOfImages'`;

/** PostgreSQL keeps the spelling of a JSON number in part: 4e0 is `4`, but 4.0 is `4.0`. */
const saidWithZeros = Sql.sql`
  strpos(${said}, '.') > 0 and ${said} ~ '^[0-9]{1,9}[.]0+$'
  and jsonb_typeof("usageMetrics" -> 'numberOfImages') = 'number'`;

/**
 * A call's images: `usageMetrics.numberOfImages` of an image generation, as text of digits or as a JSON number, if it
 * is a whole number of at most nine digits; else one if the call succeeded. Casts meet nothing but digits: none can
 * fail.
 */
const images = Sql.sql`
  case when type <> 'imageGeneration' then 0
       when ${said} ~ '^[0-9]{1,9}$' then (${said})::int
       when ${saidWithZeros} then split_part(${said}, '.', 1)::int
       when status = 'success' then 1 else 0 end`;

/** What the former formula did not count: versions before 0.7.0 read 4.0 as a call that does not say. */
const unreadFormerly = Sql.sql`
  case when type = 'imageGeneration' and ${saidWithZeros}
       then split_part(${said}, '.', 1)::int - case when status = 'success' then 1 else 0 end else 0 end`;

/**
 * Whether the present formula computed all stored rows of an hour `l` of the ledger. If an older version allotted its
 * last run, or while a run is unfinished, the hour may hold rows by either formula: a user may have been rolled up
 * alone since.
 */
const byFormula = Sql.raw(`(l.state = 'closed' and l.formula = ${FORMULA}) is true`);

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

/**
 * The value that a stored row `s` must have in a figure, if its calls `c` are those of `figuresOf` with `formerly`.
 * In an hour `l` that may hold rows by the former formula, images are also right by that formula.
 */
export function counted(figure: Figure): Sql.Sql {
  if (figure !== 'imageGenerations') return Sql.raw(`c."${figure}"`);
  return Sql.sql`case when s."imageGenerations" = c."formerImages" and not ${byFormula} then c."formerImages"
    else c."imageGenerations" end`;
}

/** The figures' columns, for instance `s."totalUsage", s."inputTokens", …`. */
export function columns(alias?: string): Sql.Sql {
  return Sql.raw(figures.map((figure) => `${alias ? `${alias}.` : ''}"${figure}"`).join(', '));
}

/** A row's figures as one value, for instance `jsonb_build_object('totalUsage', s."totalUsage", …)`. */
export function asJson(alias: string): Sql.Sql {
  return Sql.raw(`jsonb_build_object(${figures.map((figure) => `'${figure}', ${alias}."${figure}"`).join(', ')})`);
}
