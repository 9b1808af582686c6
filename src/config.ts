// What can be set, and what is it set to?

import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { availableParallelism } from 'node:os';
import path from 'node:path';
import proxyAddr from 'proxy-addr';
import { z } from 'zod';
import { parseCredentials } from './dashboard/credentials.ts';
import { ModelCallType } from './generated/prisma/enums.ts';
import { urlProblem, withHost } from './given-servers.mjs';
import { inTheClear } from './providers/base-url.ts';
import { CREDITS, readDecimal, spellDecimal } from './store/decimals.ts';
import { checkKept, parseKept } from './time/kept.ts';
import { MAX_MINUTES, parseLimits } from './time/limits.ts';
import { parsePattern } from './time/pattern.ts';

/** The checkout or the installed package: where `prisma/` and `.local/` are, beside `src/` or `dist/`. */
export const home = path.dirname(import.meta.dirname);

/** Where the migrations are. */
export const migrations = path.join(home, 'prisma', 'migrations');

/** hourhand's own version. */
export const version = z
  .object({ version: z.string() })
  .parse(JSON.parse(readFileSync(path.join(home, 'package.json'), 'utf8'))).version;

/** A whole number of a unit, or of none (a port). */
const whole = (min: number, max: number, unit: string) =>
  z
    .string()
    .regex(/^\d+$/)
    .transform(Number)
    .pipe(z.number().min(min).max(max))
    .meta({ expected: `a whole number from ${min} to ${max}`, unit });

/** What a function reads that throws, beginning with `expected`, where it cannot. */
const readBy = <Value>(read: (text: string) => Value) =>
  z.string().transform((text, context) => {
    try {
      return read(text);
    } catch (error) {
      context.issues.push({
        code: 'custom',
        message: error instanceof Error ? error.message : String(error),
        input: text,
      });
      return z.NEVER;
    }
  });

const pattern = readBy(parsePattern).meta({
  expected: 'six cron fields in UTC, seconds first (five: minute first), or off',
});

const types = Object.keys(ModelCallType);
const limits = readBy((text) => parseLimits(text, types)).meta({
  expected: `TYPE=MINUTES or PROVIDER/MODEL=MINUTES, divided by commas, with a type of ${types.join(', ')} and 1 to ${MAX_MINUTES} minutes`,
  unit: 'minutes',
});

/** For how long something is kept; nothing at all is for ever. */
const kept = readBy((text) => (text === '' ? undefined : parseKept(text))).meta({
  expected: 'hours, days, weeks or years, at least 2d, such as 90d or 2y, or nothing',
  unit: 'h, d, w or y',
});

const url = (...protocols: string[]) =>
  z
    .string()
    .superRefine((text, { addIssue }) => {
      const message = urlProblem(text, protocols);
      if (message) addIssue(message);
    })
    .meta({
      expected: `a URL that begins with ${protocols.map((protocol) => `${protocol}//`).join(' or ')}`,
      secret: true,
    });

/** An exact amount of credits, kept as text: as it was given, or rounded as PostgreSQL would round it. */
const credits = z
  .string()
  .regex(/^\d{1,12}(\.\d+)?$/)
  .refine((text) => readDecimal(text, CREDITS) !== undefined)
  .transform((text) => roundedText(text) ?? text)
  .meta({ expected: 'an amount such as 0.01; more than 8 decimals are rounded', unit: 'credits' });

function roundedText(text: string): string | undefined {
  const amount = readDecimal(text, CREDITS);
  return amount?.rounded ? spellDecimal(amount, CREDITS) : undefined;
}

const yesOrNo = z
  .enum(['true', 'false'])
  .transform((text) => text === 'true')
  .meta({ expected: 'true or false' });

const listed = (text: string) =>
  text
    .split(',')
    .map((one) => one.trim())
    .filter((one) => one !== '');

const header = z
  .string()
  .regex(/^[\w-]{1,100}$/)
  .toLowerCase()
  .meta({ expected: "a header's name" });
const webhookUrl = z
  .union([z.literal(''), url('https:', 'http:')])
  .meta({ expected: 'a URL that begins with https://', secret: true });

const webhookSecret = z
  .string()
  .regex(/^$|^[\x21-\x7e]{16,}$/)
  .meta({ expected: 'at least 16 printable characters', secret: true });

const GENERATED = ['imageGeneration', 'audioGeneration', 'video'] as const;

/** A variable's schema, its default, and what it does. The schema's `meta` has `expected`, which an error says, and a number's `unit`. */
type Variables = Record<string, readonly [schema: z.ZodType, fallback: string | undefined, meaning: string]>;

const servers = {
  DATABASE_URL: [
    url('postgres:', 'postgresql:'),
    undefined,
    'The PostgreSQL database; by default the private one of this checkout.',
  ],
  DATABASE_DIRECT_URL: [
    z.union([z.literal(''), url('postgres:', 'postgresql:')]).meta({
      expected: 'a URL that begins with postgres:// or postgresql://, or nothing',
      secret: true,
    }),
    '',
    'The same database past a pooler, if `DATABASE_URL` leads to one: for migrations, and for `hourhand partition`.',
  ],
  DATABASE_PREPARED: [
    z.enum(['auto', 'on', 'off']).meta({ expected: 'auto, on or off' }),
    'auto',
    'Whether statements are prepared under names. `auto`: unless a pooler stands between. ' +
      '`on`: also then (PgBouncer 1.21 with `max_prepared_statements`).',
  ],
  REDIS_URL: [url('redis:', 'rediss:'), undefined, 'The Redis server; by default the private one of this checkout.'],
  REDIS_CLUSTER: [
    yesOrNo,
    'false',
    '`REDIS_URL` names a node of a Redis Cluster; the others are found, and asked with its user, password and TLS.',
  ],
  REDIS_PREFIX: [
    z
      .string()
      .regex(/^\{[\w.-]+\}$/)
      .meta({ expected: 'a name in braces, such as {hourhand}' }),
    '{hourhand}',
    "Before each of hourhand's keys in Redis. It belongs to one database: give staging and production a prefix " +
      "each, or a Redis each. The braces keep a queue's keys on one node of a Redis Cluster.",
  ],
} as const satisfies Variables;

const processes = {
  WORKER_CONCURRENCY: [
    whole(1, 64, 'jobs'),
    String(Math.min(4, availableParallelism())),
    'Jobs of one queue that a worker process runs at once.',
  ],
  LOG_LEVEL: [
    z
      .enum(['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'])
      .meta({ expected: 'fatal, error, warn, info, debug, trace or silent' }),
    'info',
    'The least that is logged.',
  ],
} as const satisfies Variables;

const dashboard = {
  HOST: [
    z
      .string()
      .refine((text) => isIP(text) > 0 || /^[a-z\d]([a-z\d.-]{0,251}[a-z\d])?$/i.test(text))
      .meta({ expected: 'an IP address or the name of a host' }),
    '127.0.0.1',
    "The dashboard's address. Any other than this machine's own needs `DASHBOARD_CREDENTIALS` or `PROXY_ADDRESSES`.",
  ],
  PORT: [whole(0, 65_535, 'none'), '3000', "The dashboard's port; 0 takes a free one."],
  PUBLIC_URL: [
    z
      .string()
      .refine((text) => text === '' || /^https?:\/\/[^/?#@]+\/?$/i.test(text))
      .refine((text) => text === '' || URL.canParse(text))
      .meta({ expected: 'a URL such as https://hourhand.example, without a path, or nothing' }),
    '',
    'What browsers call the dashboard, where a reverse proxy stands before it: the host and the origin that it answers to. With https its cookies are for https alone.',
  ],
} as const satisfies Variables;

const access = {
  DASHBOARD_CREDENTIALS: [
    readBy(parseCredentials).meta({
      expected: 'lines NAME:viewer|operator:HASH, divided by line breaks or ;',
      secret: true,
    }),
    '',
    'Who may see (viewer) and change (operator): what `hourhand credentials NAME --role …` prints. A hash is of a password, or of a token.',
  ],
  DASHBOARD_CREDENTIALS_FILE: [
    z.string().meta({ expected: 'the path of a file' }),
    '',
    'A file of the lines that `hourhand credentials` prints, read when the dashboard starts; those of `DASHBOARD_CREDENTIALS` count as well.',
  ],
  DASHBOARD_SECRET: [
    z
      .string()
      .regex(/^$|^[\x21-\x7e]{32,}$/)
      .meta({ expected: 'at least 32 printable characters', secret: true }),
    '',
    'What sessions and forms are signed with; by default it is derived from the credentials, and ends all sessions when they change.',
  ],
  DASHBOARD_SESSION_HOURS: [
    whole(1, 720, 'hours'),
    '12',
    'Hours without a request after which somebody must sign in again.',
  ],
  PROXY_ADDRESSES: [
    readBy((text) => {
      const addresses = listed(text);
      try {
        if (addresses.length > 0) proxyAddr.compile(addresses);
      } catch {
        throw new Error(`expected IP addresses or ranges such as 10.0.0.0/8, divided by commas, got "${text}"`);
      }
      return addresses;
    }).meta({ expected: 'IP addresses or ranges such as 10.0.0.0/8, divided by commas' }),
    '',
    'Reverse proxies whose word counts of who asks and from where. They must drop those headers of whoever they serve.',
  ],
  PROXY_USER_HEADER: [header, 'x-forwarded-user', 'The header in which such a proxy names the user.'],
  PROXY_GROUPS_HEADER: [
    header,
    'x-forwarded-groups',
    "The header in which it names the user's groups, divided by commas.",
  ],
  PROXY_OPERATORS: [
    z.string().transform(listed).meta({ expected: 'names, divided by commas' }),
    '',
    'Users and groups of such a proxy who are operators; its other users are viewers.',
  ],
} as const satisfies Variables;

const schedules = {
  MODEL_CALL_STATS_CRON_TIME: [
    pattern,
    '0 1 * * * *',
    'When the roll-up looks for owed hours. UTC; `off` removes the scheduler.',
  ],
  LATE_DATA_SECONDS: [
    whole(0, 60, 'seconds')
      .transform((seconds) => (seconds === 0 ? 'off' : seconds === 60 ? '0 * * * * *' : `*/${seconds} * * * * *`))
      .meta({ expected: 'a whole number from 0 to 60', unit: 'seconds' }),
    '15',
    'How often users with late data are rolled up again; 0 removes the scheduler, and leaves it to the look of every 30 seconds.',
  ],
  CLEANUP_STALE_MODEL_CALLS_CRON_TIME: [
    pattern,
    '0 */10 * * * *',
    'When calls that hang are looked for. UTC; `off` removes the scheduler.',
  ],
  CHECK_MODEL_STATUS_CRON_TIME: [
    pattern,
    '0 */15 * * * *',
    'When the models are checked. UTC; `off` removes the scheduler. Calls of the last interval between two such checks speak for a model.',
  ],
  AUDIT_MODEL_CALL_STATS_CRON_TIME: [
    pattern,
    '0 30 * * * *',
    'When a share of the closed hours is recounted from the calls. UTC; `off` removes the scheduler.',
  ],
  RETAIN_MODEL_CALLS_CRON_TIME: [
    pattern,
    'off',
    'When hours are sealed, and calls and statistics deleted that are no longer kept. UTC; `off` removes the scheduler.',
  ],
} as const satisfies Variables;

const rollUp = {
  FANOUT_MAX_USER_JOBS: [
    whole(0, 10_000, 'users'),
    '64',
    'Up to so many users an hour has one child for each; above, shards by ranges of buckets.',
  ],
  FANOUT_MIN_CALLS: [
    whole(0, 1_000_000, 'calls'),
    '20000',
    'An hour of no more calls, with more users than that, is rolled up by one statement rather than by shards; 0 always fans out.',
  ],
  MAX_HOURS_PER_TICK: [whole(1, 100_000, 'hours'), '1000', 'Owed hours that one look enqueues at most.'],
  PARTIAL_BACKOFF_MAX_SECONDS: [
    whole(1, 86_400, 'seconds'),
    '3600',
    'A partial hour is tried again after 5 seconds, doubling up to so many.',
  ],
  ACTIVE_USER_WINDOW_DAYS: [
    whole(1, 366, 'days'),
    '7',
    "Days before an hour's end in which a call makes a user active: who gets zeros with `--zeros`.",
  ],
  STORE_ZERO_ROWS: [
    yesOrNo,
    'false',
    'Store the zeros of active users without a call in the hour, for readers who go straight to the table.',
  ],
  AUDIT_WITHIN_DAYS: [whole(1, 366, 'days'), '7', 'Days within which the audits see every closed hour once.'],
} as const satisfies Variables;

const stale = {
  STALE_MODEL_CALL_TIMEOUT_MINUTES: [
    whole(1, MAX_MINUTES, 'minutes'),
    '30',
    'Calls that have been `processing` for longer are failed.',
  ],
  STALE_MODEL_CALL_TIMEOUTS: [
    limits,
    '',
    "Other time-outs, where work is longer: `video=180,provider/model=60`. A model's comes before its type's.",
  ],
} as const satisfies Variables;

const keeping = {
  RETAIN_CALLS: [
    kept,
    '',
    'For how long the scheduler `retain.model.calls` keeps calls; for ever where it says nothing.',
  ],
  RETAIN_STATS: [
    kept,
    '',
    'For how long it keeps statistics, at least as long as calls; for ever where it says nothing.',
  ],
  CALLS_KEPT_DAYS: [
    z
      .union([z.literal('').transform(() => undefined), whole(2, 36_500, 'days')])
      .meta({ expected: 'a whole number from 2 to 36500, or nothing', unit: 'days' }),
    '',
    'Where the gateway archives its calls by itself: hours older than so many days are sealed by the audits, once they are right, so that their statistics stay. Fewer than the gateway keeps them.',
  ],
  CHANGE_HISTORY_DAYS: [
    whole(1, 36_600, 'days'),
    '400',
    'Days for which it is kept what changed in an hour after it had closed, and why; which runs and alarms there were; and what was changed by hand, and by whom.',
  ],
} as const satisfies Variables;

const models = {
  MODEL_MINIMUM_CALLS: [
    whole(1, 1_000_000, 'calls'),
    '3',
    'So many calls in the last interval, and a model is judged by them; below, it is probed.',
  ],
  MODEL_SLOW_SECONDS: [
    whole(1, 86_400, 'seconds'),
    '60',
    'A model whose median answer takes longer is degraded (to the first byte, where the gateway says so).',
  ],
  MODEL_PROBES_PER_HOUR: [whole(0, 1_000_000, 'probes'), '60', 'Probes in any hour, by all processes together.'],
  MODEL_PROBE_CREDITS_PER_DAY: [
    credits,
    '1',
    'Credits that probes may cost in any 24 hours, by all processes together.',
  ],
  MODEL_PROBE_DEFAULT_CREDITS: [
    credits,
    '0.01',
    'What a probe costs of a model whose `probeCredits` nobody has given.',
  ],
  MODEL_PROBE_TIMEOUT_SECONDS: [
    whole(1, 300, 'seconds'),
    '10',
    'A probe without its whole answer after so many has failed.',
  ],
  MODEL_PROBE_GENERATE: [
    z
      .string()
      .transform((text) => (text === 'off' ? [] : text.split(',')))
      .pipe(z.array(z.enum(GENERATED)))
      .meta({ expected: `off, or some of ${GENERATED.join(',')}` }),
    'off',
    "Types that are probed by a real generation, at the model's price, rather than by its record (`GET /v1/models/{id}`).",
  ],
  MODEL_ALLOW_HTTP: [
    yesOrNo,
    'false',
    'Ask providers and the webhooks by plain http on other machines too, where the key and the answer can be read on the way.',
  ],
  MODEL_HISTORY_DAYS: [whole(31, 3_660, 'days'), '90', "Days for which a model's transitions and probes are kept."],
  MODEL_WEBHOOK_URL: [
    webhookUrl,
    '',
    "Told of each transition of a model's status, signed; https, or http on this machine (`MODEL_ALLOW_HTTP`).",
  ],
  MODEL_WEBHOOK_SECRET: [
    webhookSecret,
    '',
    'What the webhook is signed with (HMAC-SHA256, as in the Standard Webhooks specification).',
  ],
} as const satisfies Variables;

const alarms = {
  ALARM_NO_HOUR_CLOSED_MINUTES: [
    whole(0, 527_040, 'minutes'),
    '120',
    'An alarm where no hour of the live range has closed for longer; 0: never. This and what follows: the same in every process.',
  ],
  ALARM_TICK_MISSED_SECONDS: [
    whole(0, 86_400, 'seconds'),
    '180',
    'An alarm where a scheduler has no tick so long after it was to fire; 0: never.',
  ],
  ALARM_HOUR_PARTIAL_MINUTES: [
    whole(0, 527_040, 'minutes'),
    '60',
    'An alarm where an hour is partial for longer; 0: never.',
  ],
  ALARM_WEBHOOK_URL: [
    webhookUrl,
    '',
    'Told of each alarm once, and of its end, signed; https, or http on this machine (`MODEL_ALLOW_HTTP`).',
  ],
  ALARM_WEBHOOK_SECRET: [webhookSecret, '', 'What that webhook is signed with, likewise.'],
} as const satisfies Variables;

const telemetry = {
  METRICS_PORT: [
    z
      .union([z.literal('').transform(() => undefined), whole(0, 65_535, 'none')])
      .meta({ expected: 'a whole number from 0 to 65535, or nothing', unit: 'none' }),
    '',
    'Where `hourhand worker` serves its own `/metrics` and `/healthz`; 0 takes a free port, nothing serves none. Those of the dashboard are on `PORT`.',
  ],
  METRICS_HOST: [
    z
      .string()
      .regex(/^[\w.:-]+$/)
      .meta({ expected: 'an address of this machine' }),
    '127.0.0.1',
    'The address of that port. Other than loopback only with `METRICS_TOKEN`.',
  ],
  METRICS_TOKEN: [
    z
      .string()
      .regex(/^$|^[\x21-\x7e]{16,}$/)
      .meta({ expected: 'at least 16 printable characters', secret: true }),
    '',
    'The bearer token that is asked for at that port.',
  ],
  OTEL_EXPORTER_OTLP_ENDPOINT: [
    z
      .union([z.literal(''), url('http:', 'https:')])
      .meta({ expected: 'a URL that begins with http:// or https://', secret: true }),
    '',
    'The collector that jobs are traced to, by OTLP over HTTP, at its `/v1/traces`; nothing: no traces. `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS` and `OTEL_TRACES_SAMPLER` are as OpenTelemetry means them.',
  ],
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: [
    z
      .union([z.literal(''), url('http:', 'https:')])
      .meta({ expected: 'a URL that begins with http:// or https://', secret: true }),
    '',
    "The same as the whole URL of the collector's traces.",
  ],
} as const satisfies Variables;

/** Every variable of the environment: the one place that reads them, and what `docs/configuration.md` is made from. */
export const environment = {
  ...servers,
  ...processes,
  ...dashboard,
  ...access,
  ...schedules,
  ...rollUp,
  ...stale,
  ...keeping,
  ...models,
  ...alarms,
  ...telemetry,
};

/** The same under headings, for the docs. */
export const headings: Record<string, Variables> = {
  Servers: servers,
  Processes: processes,
  Dashboard: dashboard,
  'Who may': access,
  Schedules: schedules,
  'The roll-up': rollUp,
  'Calls that hang': stale,
  'What is kept': keeping,
  Models: models,
  Alarms: alarms,
  'Metrics and traces': telemetry,
};

type Parsed = { [Name in keyof typeof environment]: z.infer<(typeof environment)[Name][0]> };

export type Config = Parsed & {
  /** The database is the private one of this checkout, not one that somebody gave. */
  readonly privateDatabase: boolean;
  /** The variables that the environment says something of, and no private server; the others have their defaults. */
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
  const servers = privateServers();
  const given: Record<string, string | undefined> = {
    ...env,
    DATABASE_URL: withHost(env.DATABASE_URL || servers.databaseUrl),
    DATABASE_DIRECT_URL: withHost(env.DATABASE_DIRECT_URL),
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
  const wrong = redisProblem(parsed) ?? webhookProblem(parsed) ?? retainProblem(parsed) ?? metricsProblem(parsed);
  if (wrong) throw new ConfigError(wrong);
  // npm start hands the private servers on.
  const own = [undefined, '', servers.databaseUrl, servers.redisUrl];
  const names = Object.keys(environment).filter((name) => !own.includes(env[name]));
  return { ...parsed, privateDatabase: !names.includes('DATABASE_URL'), given: new Set(names) };
}

/** A line for each amount in the environment that has more decimals than are used. */
export function roundedSettings(env: NodeJS.ProcessEnv = process.env): string[] {
  const amounts = Object.entries(environment).filter(([, [schema]]) => schema.meta()?.unit === 'credits');
  return amounts.flatMap(([name]) => {
    const text = env[name] ?? '';
    const rounded = roundedText(text);
    return rounded === undefined ? [] : [`${name}: ${text} was rounded to 8 decimals, ${rounded}`];
  });
}

/** Where they are, as far as it is written down here: in a copy of a checkout stands where those of the other are. */
function privateServers(): { readonly databaseUrl?: string; readonly redisUrl?: string } {
  try {
    const said = JSON.parse(readFileSync(path.join(home, '.local', 'servers.json'), 'utf8'));
    return [undefined, home].includes(said.checkout) ? said : {};
  } catch {
    return {}; // it is not there, or was spoilt: npm start writes it anew
  }
}

// What no variable can say alone.

function redisProblem({ REDIS_CLUSTER, REDIS_URL }: Parsed): string | undefined {
  const { pathname, searchParams } = new URL(REDIS_URL);
  // The client would ask for a database NaN, and end the process when there is none.
  if (!/^\/?\d*$/.test(pathname) || !/^\d*$/.test(searchParams.get('db') ?? '')) {
    return 'REDIS_URL: expected the number of a database behind its host, got another (not shown)';
  }
  if (!REDIS_CLUSTER || /^\/?0?$/.test(pathname)) return undefined;
  return 'REDIS_URL: expected no database beside REDIS_CLUSTER=true, for a cluster has 0 alone, got another (not shown)';
}

function metricsProblem({
  METRICS_HOST: host,
  METRICS_PORT: port,
  METRICS_TOKEN: token,
}: Parsed): string | undefined {
  if (port === undefined || token !== '' || ['127.0.0.1', 'localhost', '::1'].includes(host)) return undefined;
  return 'METRICS_TOKEN: expected at least 16 printable characters where METRICS_HOST is not 127.0.0.1, localhost or ::1, got none';
}

function webhookProblem(parsed: Parsed): string | undefined {
  return webhookProblemOf('MODEL', parsed) ?? webhookProblemOf('ALARM', parsed);
}

function webhookProblemOf(whose: 'MODEL' | 'ALARM', parsed: Parsed): string | undefined {
  const { [`${whose}_WEBHOOK_URL` as const]: url, [`${whose}_WEBHOOK_SECRET` as const]: secret } = parsed;
  if (url === '') return undefined;
  if (secret === '')
    return `${whose}_WEBHOOK_SECRET: expected at least 16 printable characters beside ${whose}_WEBHOOK_URL, got none`;
  if (parsed.MODEL_ALLOW_HTTP || !inTheClear(new URL(url))) return undefined;
  return `${whose}_WEBHOOK_URL: expected https, or http to this machine (MODEL_ALLOW_HTTP allows more), got http`;
}

function retainProblem({ RETAIN_MODEL_CALLS_CRON_TIME, RETAIN_CALLS: calls, RETAIN_STATS: stats }: Parsed) {
  if (RETAIN_MODEL_CALLS_CRON_TIME !== 'off' && calls === undefined && stats === undefined) {
    return 'RETAIN_CALLS: expected it or RETAIN_STATS beside RETAIN_MODEL_CALLS_CRON_TIME, got neither';
  }
  try {
    checkKept({ calls, stats });
  } catch (error) {
    return `RETAIN_STATS: ${error instanceof Error ? error.message : error}`;
  }
  return undefined;
}
