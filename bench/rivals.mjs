// What is hourhand measured against? The same figures into the same table, each in the way of
//   S  the system that it takes the place of: every user active in seven days × every hour; read, count, sum, sum by type, insert;
//   U  that system's newer form: the users of the hour, ten at a time;
//   L  the limit: one statement an hour, and a backfill by the day on two connections.
// None of them keeps a ledger, locks, retries or looks for late data. S and U store the figures that they knew, L all of them.
import pLimit from 'p-limit';
import pg from 'pg';

const HOUR_MS = 3_600_000;

/** A pool as it used it: of five. */
export function openRival(connectionString) {
  const pool = new pg.Pool({
    connectionString,
    max: 5,
    options: '-c timezone=UTC -c work_mem=64MB -c jit=off -c hourhand.protocol=2',
    application_name: 'rival',
  });
  pool.on('error', () => {}); // its server may be stopped under it
  return pool;
}

const within = `from "ModelCall" where "userDid" = $1 and "callTime" >= $2 and "callTime" < $3`;
const sums = `sum("totalUsage") as "totalUsage", sum(credits) as "totalCredits", count(*) as "totalCalls",
  sum(case when status = 'success' then 1 else 0 end) as "successCalls"`;
const insert = `
  insert into "ModelCallStat" ("timeType", "timestamp", "userDid", "totalUsage", "totalCredits", "totalCalls", "successCalls", "byType",
                               "inputTokens", "outputTokens", "imageGenerations", "failedCalls", "processingCalls", "totalDuration", run, "computedAt")
  values ('hour', $1, $2, $3, $4, $5, $6, $7, 0, 0, 0, 0, 0, 0, 1, now())`;

async function one(pool, hour, userDid) {
  const span = [userDid, hour, new Date(hour.getTime() + HOUR_MS)];
  const found = await pool.query(
    `select 1 from "ModelCallStat" where "userDid" = $1 and "timestamp" = $2 and "timeType" = 'hour' limit 1`,
    [userDid, hour],
  );
  if (found.rowCount > 0) return;
  const [counted] = (await pool.query(`select count(*) as calls ${within}`, span)).rows;
  let [total, byType] = [{}, {}];
  if (counted.calls !== '0') {
    const [all, types] = await Promise.all([
      pool.query(`select ${sums} ${within}`, span),
      pool.query(`select type, ${sums} ${within} group by type`, span),
    ]);
    total = all.rows[0];
    byType = Object.fromEntries(
      types.rows.map(({ type, totalUsage, totalCredits, totalCalls, successCalls }) => [
        type,
        {
          totalUsage: Number(totalUsage),
          totalCredits,
          totalCalls: Number(totalCalls),
          successCalls: Number(successCalls),
        },
      ]),
    );
  }
  const { totalUsage = 0, totalCredits = 0, totalCalls = 0, successCalls = 0 } = total;
  await pool.query(insert, [hour, userDid, totalUsage, totalCredits, totalCalls, successCalls, byType]);
}

/** Every user active in the seven days before the end, in every hour, all at once through the pool. */
export async function everyActiveUser(pool, hours) {
  const end = new Date(hours.at(-1).getTime() + HOUR_MS);
  const { rows } = await pool.query(
    'select distinct "userDid" from "ModelCall" where "callTime" >= $1 and "callTime" < $2',
    [new Date(end.getTime() - 7 * 24 * HOUR_MS), end],
  );
  for (const hour of hours) await Promise.all(rows.map(({ userDid }) => one(pool, hour, userDid)));
}

/** The users of each hour, ten at a time. */
export async function usersOfTheHour(pool, hours) {
  const limit = pLimit(10);
  for (const hour of hours) {
    const { rows } = await pool.query(
      'select distinct "userDid" from "ModelCall" where "callTime" >= $1 and "callTime" < $2',
      [hour, new Date(hour.getTime() + HOUR_MS)],
    );
    await Promise.all(rows.map(({ userDid }) => limit(() => one(pool, hour, userDid))));
  }
}

const FIGURES = [
  ...['totalUsage', 'inputTokens', 'outputTokens', 'imageGenerations', 'totalCredits', 'totalCalls'],
  ...['successCalls', 'failedCalls', 'processingCalls', 'totalDuration', 'byType'],
];
const KNOWN_TO_ALL = ['totalUsage', 'totalCredits', 'totalCalls', 'successCalls', 'byType'];
const named = (figures, of = '') => figures.map((figure) => `${of}"${figure}"`).join(', ');

const hourOf = `date_trunc('hour', "callTime", 'UTC')`;

/** By hand, so that it proves hourhand's own sums. The sorts inside make it a fifth faster. */
const added = `
  select hour, "userDid", sum(tokens), sum(input), sum(output), sum(images), sum(credits), sum(calls), sum(good), sum(bad),
         sum(open), sum(seconds),
         jsonb_object_agg(type, jsonb_build_object('totalUsage', tokens, 'totalCredits', credits::text, 'totalCalls', calls,
                                                   'successCalls', good))
    from (select ${hourOf} as hour, "userDid", type, sum("totalUsage") as tokens, coalesce(sum("inputTokens"), 0) as input,
                 coalesce(sum("outputTokens"), 0) as output, sum(credits) as credits, count(*) as calls,
                 coalesce(sum(coalesce(("usageMetrics" ->> 'numberOfImages')::int, (status = 'success')::int))
                          filter (where type = 'imageGeneration'), 0) as images,
                 count(*) filter (where status = 'success') as good, count(*) filter (where status = 'failed') as bad,
                 count(*) filter (where status = 'processing') as open, coalesce(sum(duration), 0) as seconds
            from "ModelCall" where "callTime" >= $1 and "callTime" < $2
           group by 1, 2, 3 order by 1, 2) as by_type
   group by hour, "userDid"`;

const setBased = `
  insert into "ModelCallStat" as s ("timeType", "timestamp", "userDid", ${named(FIGURES)}, run, "computedAt")
  select 'hour', calls.*, 1, now() from (${added}) as calls
  on conflict ("timeType", "timestamp", "userDid") do update
     set (${named(FIGURES)}, run, "computedAt") = row (${named(FIGURES, 'excluded.')}, excluded.run, excluded."computedAt")`;

/** One statement for so many hours from each of them, so many connections at once. */
export async function setBasedStatements(pool, starts, { hours = 1, connections = 1 } = {}) {
  const left = [...starts];
  const work = async () => {
    for (let start = left.shift(); start; start = left.shift()) {
      await pool.query(setBased, [start, new Date(start.getTime() + hours * HOUR_MS)]);
    }
  };
  await Promise.all(Array.from({ length: connections }, work));
}

/** The recount of a range: what the calls add up to, and nothing more. Whole rows are counted, or the sums would be left out. */
export async function recount(pool, { start, end }) {
  await pool.query(`select count(counted) from (${added}) as counted`, [start, end]);
}

/** What was stored, as one value for each: of the figures that all know, and of all. */
export async function fingerprints(client) {
  const of = (figures) =>
    `md5(string_agg(md5(concat_ws('|', "timestamp", "userDid", ${named(figures)})), '' order by "timestamp", "userDid"))`;
  const { rows } = await client.query(
    `select ${of(KNOWN_TO_ALL)} as known, ${of(FIGURES)} as all, count(*)::int as rows from "ModelCallStat" where "totalCalls" > 0`,
  );
  return rows[0];
}
