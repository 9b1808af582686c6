// How does a soak go, from the first call to the last look?
import { setMaxListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { insert } from './calls.mjs';
import { lookOn, spellWrong, untilSettled } from './checks.mjs';
import { commit, restore, STRAGGLER } from './faults.mjs';
import { lanes, planOf, spell } from './plan.mjs';
import { stream } from './random.mjs';
import { writeAcrossTheEnd } from './seam.mjs';
import { firstCalls, HOUR_MS, HOURS } from './traffic.mjs';
import { withPostgres } from './world.mjs';
import { mendAll, write } from './writers.mjs';

const FIRST_CALLS = 3_000;
const PROGRESS_MS = 15_000;
/** Of a longer run nobody reads the plan beforehand; each fault is told as it happens. */
const SHORT_MINUTES = 10;

/** A database with calls in it, hours that are covered, and workers at their work. */
export async function prepare(world, { seed }) {
  await world.hourhand('migrate');
  world.base = Math.floor(Date.now() / HOUR_MS) * HOUR_MS;
  world.written = 0;
  await withPostgres(world, async (client) => {
    await client.query(STRAGGLER);
    await client.query(`insert into "ModelProvider" values ('openai', 'http://127.0.0.1:9', 'SOAK_KEY', 2)`);
    await client.query(
      `insert into "ModelStatus" ("providerId", model, type) select 'openai', 'gpt-' || i, 'chatCompletion' from generate_series(0, 2) i`,
    );
    await insert(client, firstCalls(seed, FIRST_CALLS), world.base);
  });
  for (const worker of world.workers) worker.start();
  const from = new Date(world.base - HOURS * HOUR_MS).toISOString();
  const { code, said } = await world.hourhand('backfill', '--from', from, '--to', new Date(world.base).toISOString());
  if (code !== 0) throw new Error(`hourhand backfill: ${said}`);
}

/** @returns whether everything came out right */
export async function run(world, { seed, minutes, workers, writers, settleMs, stop }) {
  const plan = planOf({ seed, minutes, workers });
  world.say(`seed ${seed}, ${minutes} min, ${workers} workers, ${writers} writers, ${plan.length} faults planned`);
  if (minutes <= SHORT_MINUTES) for (const fault of plan) world.say(spell(fault));
  const begin = performance.now();
  const over = new AbortController();
  const stopped = new AbortController();
  setMaxListeners(0, over.signal); // everybody listens
  stop.requested.then(() => {
    over.abort();
    stopped.abort();
  });
  const found = { looks: 0, compared: 0, wrong: new Map(), faults: 0 };
  const { base } = world;
  world.say('as it happens:');
  const looking = lookOn(world, { draw: stream(seed, 'looks'), signal: stopped.signal, found });
  const busy = [
    ...Array.from({ length: writers }, (_, writer) =>
      write(world, { seed, writer, writers, base, signal: over.signal }),
    ),
    writeAcrossTheEnd(world, { seed, base, signal: over.signal }),
    ...lanes.map((lane) =>
      follow(
        world,
        plan.filter((fault) => fault.lane === lane),
        { begin, signal: over.signal, found },
      ),
    ),
    progress(world, { begin, signal: over.signal, found }),
  ];
  await sleep(minutes * 60_000, undefined, { signal: over.signal }).catch(() => {});
  over.abort();
  await Promise.race([Promise.all(busy), stop.requested]);
  if (stop.exitCode !== undefined) return false;
  await restore(world);
  await mendAll(world);
  const end = await untilSettled(world, { ms: settleMs, signal: stopped.signal });
  const verified = end.settled ? await verify(world, end) : true;
  stopped.abort();
  await looking;
  return stop.exitCode === undefined && report(world, { seed, minutes, found, end, verified, settleMs });
}

/** The faults of one lane, each at its instant, or when the one before it is over. */
async function follow(world, faults, { begin, signal, found }) {
  for (const fault of faults) {
    await sleep(Math.max(0, fault.at - (performance.now() - begin)), undefined, { signal }).catch(() => {});
    if (signal.aborted) return;
    const at = performance.now() - begin;
    const word = await commit(world, withoutInstant(fault));
    found.faults += 1;
    world.say(`${spell(fault, at)}${word && `: ${word}`}`);
  }
}

const withoutInstant = ({ at: _, ...fault }) => fault;

async function progress(world, { begin, signal, found }) {
  while (!signal.aborted) {
    await sleep(PROGRESS_MS, undefined, { signal }).catch(() => {});
    const seconds = ((performance.now() - begin) / 1_000).toFixed(0);
    world.say(
      `… ${seconds} s: ${found.faults} faults, ${world.written} writes, ${found.looks} looks, ${found.wrong.size} wrong`,
    );
  }
}

/** The product's own recount must agree. */
async function verify(world, { first }) {
  const { code, said } = await world.hourhand(
    'verify',
    '--from',
    first.toISOString(),
    '--to',
    new Date().toISOString(),
  );
  if (code !== 0) world.say(`hourhand verify: exit code ${code}\n${said}`);
  return code === 0;
}

async function report(world, { seed, minutes, found, end, verified, settleMs }) {
  const { settled, seconds, wrongCount, owedCount, compared, hours } = end;
  for (const line of world.auditFindings()) world.problem(line);
  const right = settled && verified && found.wrong.size === 0 && world.problems.length === 0;
  if (!right) await explain(world, { found, end });
  const n = (number) => (number ?? 0).toLocaleString('en');
  world.say(
    `seed ${seed}: ${minutes} min, ${n(found.faults)} faults, ${n(world.written)} writes, ${n(found.looks)} looks at ${n(found.compared)} rows, ` +
      `${settled ? `settled after ${seconds.toFixed(1)} s` : `not settled within ${settleMs / 1_000} s`}: ` +
      `${n(wrongCount)} of ${n(compared)} rows wrong, ${n(owedCount)} of ${n(hours)} hours owed; wrong at looks ${found.wrong.size}, problems ${world.problems.length}`,
  );
  return right;
}

async function explain(world, { found, end }) {
  for (const row of [...found.wrong.values()].slice(0, 20)) world.say(`wrong at a look: ${spellWrong(row)}`);
  for (const row of end.wrong ?? []) world.say(`wrong at the end: ${spellWrong(row)}`);
  for (const { hour, ledger, marked } of end.owed ?? [])
    world.say(`owed: ${hour}, ${marked} users marked, ${JSON.stringify(ledger)}`);
  if (end.early) world.say(`${end.early} rows of an hour that runs still`);
  for (const id of end.silent ?? []) world.say(`no tick is before ${id}`);
  for (const problem of world.problems) world.say(`problem: ${problem}`);
  for (const [name, queue] of Object.entries(world.queues)) {
    world.say(`queue ${name}: ${JSON.stringify(await queue.getJobCounts().catch((error) => error.message))}`);
  }
}
