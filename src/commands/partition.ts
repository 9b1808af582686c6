// hourhand partition: keep the calls in a partition for each period.

import { type Connections, checkPostgres, directUrl } from '../connections.ts';
import { keepPartitions } from '../producers/partitions.ts';
import { nameOf, type Plan } from '../store/partitions.ts';
import { PartitionRefused, type Prospect, partitionCalls } from '../store/repartition.ts';
import { say } from './say.ts';

export interface PartitionOptions {
  readonly plan: Plan;
  readonly dryRun: boolean;
}

/** @returns the exit code: 1 if it could not be done, and then nothing was changed */
export async function partition({ config, pool }: Connections, { plan, dryRun }: PartitionOptions): Promise<number> {
  const stopping = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.once(signal, () => stopping.abort(new Error(`${signal}: nothing was changed`)));
  await checkPostgres(config, { writes: true, direct: true });
  try {
    const waited = await partitionCalls({
      databaseUrl: directUrl(config),
      plan,
      dryRun,
      onProspect: (prospect) => tell(prospect, plan),
      onStep: say,
      signal: stopping.signal,
    });
    if (waited === undefined) {
      say('nothing was changed');
      return 0;
    }
    say(`done; writers waited for ${waited} ms`);
    const { created, waiting } = await keepPartitions(pool);
    for (const { start } of created) say(`${nameOf(start)} created`);
    if (waiting.length > 0) say(`ModelCall is in use: the workers make the other ${waiting.length} partitions`);
    return 0;
  } catch (error) {
    if (!(error instanceof PartitionRefused)) throw error;
    say(`nothing was changed: ${error.message}`);
    return 1;
  }
}

function tell({ calls, bytes, boundary }: Prospect, { by, ahead }: Plan): void {
  say(
    `the ${Math.round(calls)} calls that are there (${(bytes / 2 ** 20).toFixed(0)} MB) stay where they are, in one partition of all before ${boundary.toISOString()}`,
  );
  say(`after it, one for each ${by}, ${ahead} ahead; and one for what lies in none of them`);
}
