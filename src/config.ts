// What can be set, and what is it set to?

import { existsSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import path from 'node:path';
import { z } from 'zod';
import { parsePattern } from './time/pattern.ts';

/** The checkout or the installed package: where `prisma/` and `.local/` are, beside `src/` or `dist/`. */
export const home = path.dirname(import.meta.dirname);

/** Where the migrations are. */
export const migrations = path.join(home, 'prisma', 'migrations');

/** hourhand's own version. */
export const version = z
  .object({ version: z.string() })
  .parse(JSON.parse(readFileSync(path.join(home, 'package.json'), 'utf8'))).version;

/** A whole number of a unit. */
const whole = (min: number, max: number) =>
  z
    .string()
    .regex(/^\d+$/)
    .transform(Number)
    .pipe(z.number().min(min).max(max))
    .meta({ expected: `a whole number from ${min} to ${max}` });

const pattern = z
  .string()
  .transform((text, context) => {
    try {
      return parsePattern(text);
    } catch (error) {
      context.issues.push({
        code: 'custom',
        message: error instanceof Error ? error.message : String(error),
        input: text,
      });
      return z.NEVER;
    }
  })
  .meta({ expected: 'six cron fields in UTC, seconds first (five: minute first), or off' });

const url = (...protocols: string[]) =>
  z
    .string()
    .refine((text) => URL.canParse(text) && protocols.includes(new URL(text).protocol))
    .meta({
      expected: `a URL that begins with ${protocols.map((protocol) => `${protocol}//`).join(' or ')}`,
      secret: true,
    });

/**
 * Every variable of the environment: the one place that reads them, and what `docs/configuration.md` is made from.
 * `meta.default` is what the table shows; `meta.expected` is what an error says.
 */
export const environment = {
  DATABASE_URL: [
    url('postgres:', 'postgresql:'),
    undefined,
    'The PostgreSQL database; by default the private one of this checkout.',
  ],
  REDIS_URL: [url('redis:', 'rediss:'), undefined, 'The Redis server; by default the private one of this checkout.'],
  REDIS_PREFIX: [
    z
      .string()
      .regex(/^\{[\w.-]+\}$/)
      .meta({ expected: 'a name in braces, such as {hourhand}' }),
    '{hourhand}',
    "Before each of hourhand's keys in Redis. The braces keep a queue's keys on one node of a Redis Cluster.",
  ],
  PORT: [whole(0, 65_535), '3000', "The dashboard's port; 0 takes a free one."],
  HOST: [
    z.enum(['127.0.0.1', 'localhost', '::1']).meta({
      expected: '127.0.0.1, localhost or ::1: until it can ask who is there, the dashboard serves this machine alone',
    }),
    '127.0.0.1',
    "The dashboard's address. Loopback only.",
  ],
  LOG_LEVEL: [
    z
      .enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'])
      .meta({ expected: 'fatal, error, warn, info, debug, trace or silent' }),
    'info',
    'The least that is logged.',
  ],
  WORKER_CONCURRENCY: [
    whole(1, 64),
    String(Math.min(4, availableParallelism())),
    'Jobs of one queue that a worker process runs at once (default: the cores, at most 4).',
  ],
  MODEL_CALL_STATS_CRON_TIME: [
    pattern,
    '0 1 * * * *',
    'When the roll-up looks for owed hours. UTC; `off` removes the scheduler.',
  ],
  FANOUT_MAX_USER_JOBS: [
    whole(0, 10_000),
    '64',
    'Up to so many users an hour has one child for each; above, shards by ranges of buckets.',
  ],
  MAX_HOURS_PER_TICK: [whole(1, 100_000), '1000', 'Owed hours that one look enqueues at most.'],
  ACTIVE_USER_WINDOW_DAYS: [
    whole(1, 366),
    '7',
    "Days before an hour's end in which a call makes a user active: who gets zeros with `--zeros`.",
  ],
  STORE_ZERO_ROWS: [
    z
      .enum(['true', 'false'])
      .transform((text) => text === 'true')
      .meta({ expected: 'true or false' }),
    'false',
    'Store the zeros of active users without a call in the hour, for readers who go straight to the table.',
  ],
  PARTIAL_BACKOFF_MAX_SECONDS: [
    whole(1, 86_400),
    '3600',
    'A partial hour is tried again after 5 seconds, doubling up to so many.',
  ],
} as const satisfies Record<string, readonly [z.ZodType, string | undefined, string]>;

type Parsed = { [Name in keyof typeof environment]: z.infer<(typeof environment)[Name][0]> };

export type Config = Parsed & {
  /** The database is the private one of this checkout, not one that somebody gave. */
  readonly privateDatabase: boolean;
  /** The variables that the environment says something of; the others have their defaults. */
  readonly given: ReadonlySet<string>;
};

/** What is wrong with the environment; the message names each variable, what was expected and what was found. */
export class ConfigError extends Error {}

/**
 * Read the environment. Without `DATABASE_URL` or `REDIS_URL` the private servers of this checkout are used, which
 * `npm start` writes to `.local/servers.json`.
 *
 * @throws {ConfigError} naming every variable that is wrong
 */
export function readConfig(env: NodeJS.ProcessEnv = process.env): Config {
  const local = path.join(home, '.local', 'servers.json');
  const servers = existsSync(local) ? JSON.parse(readFileSync(local, 'utf8')) : {};
  const given: Record<string, string | undefined> = {
    ...env,
    DATABASE_URL: env.DATABASE_URL || servers.databaseUrl,
    REDIS_URL: env.REDIS_URL || servers.redisUrl,
  };
  const problems: string[] = [];
  const values = Object.entries(environment).map(([name, [schema, fallback]]) => {
    const text = given[name] ?? fallback;
    if (text === undefined) {
      problems.push(
        `${name} is not set, and the private servers of this checkout are not there yet: type npm start (or npm run servers), or set it`,
      );
      return [name, undefined];
    }
    const parsed = schema.safeParse(text);
    if (parsed.success) return [name, parsed.data];
    const { expected, secret } = schema.meta() as { expected: string; secret?: boolean };
    const issue = parsed.error.issues[0];
    const found = secret ? '(not shown)' : `"${text}"`;
    problems.push(
      issue?.code === 'custom' && issue.message.startsWith('expected')
        ? `${name}: ${issue.message}`
        : `${name}: expected ${expected}, got ${found}`,
    );
    return [name, undefined];
  });
  if (problems.length > 0) throw new ConfigError(problems.join('\n'));
  // Each name was parsed by its own schema just above.
  const parsed = Object.fromEntries(values) as Parsed;
  const privateDatabase = !env.DATABASE_URL || env.DATABASE_URL === servers.databaseUrl;
  return {
    ...parsed,
    privateDatabase,
    given: new Set(Object.keys(environment).filter((name) => env[name] !== undefined)),
  };
}
