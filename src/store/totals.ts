// Compares what the ledger and the models say of closed hours with their rows and their calls.

import { daysOf, type Range } from '../time/range.ts';
import { type Db, Sql } from './db.ts';
import { NAME } from './hour-models.ts';
import { calledWithin, callHour } from './scope.ts';
import { batches } from './stats.ts';

/** Something that the ledger or the models say of an hour, and that its rows or calls do not add up to. */
export interface TotalsDifference {
  readonly hour: Date;
  /** `ledger`, `models` (their sums), or one model: `model openai/gpt chatCompletion`. */
  readonly what: string;
  /** Each figure that differs, for instance `calls: stored 3, counted 4`. */
  readonly differing: string[];
  /** Users were rolled up since: the difference is known, and the next look mends it. */
  readonly pending: boolean;
}

/**
 * `array['calls: stored 3, counted 4', …]` of those figures of a row `s` that are not those of a row `c`; none of a
 * figure without a value.
 */
function differingOf(figures: readonly string[], zero?: '0'): Sql.Sql {
  const lines = figures.map((figure) => {
    const [stored, counted] = ['s', 'c'].map((row) =>
      zero ? `coalesce(${row}."${figure}", 0)` : `${row}."${figure}"`,
    );
    return `case when ${stored} <> ${counted}
      then '${figure}: stored ' || (${stored})::text || ', counted ' || (${counted})::text end`;
  });
  return Sql.raw(`array_remove(array[${lines.join(', ')}], null)`);
}

const totals = ['successCalls', 'failedCalls', 'totalUsage', 'totalCredits'] as const;

/**
 * The ledger's totals of a range's closed hours, against their rows. Sealed hours are compared too, as long as their
 * statistics are there. Totals that were never derived (an hour closed by a process of 0.5) are no difference: the
 * look derives them.
 */
export async function* ledgerDifferences(db: Db, { start, end }: Range): AsyncGenerator<TotalsDifference[]> {
  yield* batches<TotalsDifference>(
    db,
    Sql.sql`
    with rows as (
      select "timestamp" as hour, count(*) filter (where "totalCalls" > 0) as users, sum("totalCalls") as calls,
             sum("successCalls") as "successCalls", sum("failedCalls") as "failedCalls",
               sum("totalUsage") as "totalUsage",
             sum("totalCredits") as "totalCredits"
        from "ModelCallStat"
       where "timeType" = 'hour' and "timestamp" >= ${start}::timestamptz and "timestamp" < ${end}::timestamptz
         group by 1
    ), c as (
      select l.hour, coalesce(rows.users, 0) as users, coalesce(rows.calls, 0) as calls,
             ${Sql.raw(totals.map((figure) => `coalesce(rows."${figure}", 0) as "${figure}"`).join(', '))}
        from "StatHour" l left join rows using (hour)
       where l.hour >= ${start}::timestamptz and l.hour < ${end}::timestamptz and l.state = 'closed'
         and (l."sealedAt" is null or rows.hour is not null)
    )
    select hour, 'ledger' as what, differing, pending
      from (select c.hour, ${differingOf(['users', 'calls', ...totals])} as differing,
                   exists (select from "StatUntold" u where u.hour = c.hour and not u.models offset 0) as pending
              from c join "StatHour" s using (hour)) as compared
     where differing <> '{}' order by hour`,
  );
}

/**
 * The models of a range's closed hours, against the calls, model by model; of sealed hours, whose calls may be gone,
 * the sums of all models against the rows. Hours whose models are still to be derived are passed over: the look
 * derives them; so are hours with marks. Day by day, as calls are read for the rows of users.
 */
export async function* modelDifferences(db: Db, range: Range): AsyncGenerator<TotalsDifference[]> {
  for (const day of daysOf(range)) {
    yield* batches<TotalsDifference>(db, againstCalls(day));
    yield* batches<TotalsDifference>(db, againstRows(day));
  }
}

/** The hours `l` whose models have been derived from all that is in their figures. */
const derived = ({ start, end }: Range) => Sql.sql`
  l.hour >= ${start}::timestamptz and l.hour < ${end}::timestamptz and l.state = 'closed'
    and l."modelsAsOf" = l."asOf"
  and not exists (select from "StatUntold" u where u.hour = l.hour offset 0)`;

function againstCalls(day: Range): Sql.Sql {
  return Sql.sql`
    with hours as materialized (
      select l.hour from "StatHour" l
       where ${derived(day)} and l."sealedAt" is null and l.fence = 0
         and not exists (select from "StatMark" m where m.hour = l.hour offset 0)
    ), c as (
      select ${callHour} at time zone 'UTC' as hour, left("providerId", ${NAME}::int) as "providerId",
        left(model, ${NAME}::int) as model,
             type, count(*) as "totalCalls", count(*) filter (where status = 'success') as "successCalls",
             count(*) filter (where status = 'failed') as "failedCalls", sum("totalUsage") as "totalUsage",
               sum(credits) as "totalCredits"
        from "ModelCall" where ${calledWithin(day)} group by 1, 2, 3, 4
    ), s as (
      select * from "StatModel" where hour >= ${day.start}::timestamptz and hour < ${day.end}::timestamptz
    )
    select hour, what, differing, false as pending
      from (select hour, 'model ' || "providerId" || '/' || model || ' ' || type as what,
                   ${differingOf(['totalCalls', ...totals], '0')} as differing
              from s full join c using (hour, "providerId", model, type) join hours using (hour)) as compared
     where differing <> '{}' order by hour, what collate "C"`;
}

function againstRows(day: Range): Sql.Sql {
  const sums = Sql.raw(['totalCalls', ...totals].map((figure) => `sum("${figure}") as "${figure}"`).join(', '));
  return Sql.sql`
    with hours as materialized (
      select l.hour from "StatHour" l where ${derived(day)} and l."sealedAt" is not null
    ), c as (
      select "timestamp" as hour, ${sums} from "ModelCallStat"
       where "timeType" = 'hour' and "timestamp" >= ${day.start}::timestamptz
         and "timestamp" < ${day.end}::timestamptz group by 1
    ), s as (
      select hour, ${sums} from "StatModel" where hour >= ${day.start}::timestamptz
        and hour < ${day.end}::timestamptz group by 1
    )
    select hour, 'models' as what, differing, false as pending
      from (select hour, ${differingOf(['totalCalls', ...totals], '0')} as differing
              from s full join c using (hour) join hours using (hour)) as compared
     where differing <> '{}' order by hour`;
}
