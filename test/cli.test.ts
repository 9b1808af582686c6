// Real processes of the built command line, as an operator types it.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { home, version } from '../src/config.ts';
import { recountHour } from '../src/store/ledger.ts';
import { createDatabase, serverUrl } from './support/database.ts';
import { forget, type Hourhand, h, holdUser, startHourhand, until } from './support/hourhand.ts';

/** Nobody is there: what ends with 0 or 2 has asked no server. */
const nowhere = {
  LOG_LEVEL: 'silent',
  DATABASE_URL: 'postgresql://ada:pw-of-ada@127.0.0.1:1/calls',
  REDIS_URL: 'redis://:pw-of-redis@127.0.0.1:1',
};
const span = ['--from', '2026-08-20T13', '--to', '2026-08-20T15'];
const commands = [
  'up',
  'worker',
  'dashboard',
  'schedule',
  'migrate',
  'import',
  'backfill',
  'backfills',
  'stats',
  'verify',
  'changes',
  'models',
  'stale',
  'retain',
  'partition',
  'claim-redis',
  'identity',
  'credentials',
  'completion',
  'status',
];

describe.concurrent('from a file of calls to a verified bill:', () => {
  let hourhand: Hourhand;
  let worker: { stop(): Promise<void> };
  beforeAll(async () => {
    hourhand = await startHourhand({}, { locale: 'en-US' }); // reports are in byte order all the same
  });
  afterAll(() => hourhand[Symbol.asyncDispose]());

  const header =
    'call_time,user_did,app_did,provider,model,type,input_tokens,output_tokens,credits,status,duration_s';
  const calls = `${header}
2026-08-20T13:00:00Z,ada,app,openai,gpt,chatCompletion,10,5,0.1,success,1.5
2026-08-20T13:59:59.999999Z,ada,,openai,small,embedding,3,,0.20000001,failed,
2026-08-20T13:30:00Z,bob,,openai,gpt,chatCompletion,,,0,failed,
2026-08-20T14:00:00Z,ada,,openai,gpt,chatCompletion,1,0,0.00000001,success,0.1
2026-08-20T14:10:00Z,Zed,,openai,gpt,chatCompletion,9007199254740993,0,999999999999.99999999,success,0.1
`;
  const ask = (...args: string[]) => run(hourhand.environment, args);

  test.sequential('import says what it took, and where its statistics would come from', async () => {
    using file = scratch('calls.csv.gz', gzipSync(calls));
    const { code, stdout, line } = await ask('import', file.path);
    expect({ code, stdout }).toEqual({ code: 0, stdout: '' });
    expect(line).toContain('5 calls of 3 users imported, 0 were there already\n');
    expect(line).toMatch(/hourhand backfill --from 2026-08-20T13:00:00.000Z --to 2026-08-20T15:00:00.000Z --wait\n$/);
  });

  test.sequential('the same calls again, from standard input, change nothing', async () => {
    const { code, line } = await run(hourhand.environment, ['import', '-'], home, calls);
    expect(code).toBe(0);
    expect(line).toContain('0 calls of 3 users imported, 5 were there already\n');
    expect(await hourhand.pool.modelCall.count()).toBe(5);
  });

  test.sequential('a bad line is named, and then nothing is imported', async () => {
    const bad = `${header}\n2026-08-21T09:00:00Z,cyd,,p,m,custom,1,1,0.1,success,\n2026-08-21T09:00:00Z,cyd,,p,m,custom,1,1,-1,success,\n`;
    const { code, stdout, line } = await run(hourhand.environment, ['import', '-'], home, bad);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(line).toMatch(/^line 3: credits: expected .*, got "-1"$/m);
    expect(line).toMatch(/1 .*of 2.*nothing was imported|nothing imported: 1 of 2/);
    expect(await hourhand.pool.modelCall.count()).toBe(5);
  });

  test('a dry run tells what it would ask for, widened to whole hours aloud, and changes nothing', async () => {
    const before = await everything(hourhand);
    const { code, stdout, line } = await ask(
      'backfill',
      '--from',
      '2026-08-20T13:59',
      '--to',
      '2026-08-20T14:00:01',
      '--dry-run',
    );
    expect({ code, stdout }).toEqual({ code: 0, stdout: '' });
    expect(line).toBe(
      'widened to whole hours: [2026-08-20T13, 2026-08-20T15)\n' +
        '[2026-08-20T13, 2026-08-20T15): 2 hours: 2 missing; 3 users with calls\n' +
        'would ask for 2 of them; nothing was changed\n',
    );
    expect(await everything(hourhand)).toEqual(before);
  });

  test('a range that has not ended yet is cut short aloud, or is nothing to do', async () => {
    const before = await everything(hourhand);
    const [from, to] = ['2026-08-20T13', '9999-01-01'];
    expect(await ask('backfill', '--from', from, '--to', to, '--dry-run', '--only', 'partial')).toMatchObject({
      code: 0,
      line: expect.stringMatching(
        /^cut short to \[2026-08-20T13, \d{4}-\d\d-\d\dT\d\d\): an hour is rolled up once it has ended\n/,
      ),
    });
    expect(await ask('backfill', '--from', '9998-01-01', '--to', to)).toMatchObject({
      code: 1,
      line: expect.stringMatching(/nothing to do: \[9998-01-01T00, 9999-01-01T00\) has not ended yet/),
    });
    expect(await everything(hourhand)).toEqual(before);
  });

  test.sequential('a backfill waits until all is closed, and shows how far it is', async () => {
    worker = await hourhand.work();
    const { code, stdout, line } = await ask('backfill', ...span, '--wait');
    expect({ code, stdout }).toEqual({ code: 0, stdout: '' });
    expect(line).toMatch(
      /^asked for 2 hours of \[2026-08-20T13, 2026-08-20T15\) \(backfill 1\)\n(\d\/2 hours\n)*2\/2 hours\nall closed\n$/,
    );
    expect(await hourhand.wrong()).toEqual([]);
  });

  test.sequential('only what is missing is asked for, if that is wanted', async () => {
    const { code, line } = await ask(
      'backfill',
      '--from',
      '2026-08-20T13',
      '--to',
      '2026-08-20T16',
      '--only',
      'missing',
      '--wait',
    );
    expect(code).toBe(0);
    expect(line).toContain('asked for 1 hours of [2026-08-20T13, 2026-08-20T16) (backfill 2)\n');
    expect((await hourhand.hour(h('2026-08-20T13')))?.run).toBe(1);
    expect(await hourhand.state(h('2026-08-20T15'))).toBe('closed');
  });

  test('the statistics come as csv, sorted by user, hour and type in byte order, every digit of them', async () => {
    expect(await ask('stats', ...span, '--format', 'csv')).toEqual({
      code: 0,
      line: expect.stringMatching(
        /^\[2026-08-20T13, 2026-08-20T15\): 2 hours settled as of 20\d\d-.*Z, 0 provisional\n$/,
      ),
      stdout: `user_did,hour,total_calls,success_calls,total_usage,total_credits
Zed,2026-08-20T14:00:00Z,1,1,9007199254740993,999999999999.99999999
ada,2026-08-20T13:00:00Z,2,1,18,0.30000001
ada,2026-08-20T14:00:00Z,1,1,1,0.00000001
bob,2026-08-20T13:00:00Z,1,0,0,0.00000000
`,
    });
    expect(
      (await ask('stats', ...span, '--by', 'type', '--format', 'csv')).stdout,
    ).toBe(`user_did,hour,type,total_calls,success_calls,total_usage,total_credits
Zed,2026-08-20T14:00:00Z,chatCompletion,1,1,9007199254740993,999999999999.99999999
ada,2026-08-20T13:00:00Z,chatCompletion,1,1,15,0.10000000
ada,2026-08-20T13:00:00Z,embedding,1,0,3,0.20000001
ada,2026-08-20T14:00:00Z,chatCompletion,1,1,1,0.00000001
bob,2026-08-20T13:00:00Z,chatCompletion,1,0,0,0.00000000
`);
  });

  test('the statistics come as json, in which whole numbers and credits are strings', async () => {
    const { stdout } = await ask('stats', '--from', '2026-08-20T14', '--to', '2026-08-20T15', '--format', 'json');
    expect(JSON.parse(stdout)).toEqual([
      {
        user_did: 'Zed',
        hour: '2026-08-20T14:00:00Z',
        total_calls: '1',
        success_calls: '1',
        total_usage: '9007199254740993',
        total_credits: '999999999999.99999999',
        revision: 1,
        as_of: expect.stringMatching(/^20\d\d-.*Z$/),
        final: true,
      },
      {
        user_did: 'ada',
        hour: '2026-08-20T14:00:00Z',
        total_calls: '1',
        success_calls: '1',
        total_usage: '1',
        total_credits: '0.00000001',
        revision: 1,
        as_of: expect.stringMatching(/^20\d\d-.*Z$/),
        final: true,
      },
    ]);
  });

  test('the statistics come as a table, if nothing else is said', async () => {
    const { stdout } = await ask('stats', ...span);
    expect(stdout).toMatch(/│ user_did │ hour +│ total_calls │ success_calls │ +total_usage │ +total_credits │/);
    expect(stdout).toMatch(/│ ada +│ 2026-08-20T13:00:00Z │ +2 │ +1 │ +18 │ +0\.30000001 │/);
  });

  test('with zeros, whoever was active in the days before and idle in the hour is there as well', async () => {
    const { stdout } = await ask(
      'stats',
      '--from',
      '2026-08-20T14',
      '--to',
      '2026-08-20T15',
      '--format',
      'csv',
      '--zeros',
    );
    expect(stdout.split('\n').slice(1)).toEqual([
      'Zed,2026-08-20T14:00:00Z,1,1,9007199254740993,999999999999.99999999',
      'ada,2026-08-20T14:00:00Z,1,1,1,0.00000001',
      'bob,2026-08-20T14:00:00Z,0,0,0,0.00000000',
      '',
    ]);
  });

  test('verify finds all of it right', async () => {
    expect(await ask('verify', ...span)).toEqual({
      code: 0,
      stdout: '',
      line: '[2026-08-20T13, 2026-08-20T15): 2 hours closed, 0 not closed, 0 sealed; 0 user-hours differ\n',
    });
  });

  test.sequential('one user alone is rolled up again', async () => {
    await hourhand.pool.$executeRaw`update "ModelCallStat" set "totalCalls" = 7 where "userDid" = 'ada'`;
    const { code, line } = await ask('backfill', ...span, '--user', 'ada', '--wait');
    expect(code).toBe(0);
    expect(line).toMatch(
      /^asked for ada in 2 hours of \[2026-08-20T13, 2026-08-20T15\) \(backfill 3\)\n.*all closed\n$/s,
    );
    expect(await hourhand.wrong()).toEqual([]);
  });

  test.sequential('a user whose figures cannot be stored ends the waiting with 1, and is named everywhere', async () => {
    await hourhand.record(
      ...[1, 2].map(() => ({ user: 'eve', at: '2026-08-21T11:30:00Z', credits: '999999999999' })),
    );
    const eleven = ['--from', '2026-08-21T11', '--to', '2026-08-21T12'];
    const { code, line } = await ask('backfill', ...eleven, '--wait');
    expect(code).toBe(1);
    expect(line).toContain(
      '2026-08-21T11 partial: eve: numeric field overflow (22003)\n1 hours could not be closed; they are tried again by themselves\n',
    );
    // It stays partial for as long as it is looked at.
    await hourhand.pool
      .$executeRaw`update "StatHour" set "nextAttemptAt" = now() + interval '1 day' where state = 'partial'`;
    const [status, stats] = await Promise.all([ask('status'), ask('stats', ...eleven)]);
    expect(status.stdout).toMatch(
      /^partial +2026-08-21T11 run \d+: eve: numeric field overflow \(22003\), again at 20/m,
    );
    expect(stats.line).toBe(
      '[2026-08-21T11, 2026-08-21T12): 0 hours settled, 1 provisional\n2026-08-21T11 provisional: partial\n',
    );
  });

  test.sequential('status says the same to machines', async () => {
    const status = JSON.parse((await ask('status', '--json')).stdout);
    expect(status).toMatchObject({
      watermark: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d$/),
      marks: expect.any(Number), // those of hours that were not covered yet may be swept away by now
      hours: [{ hour: '2026-08-21T11', state: 'partial' }],
      schedulers: [
        'model.call.stats',
        'late.model.calls',
        'cleanup.stale.model.calls',
        'check.model.status',
        'audit.model.call.stats',
        'retain.model.calls',
      ].map((id) => ({
        id,
        pattern: 'off',
        state: 'off',
        next: null,
      })),
      workers: 1,
    });
    expect(status.owed).toBeGreaterThanOrEqual(1);
    expect(status.queues.map(({ queue }: { queue: string }) => queue)).toEqual([
      'stats-tick',
      'stats-hour',
      'stats-users',
      'stats-marks',
      'late-tick',
      'stale-tick',
      'stale-calls',
      'models-tick',
      'models-check',
      'models-probe',
      'models-webhook',
      'audit-tick',
      'audit-hours',
      'retain-tick',
      'retain-calls',
    ]);
  });

  test.sequential('schedule sees to the scheduler, and prints its next run', async () => {
    const env = { ...hourhand.environment, MODEL_CALL_STATS_CRON_TIME: '0 0 0 1 1 *' };
    const { code, stdout } = await run(env, ['schedule']);
    expect(code).toBe(0);
    expect(stdout).toMatch(/│ model\.call\.stats +│ 0 0 0 1 1 \* +│ \d{4}-01-01T00:00:00\.000Z │ live +│ added +│/);
    expect(stdout).toMatch(/│ cleanup\.stale\.model\.calls +│ off +│ +│ off +│ kept +│/);
    expect(stdout).toMatch(/│ check\.model\.status +│ off +│ +│ off +│ kept +│/);
  });

  test.sequential('schedule pauses a scheduler, has it tick all the same, and resumes it', async () => {
    const id = 'model.call.stats';
    const since = 'since \\d{4}-\\d\\d-\\d\\dT[\\d:.]+Z';
    const paused = await ask('schedule', 'pause', id);
    expect(paused).toMatchObject({ code: 0, stdout: '' });
    expect(paused.line).toMatch(new RegExp(`^${id} is paused by \\S+ ${since}\\n$`));
    const env = { ...hourhand.environment, MODEL_CALL_STATS_CRON_TIME: '0 0 0 1 1 *' };
    expect((await run(env, ['schedule'])).stdout).toMatch(
      new RegExp(`│ model\\.call\\.stats +│ 0 0 0 1 1 \\* +│ +│ paused +│ kept +│.*│ by \\S+ ${since} +│`),
    );
    expect(await ask('schedule', 'run', id)).toEqual({
      code: 0,
      stdout: '',
      line: `${id}: a tick is asked for, which the next free worker runs\n`,
    });
    await until(
      async () => (await ask('status')).stdout,
      (text) =>
        new RegExp(`^scheduler +${id} paused, "0 0 0 1 1 \\*", last 20.*Z, paused by \\S+ ${since}$`, 'm').test(text),
    );
    expect((await ask('schedule', 'resume', id)).line).toMatch(
      /^model\.call\.stats is resumed: live, next \d{4}-01-01/,
    );
    expect((await ask('schedule', 'resume', id)).line).toMatch(/^model\.call\.stats was not paused: live, next /);
    const { code, line } = await ask('schedule', 'pause', 'nonsense');
    expect([code, line]).toEqual([2, expect.stringMatching(/expected model\.call\.stats, .*, got "nonsense"$/)]);
  });

  test.sequential('verify lists every tampered figure, an hour that is gone from the ledger, and who is pending', async () => {
    await worker.stop();
    const { pool } = hourhand;
    await pool.$executeRaw`update "ModelCallStat" set "totalCalls" = 3, "totalCredits" = 0.3 where "userDid" = 'ada' and "timestamp" = '2026-08-20T13:00Z'`;
    await pool.$executeRaw`delete from "ModelCallStat" where "userDid" = 'bob'`;
    await pool.$executeRaw`update "ModelCallStat" set "byType" = '{}' where "userDid" = 'Zed'`;
    await pool.$executeRaw`
      insert into "ModelCallStat" select "timeType", "timestamp", 'nobody', 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, '{}', 1, now()
        from "ModelCallStat" where "userDid" = 'Zed'`;
    await pool.$executeRaw`delete from "StatHour" where hour = '2026-08-20T14:00Z'`;
    await pool.$executeRaw`insert into "StatMark" (hour, "userDid", reason) values ('2026-08-20T13:00Z', 'bob', 'late')`;
    const { code, stdout, line } = await ask('verify', ...span);
    expect(code).toBe(1);
    expect(stdout.trimEnd().split('\n')).toEqual([
      '2026-08-20T14 missing',
      '2026-08-20T13 ada totalCredits: stored 0.30000000, counted 0.30000001; totalCalls: stored 3, counted 2',
      expect.stringMatching(
        /^2026-08-20T13 bob pending totalCalls: stored 0, counted 1; failedCalls: stored 0, counted 1; byType: stored \{\}, counted \{"chatCompletion": .*\}$/,
      ),
      expect.stringMatching(/^2026-08-20T14 Zed byType: stored \{\}, counted \{"chatCompletion": .*\}$/),
      '2026-08-20T14 nobody imageGenerations: stored 5, counted 0',
    ]);
    expect(line).toBe(
      '[2026-08-20T13, 2026-08-20T15): 1 hours closed, 1 not closed, 0 sealed; 4 user-hours differ\n',
    );
  });

  test.sequential('a sealed hour is named, and what has become of its calls is no difference', async () => {
    await hourhand.pool.$executeRaw`delete from "StatMark"`;
    await hourhand.pool.$transaction((db) => recountHour(db, h('2026-08-20T13'), null));
    await hourhand.pool
      .$executeRaw`update "StatHour" set "sealedAt" = now(), "modelsAsOf" = null where hour = '2026-08-20T13:00Z'`;
    await hourhand.pool.$executeRaw`delete from "ModelCall" where "callTime" < '2026-08-20T14:00Z'`; // archived
    const thirteen = ['--from', '2026-08-20T13', '--to', '2026-08-20T14'];
    const [verify, backfill] = await Promise.all([ask('verify', ...thirteen), ask('backfill', ...thirteen)]);
    expect(verify).toMatchObject({ code: 0, stdout: '2026-08-20T13 sealed\n' });
    expect(backfill.line).toContain('1 hours are sealed and stay as they are, the first 2026-08-20T13\n');
  });

  test.sequential('a report whose reader has seen enough ends quietly', async () => {
    await hourhand.pool.$executeRaw`
      insert into "ModelCallStat" select 'hour', '2026-08-22T13:00Z', 'user-' || i, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, '{}', 1, now()
        from generate_series(1, 20000) i`;
    const cut = async (...command: string[]) => {
      const report = start(hourhand.environment, [...command, '--from', '2026-08-22T13', '--to', '2026-08-22T14']);
      await once(report.child.stdout, 'data');
      report.child.stdout.destroy();
      await report.ended;
      return report.stderr;
    };
    for (const stderr of await Promise.all([cut('stats', '--format', 'csv'), cut('verify')])) {
      expect(stderr).not.toMatch(/EPIPE|\n {4}at /);
    }
  });
});

describe.concurrent('a server that does not answer ends a command with 1, and one line that names it and shows no password:', () => {
  const REDIS_URL = () => serverUrl('TEST_REDIS_URL');

  test('a PostgreSQL that is silent', async () => {
    await using silent = await silentServer();
    const env = {
      ...nowhere,
      REDIS_URL: REDIS_URL(),
      DATABASE_URL: `postgresql://ada:pw-of-ada@127.0.0.1:${silent.port}/calls`,
    };
    expect(await run(env, ['worker'])).toEqual({
      code: 1,
      stdout: '',
      line: expect.stringMatching(/^PostgreSQL at \S+: expected PostgreSQL, found no answer within 10 s: /),
    });
  });

  test('no Redis', async () => {
    await using database = await createDatabase();
    const env = { ...nowhere, DATABASE_URL: database.url };
    expect(await run(env, ['status'])).toEqual({
      code: 1,
      stdout: '',
      line: expect.stringMatching(
        /^Redis at 127\.0\.0\.1:1: nobody listens there \(ECONNREFUSED\): start it, or mend REDIS_URL$/,
      ),
    });
  });

  test('no database of that number in Redis', async () => {
    await using database = await createDatabase();
    const url = Object.assign(new URL(REDIS_URL()), { pathname: '/999' }).href;
    expect(await run({ ...nowhere, DATABASE_URL: database.url, REDIS_URL: url }, ['status'])).toEqual({
      code: 1,
      stdout: '',
      line: expect.stringContaining('DB index is out of range'),
    });
  });

  test('a table that is not there, for a worker: it says so, and does not stay', async () => {
    await using hourhand = await startHourhand();
    await hourhand.pool.$executeRaw`alter table "StatSchedule" rename to "elsewhere"`;
    const { code, stderr } = await hourhand.run(['worker']);
    expect([code, stderr]).toEqual([
      1,
      expect.stringMatching(/^hourhand: PostgreSQL at \S+: relation "StatSchedule" does not exist \(42P01\)\n$/),
    ]);
  });

  test.each([['status'], ['migrate'], ['import', '-']])('no PostgreSQL, for %s', async (...args) => {
    expect(await run({ ...nowhere, REDIS_URL: REDIS_URL() }, args)).toEqual({
      code: 1,
      stdout: '',
      line: expect.stringMatching(/^PostgreSQL at 127\.0\.0\.1:1: nobody listens there/),
    });
  });

  test('no database of that name', async () => {
    const url = new URL(serverUrl('TEST_DATABASE_URL'));
    url.pathname = '/no_such_database';
    expect(await run({ ...nowhere, REDIS_URL: REDIS_URL(), DATABASE_URL: url.href }, ['status'])).toEqual({
      code: 1,
      stdout: '',
      line: expect.stringMatching(/^PostgreSQL at \S+: .*no_such_database/),
    });
  });
});

describe.concurrent('what stays until it is stopped', () => {
  test('ends with 0 on SIGTERM: a worker', async () => {
    await using hourhand = await startHourhand();
    const worker = hourhand.spawn('worker');
    await until(
      () => hourhand.queues.hours.getWorkersCount(),
      (workers) => workers === 1,
    );
    expect(await stopped(worker, 'SIGTERM')).toEqual({ code: 0, signal: null });
  });

  test.each(['worker', 'dashboard'])(
    'ends with 0 on SIGTERM also while a server is silent: a %s that starts',
    async (command) => {
      await using silent = await silentServer();
      const DATABASE_URL = `postgresql://ada@127.0.0.1:${silent.port}/calls`;
      const starting = start({ ...nowhere, REDIS_URL: serverUrl('TEST_REDIS_URL'), DATABASE_URL }, [command]);
      await silent.asked;
      expect(await stopped(starting.child, 'SIGTERM')).toEqual({ code: 0, signal: null });
    },
  );

  test('ends with 0 though a job of its does not end, and the hour is not closed for it', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', at: '2026-08-20T13:10:00Z' });
    await using _ = await holdUser(hourhand, 'ada');
    const worker = hourhand.spawn('worker');
    await hourhand.backfill(h('2026-08-20T13'));
    await until(
      () => hourhand.queues.users.getActiveCount(),
      (active) => active === 1,
    );
    expect(await stopped(worker, 'SIGTERM')).toEqual({ code: 0, signal: null });
    expect(await hourhand.state(h('2026-08-20T13'))).toBe('running');
  });

  test('is everything, for an empty database: up migrates, schedules, works and serves, and ends with 0 on Ctrl-C', async () => {
    await using hourhand = await startHourhand();
    await using database = await createDatabase({ migrated: false });
    await forget(hourhand.redis, hourhand.prefix); // it is another database's from now on
    const up = start(
      { ...hourhand.environment, DATABASE_URL: database.url, MODEL_CALL_STATS_CRON_TIME: '0 1 * * * *' },
      ['up'],
    );
    const said = await until(
      async () => up.stderr,
      (stderr) => stderr.includes('Ctrl-C stops'),
    );
    expect(said).toMatch(/^migration \d+_first applied$/m);
    const [url = ''] = /http:\/\/127\.0\.0\.1:\d+/.exec(said) ?? [];
    expect(await (await fetch(`${url}/readyz`)).json()).toMatchObject({ status: 'ok' });
    expect(await hourhand.queues.ticks.getJobSchedulersCount()).toBe(1);
    expect(await hourhand.queues.hours.getWorkersCount()).toBe(1);
    expect(await stopped(up.child, 'SIGINT')).toEqual({ code: 0, signal: null });
    await expect(fetch(`${url}/healthz`)).rejects.toThrow();
  });

  test('waits until a mended user is tried, not for what the hour said before', async () => {
    await using hourhand = await startHourhand();
    const overflowing = { user: 'eve', at: '2026-08-20T13:10:00Z', credits: '999999999999' };
    await hourhand.record(overflowing, overflowing);
    hourhand.spawn('worker');
    expect(await hourhand.run(['backfill', ...span, '--wait'])).toMatchObject({ code: 1 });
    const user = ['backfill', ...span, '--user', 'eve', '--wait'];
    expect(await hourhand.run(user)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('eve: numeric field'),
    });
    await hourhand.pool.$executeRaw`update "ModelCall" set credits = 1`;
    expect(await hourhand.run(user)).toMatchObject({ code: 0, stderr: expect.stringContaining('all closed') });
  });

  test('says that nobody works, where a backfill waits, and ends when somebody has', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', at: '2026-08-20T13:10:00Z' });
    const waiting = start(hourhand.environment, ['backfill', ...span, '--wait']);
    await until(
      async () => waiting.stderr,
      (stderr) => stderr.includes('no worker is there to roll them up: start one with hourhand worker'),
    );
    await hourhand.work();
    expect(await waiting.ended).toMatchObject({ code: 0 });
    expect(waiting.stderr).toMatch(/all closed\n$/);
  });
});

test.concurrent('the private servers of a checkout are used where none are given', async () => {
  using copy = checkout({ databaseUrl: nowhere.DATABASE_URL, redisUrl: nowhere.REDIS_URL });
  const start = 'nobody listens there (ECONNREFUSED): start it, or type npm start (or npm run servers)';
  // An empty variable says nothing; and those of npm start are what it hands on.
  const ways: Record<string, string>[] = [{}, { DATABASE_URL: '', REDIS_URL: '' }, nowhere];
  for (const env of ways) {
    expect(await run(env, ['status'], copy.home)).toMatchObject({
      code: 1,
      line: `PostgreSQL at 127.0.0.1:1: ${start}; Redis at 127.0.0.1:1: ${start}`,
    });
  }
});

test.concurrent('a database without the schema is not asked further, and what to type is said', async () => {
  await using database = await createDatabase({ migrated: false });
  const env = { ...nowhere, DATABASE_URL: database.url, REDIS_URL: serverUrl('TEST_REDIS_URL') };
  expect(await run(env, ['status'])).toEqual({
    code: 1,
    stdout: '',
    line: expect.stringMatching(/^the database lacks \d+_first(, \d+_\w+)*: type hourhand migrate$/),
  });
  expect(await run(env, ['migrate'])).toMatchObject({
    code: 0,
    line: expect.stringMatching(/^applied \d+_first\n(applied \d+_\w+\n)*\d+ applied\n$/),
  });
});

test('an error from below that is a RangeError of JavaScript ends with 1: nothing was typed wrong', async () => {
  await using hourhand = await startHourhand();
  await hourhand.record({ user: 'ada', at: '2026-08-20T13:10:00Z' });
  await hourhand.backfill(h('2026-08-20T13'));
  await hourhand.pool.$executeRaw`update "Backfill" set "requestedAt" = 'infinity'`;
  const { code, stderr } = await hourhand.run(['backfills']);
  expect([code, stderr]).toEqual([1, expect.stringMatching(/^hourhand: .+\n$/)]);
});

describe('wrong usage ends with 2, and one line that says what was expected and what was found:', () => {
  const instant = 'expected an ISO-8601 instant such as 2026-08-20T13:00:00Z, or Unix seconds, got';
  const six = 'expected six cron fields in UTC, seconds first (five: minute first), or off, got';
  const asked: [what: string, args: string[], line: string | RegExp, env?: Record<string, string>][] = [
    ['a command that is none', ['bakfill'], "unknown command 'bakfill' (Did you mean backfill?)"],
    [
      'no command, though help is asked for',
      ['bakfill', '--help'],
      "unknown command 'bakfill' (Did you mean backfill?)",
    ],
    ['help for a command that is none', ['help', 'models', 'chek'], "unknown command 'chek' (Did you mean check?)"],
    [
      'a command that is none below one that stands alone as well',
      ['schedule', 'puase', 'model.call.stats'],
      "unknown command 'puase' (Did you mean pause?)",
    ],
    ['nothing, as a command', [''], /^unknown command '': expected up, .*, help$/],
    [
      'a command that is none behind an option',
      ['backfills', '--json', 'shw'],
      "unknown command 'shw' (Did you mean show?)",
    ],
    [
      'no backfill behind an option',
      ['backfills', '--json', 'show'],
      /^expected <id>, got nothing: hourhand help backfills show /,
    ],
    [
      'a command that is like none',
      ['backfills', '7'],
      "unknown command '7': expected show, pause, resume, cancel, retry, help",
    ],
    ['an option that is none', ['status', '--jsn'], "unknown option '--jsn' (Did you mean --json?)"],
    ['the beginning of an option', ['stats', '--form', 'csv'], "unknown option '--form' (Did you mean --format?)"],
    ['an option that is like none', ['import', '-x'], "unknown option '-x': expected --skip-bad, --version, --help"],
    ['an option without its value', ['backfill', '--from'], "option '--from <T>' argument missing"],
    ['nobody to be let in', ['credentials'], /^expected <name> and --role <role>, got nothing: /],
    ['no backfill', ['backfills', 'show', '--json'], /^expected <id>, got nothing: hourhand help backfills show /],
    [
      'a scheduler that is none',
      ['schedule', 'pause', 'model.call.stat'],
      /expected model\.call\.stats, .*retain\.model\.calls, got "model\.call\.stat" \(Did you mean model\.call\.stats\?\)$/,
    ],
    [
      'a choice that is nearly one',
      ['backfill', ...span, '--only', 'missng'],
      /expected missing, partial, all, got "missng" \(Did you mean missing\?\)$/,
    ],
    ['a shell that is none', ['completion', 'powershell'], /expected bash, zsh, fish, got "powershell"$/],
    ['an argument too many', ['worker', '3'], /^too many arguments for 'worker'/],
    ['no file', ['import'], 'expected <file>, got nothing: hourhand help import says more'],
    ['no range', ['backfill'], 'expected --from <T> and --to <T>, got nothing: hourhand help backfill says more'],
    ['no start', ['backfill', '--to', '2026-08-20'], /^expected --from <T>, got nothing: /],
    ['no end', ['verify', '--from', '2026-08-20'], /^expected --to <T>, got nothing: /],
    [
      'a start that is no instant',
      ['stats', '--from', 'yesterday', '--to', '2026-08-20'],
      `option '--from <T>' argument 'yesterday' is invalid. ${instant} "yesterday"`,
    ],
    [
      'an end in milliseconds',
      ['verify', '--from', '2026-08-20', '--to', '1787230800000'],
      `option '--to <T>' argument '1787230800000' is invalid. ${instant} "1787230800000"`,
    ],
    [
      'an end before the start',
      ['backfill', '--from', '2026-08-20T13', '--to', '2026-08-20T12'],
      'expected an end after the start, got 2026-08-20T13:00:00.000Z to 2026-08-20T12:00:00.000Z',
    ],
    [
      'an end at the start',
      ['stats', '--from', '2026-08-20T13', '--to', '2026-08-20T13'],
      /^expected an end after the start, got /,
    ],
    [
      'a choice that is none',
      ['backfill', ...span, '--only', 'open'],
      /argument 'open' is invalid\. expected missing, partial, all, got "open"$/,
    ],
    [
      'a grouping that is none',
      ['stats', ...span, '--by', 'app'],
      /argument 'app' is invalid\. expected user, type, got "app"$/,
    ],
    [
      'a format that is none',
      ['stats', ...span, '--format', 'xml'],
      /argument 'xml' is invalid\. expected csv, json, table, got "xml"$/,
    ],
    [
      'a user, and which hours besides',
      ['backfill', ...span, '--user', 'ada', '--only', 'all'],
      'expected --user or --only, got both',
    ],
    ['a user without a name', ['backfill', ...span, '--user', ''], '--user: expected a user, got ""'],
    [
      'a port that is none, in the environment',
      ['up'],
      'PORT: expected a whole number from 0 to 65535, got "99999"',
      { PORT: '99999' },
    ],
    [
      'a pattern that is none, in the environment',
      ['schedule'],
      `MODEL_CALL_STATS_CRON_TIME: ${six} ""`,
      { MODEL_CALL_STATS_CRON_TIME: '' },
    ],
    [
      'a URL of something else, whose password is not shown',
      ['worker'],
      'DATABASE_URL: expected a URL that begins with postgres:// or postgresql://, got mysql://… (not shown)',
      { DATABASE_URL: 'mysql://ada:pw-of-ada@127.0.0.1/calls' },
    ],
  ];
  let answers: Ran[];
  beforeAll(async () => {
    answers = await typed(asked.map(([, args, , env]) => ({ args, env: { ...nowhere, ...env } })));
  });

  test.each(asked.map(([what, , line], i) => ({ what, line, i })))('$what', ({ line, i }) => {
    expect(answers[i]).toEqual({
      code: 2,
      stdout: '',
      line: typeof line === 'string' ? line : expect.stringMatching(line),
    });
  });

  test.skipIf(!existsSync('/dev/full'))('also where what it says cannot be written', async () => {
    const full = await open('/dev/full', 'w');
    const child = spawn(process.execPath, [path.join(home, 'dist', 'cli.js'), 'bakfill'], {
      stdio: ['ignore', 'pipe', full.fd],
    });
    const [code] = await once(child, 'close');
    await full.close();
    expect(code).toBe(2);
  });

  test('as a process, too', async () => {
    expect(await run(nowhere, ['bakfill'])).toEqual({
      code: 2,
      stdout: '',
      line: expect.stringContaining('bakfill'),
    });
  });

  test('no servers at all, and what to type then', async () => {
    using copy = checkout();
    expect(await run({ REDIS_URL: nowhere.REDIS_URL }, ['status'], copy.home)).toEqual({
      code: 2,
      stdout: '',
      line: expect.stringMatching(/^DATABASE_URL is not set, .*: type npm start /),
    });
  });
});

describe('help', () => {
  const ranges = ['backfill', 'stats', 'verify', 'changes'];
  const asked = [
    ['--help'],
    ['--version'],
    [],
    ['models'],
    ['help', 'schedule', 'pause'],
    ['models', 'help', 'check'],
    ['backfill', '-V'],
  ];
  let general: Ran[];
  let each: Ran[];
  beforeAll(async () => {
    const lines = [...asked, ...commands.map((command) => [command, '--help'])];
    const answers = await typed(lines.map((args) => ({ args, env: nowhere })));
    general = answers.slice(0, asked.length);
    each = answers.slice(asked.length);
  });

  test('is there for everything, and ends with 0', () => {
    expect(general[0]).toMatchObject({ code: 0, line: '' });
    expect(general[1]).toEqual({ code: 0, stdout: `${version}\n`, line: '' });
    for (const [i, command] of commands.entries()) {
      expect(general[0]?.stdout).toMatch(new RegExp(`^  ${command} `, 'm'));
      expect(each[i]).toEqual({ code: 0, stdout: expect.stringContaining(`Usage: hourhand ${command} `), line: '' });
    }
  });

  test('answers whoever types nothing more, or help before or behind a command', () => {
    expect(general[2]).toEqual(general[0]);
    expect(general[3]).toEqual(each[commands.indexOf('models')]);
    expect(general[4]?.stdout).toMatch(/^Usage: hourhand schedule pause /);
    expect(general[5]?.stdout).toMatch(/^Usage: hourhand models check /);
    expect(general[6]).toEqual(general[1]);
  });

  test.skipIf(!existsSync('/dev/full'))(
    'that cannot be written ends with 1, and one line that says why',
    async () => {
      const full = await open('/dev/full', 'w');
      const child = spawn(process.execPath, [path.join(home, 'dist', 'cli.js'), '--help'], {
        stdio: ['ignore', full.fd, 'pipe'],
      });
      const [said, [code]] = await Promise.all([text(child.stderr as Readable), once(child, 'close')]);
      await full.close();
      expect([code, said]).toEqual([1, 'hourhand: standard output: ENOSPC: no space left on device, write\n']);
    },
  );

  test('names every command under what it is for', () => {
    const headings = general[0]?.stdout.match(/^\S.*:$/gm);
    expect(headings).toEqual(['Options:', 'Run it:', 'Look:', 'Ask and repair:', 'Set up and keep:']);
  });

  test('fits into 80 columns, and tells the exit codes, the environment, and of ranges an example', () => {
    for (const { stdout } of [...general.filter(({ stdout }) => stdout !== `${version}\n`), ...each]) {
      expect(stdout.split('\n').filter((text) => text.length > 80)).toEqual([]);
      expect(stdout).toMatch(/^Exit codes: 0 .*\nEnvironment: DATABASE_URL/m);
    }
    for (const command of ranges) {
      const help = each[commands.indexOf(command)]?.stdout;
      expect(help).toMatch(new RegExp(`^  hourhand ${command} --from \\S+ --to \\S+`, 'm'));
    }
  });
});

interface Ran {
  code: number | null;
  stdout: string;
  /** What follows `hourhand: ` where one such line is all that stderr holds, else all of stderr. */
  line: string;
}

/** Type a command in a checkout, and wait for its end. */
async function run(env: Record<string, string>, args: string[], checkout = home, input?: string): Promise<Ran> {
  const started = start(env, args, checkout, input);
  const { code } = await started.ended;
  expect(started.stderr + started.stdout).not.toContain('pw-of');
  return { code, stdout: started.stdout, line: lineOf(started.stderr) };
}

function lineOf(stderr: string): string {
  return /^hourhand: (.*)\n$/.exec(stderr)?.[1] ?? stderr;
}

function start(env: Record<string, string>, args: string[], checkout = home, input?: string) {
  const child = spawn(process.execPath, [path.join(checkout, 'dist', 'cli.js'), ...args], {
    cwd: checkout,
    env: { PATH: process.env.PATH, HOME: process.env.HOME, ...env },
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  const started = {
    child,
    stdout: '',
    stderr: '',
    ended: once(child, 'close').then(([code]) => ({ code: code as number | null })), // as Node documents it
  };
  child.stdout.on('data', (chunk) => {
    started.stdout += chunk;
  });
  child.stderr.on('data', (chunk) => {
    started.stderr += chunk;
  });
  child.stdin.on('error', () => {}); // it may end without reading
  child.stdin.end(input);
  return started;
}

/**
 * Commands that ask no server, typed into one process after the other, for the start of one takes the most of it. What
 * each of them said.
 */
async function typed(lines: { args: string[]; env: Record<string, string> }[]): Promise<Ran[]> {
  const cli = JSON.stringify(path.join(home, 'dist', 'cli.js'));
  const script = `
    const said = {};
    for (const name of ['stdout', 'stderr']) {
      process[name].write = (text) => Boolean((said[name] += text));
      process[name].setMaxListeners(0);
    }
    process.exit = () => {}; // which each of them asks for half a second after its end, when others are still to come
    process.once('message', async (lines) => {
      const answers = [];
      const env = { ...process.env };
      for (const [i, line] of lines.entries()) {
        process.env = { ...env, ...line.env };
        process.argv = [process.execPath, ${cli}, ...line.args];
        process.exitCode = undefined;
        Object.assign(said, { stdout: '', stderr: '' });
        await import(${cli} + '?' + i);
        answers.push({ code: process.exitCode ?? 0, ...said });
      }
      process.exitCode = 0;
      process.send(answers, () => process.disconnect());
    });`;
  using file = scratch('typed.mjs', script);
  const child = spawn(process.execPath, [file.path], {
    cwd: home,
    env: { PATH: process.env.PATH, HOME: process.env.HOME },
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  });
  const answered = once(child, 'message');
  child.send(lines);
  const [answers] = (await answered) as [{ code: number; stdout: string; stderr: string }[]]; // what the script sends
  expect(JSON.stringify(answers)).not.toContain('pw-of');
  return answers.map(({ code, stdout, stderr }) => ({ code, stdout, line: lineOf(stderr) }));
}

/** Stopped as an operator or a container would, which kills after ten seconds. */
async function stopped(
  child: ChildProcess,
  signal: NodeJS.Signals,
): Promise<{ code: number | null; signal: string | null }> {
  child.kill(signal);
  await until(
    async () => child.exitCode ?? child.signalCode,
    (ended) => ended !== null,
    10_000,
  ).catch(() => child.kill('SIGKILL'));
  return { code: child.exitCode, signal: child.signalCode };
}

/** A server that takes connections and says nothing. */
async function silentServer() {
  const server = createServer((socket) => socket.on('error', () => {}));
  const asked = once(server, 'connection');
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: Object(server.address()).port as number,
    asked,
    [Symbol.asyncDispose]: async () => void server.close(),
  };
}

/** A built checkout of one's own, perhaps with private servers. */
function checkout(servers?: { databaseUrl: string; redisUrl: string }) {
  const folder = mkdtempSync(path.join(tmpdir(), 'hourhand-checkout-'));
  for (const part of ['dist', 'package.json', 'prisma'])
    cpSync(path.join(home, part), path.join(folder, part), { recursive: true });
  symlinkSync(path.join(home, 'node_modules'), path.join(folder, 'node_modules'));
  if (servers) {
    mkdirSync(path.join(folder, '.local'));
    writeFileSync(path.join(folder, '.local', 'servers.json'), JSON.stringify(servers));
  }
  return { home: folder, [Symbol.dispose]: () => rmSync(folder, { recursive: true }) };
}

function scratch(name: string, content: string | Buffer) {
  const folder = mkdtempSync(path.join(tmpdir(), 'hourhand-file-'));
  writeFileSync(path.join(folder, name), content);
  return { path: path.join(folder, name), [Symbol.dispose]: () => rmSync(folder, { recursive: true }) };
}

/** All that a command could change. */
async function everything({ pool, queues }: Hourhand) {
  const jobs = Object.values(queues).map((queue) => queue.getJobCounts());
  return Promise.all([
    pool.statHour.findMany(),
    pool.statRange.findMany(),
    pool.statShard.findMany(),
    pool.statMark.findMany(),
    pool.modelCallStat.findMany(),
    pool.modelCall.count(),
    ...jobs,
  ]);
}
