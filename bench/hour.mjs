// What does one hour cost, from enqueued to closed in the ledger, with few users and with many?
import assert from 'node:assert/strict';
import { at, connected, fill, median, migrated, spread, time, timed, times } from './databases.mjs';
import { memoryOf, openHourhand, redisPeak } from './hourhand.mjs';
import { everyActiveUser, fingerprints, openRival, setBasedStatements, usersOfTheHour } from './rivals.mjs';

const HOUR = new Date('2026-06-10T10:00Z');
const WARM_UP = new Date('2026-06-10T08:00Z');
const hourOf = (start) => ({ start, end: new Date(start.getTime() + 3_600_000) });

/** Users, calls, rounds; the most that hourhand may take, and how many times more S must. */
const SIZES = [
  { users: 50, calls: 500, rounds: 15, target: 'h ≤ 80 ms', met: ({ h }) => h <= 80 },
  { users: 100, calls: 1_000, rounds: 15, target: 'h ≤ L + 30 ms', met: ({ h, l }) => h <= l + 30 },
  {
    users: 1_000,
    calls: 10_000,
    rounds: 11,
    target: 'h ≤ L + 30 ms, S ≥ 10 h',
    met: ({ h, l, s }) => h <= l + 30 && s >= 10 * h,
  },
  {
    users: 10_000,
    calls: 100_000,
    rounds: 7,
    target: 'h ≤ 1.1 L, S ≥ 25 h',
    met: ({ h, l, s }) => h <= 1.1 * l && s >= 25 * h,
  },
  {
    users: 100_000,
    calls: 1_000_000,
    rounds: 5,
    target: 'h ≤ 0.9 L, S ≥ 40 h',
    met: ({ h, l, s }) => h <= 0.9 * l && s >= 40 * h,
  },
  { users: 1_000_000, calls: 10_000_000, rounds: 3, alone: true },
];
const QUICK = [SIZES[0], SIZES[2]];

export async function bench(servers, { quick, rounds, users }, { stop, add }) {
  const sizes = quick ? QUICK : SIZES.filter((size) => users === undefined || users.includes(String(size.users)));
  const admin = await connected(servers.databaseUrl);
  const found = [];
  for (const size of sizes) {
    if (stop.exitCode !== undefined) break;
    const name = `hour_${size.users}`;
    await admin.query(`create database ${name}`);
    const databaseUrl = at(servers, name);
    const client = await migrated(databaseUrl);
    await fill(client, { users: 100, calls: 300, from: WARM_UP });
    await fill(client, { ...size, from: HOUR });
    if (!size.alone) {
      await client.query('create index on "ModelCall" ("callTime")'); // for the rivals, as their system had them
      await client.query('create index on "ModelCall" ("userDid", "callTime")');
      await client.query('analyze "ModelCall"');
    }
    await client.end();
    const result = await measure(
      { ...servers, databaseUrl },
      size,
      Number(rounds ?? (quick ? 2 : size.rounds)),
      stop,
    );
    await admin.query(`drop database ${name} with (force)`);
    if (stop.exitCode !== undefined) break;
    found.push({ ...size, ...result });
    add(rowOf(size, result));
  }
  await admin.end();
  const large = found.filter((size) => size.users >= 10_000);
  if (large.length < 2) return;
  const [first, last] = [large[0], large.at(-1)];
  const exponent = Math.log(median(last.h) / median(first.h)) / Math.log(last.users / first.users);
  add({
    what: `growth from ${first.users.toLocaleString('en')} to ${last.users.toLocaleString('en')} users`,
    ratio: `exponent ${exponent.toFixed(2)}`,
    hourhand: large.map(({ h }) => time(median(h))).join(', '),
    against: 'in proportion: 1.00',
    target: 'exponent ≤ 1.05',
    met: exponent <= 1.05,
  });
}

async function measure(servers, size, rounds, stop) {
  const hourhand = await openHourhand(servers);
  const rival = openRival(servers.databaseUrl);
  const { client } = hourhand;
  const contenders = {
    h: () => hourhand.live([HOUR]),
    ...(size.alone ? {} : { l: () => timed(() => setBasedStatements(rival, [HOUR])) }),
    ...(size.alone ? {} : { s: () => timed(() => everyActiveUser(rival, [HOUR])) }),
    ...(size.alone ? {} : { u: () => timed(() => usersOfTheHour(rival, [HOUR])) }),
  };
  const spent = { h: [], l: [], s: [], u: [] };
  const redis = [];
  await Promise.all(Array.from({ length: 5 }, () => rival.query('select pg_sleep(0.05)'))); // all five connections
  for (let i = 0; i < 3; i++) {
    await hourhand.reset(hourOf(WARM_UP));
    await hourhand.live([WARM_UP]); // its first hour finds nothing warm: no code, no connection
  }
  let expected;
  for (let round = 0; round < rounds && stop.exitCode === undefined; round++) {
    for (const [who, run] of Object.entries(contenders)) {
      if (stop.exitCode !== undefined) break;
      // What takes minutes is measured once or twice: it is no close call.
      if ((who === 's' || who === 'u') && spent[who].length > 0 && spent[who][0] * spent[who].length > 20_000)
        continue;
      await hourhand.reset(who === 'h' ? hourOf(HOUR) : undefined);
      const { result, peak, left } =
        who === 'h' ? await redisPeak(hourhand.connections.redis, run) : { result: await run() };
      spent[who].push(result);
      if (who === 'h') redis.push({ peak, left });
      const stored = await fingerprints(client);
      expected ??= stored;
      assert.equal(stored.known, expected.known, `${who} stores the same figures as the others`);
      if (who === 'h' || who === 'l') assert.equal(stored.all, expected.all, `${who}: all the figures`);
      assert.equal(stored.rows, expected.rows);
    }
  }
  const memory = memoryOf(hourhand.processes[0].pid);
  await rival.end();
  await hourhand.close();
  return { ...spent, redis, memory };
}

function rowOf({ users, calls, target, met }, { h, l, s, u, redis, memory }) {
  const [hm, lm, sm] = [h, l, s].map((all) => (all.length > 0 ? median(all) : undefined));
  const more = sm ? `, S ${(sm / hm).toFixed(0)} h, U ${(median(u) / hm).toFixed(0)} h` : '';
  const peak = median(redis.map((one) => one.peak));
  return {
    what: `one hour, ${users.toLocaleString('en')} users, ${calls.toLocaleString('en')} calls`,
    ratio:
      lm === undefined
        ? 'alone'
        : `${spread(h.map((ms, i) => ms / (l[i] ?? lm)))} L, L ${hm < lm ? '−' : '+'} ${time(Math.abs(hm - lm))}${more}`,
    hourhand: times(h),
    against: lm === undefined ? 'completes' : `L ${times(l)}; S ${times(s)}; U ${times(u)}`,
    target: `${target ?? 'completes'}; Redis ≤ 1 MB; worker ≤ 160 MB`,
    met: (met?.({ h: hm, l: lm, s: sm }) ?? true) && peak <= 1 && (memory === undefined || memory.peak <= 160),
    beside: `Redis ${peak.toFixed(2)} MB above idle${memory ? `, worker's peak ${memory.peak.toFixed(0)} MB` : ''}`,
  };
}
