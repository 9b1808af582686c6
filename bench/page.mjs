// Does the operator's page stay quick with two years of hours and 100,000 users? The page as a browser asks for it, and each of its parts,
// over a ledger that is made: every hour of two years, with figures; a day of statistics of all users, and months of the busy ones.
import { at, connected, median, migrated, times } from './databases.mjs';
import { openHourhand } from './hourhand.mjs';

/** For the page's queries, all together. */
const LIMIT_MS = 200;

export async function bench(servers, { quick, rounds, users: given }, { stop, add, say }) {
  const users = Number(given?.[0] ?? (quick ? 5_000 : 100_000));
  const hours = (quick ? 60 : 2 * 365) * 24;
  const admin = await connected(servers.databaseUrl);
  await admin.query('create database page');
  await admin.end();
  const databaseUrl = at(servers, 'page');
  await fillLedger(await migrated(databaseUrl), { users, hours }, say);
  const hourhand = await openHourhand({ ...servers, databaseUrl }, { workers: 0 });
  const { startDashboard } = await import('../dist/dashboard/server.js');
  const dashboard = await startDashboard(hourhand.connections);
  const now = Date.now();
  const [to, year, years] = [0, 365, 729].map((days) => new Date(now - days * 86_400_000).toISOString().slice(0, 13));
  const paths = {
    'the page, of the last 30 days': '/',
    'the page, of two years': `/?from=${years}&to=${to}`,
    'what is now': '/parts/now',
    'coverage of 30 days': '/parts/coverage',
    'coverage of two years': `/parts/coverage?from=${years}&to=${to}`,
    'charts of 30 days': '/parts/charts',
    'charts of a year': `/parts/charts?from=${year}&to=${to}`,
    'one hour': `/hours/${new Date(now - 7_200_000).toISOString().slice(0, 13)}`,
  };
  for (const [what, path] of Object.entries(paths)) {
    const spent = [];
    let bytes = 0;
    for (let round = 0; round < Number(rounds ?? (quick ? 1 : 15)) && stop.exitCode === undefined; round++) {
      await new Promise((resolve) => setTimeout(resolve, 1_100)); // what is shared between readers is asked anew
      const began = performance.now();
      const answer = await fetch(dashboard.url + path);
      bytes = (await answer.arrayBuffer()).byteLength;
      spent.push(performance.now() - began);
      if (answer.status !== 200) throw new Error(`${path}: expected 200, got ${answer.status}`);
    }
    if (stop.exitCode !== undefined) break;
    add({
      what: `${what}, ${users.toLocaleString('en')} users, ${hours.toLocaleString('en')} hours`,
      ratio: times(spent),
      hourhand: `${times(spent)}, ${Math.round(bytes / 1_000)} kB`,
      against: `${LIMIT_MS} ms`,
      target: `≤ ${LIMIT_MS} ms`,
      met: median(spent) <= LIMIT_MS,
    });
  }
  await dashboard.close();
  await hourhand.close();
}

async function fillLedger(client, { users, hours }, say) {
  say(`  making ${hours.toLocaleString('en')} hours, and statistics of ${users.toLocaleString('en')} users`);
  await client.query(
    `insert into "StatHour" (hour, state, run, wanted, reason, users, calls, "successCalls", "failedCalls", "totalUsage", "totalCredits",
                             "startedAt", "closedAt", revision, "asOf", "modelsAsOf", fence, "auditedAt")
     select hour, 'closed', 1, 0, 'tick', $2, 10 * $2, 9 * $2, $2, 1000::numeric * $2, 0.125 * $2, hour, hour, 1, hour, hour, 0, hour
       from generate_series(date_trunc('hour', now(), 'UTC') - $1::int * interval '1 hour', date_trunc('hour', now(), 'UTC') - interval '1 hour',
                            interval '1 hour') as hour`,
    [hours, users],
  );
  await client.query(
    `insert into "StatRange" values (date_trunc('hour', now(), 'UTC') - $1::int * interval '1 hour', null)`,
    [hours],
  );
  await client.query(
    `insert into "StatModel" select hour, 'provider-' || m % 4, 'model-' || m, 'chatCompletion', 1000, 900, 100, 100000, 12.5
       from "StatHour", generate_series(1, 20) as m`,
  );
  // All users in each of the last 24 hours, and the busiest hundred in each hour before.
  await client.query(
    `insert into "ModelCallStat" ("timeType", "timestamp", "userDid", "totalUsage", "inputTokens", "outputTokens", "imageGenerations", "totalCredits",
                                  "totalCalls", "successCalls", "failedCalls", "processingCalls", "totalDuration", "byType", run, "computedAt")
     select 'hour', hour, 'user-' || u, 1000, 900, 100, 0, 0.125, 10, 9, 1, 0, 12.5, '{}', 1, now()
       from "StatHour", lateral generate_series(1, case when hour >= now() - interval '1 day' then $1::int else 100 end) as u`,
    [users],
  );
  await client.query('vacuum (analyze)');
  await client.end();
}
