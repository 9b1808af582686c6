import { existsSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { ConfigError, environment, headings, home, migrations, readConfig, version } from '../src/config.ts';

const servers = {
  DATABASE_URL: 'postgresql://ada:pw-of-ada@db.example/calls',
  REDIS_URL: 'rediss://:pw-of-redis@redis.example:6380/2',
};

const PASSWORD = `$2b$12$${'a'.repeat(53)}`;
const TOKEN = `sha256:${'0'.repeat(64)}`;

test('with both servers given, everything else has a default', () => {
  const { WORKER_CONCURRENCY, ...config } = readConfig(servers);
  expect(config).toEqual({
    ...servers,
    DATABASE_DIRECT_URL: '',
    DATABASE_PREPARED: 'auto',
    REDIS_CLUSTER: false,
    REDIS_PREFIX: '{hourhand}',
    PORT: 3000,
    HOST: '127.0.0.1',
    METRICS_HOST: '127.0.0.1',
    METRICS_TOKEN: '',
    OTEL_EXPORTER_OTLP_ENDPOINT: '',
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: '',
    PUBLIC_URL: '',
    DASHBOARD_CREDENTIALS: [],
    DASHBOARD_CREDENTIALS_FILE: '',
    DASHBOARD_SECRET: '',
    DASHBOARD_SESSION_HOURS: 12,
    PROXY_ADDRESSES: [],
    PROXY_USER_HEADER: 'x-forwarded-user',
    PROXY_GROUPS_HEADER: 'x-forwarded-groups',
    PROXY_OPERATORS: [],
    LOG_LEVEL: 'info',
    MODEL_CALL_STATS_CRON_TIME: '0 1 * * * *',
    FANOUT_MAX_USER_JOBS: 64,
    FANOUT_MIN_CALLS: 20_000,
    MAX_HOURS_PER_TICK: 1_000,
    ACTIVE_USER_WINDOW_DAYS: 7,
    STORE_ZERO_ROWS: false,
    PARTIAL_BACKOFF_MAX_SECONDS: 3_600,
    LATE_DATA_SECONDS: '*/15 * * * * *',
    AUDIT_MODEL_CALL_STATS_CRON_TIME: '0 30 * * * *',
    AUDIT_WITHIN_DAYS: 7,
    CHANGE_HISTORY_DAYS: 400,
    RETAIN_MODEL_CALLS_CRON_TIME: 'off',
    CLEANUP_STALE_MODEL_CALLS_CRON_TIME: '0 */10 * * * *',
    STALE_MODEL_CALL_TIMEOUT_MINUTES: 30,
    STALE_MODEL_CALL_TIMEOUTS: [],
    CHECK_MODEL_STATUS_CRON_TIME: '0 */15 * * * *',
    MODEL_MINIMUM_CALLS: 3,
    MODEL_SLOW_SECONDS: 60,
    MODEL_PROBES_PER_HOUR: 60,
    MODEL_PROBE_CREDITS_PER_DAY: '1',
    MODEL_PROBE_DEFAULT_CREDITS: '0.01',
    MODEL_PROBE_TIMEOUT_SECONDS: 10,
    MODEL_PROBE_GENERATE: [],
    MODEL_ALLOW_HTTP: false,
    MODEL_HISTORY_DAYS: 90,
    MODEL_WEBHOOK_URL: '',
    MODEL_WEBHOOK_SECRET: '',
    ALARM_NO_HOUR_CLOSED_MINUTES: 120,
    ALARM_TICK_MISSED_SECONDS: 180,
    ALARM_HOUR_PARTIAL_MINUTES: 60,
    ALARM_WEBHOOK_URL: '',
    ALARM_WEBHOOK_SECRET: '',
    privateDatabase: false,
    given: new Set(['DATABASE_URL', 'REDIS_URL']),
  });
  expect(WORKER_CONCURRENCY).toBeGreaterThanOrEqual(1);
  expect(WORKER_CONCURRENCY).toBeLessThanOrEqual(4);
});

test('every variable is read, and read as what it is', () => {
  expect(
    readConfig({
      ...servers,
      DATABASE_DIRECT_URL: 'postgresql://ada@/calls?host=/run/postgresql',
      DATABASE_PREPARED: 'on',
      REDIS_URL: 'redis://redis.example',
      REDIS_CLUSTER: 'true',
      REDIS_PREFIX: '{calls-2.eu}',
      PORT: '0',
      HOST: '0.0.0.0',
      PUBLIC_URL: 'https://hourhand.example',
      DASHBOARD_CREDENTIALS: `# people\nada:operator:${PASSWORD}; ;bot:viewer:${TOKEN}`,
      DASHBOARD_CREDENTIALS_FILE: '/run/secrets/hourhand',
      DASHBOARD_SECRET: 'x'.repeat(32),
      DASHBOARD_SESSION_HOURS: '1',
      PROXY_ADDRESSES: '10.0.0.0/8, ::1',
      PROXY_USER_HEADER: 'X-Auth-Request-User',
      PROXY_GROUPS_HEADER: 'Remote-Groups',
      PROXY_OPERATORS: 'ada@acme.example, on-call',
      METRICS_PORT: '9464',
      METRICS_HOST: '0.0.0.0',
      METRICS_TOKEN: '0123456789abcdef',
      OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:4318',
      OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'https://traces.example/v1/traces?key=1',
      LOG_LEVEL: 'silent',
      WORKER_CONCURRENCY: '64',
      MODEL_CALL_STATS_CRON_TIME: ' off ',
      FANOUT_MAX_USER_JOBS: '0',
      FANOUT_MIN_CALLS: '0',
      MAX_HOURS_PER_TICK: '1',
      ACTIVE_USER_WINDOW_DAYS: '366',
      STORE_ZERO_ROWS: 'true',
      PARTIAL_BACKOFF_MAX_SECONDS: '86400',
      LATE_DATA_SECONDS: '60',
      AUDIT_MODEL_CALL_STATS_CRON_TIME: 'off',
      AUDIT_WITHIN_DAYS: '1',
      CHANGE_HISTORY_DAYS: '36600',
      CALLS_KEPT_DAYS: '30',
      RETAIN_MODEL_CALLS_CRON_TIME: '0 0 3 * * *',
      RETAIN_CALLS: '90d',
      RETAIN_STATS: '2y',
      CLEANUP_STALE_MODEL_CALLS_CRON_TIME: 'off',
      STALE_MODEL_CALL_TIMEOUT_MINUTES: '525600',
      STALE_MODEL_CALL_TIMEOUTS: ' video=180, openrouter/meta/llama=3=60',
      CHECK_MODEL_STATUS_CRON_TIME: 'off',
      MODEL_MINIMUM_CALLS: '10',
      MODEL_SLOW_SECONDS: '5',
      MODEL_PROBES_PER_HOUR: '0',
      MODEL_PROBE_CREDITS_PER_DAY: '0.00000001',
      MODEL_PROBE_DEFAULT_CREDITS: '0',
      MODEL_PROBE_TIMEOUT_SECONDS: '300',
      MODEL_PROBE_GENERATE: 'imageGeneration,video',
      MODEL_ALLOW_HTTP: 'true',
      MODEL_HISTORY_DAYS: '31',
      MODEL_WEBHOOK_URL: 'http://hooks.example/path?token=1',
      MODEL_WEBHOOK_SECRET: '0123456789abcdef',
      ALARM_NO_HOUR_CLOSED_MINUTES: '0',
      ALARM_TICK_MISSED_SECONDS: '86400',
      ALARM_HOUR_PARTIAL_MINUTES: '527040',
      ALARM_WEBHOOK_URL: 'https://alarms.example',
      ALARM_WEBHOOK_SECRET: 'fedcba9876543210',
    }),
  ).toEqual({
    ...servers,
    DATABASE_DIRECT_URL: 'postgresql://ada@localhost/calls?host=/run/postgresql',
    DATABASE_PREPARED: 'on',
    REDIS_URL: 'redis://redis.example',
    REDIS_CLUSTER: true,
    REDIS_PREFIX: '{calls-2.eu}',
    PORT: 0,
    HOST: '0.0.0.0',
    PUBLIC_URL: 'https://hourhand.example',
    DASHBOARD_CREDENTIALS: [
      { name: 'ada', role: 'operator', hash: PASSWORD },
      { name: 'bot', role: 'viewer', hash: TOKEN },
    ],
    DASHBOARD_CREDENTIALS_FILE: '/run/secrets/hourhand',
    DASHBOARD_SECRET: 'x'.repeat(32),
    DASHBOARD_SESSION_HOURS: 1,
    PROXY_ADDRESSES: ['10.0.0.0/8', '::1'],
    PROXY_USER_HEADER: 'x-auth-request-user',
    PROXY_GROUPS_HEADER: 'remote-groups',
    PROXY_OPERATORS: ['ada@acme.example', 'on-call'],
    METRICS_PORT: 9464,
    METRICS_HOST: '0.0.0.0',
    METRICS_TOKEN: '0123456789abcdef',
    OTEL_EXPORTER_OTLP_ENDPOINT: 'http://127.0.0.1:4318',
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: 'https://traces.example/v1/traces?key=1',
    LOG_LEVEL: 'silent',
    WORKER_CONCURRENCY: 64,
    MODEL_CALL_STATS_CRON_TIME: 'off',
    FANOUT_MAX_USER_JOBS: 0,
    FANOUT_MIN_CALLS: 0,
    MAX_HOURS_PER_TICK: 1,
    ACTIVE_USER_WINDOW_DAYS: 366,
    STORE_ZERO_ROWS: true,
    PARTIAL_BACKOFF_MAX_SECONDS: 86_400,
    LATE_DATA_SECONDS: '0 * * * * *',
    AUDIT_MODEL_CALL_STATS_CRON_TIME: 'off',
    AUDIT_WITHIN_DAYS: 1,
    CHANGE_HISTORY_DAYS: 36_600,
    CALLS_KEPT_DAYS: 30,
    RETAIN_MODEL_CALLS_CRON_TIME: '0 0 3 * * *',
    RETAIN_CALLS: 2_160,
    RETAIN_STATS: 17_520,
    CLEANUP_STALE_MODEL_CALLS_CRON_TIME: 'off',
    STALE_MODEL_CALL_TIMEOUT_MINUTES: 525_600,
    STALE_MODEL_CALL_TIMEOUTS: [
      { type: 'video', minutes: 180 },
      { provider: 'openrouter', model: 'meta/llama=3', minutes: 60 },
    ],
    CHECK_MODEL_STATUS_CRON_TIME: 'off',
    MODEL_MINIMUM_CALLS: 10,
    MODEL_SLOW_SECONDS: 5,
    MODEL_PROBES_PER_HOUR: 0,
    MODEL_PROBE_CREDITS_PER_DAY: '0.00000001',
    MODEL_PROBE_DEFAULT_CREDITS: '0',
    MODEL_PROBE_TIMEOUT_SECONDS: 300,
    MODEL_PROBE_GENERATE: ['imageGeneration', 'video'],
    MODEL_ALLOW_HTTP: true,
    MODEL_HISTORY_DAYS: 31,
    MODEL_WEBHOOK_URL: 'http://hooks.example/path?token=1',
    MODEL_WEBHOOK_SECRET: '0123456789abcdef',
    ALARM_NO_HOUR_CLOSED_MINUTES: 0,
    ALARM_TICK_MISSED_SECONDS: 86_400,
    ALARM_HOUR_PARTIAL_MINUTES: 527_040,
    ALARM_WEBHOOK_URL: 'https://alarms.example',
    ALARM_WEBHOOK_SECRET: 'fedcba9876543210',
    privateDatabase: false,
    given: new Set(Object.keys(environment)),
  });
});

test('a pattern of five fields is read as minute first', () => {
  expect(readConfig({ ...servers, MODEL_CALL_STATS_CRON_TIME: '5 * * * *' }).MODEL_CALL_STATS_CRON_TIME).toBe(
    '0 5 * * * *',
  );
});

test('retention needs to be told what is kept, and keeps statistics at least as long as calls', () => {
  const on = { ...servers, RETAIN_MODEL_CALLS_CRON_TIME: '0 0 3 * * *' };
  expect(problems(on)).toBe(
    'RETAIN_CALLS: expected it or RETAIN_STATS beside RETAIN_MODEL_CALLS_CRON_TIME, got neither',
  );
  expect(problems({ ...on, RETAIN_CALLS: '4w', RETAIN_STATS: '3w' })).toBe(
    'RETAIN_STATS: expected statistics to be kept at least as long as calls (672 hours), got 504 hours',
  );
  expect(readConfig({ ...on, RETAIN_STATS: '3w' })).toMatchObject({ RETAIN_CALLS: undefined, RETAIN_STATS: 504 });
});

describe('a wrong variable is named, with what was expected and what was found', () => {
  const timeouts =
    'expected TYPE=MINUTES or PROVIDER/MODEL=MINUTES, with a type of chatCompletion, embedding, imageGeneration, audioGeneration, video, custom and 1 to 525600 minutes';
  const pattern = 'expected six cron fields in UTC, seconds first (five: minute first), or off, got';
  test.each([
    ['REDIS_PREFIX', 'hourhand', 'expected a name in braces, such as {hourhand}, got "hourhand"'],
    ['REDIS_PREFIX', '{a:b}', 'expected a name in braces, such as {hourhand}, got "{a:b}"'],
    ['REDIS_PREFIX', '{}', 'expected a name in braces, such as {hourhand}, got "{}"'],
    ['PORT', '65536', 'expected a whole number from 0 to 65535, got "65536"'],
    ['PORT', '-1', 'expected a whole number from 0 to 65535, got "-1"'],
    ['PORT', '3000.5', 'expected a whole number from 0 to 65535, got "3000.5"'],
    ['PORT', 'http', 'expected a whole number from 0 to 65535, got "http"'],
    ['PORT', '', 'expected a whole number from 0 to 65535, got ""'],
    ['PORT', '0x10', 'expected a whole number from 0 to 65535, got "0x10"'],
    ['LOG_LEVEL', 'verbose', 'expected fatal, error, warn, info, debug, trace or silent, got "verbose"'],
    ['LOG_LEVEL', 'INFO', 'expected fatal, error, warn, info, debug, trace or silent, got "INFO"'],
    ['CALLS_KEPT_DAYS', '1', 'expected a whole number from 2 to 36500, or nothing, got "1"'],
    ['RETAIN_CALLS', '90', 'expected at least 2d, in hours, days, weeks or years, such as 90d or 2y, got "90"'],
    ['RETAIN_STATS', '47h', 'expected at least 2d, in hours, days, weeks or years, such as 90d or 2y, got "47h"'],
    ['WORKER_CONCURRENCY', '0', 'expected a whole number from 1 to 64, got "0"'],
    ['WORKER_CONCURRENCY', '65', 'expected a whole number from 1 to 64, got "65"'],
    ['MODEL_CALL_STATS_CRON_TIME', '', `${pattern} ""`],
    ['MODEL_CALL_STATS_CRON_TIME', '* * *', `${pattern} "* * *"`],
    ['MODEL_CALL_STATS_CRON_TIME', 'H 1 * * * *', `${pattern} "H 1 * * * *"`],
    ['MODEL_CALL_STATS_CRON_TIME', '@hourly', `${pattern} "@hourly"`],
    ['FANOUT_MAX_USER_JOBS', '10001', 'expected a whole number from 0 to 10000, got "10001"'],
    ['MAX_HOURS_PER_TICK', '0', 'expected a whole number from 1 to 100000, got "0"'],
    ['ACTIVE_USER_WINDOW_DAYS', '367', 'expected a whole number from 1 to 366, got "367"'],
    ['ACTIVE_USER_WINDOW_DAYS', '9'.repeat(400), `expected a whole number from 1 to 366, got "${'9'.repeat(400)}"`],
    ['STORE_ZERO_ROWS', 'yes', 'expected true or false, got "yes"'],
    ['STORE_ZERO_ROWS', '', 'expected true or false, got ""'],
    ['STALE_MODEL_CALL_TIMEOUT_MINUTES', '0', 'expected a whole number from 1 to 525600, got "0"'],
    ['STALE_MODEL_CALL_TIMEOUT_MINUTES', '525601', 'expected a whole number from 1 to 525600, got "525601"'],
    ['STALE_MODEL_CALL_TIMEOUT_MINUTES', '', 'expected a whole number from 1 to 525600, got ""'],
    ...[
      ['video', 'video'],
      ['video=', 'video='],
      ['video=0', 'video=0'],
      ['video=1.5', 'video=1.5'],
      ['video=-1', 'video=-1'],
      ['video=525601', 'video=525601'],
      ['film=10', 'film=10'],
      ['=10', '=10'],
      ['/gpt=10', '/gpt=10'],
      ['openai/=10', 'openai/=10'],
      ['video=10,', ''],
      ['embedding=5, video=10;custom=5', ' video=10;custom=5'],
    ].map(([value = '', part]): [string, string, string] => [
      'STALE_MODEL_CALL_TIMEOUTS',
      value,
      `${timeouts}, got "${part}"`,
    ]),
    [
      'STALE_MODEL_CALL_TIMEOUTS',
      'openai/gpt=5,video=3, openai/gpt = 6',
      'expected one limit for openai/gpt, got another: " openai/gpt = 6"',
    ],
    [
      'MODEL_PROBE_CREDITS_PER_DAY',
      '1e-3',
      'expected an amount such as 0.01; more than 8 decimals are rounded, got "1e-3"',
    ],
    ...['-1', '999999999999.999999995'].map((amount) => [
      'MODEL_PROBE_CREDITS_PER_DAY',
      amount,
      `expected an amount such as 0.01; more than 8 decimals are rounded, got "${amount}"`,
    ]),
    ['MODEL_PROBE_GENERATE', 'image', 'expected off, or some of imageGeneration,audioGeneration,video, got "image"'],
    ['MODEL_HISTORY_DAYS', '30', 'expected a whole number from 31 to 3660, got "30"'],
    ['MODEL_WEBHOOK_URL', 'ftp://hooks.example', 'expected a URL that begins with https://, got (not shown)'],
    ['ALARM_TICK_MISSED_SECONDS', '-1', 'expected a whole number from 0 to 86400, got "-1"'],
    ['ALARM_WEBHOOK_URL', 'ftp://hooks.example', 'expected a URL that begins with https://, got (not shown)'],
    ['HOST', 'two words', 'expected an IP address or the name of a host, got "two words"'],
    [
      'PUBLIC_URL',
      'https://hourhand.example/path',
      'expected a URL such as https://hourhand.example, without a path, or nothing, got "https://hourhand.example/path"',
    ],
    ['DASHBOARD_SECRET', 'short', 'expected at least 32 printable characters, got (not shown)'],
    ['DASHBOARD_SESSION_HOURS', '0', 'expected a whole number from 1 to 720, got "0"'],
    [
      'PROXY_ADDRESSES',
      'proxy.example',
      'expected IP addresses or ranges such as 10.0.0.0/8, divided by commas, got "proxy.example"',
    ],
    ['PROXY_USER_HEADER', 'a: b', 'expected a header\'s name, got "a: b"'],
    ['MODEL_WEBHOOK_SECRET', 'short', 'expected at least 16 printable characters, got (not shown)'],
    ['METRICS_PORT', '65536', 'expected a whole number from 0 to 65535, or nothing, got "65536"'],
    ['METRICS_HOST', 'http://x', 'expected an address of this machine, got "http://x"'],
    ['METRICS_TOKEN', 'short', 'expected at least 16 printable characters, got (not shown)'],
    [
      'OTEL_EXPORTER_OTLP_ENDPOINT',
      'collector:4318',
      'expected a URL that begins with http:// or https://, got (not shown)',
    ],
    ['PARTIAL_BACKOFF_MAX_SECONDS', '0', 'expected a whole number from 1 to 86400, got "0"'],
  ])('%s=%s', (name, value, says) => {
    expect(problems({ ...servers, [name]: value })).toBe(`${name}: ${says}`);
  });

  test('an impossible pattern also says why', () => {
    expect(problems({ ...servers, MODEL_CALL_STATS_CRON_TIME: '60 * * * * *' })).toMatch(
      /^MODEL_CALL_STATS_CRON_TIME: expected six cron fields .*, got "60 \* \* \* \* \*": .*60.*$/,
    );
  });

  test.each([
    ['no role', 'ada', 'viewer or operator after the name'],
    ['another role', `ada:admin:${PASSWORD}`, 'viewer or operator after the name'],
    ['a password that nobody hashed', 'ada:operator:hunter2', 'NAME:ROLE:HASH with a hash of bcrypt or sha256:'],
    ['no name', `:operator:${PASSWORD}`, 'a name of at most 100 letters, digits and . _ @ + -'],
    ['a name twice', `bob:viewer:${TOKEN}`, 'a name that is not there already'],
  ])('a credential with %s is refused by the number of its line, and never shown', (_, line, says) => {
    expect(problems({ ...servers, DASHBOARD_CREDENTIALS: `bob:viewer:${TOKEN};\n${line}` })).toBe(
      `DASHBOARD_CREDENTIALS: expected ${says} in line 3, got another (not shown)`,
    );
  });
});

test('metrics of a worker are served to other machines with a token alone', () => {
  const served = { ...servers, METRICS_PORT: '9464', METRICS_HOST: '0.0.0.0' };
  expect(problems(served)).toBe(
    'METRICS_TOKEN: expected at least 16 printable characters where METRICS_HOST is not 127.0.0.1, localhost or ::1, got none',
  );
  for (const more of [
    { METRICS_TOKEN: '0123456789abcdef' },
    { METRICS_HOST: '::1' },
    { METRICS_HOST: 'localhost' },
    { METRICS_PORT: '' },
  ]) {
    expect(() => readConfig({ ...served, ...more })).not.toThrow();
  }
});

describe.each(['MODEL', 'ALARM'])('the webhook %s_WEBHOOK_URL', (whose) => {
  const hook = {
    ...servers,
    [`${whose}_WEBHOOK_URL`]: 'http://hooks.example/t0ken',
    [`${whose}_WEBHOOK_SECRET`]: '0123456789abcdef',
  };

  test('is asked by https, or on this machine, unless more is allowed', () => {
    expect(problems(hook)).toBe(
      `${whose}_WEBHOOK_URL: expected https, or http to this machine (MODEL_ALLOW_HTTP allows more), got http`,
    );
    for (const url of ['https://hooks.example', 'http://127.0.0.1:8080/', 'http://[::1]/', 'http://localhost']) {
      expect(() => readConfig({ ...hook, [`${whose}_WEBHOOK_URL`]: url })).not.toThrow();
    }
    expect(() => readConfig({ ...hook, MODEL_ALLOW_HTTP: 'true' })).not.toThrow();
  });

  test('is signed, and so needs a secret', () => {
    expect(problems({ ...hook, [`${whose}_WEBHOOK_SECRET`]: '' })).toBe(
      `${whose}_WEBHOOK_SECRET: expected at least 16 printable characters beside ${whose}_WEBHOOK_URL, got none`,
    );
  });
});

describe('what a wrong URL holds is not shown', () => {
  test.each([
    [
      'DATABASE_URL',
      'mysql://ada:hunter2@db.example/calls',
      'expected a URL that begins with postgres:// or postgresql://, got mysql://… (not shown)',
    ],
    [
      'DATABASE_URL',
      'ada:hunter2@db.example',
      'expected a URL that begins with postgres:// or postgresql://, got (not shown)',
    ],
    [
      'DATABASE_URL',
      'postgresql://ada:hunter2@db.example:port/calls',
      'expected a URL that begins with postgres:// or postgresql://, got (not shown); it has one host, a port of at most 65535, and in a password # is written %23, and / %2F',
    ],
    [
      'REDIS_URL',
      'http://:hunter2@redis.example',
      'expected a URL that begins with redis:// or rediss://, got http://… (not shown)',
    ],
    [
      'REDIS_URL',
      'hunter2',
      'expected a URL that begins with redis:// or rediss://, got (not shown); it has one host, a port of at most 65535, and in a password # is written %23, and / %2F',
    ],
  ])('%s=%s', (name, value, says) => {
    const said = problems({ ...servers, [name]: value });
    expect(said).toBe(`${name}: ${says}`);
    expect(said).not.toContain('hunter2');
  });

  test.each([
    [
      { REDIS_CLUSTER: 'true' },
      'REDIS_URL: expected no database beside REDIS_CLUSTER=true, for a cluster has 0 alone, got another (not shown)',
    ],
    [
      { REDIS_URL: 'redis://redis.example/calls' },
      'REDIS_URL: expected the number of a database behind its host, got another (not shown)',
    ],
    [
      { REDIS_URL: 'redis://redis.example?db=calls' },
      'REDIS_URL: expected the number of a database behind its host, got another (not shown)',
    ],
    [
      { DATABASE_URL: 'postgres://ada:50%ab@db.example/calls' },
      'DATABASE_URL: expected each % of its user and password to be written %25, got (not shown)',
    ],
    [
      { DATABASE_URL: 'postgres://db.example/calls?schema=billing' },
      'DATABASE_URL: expected another schema than public to be named by ?options=-c%20search_path%3DNAME, got ?schema=… (not shown)',
    ],
    [
      { REDIS_URL: 'redis://:pw-of-100%-ada@redis.example' },
      'REDIS_URL: expected each % of its user and password to be written %25, got (not shown)',
    ],
  ])('nor what is in it that does not fit: %s', (env, says) => {
    expect(problems({ ...servers, ...env })).toBe(says);
  });

  test.each(['redis://redis.example', 'redis://redis.example/', 'rediss://redis.example/0'])(
    '%s names a node of a cluster',
    (url) => {
      expect(() => readConfig({ ...servers, REDIS_URL: url, REDIS_CLUSTER: 'true' })).not.toThrow();
    },
  );

  test('nor that of a right one beside it', () => {
    expect(problems({ ...servers, PORT: 'x' })).not.toContain('pw-of');
  });
});

test('all that is wrong is said at once, a line for each', () => {
  const said = problems({
    ...servers,
    REDIS_URL: 'hunter2',
    PORT: 'x',
    MODEL_CALL_STATS_CRON_TIME: '',
    STORE_ZERO_ROWS: '1',
  });
  expect(said.split('\n').map((line) => line.split(':')[0])).toEqual([
    'REDIS_URL',
    'PORT',
    'MODEL_CALL_STATS_CRON_TIME',
    'STORE_ZERO_ROWS',
  ]);
});

test('what is not its own is passed over', () => {
  expect(() => readConfig({ ...servers, PATH: '/bin', DATABASE: 'x' })).not.toThrow();
});

test('every variable says what it is for, and its default is one that it takes', () => {
  for (const [name, [schema, fallback, says]] of Object.entries(environment)) {
    expect(says, name).toMatch(/\.$|\)\.$/);
    expect(schema.meta()?.expected, name).toBeTruthy();
    if (fallback !== undefined) expect(schema.safeParse(fallback).success, name).toBe(true);
  }
});

test('every number has a unit, which is what the name of its variable ends with', () => {
  const parsed = readConfig(servers);
  for (const [name, [schema]] of Object.entries(environment)) {
    const { expected, unit } = schema.meta() as { expected: string; unit?: string };
    const counts = typeof parsed[name as keyof typeof environment] === 'number';
    if (counts || /number|amount|days|minutes/.test(expected)) expect(unit, name).toBeTruthy();
    const [, named] = /_(SECONDS|MINUTES|HOURS|DAYS)$/.exec(name) ?? [];
    if (named) expect(unit, name).toBe(named.toLowerCase());
  }
});

test('every variable stands under one heading of the docs', () => {
  expect(Object.values(headings).flatMap((variables) => Object.keys(variables))).toEqual(Object.keys(environment));
});

test('the checkout and its version are found', () => {
  expect(existsSync(path.join(home, 'package.json'))).toBe(true);
  expect(existsSync(path.join(migrations, 'migration_lock.toml'))).toBe(true);
  expect(version).toMatch(/^\d+\.\d+\.\d+/);
});

function problems(env: Record<string, string>): string {
  try {
    readConfig(env);
  } catch (error) {
    if (error instanceof ConfigError) return error.message;
    throw error;
  }
  throw new Error('expected a ConfigError, got a configuration');
}
