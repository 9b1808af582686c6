import { existsSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { ConfigError, environment, home, migrations, readConfig, version } from '../src/config.ts';

const servers = {
  DATABASE_URL: 'postgresql://ada:pw-of-ada@db.example/calls',
  REDIS_URL: 'rediss://:pw-of-redis@redis.example:6380/2',
};

test('with both servers given, everything else has a default', () => {
  const { WORKER_CONCURRENCY, ...config } = readConfig(servers);
  expect(config).toEqual({
    ...servers,
    REDIS_PREFIX: '{hourhand}',
    PORT: 3000,
    HOST: '127.0.0.1',
    LOG_LEVEL: 'info',
    MODEL_CALL_STATS_CRON_TIME: '0 1 * * * *',
    FANOUT_MAX_USER_JOBS: 64,
    MAX_HOURS_PER_TICK: 1_000,
    ACTIVE_USER_WINDOW_DAYS: 7,
    STORE_ZERO_ROWS: false,
    PARTIAL_BACKOFF_MAX_SECONDS: 3_600,
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
      REDIS_PREFIX: '{calls-2.eu}',
      PORT: '0',
      HOST: '::1',
      LOG_LEVEL: 'silent',
      WORKER_CONCURRENCY: '64',
      MODEL_CALL_STATS_CRON_TIME: ' off ',
      FANOUT_MAX_USER_JOBS: '0',
      MAX_HOURS_PER_TICK: '1',
      ACTIVE_USER_WINDOW_DAYS: '366',
      STORE_ZERO_ROWS: 'true',
      PARTIAL_BACKOFF_MAX_SECONDS: '86400',
    }),
  ).toEqual({
    ...servers,
    REDIS_PREFIX: '{calls-2.eu}',
    PORT: 0,
    HOST: '::1',
    LOG_LEVEL: 'silent',
    WORKER_CONCURRENCY: 64,
    MODEL_CALL_STATS_CRON_TIME: 'off',
    FANOUT_MAX_USER_JOBS: 0,
    MAX_HOURS_PER_TICK: 1,
    ACTIVE_USER_WINDOW_DAYS: 366,
    STORE_ZERO_ROWS: true,
    PARTIAL_BACKOFF_MAX_SECONDS: 86_400,
    privateDatabase: false,
    given: new Set(Object.keys(environment)),
  });
});

test('a pattern of five fields is read as minute first', () => {
  expect(readConfig({ ...servers, MODEL_CALL_STATS_CRON_TIME: '5 * * * *' }).MODEL_CALL_STATS_CRON_TIME).toBe(
    '0 5 * * * *',
  );
});

describe('a wrong variable is named, with what was expected and what was found', () => {
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
    ['PARTIAL_BACKOFF_MAX_SECONDS', '0', 'expected a whole number from 1 to 86400, got "0"'],
  ])('%s=%s', (name, value, says) => {
    expect(problems({ ...servers, [name]: value })).toBe(`${name}: ${says}`);
  });

  test('an impossible pattern also says why', () => {
    expect(problems({ ...servers, MODEL_CALL_STATS_CRON_TIME: '60 * * * * *' })).toMatch(
      /^MODEL_CALL_STATS_CRON_TIME: expected six cron fields .*, got "60 \* \* \* \* \*": .*60.*$/,
    );
  });

  test('a public address is refused with the reason', () => {
    expect(problems({ ...servers, HOST: '0.0.0.0' })).toMatch(
      /^HOST: expected 127\.0\.0\.1, localhost or ::1: .*, got "0\.0\.0\.0"$/,
    );
  });
});

describe('what a wrong URL holds is not shown', () => {
  test.each([
    [
      'DATABASE_URL',
      'mysql://ada:hunter2@db.example/calls',
      'expected a URL that begins with postgres:// or postgresql://',
    ],
    ['DATABASE_URL', 'ada:hunter2@db.example', 'expected a URL that begins with postgres:// or postgresql://'],
    [
      'DATABASE_URL',
      'postgresql://ada:hunter2@db.example:port/calls',
      'expected a URL that begins with postgres:// or postgresql://',
    ],
    ['REDIS_URL', 'http://:hunter2@redis.example', 'expected a URL that begins with redis:// or rediss://'],
    ['REDIS_URL', 'hunter2', 'expected a URL that begins with redis:// or rediss://'],
  ])('%s=%s', (name, value, says) => {
    const said = problems({ ...servers, [name]: value });
    expect(said).toBe(`${name}: ${says}, got (not shown)`);
    expect(said).not.toContain('hunter2');
  });

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
