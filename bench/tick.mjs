// What does a look cost PostgreSQL when nothing is owed, with two years of ledger? Read from its own log of every statement.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { local } from '../scripts/servers.mjs';
import { at, connected, median, migrated, times } from './databases.mjs';
import { openHourhand } from './hourhand.mjs';

const HOURS = 2 * 365 * 24;

export async function bench(servers, { quick, rounds }, { stop, add }) {
  const admin = await connected(servers.databaseUrl);
  await admin.query('create database tick');
  const databaseUrl = at(servers, 'tick');
  const client = await migrated(databaseUrl);
  await client.query(
    `insert into "StatHour" (hour, state, run, wanted, reason, users, calls, "startedAt", "closedAt", revision, "asOf", fence)
     select hour, 'closed', 1, 0, 'tick', 1000, 10000, hour, hour, 1, hour, 0
       from generate_series(date_trunc('hour', now(), 'UTC') - $1::int * interval '1 hour', date_trunc('hour', now(), 'UTC') + interval '6 hours',
                            interval '1 hour') as hour`,
    [HOURS],
  );
  await client.query(
    `insert into "StatRange" values (date_trunc('hour', now(), 'UTC') - $1::int * interval '1 hour', null)`,
    [HOURS],
  );
  await client.query('vacuum (analyze)');
  await client.end();
  const hourhand = await openHourhand({ ...servers, databaseUrl }, { workers: 0 });
  const { enqueueOwed } = await import('../dist/producers/hours.js');
  const look = async () => {
    const { enqueued, closedEmpty } = await enqueueOwed(hourhand.connections);
    if (enqueued.length + closedEmpty.length > 0)
      throw new Error(`expected nothing owed, got ${enqueued}${closedEmpty}`);
  };
  for (let i = 0; i < 10; i++) await look();
  await admin.query('alter system set log_min_duration_statement = 0');
  await admin.query('select pg_reload_conf()');
  await sleep(500);
  const spent = [];
  for (let round = 0; round < Number(rounds ?? (quick ? 3 : 25)) && stop.exitCode === undefined; round++) {
    const before = logged().length;
    await look();
    await sleep(100); // the log is written by another process
    spent.push(milliseconds(logged().slice(before)));
  }
  await admin.query('alter system reset log_min_duration_statement');
  await admin.end();
  await hourhand.close();
  if (stop.exitCode !== undefined) return;
  add({
    what: `a tick with nothing owed, ${HOURS.toLocaleString('en')} hours in the ledger`,
    ratio: `${times(spent)} of Postgres`,
    hourhand: times(spent),
    against: '5 ms',
    target: '≤ 5 ms of Postgres',
    met: median(spent) <= 5,
  });
}

const logged = () => readFileSync(path.join(local, 'bench', 'postgres.log'), 'utf8');

/** Parsing, planning and running, all statements together. */
const milliseconds = (log) =>
  [...log.matchAll(/duration: ([\d.]+) ms/g)].reduce((sum, [, ms]) => sum + Number(ms), 0);
