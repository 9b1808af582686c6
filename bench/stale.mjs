// How fast are calls that hang failed, against one plain UPDATE that leaves no marks? Both on the same data, by turns.
import assert from 'node:assert/strict';
import { at, connected, median, migrated, spread, withoutTriggers } from './databases.mjs';

const now = new Date('2026-08-20T14:10:00Z');

export async function bench(servers, values, { stop, add, say }) {
  const rows = Number(values.rows ?? (values.quick ? 50_000 : 1_000_000));
  const stale = Number(values.stale ?? rows / 10);
  const rounds = Number(values.rounds ?? (values.quick ? 2 : 3));
  const size = values.batch === undefined ? undefined : Number(values.batch);
  const admin = await connected(servers.databaseUrl);
  await admin.query('create database model');
  await fill(at(servers, 'model'), rows, stale);
  const results = { hourhand: [], update: [] };
  for (let round = 0; round < rounds && stop.exitCode === undefined; round++) {
    const left = {};
    for (const who of ['hourhand', 'update']) {
      await admin.query('create database round template model strategy file_copy');
      const one = await { hourhand, update }[who](at(servers, 'round'), servers.redisUrl, size);
      left[who] = await failed(at(servers, 'round'));
      await admin.query('drop database round with (force)');
      results[who].push(one);
      const { longest, batches } = one;
      const more = batches ? `, ${batches} batches, the longest ${longest.toFixed(0)} ms` : '';
      say(`  ${who.padEnd(10)}${one.rate.toFixed(0).padStart(8)} rows/s${more}`);
    }
    assert.deepEqual(left.hourhand, left.update, 'both leave the same rows');
    assert.equal(left.hourhand.calls, String(stale));
  }
  if (stop.exitCode === undefined) add(rowOf(results, rows, stale));
  await admin.end();
}

function rowOf({ hourhand, update }, rows, stale) {
  const ratios = hourhand.map(({ rate }, i) => rate / update[i].rate);
  const rate = (of) => `${Math.round(median(of.map((one) => one.rate))).toLocaleString('en')} rows/s`;
  return {
    what: `${stale.toLocaleString('en')} calls that hang among ${rows.toLocaleString('en')} are failed, each marked for its user's hour`,
    ratio: `${spread(ratios)} of its rate`,
    hourhand: `${rate(hourhand)}, in batches of ${Math.max(...hourhand.map(({ longest }) => longest)).toFixed(0)} ms at most`,
    against: `one plain UPDATE, which marks nothing and holds every row to its end: ${rate(update)}`,
    beside: `peak memory ${(process.resourceUsage().maxRSS / 1024).toFixed(0)} MB`,
  };
}

/** A month of calls of 5,000 users under random ids, each n-th of them hanging, in hours that are covered. */
async function fill(databaseUrl, rows, stale) {
  const client = await migrated(databaseUrl);
  await client.query(
    `insert into "ModelCall" (id, "userDid", "providerId", model, type, "totalUsage", credits, status, duration, "callTime")
     select md5(i::text)::uuid::text, 'did:user:' || (i * 7919::bigint % 5000), 'openai', 'gpt-' || i % 7, 'chatCompletion', 10, 0.001,
            case when i % ($1::int / $2::int) = 0 then 'processing' else 'success' end::"ModelCallStatus", 1.5,
            $3::timestamptz - interval '1 hour' - ($1::int - i) * (interval '30 days' / $1::int)
       from generate_series(1, $1::int) i`,
    [rows, stale, now],
  );
  await client.query(`insert into "StatRange" values ('2026-01-01Z', null)`);
  await client.query('vacuum (analyze) "ModelCall"');
  await client.query('checkpoint');
  await client.end();
}

async function hourhand(databaseUrl, redisUrl, size) {
  const [{ cleanUp, BATCH }, { connect }, { openQueues, producerConnection }] = await Promise.all(
    ['producers/stale.js', 'store/db.js', 'queues/redis.js'].map((f) => import(`../dist/${f}`)),
  );
  const pool = connect(databaseUrl, { connections: 2, onError: () => {} });
  const redis = producerConnection({ url: redisUrl }, () => {});
  await Promise.all([pool.$queryRaw`select 1`, new Promise((ready) => redis.once('ready', ready))]);
  const begin = performance.now();
  const ends = [];
  const { done } = await cleanUp(
    {
      pool,
      queues: openQueues(redis, '{bench}'),
      policy: { limits: { minutes: 30, others: [] }, everySeconds: 600 },
    },
    {
      requestedBy: 'bench',
      signal: new AbortController().signal,
      size: size ?? BATCH,
      now,
      onProgress: async () => void ends.push(performance.now()),
    },
  );
  const seconds = (performance.now() - begin) / 1000;
  redis.disconnect();
  await pool.$disconnect();
  // The first one's beginning is not known: counting comes before it.
  const longest = Math.max(...ends.slice(1).map((end, i) => end - ends[i]));
  return { rate: done.calls / seconds, longest, batches: ends.length };
}

async function update(databaseUrl) {
  const client = await connected(databaseUrl);
  await withoutTriggers(client);
  const begin = performance.now();
  const { rowCount } = await client.query(
    `update "ModelCall" set status = 'failed', "errorReason" = 'Timeout: Processing exceeded 30 minutes',
            duration = extract(epoch from $1::timestamptz - "callTime"), "updatedAt" = $1
      where status = 'processing' and "callTime" < $1::timestamptz - interval '30 minutes'`,
    [now],
  );
  const seconds = (performance.now() - begin) / 1000;
  await client.end();
  return { rate: rowCount / seconds };
}

/** What was failed, in one figure. */
async function failed(databaseUrl) {
  const client = await connected(databaseUrl);
  const { rows: found } = await client.query(
    `select count(*) as calls, sum(hashtextextended(concat_ws(',', id, status, "errorReason", duration, "updatedAt"), 0)) as hash
       from "ModelCall" where status = 'failed'`,
  );
  await client.end();
  return found[0];
}
