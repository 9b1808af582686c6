// hourhand models: which models are known, and which of them answer?

import { readFile } from 'node:fs/promises';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import Table from 'cli-table3';
import { type Connections, redisAddress, serverOf } from '../connections.ts';
import { checkLimitSeconds } from '../processors/probe-model.ts';
import { hasJob, requestCheck } from '../producers/models.ts';
import { listModels } from '../providers/ask.ts';
import { guessType } from '../providers/guess-type.ts';
import { readProviders } from '../providers/read-file.ts';
import { queueWorkers } from '../queue-worker.ts';
import { workerConnection } from '../queues/redis.ts';
import { type Check, checkOf, expireCheck, probesAnswered, probesSpent } from '../store/checks.ts';
import type { Pool } from '../store/db.ts';
import { CREDITS, readDecimal } from '../store/decimals.ts';
import { type StatusLine, statusLines } from '../store/model-status.ts';
import { discoverModels, forgetModels, giveProviders, providerIds, providerOf } from '../store/models.ts';
import { checkWorkers } from '../worker.ts';
import { openProgress } from './progress.ts';
import { say, sayRounded } from './say.ts';

/** Know the providers and models of a file, whole or not at all. */
export async function importModels({ pool, modelPolicy }: Connections, file: string): Promise<number> {
  let providers: ReturnType<typeof readProviders>;
  try {
    providers = readProviders(await (file === '-' ? text(process.stdin) : readFile(file, 'utf8')), modelPolicy);
  } catch (error) {
    say(`nothing imported: ${file}: ${error instanceof Error ? error.message : error}`);
    return 1;
  }
  const { removed } = await giveProviders(pool, providers);
  const models = providers.flatMap((provider) => provider.models);
  const forgotten = removed > 0 ? `, ${removed} others of theirs were forgotten` : '';
  say(`${providers.length} providers with ${models.length} models are known${forgotten}`);
  const rounded = models.filter(({ probeCredits = '0' }) => readDecimal(probeCredits, CREDITS)?.rounded);
  sayRounded(rounded.length, 'amount', CREDITS);
  return 0;
}

/** Know the models that a provider's own list names. Never forgets one. */
export async function discover({ pool, modelPolicy }: Connections, id: string): Promise<number> {
  const provider = await providerOf(pool, id);
  if (!provider) {
    say(
      `expected a known provider (${(await providerIds(pool)).join(', ') || 'none is: hourhand models import FILE'}), got "${id}"`,
    );
    return 1;
  }
  const key = process.env[provider.apiKeyEnv];
  if (!key) {
    say(`${id}: no credentials: ${provider.apiKeyEnv} is not set here`);
    return 1;
  }
  const { timeoutSeconds, ...options } = modelPolicy;
  const answer = await listModels(
    { baseUrl: provider.baseUrl, key },
    { ...options, timeoutMs: timeoutSeconds * 1_000 },
  );
  if (!answer.ok) {
    say(`${id}: ${answer.reason}: ${answer.detail}`);
    return 1;
  }
  const found = answer.models.map((model) => ({ providerId: id, model, type: guessType(model) }));
  const added = await discoverModels(pool, found);
  for (const { model, type } of added) process.stdout.write(`${id}/${model} ${type}\n`);
  say(
    `${id} lists ${found.length} models, ${added.length} of them new (a type that was guessed wrong is put right by importing it)`,
  );
  return 0;
}

/** Forget a provider, or one model of it. */
export async function forget({ pool }: Connections, name: string): Promise<number> {
  const [providerId = '', ...model] = name.split('/');
  const forgotten = await forgetModels(pool, providerId, model.length > 0 ? model.join('/') : undefined);
  say(`${forgotten} models forgotten`);
  return forgotten > 0 ? 0 : 1;
}

export async function modelsStatus(connections: Connections, { json }: { json: boolean }): Promise<number> {
  const lines = await statusLines(connections.pool, await connections.modelPolicy.interval());
  if (json) {
    process.stdout.write(`${JSON.stringify(lines, null, 2)}\n`);
    return 0;
  }
  show(lines);
  if (lines.length === 0) say('no model is known yet: hourhand models import FILE');
  const { lastHour, lastDayCredits } = await probesSpent(connections.pool);
  const { probesPerHour, creditsPerDay } = connections.modelPolicy;
  say(
    `${lastHour} of ${probesPerHour} probes in the last hour, ${lastDayCredits} of ${creditsPerDay} credits in the last 24 hours`,
  );
  return 0;
}

export interface CheckOptions {
  readonly models: readonly string[];
  readonly probe: boolean;
  readonly requestedBy: string;
}

/** Look at some models, or at all, now; returns when it is judged. A worker does it, or, where none is there, this process. */
export async function checkNow(
  connections: Connections,
  { models, probe, requestedBy }: CheckOptions,
): Promise<number> {
  const interval = await connections.modelPolicy.interval();
  // Where nobody says whether somebody is there, one more does no harm.
  const alone = !(await connections.ownership.workersOn(connections.queues.checks))?.length;
  const asked = await requestCheck(connections, { names: models, probe, requestedBy, interval });
  const workers = alone ? await workHere(connections) : undefined;
  try {
    const check = await ended(connections, asked.check);
    const looked = new Set(
      asked.models.map(({ providerId, model, type }) => JSON.stringify([providerId, model, type])),
    );
    const lines = await statusLines(connections.pool, interval);
    show(lines.filter(({ provider, model, type }) => looked.has(JSON.stringify([provider, model, type]))));
    return report(check);
  } finally {
    await workers?.stop();
  }
}

function report({ outcome }: Check): number {
  const { models = 0, probed = 0, unsent = 0, judged = 0, suspect } = Object(outcome);
  if (suspect) {
    say('every provider failed at once: our own network is suspect, and no status was changed');
    return 1;
  }
  const keyless = unsent > 0 ? `, ${unsent} not asked for want of a key` : '';
  say(`${models} models looked at: ${probed} probed${keyless}, ${judged} judged by that or by their calls`);
  if (judged < models) {
    say(
      `${models - judged} have no new evidence: the budget of probes is spent, or their provider asked not to be asked yet`,
    );
  }
  return 0;
}

const LOOK_MS = 100;
/** Redis is asked less often than Postgres. */
const REDIS_LOOK_MS = 1_000;
/** Not at once: a worker may be on its way to take the place of another. */
const GONE_MS = 20_000;

/**
 * Wait for a check to be judged, showing how many of its probes have an answer. A check that will not be judged is
 * ended.
 *
 * @throws {Error} saying why, after the longest time that its probes may take at the latest
 */
async function ended(connections: Connections, id: number): Promise<Check> {
  const { pool, modelPolicy } = connections;
  const progress = openProgress('probes', 0);
  const limitMs = checkLimitSeconds(modelPolicy) * 1_000;
  const since = Date.now();
  const missing = watchJob(connections, id, progress.note);
  try {
    for (;;) {
      // Before the check: a job that is over has ended it.
      const missed = await missing();
      const check = await checkOf(pool, id);
      if (!check) throw new Error(`check ${id} is gone: its row was deleted`);
      const { expired } = Object(check.outcome);
      if (expired) throw new Error(`check ${id} was not judged: ${expired}`);
      if (check.finishedAt) return check;
      const { probes, answered } = await probesAnswered(pool, id);
      progress.update(answered, probes);
      const late = Date.now() - since > limitMs ? `it took more than ${limitMs / 1_000} s` : undefined;
      const why = missed ?? late;
      if (why) throw await givenUp(pool, id, why);
      await sleep(LOOK_MS);
    }
  } finally {
    progress.stop();
  }
}

async function givenUp(pool: Pool, id: number, why: string): Promise<Error> {
  await expireCheck(pool, id, why);
  return new Error(`check ${id} was not judged: ${why}`);
}

/** Says why a check will never be judged, as far as Redis knows; a Redis that is away is waited for. */
function watchJob(
  { queues, ownership, config }: Connections,
  id: number,
  note: (line: string) => void,
): () => Promise<string | undefined> {
  let next = 0;
  let workedAt = Date.now();
  let paused = false;
  const look = async (): Promise<string | undefined> => {
    const { foreign } = await ownership.look();
    if (foreign) return `${foreign.detail}: ${foreign.remedy}`;
    if (!(await hasJob(queues, id))) {
      return (
        'its job is over or gone, and nobody has judged it: a worker of another database may take jobs under the ' +
        `prefix ${config.REDIS_PREFIX} (set REDIS_PREFIX there to one of its own), or Redis lost its data`
      );
    }
    const queue = [queues.checks, queues.probes];
    const stopped = (await Promise.all(queue.map((one) => one.isPaused()))).indexOf(true);
    if (stopped >= 0 && !paused) note(`the queue ${queue[stopped]?.name} is paused: resume it in the board`);
    paused = stopped >= 0;
    if ((await ownership.workersOn(queues.checks))?.length !== 0) workedAt = Date.now();
    if (Date.now() - workedAt < GONE_MS) return undefined;
    return 'the workers that looked at the models are gone: start one with hourhand worker';
  };
  return async () => {
    if (Date.now() < next) return undefined;
    next = Date.now() + REDIS_LOOK_MS;
    return look().catch((error: unknown) => {
      if (serverOf(error) !== 'Redis') throw error;
      return undefined;
    });
  };
}

/** The workers that a check needs, in this process. */
async function workHere(connections: Connections): Promise<{ stop(): Promise<void> }> {
  const { config, log, ownership } = connections;
  const { id: identity } = await ownership.claimant();
  const connection = workerConnection(redisAddress(config), () => {});
  const workers = checkWorkers(queueWorkers({ config, log, connection, identity }), connections, process.env);
  return {
    stop: async () => {
      await Promise.race([Promise.all(workers.map((worker) => worker.close())), sleep(2_000)]);
      connection.disconnect();
    },
  };
}

function show(lines: readonly StatusLine[]): void {
  if (lines.length === 0) return;
  const table = new Table({
    head: ['model', 'type', 'status', 'why', 'latency', 'since', 'last check', 'by', 'up 24 h', '7 d', '30 d'],
    style: { head: [], border: [] },
  });
  const time = (instant: Date | null) => instant?.toISOString().slice(0, 19).concat('Z') ?? '';
  const percent = (share: number | null) => (share === null ? '' : `${(100 * share).toFixed(2)} %`);
  for (const line of lines) {
    const why = [line.reason, line.detail].filter((text) => text !== null).join(': ');
    const again = line.retryAt ? ` (not asked before ${time(line.retryAt)})` : '';
    table.push([
      `${line.provider}/${line.model}`,
      line.type,
      line.status,
      `${why.slice(0, 80)}${again}`,
      line.latencyMs === null ? '' : `${line.latencyMs} ms`,
      time(line.since),
      time(line.checkedAt),
      line.source === null ? '' : { calls: 'real calls', probe: 'probe' }[line.source],
      percent(line.uptime.day),
      percent(line.uptime.week),
      percent(line.uptime.month),
    ]);
  }
  process.stdout.write(`${table.toString()}\n`);
}
