// Servers of a test's own: to be killed, stopped and filled up without anybody else noticing.

import { readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { localOwn, startServers } from '../../scripts/servers.mjs';
import { migrations } from '../../src/config.ts';
import { migrate } from '../../src/store/migrate.ts';
import { until } from './hourhand.ts';

export type Server = 'postgres' | 'redis';

/**
 * Start a Redis, a PostgreSQL with the schema in it, or both; gone afterwards with all their data. Under this directory
 * scripts/test.mjs finds and stops what a killed test left running.
 *
 * @param name of its directory: no two tests that run at once may share one
 */
export async function ownServers(name: string, ...which: Server[]) {
  return ownServersIn({}, name, ...which);
}

/** The same, with an environment that adds to PostgreSQL's own. */
export async function ownServersIn(environment: Record<string, string>, name: string, ...which: Server[]) {
  const dir = path.join(localOwn, name);
  const wanted = { dir, postgres: which.includes('postgres'), redis: which.includes('redis'), environment };
  const { databaseUrl, redisUrl, release } = await startServers({ ...wanted, throwAway: true });
  if (wanted.postgres) await migrate(databaseUrl, migrations);
  const signal = (server: Server, name: NodeJS.Signals): number => {
    const { pid } = JSON.parse(readFileSync(path.join(dir, 'servers.json'), 'utf8'))[server];
    process.kill(pid, name);
    return pid;
  };
  return {
    env: {
      ...(wanted.postgres ? { DATABASE_URL: databaseUrl } : {}),
      ...(wanted.redis ? { REDIS_URL: redisUrl } : {}),
    },

    /** SIGSTOP silences a server, until SIGCONT. */
    signal,

    /** SIGKILL, or PostgreSQL's own immediate stop. */
    async kill(server: Server): Promise<void> {
      const pid = signal(server, server === 'redis' ? 'SIGKILL' : 'SIGQUIT');
      await until(
        async () => lives(pid),
        (living) => !living,
      );
    },

    /** Start again what was killed, on its data, at its address. */
    restart: () => startServers({ ...wanted, throwAway: false }),

    async [Symbol.asyncDispose](): Promise<void> {
      await release();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

function lives(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}
