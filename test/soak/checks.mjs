// Is what is stored what the calls add up to, and is anything owed? By SQL of the soak's own, which knows nothing of `verify`.
import { setTimeout as sleep } from 'node:timers/promises';
import { sessionOf } from './writers.mjs';

const FIGURES = [
  ...['totalUsage', 'inputTokens', 'outputTokens', 'imageGenerations', 'totalCredits', 'totalCalls'],
  ...['successCalls', 'failedCalls', 'processingCalls', 'totalDuration', 'byType'],
];

/** Each user-hour of `hours`, as stored and as counted: `(hour, "userDid", stored, counted)`. */
const compared = (hours) => `
  by_type as (
    select date_trunc('hour', "callTime", 'UTC') as hour, "userDid", type, sum("totalUsage") as usage, sum(coalesce("inputTokens", 0)) as input,
           sum(coalesce("outputTokens", 0)) as output, sum(credits) as credits, sum(coalesce(duration, 0)) as duration, count(*) as calls,
           count(case status when 'success' then 1 end) as success, count(case status when 'failed' then 1 end) as failed,
           count(case status when 'processing' then 1 end) as processing,
           sum(case when type = 'imageGeneration' then coalesce(("usageMetrics" ->> 'numberOfImages')::int, (status = 'success')::int) else 0 end) as images
      from "ModelCall" where date_trunc('hour', "callTime", 'UTC') in (${hours}) group by 1, 2, 3
  ), counted as (
    select hour, "userDid", jsonb_build_object('totalUsage', sum(usage), 'inputTokens', sum(input), 'outputTokens', sum(output),
             'imageGenerations', sum(images), 'totalCredits', sum(credits), 'totalCalls', sum(calls), 'successCalls', sum(success),
             'failedCalls', sum(failed), 'processingCalls', sum(processing), 'totalDuration', sum(duration),
             'byType', jsonb_object_agg(type, jsonb_build_object('totalUsage', usage, 'totalCredits', credits::text,
                                                                 'totalCalls', calls, 'successCalls', success))) as counted
      from by_type group by 1, 2
  ), stored as (
    select "timestamp" as hour, "userDid", jsonb_build_object(${FIGURES.map((name) => `'${name}', "${name}"`).join(', ')}) as stored
      from "ModelCallStat" where "timeType" = 'hour' and "totalCalls" > 0 and "timestamp" in (${hours})
  ), compared as (
    select hour, "userDid", stored, counted from counted full join stored using (hour, "userDid")
  )`;

/**
 * In one snapshot, in the midst of everything: a user whose hour is closed and settled, and who has no mark in it, has the right row.
 * It rests on three things being one transaction: a call and its mark; a mark taken away and the row derived; an hour's fence at 0 and a run that
 * began afterwards. Hours that run or are partial are passed over: a fence is at 0 as soon as its last run begins.
 */
const LOOK = `
  with trusted as materialized (
    select hour from "StatHour" where state = 'closed' and fence = 0 and wanted <= run and "sealedAt" is null
  ), ${compared('select hour from trusted')}, unmarked as (
    select * from compared c where not exists (select from "StatMark" m where m.hour = c.hour and m."userDid" = c."userDid")
  )
  select count(*)::int as compared, (select count(*)::int from trusted) as hours,
         coalesce(jsonb_agg(to_jsonb(unmarked)) filter (where stored is distinct from counted), '[]') as wrong
    from unmarked`;

/** Look at random moments, until `signal` aborts. */
export async function lookOn(world, { draw, signal, found }) {
  const session = sessionOf(world, 'looker');
  while (!signal.aborted) {
    const rows = await session.use(async (client) => (await client.query(LOOK)).rows, signal);
    if (rows) {
      found.looks += 1;
      found.compared += rows[0].compared;
      for (const row of rows[0].wrong) {
        const key = `${row.hour} ${row.userDid}`;
        if (found.wrong.has(key)) continue;
        found.wrong.set(key, row);
        if (found.wrong.size <= 5) world.say(`WRONG at a look: ${spellWrong(row)}`);
      }
    }
    await sleep(draw.between(100, 900), undefined, { signal }).catch(() => {});
  }
  await session.end();
}

/** Every hour that is covered or known, and has ended, with what is wrong with it; and every row that is wrong. */
const END = `
  with ended as (
    select date_trunc('hour', now(), 'UTC') as until
  ), due as materialized (
    select hour from ended, "StatRange" r, generate_series(r.start, least(r."end", until) - interval '1 hour', interval '1 hour') as hour
    union
    select hour from "StatHour"
  ), owed as (
    select due.hour, to_jsonb(l) as ledger, (select count(distinct "userDid")::int from "StatMark" m where m.hour = due.hour) as marked
      from due left join "StatHour" l using (hour)
     where l.state is distinct from 'closed' or wanted > run or fence is distinct from 0
        or exists (select from "StatMark" m where m.hour = due.hour)
  ), ${compared('select hour from due')}, wrong as (
    select * from compared where stored is distinct from counted
  )
  select (select count(*)::int from due) as hours, (select count(*)::int from compared) as compared, (select min(hour) from due) as first,
         (select count(*)::int from "StatMark") as marks, (select count(*)::int from owed) as "owedCount", (select count(*)::int from wrong) as "wrongCount",
         (select count(*)::int from "ModelCallStat", ended where "timestamp" >= until) as early,
         (select coalesce(jsonb_agg(to_jsonb(o)), '[]') from (select * from owed order by hour limit 20) as o) as owed,
         (select coalesce(jsonb_agg(to_jsonb(w)), '[]') from (select * from wrong order by hour, "userDid" limit 20) as w) as wrong`;

const SCHEDULERS = {
  ticks: 'model.call.stats',
  lateTicks: 'late.model.calls',
  staleTicks: 'cleanup.stale.model.calls',
  modelTicks: 'check.model.status',
  auditTicks: 'audit.model.call.stats',
};

/** Look until everything is settled, for at most `ms`. @returns what was last seen, and whether that is how it should be */
export async function untilSettled(world, { ms, signal }) {
  const begin = performance.now();
  const session = sessionOf(world, 'looker');
  for (;;) {
    const [rows, silent] = [
      await session.use(async (client) => (await client.query(END)).rows),
      await silentSchedulers(world),
    ];
    const seconds = (performance.now() - begin) / 1_000;
    const seen = { ...rows?.[0], silent };
    const left = rows ? seen.owedCount + seen.wrongCount + seen.marks + seen.early + silent.length : 1;
    if (left === 0 || seconds > ms / 1_000 || signal.aborted) {
      await session.end();
      return { ...seen, seconds, settled: left === 0 };
    }
    await sleep(200);
  }
}

/** Those that have no tick before them: they would never fire again. */
async function silentSchedulers({ queues }) {
  const found = await Promise.all(
    Object.entries(SCHEDULERS).map(async ([queue, id]) => {
      const scheduler = await queues[queue].getJobScheduler(id).catch(() => undefined);
      return scheduler?.next > Date.now() - 3_000 ? [] : [id];
    }),
  );
  return found.flat();
}

export function spellWrong({ hour, userDid, stored, counted }) {
  const of = (figures) => (figures ? `${figures.totalCalls} calls of ${figures.totalCredits}` : 'none');
  const differing = FIGURES.filter((name) => JSON.stringify(stored?.[name]) !== JSON.stringify(counted?.[name]));
  const named =
    stored && counted
      ? `: ${differing.map((name) => `${name} ${JSON.stringify([stored[name], counted[name]])}`)}`
      : '';
  return `${hour.slice(0, 13)} ${userDid}: stored ${of(stored)}, counted ${of(counted)}${named}`;
}
