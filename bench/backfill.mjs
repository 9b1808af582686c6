// What does a backfill of a month cost, does a live hour get through meanwhile, and what do more worker processes bring?
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { at, connected, fill, median, migrated, spread, time, timed, times } from './databases.mjs';
import { memoryOf, openHourhand, redisPeak } from './hourhand.mjs';
import { everyActiveUser, fingerprints, openRival, setBasedStatements } from './rivals.mjs';

const HOUR_MS = 3_600_000;
const START = new Date('2026-05-01T00:00Z');

/** A month of hours of 1,000 users, two calls a user and hour, and one hour more. */
export async function prepare(servers, hours, rivals) {
  const admin = await connected(servers.databaseUrl);
  await admin.query('create database backfill');
  await admin.end();
  const databaseUrl = at(servers, 'backfill');
  const client = await migrated(databaseUrl);
  await fill(client, { users: 1_000, calls: 2_000, from: START, hours: hours + 1, eachHour: true });
  if (rivals) {
    await client.query('create index on "ModelCall" ("callTime")'); // for the rivals, as their system had them
    await client.query('create index on "ModelCall" ("userDid", "callTime")');
    await client.query('analyze "ModelCall"');
  }
  await client.end();
  const range = { start: START, end: new Date(START.getTime() + hours * HOUR_MS) };
  return { servers: { ...servers, databaseUrl }, range, live: range.end };
}

const startsOf = ({ start, end }, hours) =>
  Array.from({ length: (end - start) / HOUR_MS / hours }, (_, i) => new Date(start.getTime() + i * hours * HOUR_MS));

export async function bench(given, { quick, rounds }, { stop, add }) {
  const hours = quick ? 24 : 720;
  const { servers, range, live } = await prepare(given, hours, true);
  const hourhand = await openHourhand(servers);
  const rival = openRival(servers.databaseUrl);
  const { client, connections } = hourhand;
  const wal = async (work) => {
    const [{ lsn }] = (await client.query('select pg_current_wal_lsn() as lsn')).rows;
    const result = await work();
    const [{ bytes }] = (
      await client.query('select pg_wal_lsn_diff(pg_current_wal_lsn(), $1)::float as bytes', [lsn])
    ).rows;
    return { result, bytes: bytes / 2 ** 20 };
  };
  const [h, d, s, again, beside] = [[], [], [], [], []];
  const [first, second, redis] = [[], [], []];
  let expected;
  const check = async (who, all) => {
    const stored = await fingerprints(client);
    expected ??= stored;
    assert.equal(stored.known, expected.known, `${who} stores the same figures as the others`);
    if (all) assert.equal(stored.all, expected.all, `${who}: all the figures`);
  };
  await hourhand.reset();
  await hourhand.backfill({ start: START, end: new Date(START.getTime() + 24 * HOUR_MS) }); // nothing is warm before it
  const many = Number(rounds ?? (quick ? 1 : 5));
  for (let round = 0; round < many && stop.exitCode === undefined; round++) {
    await hourhand.reset();
    const one = await wal(() => redisPeak(connections.redis, () => hourhand.backfill(range)));
    h.push(one.result.result);
    redis.push(one.result);
    first.push(one.bytes);
    await check('hourhand', true);
    await hourhand.idle();
    const two = await wal(() => hourhand.backfill(range));
    again.push(two.result);
    second.push(two.bytes);
    await check('hourhand once more', true);
    await hourhand.reset();
    d.push(await timed(() => setBasedStatements(rival, startsOf(range, 24), { hours: 24, connections: 2 })));
    await check('SQL by the day', true);
  }
  for (let round = 0; round < Math.min(many, 3) && stop.exitCode === undefined; round++) {
    await hourhand.reset({ start: live, end: new Date(live.getTime() + HOUR_MS) });
    const filling = hourhand.backfill(range);
    await sleep(median(h) / 4);
    const since = performance.now();
    const { enqueueHours } = await import('../dist/producers/hours.js');
    await enqueueHours(connections.queues, [{ hour: live.toISOString().slice(0, 13), backfilled: false }]);
    for (;;) {
      const { rows } = await client.query(`select 1 from "StatHour" where hour = $1 and state = 'closed'`, [live]);
      if (rows.length > 0) break;
      await sleep(5);
    }
    beside.push(performance.now() - since);
    await filling;
  }
  if (stop.exitCode === undefined) {
    // S takes a quarter of an hour for the month; it does every hour alike, so the first stand for all.
    const some = quick ? 3 : 24;
    const span = { start: START, end: new Date(START.getTime() + some * HOUR_MS) };
    await hourhand.reset();
    s.push(((await timed(() => everyActiveUser(rival, startsOf(span, 1)))) * hours) / some);
    const stored = await fingerprints(client);
    await hourhand.reset();
    await setBasedStatements(rival, [START], { hours: some });
    assert.equal(stored.known, (await fingerprints(client)).known, 'S stores the same figures as the others');
  }
  await hourhand.idle();
  const memory = memoryOf(hourhand.processes[0].pid);
  await rival.end();
  await hourhand.close();
  if (stop.exitCode !== undefined) return;
  const mb = (all) => `${median(all).toFixed(1)} MB`;
  const [hm, dm] = [median(h), median(d)];
  add({
    what: `backfill of ${hours} hours × 1,000 users, ${((hours * 2_000) / 1e6).toFixed(2)} million calls`,
    ratio: `${spread(h.map((ms, i) => ms / d[i]))} SQL by the day on 2 connections, S ${(s[0] / hm).toFixed(0)} h`,
    hourhand: times(h),
    against: `SQL by the day ${times(d)}; S ${time(s[0])}, from its first ${quick ? 3 : 24} hours`,
    target: `h ≤ 1.3 × SQL by the day, S ≥ 65 h; Redis ≤ 8 MB, back to idle; worker ≤ 160 MB`,
    met:
      hm <= 1.3 * dm &&
      s[0] >= 65 * hm &&
      median(redis.map(({ peak }) => peak)) <= 8 &&
      (memory === undefined || memory.peak <= 160),
    beside: `Redis ${mb(redis.map(({ peak }) => peak))} above idle, ${mb(redis.map(({ left }) => left))} left${memory ? `, worker's peak ${memory.peak.toFixed(0)} MB` : ''}`,
  });
  add({
    what: `a live hour while that backfill runs`,
    ratio: times(beside),
    hourhand: times(beside),
    against: 'within 2 s',
    target: '≤ 2 s',
    met: Math.max(...beside) <= 2_000,
  });
  add({
    what: `the same ${hours} hours once more, unchanged`,
    ratio: `${spread(again.map((ms, i) => ms / h[i]))} the first run; WAL ${(median(second) / median(first)).toFixed(3)} of it`,
    hourhand: times(again),
    against: `first run ${times(h)}`,
    target: '≤ the first run, next to nothing written',
    met: median(again) <= hm,
    beside: `WAL ${mb(second)}, first run ${mb(first)}`,
  });
}

/** The same work with one, two and four worker processes (a quick run leaves out the four): by turns, so that nothing else differs. */
export async function benchWorkers(given, { quick, rounds }, { stop, add }) {
  const { servers, range } = await prepare(given, quick ? 24 : 720, false);
  const counts = quick ? [1, 2] : [1, 2, 4];
  const spent = counts.map(() => []);
  for (let round = 0; round < Number(rounds ?? (quick ? 1 : 5)) && stop.exitCode === undefined; round++) {
    for (const [i, count] of counts.entries()) {
      const hourhand = await openHourhand(servers, { workers: count });
      await hourhand.reset();
      await hourhand.backfill({ start: START, end: new Date(START.getTime() + 24 * HOUR_MS) });
      await hourhand.reset();
      spent[i].push(await hourhand.backfill(range));
      await hourhand.idle();
      await hourhand.close();
    }
  }
  if (stop.exitCode !== undefined) return;
  const medians = spent.map(median);
  const best = Math.min(...medians);
  add({
    what: `that backfill by ${counts.join(', ')} worker processes`,
    ratio: `${medians.map((ms) => (ms / best).toFixed(2)).join(', ')} of the best`,
    hourhand: spent.map(times).join('; '),
    against: `the best of them, ${time(best)}`,
    target: 'within 10 % of the best',
    met: Math.max(...medians) <= 1.1 * best,
  });
}
