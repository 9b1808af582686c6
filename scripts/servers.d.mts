// What the tests use of servers.mjs.
export const root: string;
export const local: string;
export const localTest: string;
export const localOwn: string;
export const redisBinaries: string;
export function startServers(options: {
  dir: string;
  postgres?: boolean;
  redis?: boolean;
  throwAway?: boolean;
  environment?: Record<string, string>;
}): Promise<{ databaseUrl: string; redisUrl: string; release(): Promise<void> }>;
