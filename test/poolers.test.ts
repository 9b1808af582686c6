// The main job behind poolers: exact in every mode, whatever the role or a stranger has set, under kills.

import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';
import { parse } from 'csv-parse/sync';
import pg from 'pg';
import { describe, expect, test } from 'vitest';
import { run } from '../scripts/processes.mjs';
import { home, migrations } from '../src/config.ts';
import { migrate } from '../src/store/migrate.ts';
import { createDatabase, serverUrl } from './support/database.ts';
import { connected } from './support/gateway.ts';
import { type Hourhand, type Ran, startHourhand, until } from './support/hourhand.ts';
import { findPgBouncer, startPgBouncer } from './support/pgbouncer.ts';
import { type Settings, startPooler } from './support/pooler.ts';

/** The tests end by states. The limit is for a machine that is very busy. */
const LIMIT = { timeout: 600_000 };
/** They wait most of the time, for the looks of workers and for what killed ones had in hand: several at once. */
const AT_ONCE = { concurrent: true };

const bouncer = await findPgBouncer();
const noBouncer = 'none' in bouncer ? bouncer.none : undefined;
const bouncerName = 'none' in bouncer ? 'PgBouncer' : `PgBouncer ${bouncer.version}`;
if (noBouncer) console.log(`skipped: there is no PgBouncer: ${noBouncer}`);

/** The schema of hourhand's tables, by the role's search_path; and one with a stranger's tables of the same names. */
const OURS = 'ours';
const DECOYS = 'decoys';

/** What strangers leave in the connections of the adversarial pooler. */
const STRANGERS: Settings[] = [
  { TimeZone: 'Asia/Kolkata', DateStyle: 'German', search_path: DECOYS, IntervalStyle: 'sql_standard' },
  { TimeZone: 'America/St_Johns', DateStyle: 'SQL, DMY', search_path: DECOYS },
  { TimeZone: 'Pacific/Chatham', DateStyle: 'Postgres, MDY', search_path: DECOYS, extra_float_digits: '-10' },
  { TimeZone: 'Asia/Shanghai', DateStyle: 'ISO, DMY', search_path: DECOYS, bytea_output: 'escape' },
  { TimeZone: 'Africa/Monrovia', DateStyle: 'ISO, YMD', search_path: DECOYS },
  { TimeZone: 'Australia/Lord_Howe', DateStyle: 'SQL, MDY', search_path: DECOYS, array_nulls: 'off' },
  { TimeZone: 'Europe/Kyiv', DateStyle: 'German', search_path: 'pg_catalog', enable_hashagg: 'off' },
  { TimeZone: 'Asia/Kathmandu', DateStyle: 'Postgres, DMY', search_path: DECOYS },
];

type Mode = 'session' | 'transaction' | 'adversarial' | 'deaf';

const SHANGHAI = { TimeZone: 'Asia/Shanghai', DateStyle: 'German' };
const KOLKATA = { TimeZone: 'Asia/Kolkata', DateStyle: 'SQL, DMY' };

/** What users of a pooler have: addresses with a role of their own, and (for the tests) a look past both. */
interface Behind extends AsyncDisposable {
  readonly url: string;
  /** The server itself, with the same role. */
  readonly direct: string;
  /** The server itself, as its owner, with fixed settings. */
  readonly server: pg.Client;
}

/** Start a pooler before a database of hourhand's, of a role whose settings are foreign. */
async function behind(mode: Mode, settings: Settings): Promise<Behind> {
  const database = await createDatabase({ migrated: false });
  const name = new URL(database.url).pathname.slice(1);
  const role = `foreign_${randomBytes(6).toString('hex')}`;
  const server = new pg.Client({
    connectionString: database.url,
    options: `-c timezone=UTC -c datestyle=ISO -c search_path=${OURS}`,
  });
  await server.connect();
  for (const sql of [
    `create role ${role} login password 'pw'`,
    `grant create on database ${name} to ${role}`,
    ...Object.entries({ ...settings, search_path: OURS }).map(
      ([setting, value]) => `alter role ${role} in database ${name} set ${setting} = '${value}'`,
    ),
    ...[OURS, DECOYS].map((schema) => `create schema ${schema} authorization ${role}`),
  ])
    await server.query(sql);
  const url = new URL(database.url);
  [url.username, url.password] = [role, 'pw'];
  const pooler =
    mode === 'session' || mode === 'transaction'
      ? await startPgBouncer(url.href, mode)
      : await startPooler({ databaseUrl: url.href, strangers: STRANGERS, dropsStartup: mode === 'deaf' });
  return {
    url: pooler.url,
    direct: url.href,
    server,
    async [Symbol.asyncDispose](): Promise<void> {
      await pooler[Symbol.asyncDispose]();
      await server.end();
      await database[Symbol.asyncDispose]();
      const owner = new pg.Client({ connectionString: serverUrl('TEST_DATABASE_URL') });
      await owner.connect();
      await owner.query(`drop role ${role}`).finally(() => owner.end());
    },
  };
}

/** Tables of the same names in the strangers' schema, which take whatever they are given. */
async function layDecoys({ server, direct }: Behind): Promise<void> {
  const { rows } = await server.query<{ table: string }>(`
    select quote_ident(relname) as table from pg_class
     where relnamespace = '${OURS}'::regnamespace and relkind in ('r', 'p') and not relispartition`);
  const { username } = new URL(direct);
  for (const { table } of rows) {
    await server.query(`create table ${DECOYS}.${table} (like ${OURS}.${table} including all)`);
    await server.query(`alter table ${DECOYS}.${table} owner to ${username}`);
  }
}

const ENV = {
  MODEL_CALL_STATS_CRON_TIME: '*/2 * * * * *',
  LATE_DATA_SECONDS: '1',
  FANOUT_MAX_USER_JOBS: '4', // hours of both kinds: a child for each user, and children for ranges of buckets
  WORKER_CONCURRENCY: '2',
};

interface Call {
  readonly user: string;
  readonly at: Date;
  readonly tokens: number;
  /** In hundred-millionths. */
  readonly credits: number;
}

/** The hours of these calls cross the midnights of all zones; the calls are dense around the full and the half hours. */
const SPAN = ['--from', '2026-08-10T13', '--to', '2026-08-11T13'];
function callsOfADay(): Call[] {
  const begin = Date.parse('2026-08-10T13:00:00Z');
  return Array.from({ length: 400 }, (_, i) => {
    const hour = i % 23;
    const minute = [0, 29, 30, 59][i % 4] ?? 0;
    return {
      user: `u${i % (hour % 3 === 0 ? 9 : 3)}`,
      at: new Date(begin + hour * 3_600_000 + minute * 60_000 + (i % 7) * 997),
      tokens: 1 + i,
      credits: 1 + i * 1_000_003,
    };
  });
}

const HEADER = 'call_time,user_did,app_did,provider,model,type,input_tokens,output_tokens,credits,status,duration_s';
const csvOf = (calls: readonly Call[]) =>
  `${[HEADER, ...calls.map(({ user, at, tokens, credits }) => `${at.toISOString()},${user},,p,m,chatCompletion,${tokens},0,${(credits / 1e8).toFixed(8)},success,1`)].join('\n')}\n`;

/** `user hour calls tokens credits`, of each user in each hour, counted here. */
function sumsOf(calls: readonly Call[]): string[] {
  const sums = new Map<string, { calls: number; tokens: number; credits: number }>();
  for (const { user, at, tokens, credits } of calls) {
    const key = `${user} ${at.toISOString().slice(0, 13)}`;
    const sum = sums.get(key) ?? { calls: 0, tokens: 0, credits: 0 };
    sums.set(key, { calls: sum.calls + 1, tokens: sum.tokens + tokens, credits: sum.credits + credits });
  }
  return [...sums].map(([key, sum]) => `${key} ${sum.calls} ${sum.tokens} ${(sum.credits / 1e8).toFixed(8)}`).sort();
}

/** The same, of what the server has stored, and of the calls that it has: with fixed settings, past the pooler. */
async function storedAt({ server }: Behind): Promise<string[]> {
  const { rows } = await server.query<{ line: string }>(`
    select "userDid" || ' ' || to_char("timestamp", 'YYYY-MM-DD"T"HH24') || ' ' || "totalCalls" || ' ' || "totalUsage" || ' ' || "totalCredits"::numeric(20, 8) as line
      from ${OURS}."ModelCallStat" where "timeType" = 'hour' and "totalCalls" > 0 and "timestamp" < '2026-09-01Z'`);
  return rows.map(({ line }) => line).sort();
}

async function countedAt({ server }: Behind): Promise<string[]> {
  const { rows } = await server.query<{ line: string }>(`
    select "userDid" || ' ' || to_char(date_trunc('hour', "callTime"), 'YYYY-MM-DD"T"HH24') || ' ' || count(*) || ' ' || sum("totalUsage") || ' ' || sum(credits)::numeric(20, 8) as line
      from ${OURS}."ModelCall" where "callTime" < '2026-09-01Z' group by "userDid", date_trunc('hour', "callTime")`);
  return rows.map(({ line }) => line).sort();
}

/** The same, of what `stats --format csv` prints. */
function printed(csv: string): string[] {
  const rows: Record<string, string>[] = parse(csv, { columns: true });
  return rows
    .map((row) =>
      [
        row.user_did,
        row.hour?.slice(0, 13),
        row.total_calls,
        row.total_usage,
        Number(row.total_credits).toFixed(8),
      ].join(' '),
    )
    .sort();
}

/** Write a call as a gateway does. */
async function write(client: pg.ClientBase, { user, at, tokens, credits }: Call, id: string): Promise<void> {
  await client.query(
    `insert into ${OURS}."ModelCall" (id, "userDid", "providerId", model, type, status, "totalUsage", "inputTokens", credits, "callTime")
     values ($1, $2, 'p', 'm', 'chatCompletion', 'success', $3, $3, $4, $5)`,
    [id, user, tokens, (credits / 1e8).toFixed(8), at.toISOString()],
  );
}

async function closedHours({ server }: Behind): Promise<number> {
  const { rows } = await server.query<{ n: number }>(
    `select count(*)::int as n from ${OURS}."StatHour" where state = 'closed'`,
  );
  return rows[0]?.n ?? 0;
}

/** As an operator does it, by the pooler. */
async function migrated({ url }: Behind): Promise<void> {
  const env = { ...process.env, DATABASE_URL: url, REDIS_URL: serverUrl('TEST_REDIS_URL') };
  const { code, output } = await run([process.execPath, path.join(home, 'dist/cli.js'), 'migrate'], { env });
  expect(code, output).toBe(0);
}

/** Hours that are not closed for good, and users with a mark. */
async function unsettled({ server }: Behind): Promise<number> {
  const { rows } = await server.query<{ n: number }>(`
    select (select count(*)::int from ${OURS}."StatHour" where (state <> 'closed' or wanted > run or fence is distinct from 0) and hour < '2026-09-01Z')
           + (select count(*)::int from ${OURS}."StatMark") as n`);
  return rows[0]?.n ?? 0;
}

/** A command that must succeed. @returns what it printed */
async function succeeded(running: Promise<Ran>): Promise<string> {
  const { code, stdout, stderr } = await running;
  expect(code, stdout + stderr).toBe(0);
  return stdout;
}

/** Ask for these hours, and kill the workers again and again while they are at work. */
async function backfillUnderKills(hourhand: Hourhand, place: Behind, span: readonly string[]): Promise<void> {
  const workers = [await hourhand.startWorker(), await hourhand.startWorker()];
  let ended = false;
  const asked = hourhand.run(['backfill', ...span, '--wait']).finally(() => {
    ended = true;
  });
  for (const worker of workers) {
    const before = await closedHours(place);
    await until(
      () => closedHours(place),
      (closed) => closed > before || ended, // a quick machine may have closed them all
    );
    worker.child.kill('SIGKILL');
    await hourhand.startWorker();
  }
  await succeeded(asked);
}

const modes: [string, Mode, Settings][] = [
  [`${bouncerName} in session mode${noBouncer ? ` (SKIPPED: ${noBouncer})` : ''}`, 'session', SHANGHAI],
  [`${bouncerName} in transaction mode${noBouncer ? ` (SKIPPED: ${noBouncer})` : ''}`, 'transaction', KOLKATA],
  ['a pooler that gives each transaction a connection in which a stranger worked', 'adversarial', SHANGHAI],
];

describe.each(modes)('behind %s', AT_ONCE, (_, mode, settings) => {
  test.skipIf(noBouncer && mode !== 'adversarial')(
    'every figure is exact: of an import, of calls by the pooler, of late data, at the seam, and under kills',
    LIMIT,
    async () => {
      await using place = await behind(mode, settings);
      await migrated(place);
      await layDecoys(place);
      await using hourhand = await startHourhand({ ...ENV, DATABASE_URL: place.url });
      await using gateway = await connected(hourhand);
      const calls = callsOfADay();

      await succeeded(hourhand.run(['import', '-'], csvOf(calls)));
      // One that is written before its hour's end, as far as anybody can see, and committed after its roll-up.
      await using writer = await connected(hourhand);
      const seam = { user: 'late', at: new Date('2026-08-10T18:30:00Z'), tokens: 7, credits: 7 };
      await writer.query('begin');
      await writer.query(`set local hourhand.marks_itself = 'yes'`);
      await write(writer, seam, 'seam');
      await backfillUnderKills(hourhand, place, SPAN);
      expect(await storedAt(place)).toEqual(sumsOf(calls));
      expect(await unsettled(place)).toBeGreaterThan(0); // the writer is waited for
      await writer.query('commit');
      calls.push(seam);
      await until(
        () => storedAt(place),
        (lines) => lines.join() === sumsOf(calls).join(),
      );

      // Late data by the pooler: one more, one changed, one deleted.
      const late = { user: 'u1', at: new Date('2026-08-10T18:29:59.999Z'), tokens: 5, credits: 5 };
      await write(gateway, late, 'late');
      calls.push(late);
      await gateway.query(
        `update ${OURS}."ModelCall" set "totalUsage" = 9, "inputTokens" = 9 where "callTime" = $1 and "userDid" = $2`,
        [calls[0]?.at.toISOString(), calls[0]?.user],
      );
      calls[0] = { ...(calls[0] ?? late), tokens: 9 };
      const gone = calls.splice(1, 1)[0] ?? late;
      await gateway.query(`delete from ${OURS}."ModelCall" where "callTime" = $1 and "userDid" = $2`, [
        gone.at.toISOString(),
        gone.user,
      ]);
      // And one of the running hour.
      await write(gateway, { ...late, at: new Date() }, 'now');
      await until(
        () => storedAt(place),
        (lines) => lines.join() === sumsOf(calls).join(),
      );
      await until(
        () => unsettled(place),
        (n) => n === 0,
      );

      const [, stats, status] = await Promise.all([
        succeeded(hourhand.run(['verify', ...SPAN])),
        succeeded(hourhand.run(['stats', ...SPAN, '--format', 'csv'])),
        succeeded(hourhand.run(['status', '--json'])),
      ]);
      expect(printed(stats)).toEqual(sumsOf(calls));
      expect(await countedAt(place)).toEqual(sumsOf(calls));
      const { watermark, now } = JSON.parse(status);
      expect(Date.parse(`${watermark}:00Z`)).toBeLessThanOrEqual(Date.parse(now));
      expect(Math.abs(Date.parse(now) - Date.now())).toBeLessThan(60_000);
      expect(await decoysTaken(place)).toEqual([]);
    },
  );
});

/** The strangers' tables in which something was written. */
async function decoysTaken({ server }: Behind): Promise<string[]> {
  const { rows } = await server.query<{ table: string }>(`
    select quote_ident(relname) as table from pg_class where relnamespace = '${DECOYS}'::regnamespace and relkind = 'r'`);
  const taken: string[] = [];
  for (const { table } of rows) {
    const { rowCount } = await server.query(`select from ${DECOYS}.${table} limit 1`);
    if (rowCount) taken.push(table);
  }
  return taken;
}

describe.each(modes.slice(noBouncer ? 2 : 0))('hourhand partition behind %s', AT_ONCE, (_, mode, settings) => {
  test('is refused in one line, and done with DATABASE_DIRECT_URL', LIMIT, async () => {
    await using place = await behind(mode, settings);
    await migrate(place.direct, migrations);
    await using hourhand = await startHourhand({ ...ENV, DATABASE_URL: place.url });
    const refused = await hourhand.run(['partition', '--by', 'month']);
    expect(refused).toMatchObject({ code: 1, stdout: '' });
    expect(refused.stderr.trim().split('\n')).toEqual([expect.stringContaining('DATABASE_DIRECT_URL')]);
    const done = await hourhand.run(['partition', '--by', 'month'], undefined, { DATABASE_DIRECT_URL: place.direct });
    expect(done.stderr).toContain('done; writers waited for');
    expect(done.code).toBe(0);
  });
});

/** A real log, and what an independent program says must come out of it. */
const data = path.join(home, '..', 'shared', 'data');
const noData = existsSync(data) ? '' : ` (SKIPPED: the real logs are not in ${data})`;

describe.each<[string, Mode]>([
  modes[noBouncer ? 2 : 1]?.slice(0, 2) as [string, Mode], // both are there
  ['a pooler that drops every start-up parameter', 'deaf'],
])('behind %s', AT_ONCE, (_, mode) => {
  test.skipIf(noData)(`a real log comes out digit by digit, with workers killed${noData}`, LIMIT, async () => {
    await using place = await behind(mode, SHANGHAI);
    await migrate(place.url, migrations);
    await layDecoys(place);
    await using hourhand = await startHourhand({ ...ENV, DATABASE_URL: place.url });
    const span = ['--from', '2023-11-16T18', '--to', '2023-11-16T20'];
    await succeeded(hourhand.run(['import', path.join(data, 'azure_code.csv.gz')]));
    const worker = await hourhand.startWorker();
    const asked = hourhand.run(['backfill', ...span, '--wait']);
    await until(
      () => storedAt(place),
      (rows) => rows.length > 0,
    );
    worker.child.kill('SIGKILL');
    await hourhand.startWorker();
    await succeeded(asked);
    const [stats] = await Promise.all([
      succeeded(hourhand.run(['stats', ...span, '--format', 'csv'])),
      succeeded(hourhand.run(['verify', ...span])),
    ]);
    const expected = gunzipSync(readFileSync(path.join(data, 'azure_code.expected.user_hour.csv.gz'))).toString();
    expect(printed(stats)).toEqual(printed(expected));
    expect(await decoysTaken(place)).toEqual([]);
  });
});

describe('the pooler of these tests', () => {
  test(
    'Ctrl-C of an import ends its own statement, and no other, whichever connection the pooler gave it',
    LIMIT,
    async () => {
      await using place = await behind('adversarial', SHANGHAI);
      await migrate(place.direct, migrations);
      await using hourhand = await startHourhand({ ...ENV, DATABASE_URL: place.url });
      // Strangers at work in all connections except two: one for the import, and one that is free.
      const strangers = await Promise.all(STRANGERS.slice(2).map(() => connected(hourhand)));
      const working = strangers.map((stranger) => stranger.query('select pg_sleep(600)').then(() => 'done', String));
      const statements = async (like: string) =>
        (
          await place.server.query(
            `select pid from pg_stat_activity where datname = current_database() and state = 'active' and query like $1 and pid <> pg_backend_pid()`,
            [like],
          )
        ).rows.length;
      await until(
        () => statements('select pg_sleep%'),
        (n) => n === strangers.length,
      );
      // The import waits for a writer who has the table.
      await place.server.query('begin');
      await place.server.query(`lock table ${OURS}."ModelCall" in share mode`);
      const importing = hourhand.spawn('import', '-');
      importing.stdin?.end(csvOf(callsOfADay()));
      await until(
        async () => (await place.server.query('select from pg_locks where not granted')).rows.length,
        (n) => n > 0,
      );
      importing.kill('SIGINT');
      const code = await until(
        async () => importing.exitCode ?? importing.signalCode,
        (seen) => seen !== null,
      );
      expect(code).not.toBe(0);
      // The statement is gone, not only the process.
      await until(
        async () => (await place.server.query('select from pg_locks where not granted')).rows.length,
        (n) => n === 0,
      );
      expect(await statements('select pg_sleep%')).toBe(strangers.length);
      await place.server.query('rollback');
      expect(await countedAt(place)).toEqual([]);
      for (const stranger of strangers) await stranger[Symbol.asyncDispose]();
      await Promise.all(working);
    },
  );

  test('gives each transaction the next connection, in which a stranger worked, and keeps what a start-up names', async () => {
    await using database = await createDatabase();
    const strangers = STRANGERS.slice(0, 3);
    const zones = strangers.map(({ TimeZone }) => TimeZone);
    await using pooler = await startPooler({ databaseUrl: database.url, strangers });
    await using deaf = await startPooler({ databaseUrl: database.url, strangers, dropsStartup: true });
    const look = async (url: string, Client: typeof pg.Client) => {
      const client = new Client({ connectionString: url, options: '-c timezone=Europe/Rome -c search_path=public' });
      await client.connect();
      const rows: Record<string, string>[] = [];
      for (const before of ['set timezone = "Europe/Rome"', 'select 1', 'begin', 'select 1']) {
        await client.query(before);
        const { rows: found } = await client.query(
          `select pg_backend_pid() as pid, current_setting('timezone') as zone, current_setting('search_path') as path`,
        );
        rows.push(found[0]);
      }
      await client.end();
      return rows;
    };
    const seen = await look(pooler.url, pg.Client);
    expect(new Set(seen.map(({ pid }) => pid)).size).toBeGreaterThan(1);
    expect(seen[2]?.pid).toBe(seen[3]?.pid); // of one transaction
    for (const { zone, path: schemas } of seen)
      expect([zones, schemas]).toEqual([expect.arrayContaining([zone]), DECOYS]);
    expect((await look(pooler.url, Naming)).map(({ zone }) => zone)).toEqual(['UTC', 'UTC', 'UTC', 'UTC']);
    expect((await look(deaf.url, Naming)).filter(({ zone }) => zone === 'UTC')).toEqual([]);
    expect(Math.min(...pooler.served())).toBeGreaterThan(0);
  });
});

/** Names its zone as hourhand does. */
class Naming extends pg.Client {
  getStartupConf(): object {
    // biome-ignore lint/suspicious/noExplicitAny: pg's types leave this method out
    return { ...(pg.Client.prototype as any).getStartupConf.call(this), TimeZone: 'UTC' };
  }
}
