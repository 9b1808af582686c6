/** @see private-redis.mjs */
export function findRedis(dir: string): Promise<{ command: string; env: NodeJS.ProcessEnv } | undefined>;
