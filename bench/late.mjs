// What do the triggers that notice late calls cost the gateway's own writes? The same statements by turns on three copies of its
// table, each with 100,000 calls: with the triggers, without, and without once more, which shows how much is noise. Every
// statement is a transaction of its own, and its commit is counted: with fsync, as a gateway awaits it, and for single rows once
// more without, because the disk hides what the processor does.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { at, connected, median, migrated, spread, withoutTriggers } from './databases.mjs';

const SIDES = ['triggers', 'without', 'control'];
const HOUR_MS = 3_600_000;
/** Longer than a round takes, and a quick one. */
const [ROUND_MS, QUICK_MS] = [60_000, 20_000];

/** When the calls of a case were made. */
const HOURS = { running: 'now()', late: `now() - interval '1 hour'` };

const columns = `(id, "userDid", "appDid", "providerId", model, type, status, "callTime")`;
const begun = `'did:app:1', 'openai', 'gpt-4o-mini', 'chatCompletion', 'processing'`;
const end = `
  update "ModelCall"
     set status = 'success', "inputTokens" = 638, "outputTokens" = 25, "totalUsage" = 663, credits = 0.00011070,
         duration = 1.42, "updatedAt" = now()`;
const single = {
  insert: (time) => `insert into "ModelCall" ${columns} values ($1, $2, ${begun}, ${time})`,
  update: () => `${end} where id = $1 and "userDid" = $2`,
};
const batch = {
  insert: (time) =>
    `insert into "ModelCall" ${columns} select id, who, ${begun}, ${time} from unnest($1::text[], $2::text[]) c (id, who)`,
  update: () => `${end} from unnest($1::text[], $2::text[]) c (i, who) where id = i and "userDid" = who`,
};
/** How a gateway writes, and how many statements of it make a round: a row for each call and then its end, or many of both. */
const WAYS = [
  { way: 'single rows', ...single, rows: 1, statements: 100, commit: 'on' },
  { way: 'single rows, not awaiting the disk', ...single, rows: 1, statements: 800, commit: 'off' },
  { way: 'batches of 1,000', ...batch, rows: 1_000, statements: 12, commit: 'on' },
];

export async function bench(servers, values, { stop, add }) {
  const rounds = Number(values.rounds ?? (values.quick ? 2 : 5));
  const clients = await prepare(servers, values.quick ? 10_000 : 100_000);
  const results = new Map();
  for (let round = 0; round <= rounds && stop.exitCode === undefined; round++) {
    await roundWithinOneHour(clients[0], values.quick ? QUICK_MS : ROUND_MS);
    for (const [hour, time] of Object.entries(HOURS)) {
      for (const { way, rows, statements, commit, ...writes } of WAYS) {
        const params = calls(values.quick ? Math.ceil(statements / 10) : statements, rows);
        for (const client of clients) await client.query(`set synchronous_commit = ${commit}`);
        for (const write of ['insert', 'update']) {
          const of = `${hour}: ${way}, ${write}`;
          const spent = await byTurns(clients, { name: of, text: writes[write](time) }, params);
          const late = hour === 'late' ? params.length * rows : 0;
          assert.deepEqual(await marksLeft(clients), [late, 0, 0], `marks of late calls, and of no others: ${of}`);
          // The first round only warms up.
          if (round > 0) results.set(of, [...(results.get(of) ?? []), spent.map((ms) => (ms * 1_000) / rows)]);
        }
      }
    }
  }
  if (stop.exitCode === undefined) report(results, add);
  await Promise.all(clients.map((client) => client.end()));
}

/** One connection to each side, of so many calls. */
async function prepare(servers, filled) {
  const admin = await connected(servers.databaseUrl);
  // As a gateway's server: these were started with fast, forgetful settings. Nobody cleans up in the middle of a round.
  for (const setting of ['fsync = on', 'full_page_writes = on', 'synchronous_commit = on', 'autovacuum = off']) {
    await admin.query(`alter system set ${setting}`);
  }
  await admin.query('select pg_reload_conf()');
  await admin.query(`create database ${SIDES[0]}`);
  const model = await migrated(at(servers, SIDES[0]));
  await model.query(
    `insert into "ModelCall" ${columns}
     select gen_random_uuid(), 'did:user:' || i % 5000, ${begun}, now() - interval '2 hours' - i * interval '1 s'
       from generate_series(1, ${filled}) i`,
  );
  await model.query(`${end}`);
  await model.query('truncate "StatMark"');
  await model.query('vacuum (full, analyze) "ModelCall"');
  await model.end();
  for (const side of SIDES.slice(1))
    await admin.query(`create database ${side} template ${SIDES[0]} strategy file_copy`);
  await admin.end();
  const clients = await Promise.all(SIDES.map((side) => connected(at(servers, side))));
  await Promise.all(clients.slice(1).map(withoutTriggers));
  const { rows } = await clients[0].query(
    `select current_setting('fsync') as fsync, current_setting('synchronous_commit') as commit`,
  );
  assert.deepEqual(rows, [{ fsync: 'on', commit: 'on' }]);
  return clients;
}

/** A call of a round that the hour's end divides would be late after all. */
async function roundWithinOneHour(client, ms) {
  await client.query('checkpoint');
  const left = HOUR_MS - (Date.now() % HOUR_MS);
  if (left < ms) await sleep(left + 1_000);
}

/** The parameters of so many statements. */
function calls(statements, rows) {
  const one = () => [randomUUID(), `did:user:${Math.floor(Math.random() * 5000)}`];
  return Array.from({ length: statements }, () => {
    if (rows === 1) return one();
    const many = Array.from({ length: rows }, one);
    return [many.map(([id]) => id), many.map(([, who]) => who)];
  });
}

/**
 * Milliseconds that a statement takes on each side. The sides get every statement by turns, each first as often as last. What a
 * quarter of them stays below: stalls of the disk and of whoever else uses the machine only ever add to it.
 */
async function byTurns(clients, statement, params) {
  const spent = clients.map(() => []);
  for (const [turn, values] of params.entries()) {
    for (let i = 0; i < clients.length; i++) {
      const side = (turn + i) % clients.length;
      const since = performance.now();
      await clients[side].query({ ...statement, values });
      spent[side].push(performance.now() - since);
    }
  }
  return spent.map((one) => one.sort((a, b) => a - b)[Math.floor(one.length / 4)]);
}

async function marksLeft(clients) {
  const left = await Promise.all(
    clients.map((client) => client.query('select count(*)::int as marks from "StatMark"')),
  );
  await Promise.all(clients.map((client) => client.query('truncate "StatMark"')));
  return left.map(({ rows }) => rows[0].marks);
}

function report(results, add) {
  for (const [name, rounds] of results) {
    const micros = (side) => `${median(rounds.map((spent) => spent[side])).toFixed(1)} µs a row`;
    const ratios = (one, other) => spread(rounds.map((spent) => spent[one] / spent[other]));
    add({
      what: `the gateway writes, ${name}`,
      ratio: `${ratios(0, 1)} without triggers`,
      hourhand: `${micros(0)} with its triggers, commit counted`,
      against: `${micros(1)} without`,
      beside: `noise, without against itself: ${ratios(2, 1)}`,
    });
  }
}
