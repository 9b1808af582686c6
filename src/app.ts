// How do the long-running commands start, and how do they end?

import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { say } from './commands/say.ts';
import { type Config, migrations } from './config.ts';
import { type Connections, checkServers, directUrl, openConnections } from './connections.ts';
import { stateAtWork } from './dashboard/state.ts';
import { statusOf } from './dashboard/status.ts';
import { createLogger } from './logger.ts';
import { backfillHours } from './producers/backfills.ts';
import type { Wants } from './queues/redis.ts';
import { holdsSample, loadSample, type Sample } from './sample.ts';
import { reasonOf } from './store/db.ts';
import { startOfRunningHour } from './store/ledger.ts';
import { migrate } from './store/migrate.ts';
import { hourLines, settledHours } from './store/progress.ts';
import { type Range, spell } from './time/range.ts';
import { startWatch } from './watch.ts';
import { startWorker } from './worker.ts';

// A process that stays would let its heap grow far beyond what it holds before it cleans up: rather a little more often.
for (const flag of ['--heap-growing-percent=20', '--semi-space-growth-factor=1']) setFlagsFromString(flag);

/** A part that runs until it is stopped. */
interface Part {
  stop(): Promise<void>;
}

/** What a process that is still starting is given to come to its end, and each part of one that has started. */
const PATIENCE_MS = 5_000;

/** One worker process. */
export async function runWorker(config: Config): Promise<number> {
  return untilSignal(config, 'work', async (connections) => {
    if (config.METRICS_PORT === undefined) return [await startWorker(connections), startWatch(connections)];
    const [{ openMetrics }, { serveMetrics }] = await Promise.all([
      import('./metrics.ts'),
      import('./worker-metrics.ts'),
    ]);
    const metrics = openMetrics();
    const served = await serveMetrics(connections, metrics);
    const worker = await startWorker(connections, process.env, metrics).catch(async (error: unknown) => {
      await served.close();
      throw error;
    });
    return [{ stop: served.close }, worker, startWatch(connections)];
  });
}

/** The web server alone; also on servers that take no writes, for whoever has to see what is owed during a fail-over. */
export async function runDashboard(config: Config): Promise<number> {
  return untilSignal(config, 'look', async (connections) => {
    const { startDashboard } = await import('./dashboard/server.ts'); // a worker needs none of it
    const dashboard = await startDashboard(connections);
    say(`dashboard: ${dashboard.url}`);
    return [{ stop: dashboard.close }, startWatch(connections)];
  });
}

/**
 * Everything: migrations, schedulers, one worker, the dashboard.
 *
 * @param sample a file of calls to load into the private database, if it holds none, so that a newcomer sees something
 */
export async function runUp(config: Config, sample?: string): Promise<number> {
  await checkServers(config, 'work', { direct: true });
  const applied = await migrate(directUrl(config), migrations);
  for (const name of applied) say(`migration ${name} applied`);
  return untilSignal(config, 'work', async (connections) => {
    const loaded = sample && config.privateDatabase ? await sampleInto(connections, path.resolve(sample)) : undefined;
    const [{ startDashboard }, { openMetrics }] = await Promise.all([
      import('./dashboard/server.ts'),
      import('./metrics.ts'),
    ]);
    const metrics = openMetrics();
    const dashboard = await startDashboard(connections, {
      sample: config.privateDatabase && (await holdsSample(connections.pool)),
      metrics,
    });
    const worker = await startWorker(connections, process.env, metrics).catch(async (error: unknown) => {
      await dashboard.close();
      throw error;
    });
    // At work already: a server that goes away meanwhile ends no process, and these lines are only for people.
    await greet(connections, loaded).catch((error: unknown) => {
      connections.log.warn({ reason: reasonOf(error) }, 'what is closed cannot be said now');
    });
    say(`dashboard: ${dashboard.url}   (Ctrl-C stops)`);
    process.send?.({ dashboard: dashboard.url }); // npm start tells it to whoever types npm start again
    return [worker, { stop: dashboard.close }, startWatch(connections)];
  });
}

async function greet(connections: Connections, loaded: Sample | undefined): Promise<void> {
  if (loaded) await rollUpSample(connections, loaded);
  say(stateAtWork(await statusOf(connections)).state);
}

async function sampleInto({ pool, config }: Connections, file: string): Promise<Sample | undefined> {
  const now = await startOfRunningHour(pool);
  const sample = await loadSample({ databaseUrl: config.DATABASE_URL, file, now });
  if (sample)
    say(`sample: ${sample.calls} calls of ${sample.users} users loaded into ${spell(sample.range)}, named sample-…`);
  return sample;
}

/** Ask for the sample's hours as an operator would, and say when they are closed. */
async function rollUpSample(connections: Connections, { range }: { range: Range }): Promise<void> {
  const { hours } = await backfillHours(connections, range, {
    only: 'all',
    reason: 'backfill',
    requestedBy: 'sample',
    requestedFrom: 'hourhand up',
  });
  const deadline = Date.now() + 30_000;
  while ((await settledHours(connections.pool, hours)).length < hours.length && Date.now() < deadline) {
    await sleep(50);
  }
  for (const line of await hourLines(connections.pool, range)) {
    say(`hour ${line.hour} ${line.state}: ${line.users ?? '?'} users, ${line.calls ?? '?'} calls`);
  }
}

/** Start the parts, stay until SIGINT, SIGTERM or the end of our parent, stop them in reverse order, and exit 0. */
async function untilSignal(
  config: Config,
  wants: Wants,
  start: (connections: Connections) => Promise<Part[]>,
): Promise<number> {
  const log = createLogger(config.LOG_LEVEL);
  const asked = new Promise<string>((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => resolve(signal));
    // Whoever started us with a channel, as npm start does, is gone: nobody else would stop us.
    process.once('disconnect', () => resolve('disconnect'));
  });
  // A server that is silent is waited for longer than whoever stops us waits: nothing is begun yet that would need an end.
  const opening = openConnections(config, log, { wants });
  const connections = await Promise.race([opening, asked.then(() => undefined)]);
  if (connections === undefined) {
    log.info({ signal: await asked }, 'stopping');
    opening.then(
      (late) => late.close(),
      () => {},
    );
    return 0;
  }
  try {
    const started = start(connections);
    started.catch(() => {}); // told by the race, unless that is over
    // Asked to stop while it starts, as where much is owed, it does not insist: what it has begun is taken over.
    const parts = await Promise.race([started, asked.then(() => sleep(PATIENCE_MS, [] as Part[], { ref: false }))]);
    const signal = await asked;
    log.info({ signal }, 'stopping');
    for (const part of parts.reverse())
      await Promise.race([part.stop(), sleep(PATIENCE_MS, undefined, { ref: false })]);
  } finally {
    // A statement of a job that was left behind may hold its connection for minutes.
    await Promise.race([connections.close(), sleep(1_000)]);
  }
  return 0;
}
