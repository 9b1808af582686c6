import { createHash } from 'node:crypto';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { bindMigrationAwareSqlAdapterFactory } from '@prisma/driver-adapter-utils';
import pg from 'pg';
import { describe, expect, test } from 'vitest';
import { home, migrations } from '../src/config.ts';
import { connect } from '../src/store/db.ts';
import { migrate, pendingMigrations } from '../src/store/migrate.ts';
import { createDatabase } from './support/database.ts';
import { until } from './support/hourhand.ts';

const ours = readdirSync(migrations, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => name)
  .sort();

test('an empty database gets all of them, in order, and each is said as it is done', async () => {
  await using database = await emptyDatabase();
  const said: string[] = [];
  expect(await migrate(database.url, migrations, (name) => said.push(name))).toEqual(ours);
  expect(said).toEqual(ours);
  expect(await database.tables()).toEqual(
    [
      'Alarm',
      'Backfill',
      'BackfillHour',
      'DashboardSession',
      'ModelCall',
      'ModelCallStat',
      'ModelCheck',
      'ModelProbe',
      'ModelProvider',
      'ModelStatus',
      'ModelTransition',
      'OperatorAction',
      'StaleBatch',
      'StatChange',
      'StatClock',
      'StatGap',
      'StatHour',
      'StatIdentity',
      'StatLate',
      'StatLook',
      'StatMark',
      'StatModel',
      'StatRange',
      'StatRun',
      'StatSchedule',
      'StatShard',
      'StatUntold',
      'Warning',
      '_prisma_migrations',
    ].sort(),
  );
});

test('a second time changes nothing', async () => {
  await using database = await emptyDatabase();
  await migrate(database.url, migrations);
  await database.query(
    `set hourhand.protocol = '2';
     insert into "StatHour" (hour, state, reason) values ('2026-08-20T13:00Z', 'open', 'tick')`,
  );
  const before = await database.entries();
  expect(await migrate(database.url, migrations)).toEqual([]);
  expect(await database.entries()).toEqual(before);
  expect(await database.query('select state from "StatHour"')).toEqual([{ state: 'open' }]);
});

test('however long one takes, no time-out of the role or the database ends it', async () => {
  await using database = await emptyDatabase();
  await database.query(
    `do $$ begin execute format('alter database %I set statement_timeout = 1', current_database()); end $$`,
  );
  expect(await migrate(database.url, migrations)).toEqual(ours);
});

test('several at once apply each of them once', async () => {
  await using database = await emptyDatabase();
  const applied = await Promise.all(Array.from({ length: 5 }, () => migrate(database.url, migrations)));
  expect(applied.flat().sort()).toEqual(ours);
  expect((await database.entries()).map(({ migration_name }) => migration_name)).toEqual(ours);
});

test('what is new is applied, and what was there is left alone', async () => {
  await using database = await emptyDatabase();
  using folder = migrationFolder({ '1_first': 'create table a (n int); insert into a values (1);' });
  expect(await migrate(database.url, folder.path)).toEqual(['1_first']);
  folder.write({ '2_second': 'alter table a add m int default 2;', '10_tenth': 'create table b ()' });
  expect(await migrate(database.url, folder.path)).toEqual(['10_tenth', '2_second']); // in the order of names, as Prisma does
  expect(await database.query('select * from a')).toEqual([{ n: 1, m: 2 }]);
});

test('those that are not applied yet are known by name, without a change', async () => {
  await using database = await emptyDatabase();
  using folder = migrationFolder({ '1_first': 'create table a ()', '2_second': 'create table b ()' });
  const pool = connect(database.url, { connections: 1, onError: () => {} });
  try {
    expect(await pendingMigrations(pool, folder.path)).toEqual(['1_first', '2_second']);
    expect(await database.tables()).toEqual([]);
    folder.write({ '2_second': 'nonsense' });
    await expect(migrate(database.url, folder.path)).rejects.toThrow();
    expect(await pendingMigrations(pool, folder.path)).toEqual(['2_second']);
    folder.write({ '2_second': 'create table b ()' });
    await migrate(database.url, folder.path);
    expect(await pendingMigrations(pool, folder.path)).toEqual([]);
  } finally {
    await pool.$disconnect();
  }
});

test('one that waits for the calls gives way to the gateway again and again, and names who is in the way', async () => {
  await using database = await emptyDatabase();
  await migrate(database.url, migrations);
  using folder = migrationFolder({});
  cpSync(migrations, folder.path, { recursive: true });
  folder.write({ '9_calls': 'alter table "ModelCall" add column more int' });
  const reading = `begin; select from "ModelCall"; select pg_backend_pid() as pid`;
  const reader = new pg.Client({ connectionString: database.url, application_name: 'a long report' });
  await reader.connect();
  const answers = (await reader.query(reading)) as unknown as pg.QueryResult[]; // one for each statement
  const { pid } = answers[2]?.rows[0] ?? {};
  const migrating = migrate(database.url, folder.path, () => {}, { patienceMs: 2_500 });
  const refused = expect(migrating).rejects.toThrow(
    new RegExp(
      `^migration 9_calls: canceling statement due to lock timeout; in the way is the session ${pid} of role \\w+ ` +
        '\\(a long report\\), whose transaction began at .*Z: .*, and try again; nothing of it was applied$',
    ),
  );
  const waits: number[] = [];
  for (let n = 0, over = false; !over; n++) {
    const begin = performance.now();
    await database.query(`
      insert into "ModelCall" (id, "userDid", "providerId", model, type, credits, status, "callTime")
      values ('${n}', 'ada', 'openai', 'gpt', 'chatCompletion', 1, 'success', now())`);
    waits.push(performance.now() - begin);
    over = await Promise.race([migrating.then(Boolean, () => true), sleep(50, false)]);
  }
  await refused;
  expect(waits.filter((ms) => ms > 100).length).toBeGreaterThan(1); // it did stand in the way, more than once
  await reader.end();
  expect(await migrate(database.url, folder.path)).toEqual(['9_calls']);
});

test('one that waits for its turn for longer than it may says who migrates', async () => {
  await using database = await emptyDatabase();
  using engineLock = await hold(database.url, 'select pg_advisory_lock(72707369)');
  await expect(migrate(database.url, migrations, () => {}, { patienceMs: 300 })).rejects.toThrow(
    /^another process migrates; in the way is the session \d+ of role \w+ .*: SELECT pg_terminate_backend\(\d+\), and try again$/,
  );
  engineLock[Symbol.dispose]();
  expect(await migrate(database.url, migrations)).toEqual(ours);
});

describe('one that fails', () => {
  test('leaves nothing behind, stops the rest, and says why; put right, it goes on', async () => {
    await using database = await emptyDatabase();
    using folder = migrationFolder({
      '1_first': 'create table a ()',
      '2_second': 'create table b (); insert into b select 1; create table c ();',
      '3_third': 'create table d ()',
    });
    const said: string[] = [];
    await expect(migrate(database.url, folder.path, (name) => said.push(name))).rejects.toThrow(
      /^migration 2_second: INSERT has more expressions than target columns; nothing of it was applied$/,
    );
    expect(said).toEqual(['1_first']);
    expect(await database.tables()).toEqual(['_prisma_migrations', 'a']);
    expect(await database.entries()).toMatchObject([{ migration_name: '1_first' }]);

    folder.write({ '2_second': 'create table b ()' });
    expect(await migrate(database.url, folder.path)).toEqual(['2_second', '3_third']);
    expect(await database.tables()).toEqual(['_prisma_migrations', 'a', 'b', 'd']);
  });

  test("for a table of the same name that is somebody else's names it, and leaves it as it is", async () => {
    await using database = await emptyDatabase();
    await database.query(`create table "ModelCall" (mine text)`);
    await database.query(`insert into "ModelCall" values ('precious')`);
    await expect(migrate(database.url, migrations)).rejects.toThrow(
      `migration ${ours[0]}: relation "ModelCall" already exists; nothing of it was applied`,
    );
    expect(await database.query('select * from "ModelCall"')).toEqual([{ mine: 'precious' }]);
    expect(await database.query(`select typname from pg_type where typname = 'ModelCallType'`)).toEqual([]);
    expect(await database.entries()).toEqual([]);
  });

  test.each([
    [
      'when it is committed',
      'create table a (n int unique deferrable initially deferred); insert into a values (1), (1);',
    ],
    [
      'when its entry is written',
      'create table a (); alter table _prisma_migrations add constraint full_house check (false) not valid;',
    ],
  ])('at its very end, %s, leaves nothing either', async (_, sql) => {
    await using database = await emptyDatabase();
    using folder = migrationFolder({ '1_first': sql });
    await expect(migrate(database.url, folder.path)).rejects.toThrow(
      /^migration 1_first: .*constraint.*; nothing of it was applied$/,
    );
    expect(await database.tables()).toEqual(['_prisma_migrations']);
    expect(await database.entries()).toEqual([]);
  });
});

describe('a history that is not this one is refused:', () => {
  test('a migration that was edited after it was applied, by name', async () => {
    await using database = await emptyDatabase();
    using folder = migrationFolder({ '1_first': 'create table a ()' });
    await migrate(database.url, folder.path);
    folder.write({ '1_first': 'create table a (n int)', '2_second': 'create table b ()' });
    await expect(migrate(database.url, folder.path)).rejects.toThrow(
      `migration 1_first was edited after it was applied: expected ${hash('create table a ()').slice(0, 12)}…, found ${hash('create table a (n int)').slice(0, 12)}…`,
    );
    expect(await database.tables()).toEqual(['_prisma_migrations', 'a']);
  });

  test('one that another tool began and did not end, by name, until somebody has seen to it', async () => {
    await using database = await emptyDatabase();
    using folder = migrationFolder({ '1_first': 'create table a ()' });
    await migrate(database.url, folder.path);
    await database.query(
      `insert into _prisma_migrations (id, checksum, migration_name) values ('x', 'y', '2_second')`,
    );
    folder.write({ '2_second': 'create table b ()' });
    await expect(migrate(database.url, folder.path)).rejects.toThrow(
      /^migration 2_second was begun by another tool and did not end/,
    );
    await database.query(`update _prisma_migrations set rolled_back_at = now() where id = 'x'`);
    expect(await migrate(database.url, folder.path)).toEqual(['2_second']);
  });
});

describe("Prisma's own engine", () => {
  test('finds nothing to apply and nothing edited after ours', async () => {
    await using database = await emptyDatabase();
    await migrate(database.url, migrations);
    await using engine = await prismaEngine(database.url);
    expect(await engine.diagnose()).toMatchObject({
      hasMigrationsTable: true,
      history: null,
      editedMigrationNames: [],
      failedMigrationNames: [],
    });
    expect(await engine.apply()).toEqual({ appliedMigrationNames: [] });
  });

  test('leaves nothing to apply to ours, and the same entries', async () => {
    await using theirs = await emptyDatabase();
    {
      await using engine = await prismaEngine(theirs.url);
      expect(await engine.apply()).toEqual({ appliedMigrationNames: ours });
    }
    expect(await migrate(theirs.url, migrations)).toEqual([]);

    await using mine = await emptyDatabase();
    await migrate(mine.url, migrations);
    const [entries, expected] = [await mine.entries(), await theirs.entries()];
    const kept = ['migration_name', 'checksum', 'logs', 'rolled_back_at', 'applied_steps_count'] as const;
    const pick = (rows: Record<string, unknown>[]) => rows.map((row) => kept.map((name) => row[name]));
    // Prisma writes an empty log where there is none.
    expect(pick(entries)).toEqual(pick(expected.map((row) => ({ ...row, logs: row.logs || null }))));
    for (const { id, started_at, finished_at } of entries) {
      expect(id).toMatch(/^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/);
      expect(Number(finished_at)).toBeGreaterThanOrEqual(Number(started_at));
    }
    const columns = `select column_name, data_type, character_maximum_length, is_nullable, column_default from information_schema.columns
                      where table_name = '_prisma_migrations' order by column_name`;
    expect(await mine.query(columns)).toEqual(await theirs.query(columns));
  });

  test('and ours wait for each other', async () => {
    await using database = await emptyDatabase();
    using engineLock = await hold(database.url, 'select pg_advisory_lock(72707369)'); // Prisma's documented number
    const ending = migrate(database.url, migrations);
    await until(
      () =>
        database.query(`select from pg_stat_activity where datname = current_database() and wait_event = 'advisory'`),
      (waiting) => waiting.length > 0,
    );
    expect(await database.tables()).toEqual([]);
    engineLock[Symbol.dispose]();
    expect(await ending).toEqual(ours);
  });
});

// The engine looks this up to report a panic.
Object.assign(globalThis, {
  PRISMA_WASM_PANIC_REGISTRY: { set_message: (message: string) => console.error(message) },
});

/** A database without anything in it, and a way to look. */
async function emptyDatabase() {
  const database = await createDatabase({ migrated: false });
  const query = async (sql: string): Promise<Record<string, unknown>[]> => {
    const client = new pg.Client({ connectionString: database.url });
    await client.connect();
    try {
      return (await client.query(sql)).rows;
    } finally {
      await client.end();
    }
  };
  return {
    ...database,
    query,
    tables: async () =>
      (await query(`select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace`))
        .map(({ relname }) => String(relname))
        .sort(),
    entries: () => query('select * from _prisma_migrations order by migration_name'),
  };
}

/** A folder of migrations of one's own. */
function migrationFolder(scripts: Record<string, string>) {
  const folder = mkdtempSync(path.join(tmpdir(), 'hourhand-migrations-'));
  const write = (some: Record<string, string>) => {
    for (const [name, sql] of Object.entries(some)) {
      mkdirSync(path.join(folder, name), { recursive: true });
      writeFileSync(path.join(folder, name, 'migration.sql'), sql);
    }
  };
  cpSync(path.join(migrations, 'migration_lock.toml'), path.join(folder, 'migration_lock.toml')); // a file, and no migration
  write(scripts);
  return { path: folder, write, [Symbol.dispose]: () => rmSync(folder, { recursive: true }) };
}

function hash(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}

/** A connection that has said something, and stays until disposed of. */
async function hold(url: string, sql: string): Promise<Disposable> {
  const client = new pg.Client({ connectionString: url });
  client.on('error', () => {}); // its database may be dropped under it
  await client.connect();
  await client.query(sql);
  return { [Symbol.dispose]: () => void client.end() };
}

let engineModule: Promise<typeof import('@prisma/schema-engine-wasm/schema_engine_bg')> | undefined;

/** The engine behind `prisma migrate`, in its WebAssembly form, driven as scripts/schema-engine.mjs drives it. */
async function prismaEngine(url: string) {
  engineModule ??= (async () => {
    const glue = await import('@prisma/schema-engine-wasm/schema_engine_bg');
    const folder = path.dirname(createRequire(import.meta.url).resolve('@prisma/schema-engine-wasm'));
    const { instance } = await Object(globalThis).WebAssembly.instantiate(
      readFileSync(path.join(folder, 'schema_engine_bg.wasm')),
      {
        './schema_engine_bg.js': glue,
      },
    );
    glue.__wbg_set_wasm(instance.exports);
    instance.exports.__wbindgen_start();
    return glue;
  })();
  const { SchemaEngine } = await engineModule;
  const { SchemaPg } = await import(path.join(home, 'scripts', 'schema-engine-adapter.mjs'));
  const schema = readFileSync(path.join(home, 'prisma', 'schema.prisma'), 'utf8');
  const [migrationsList, filters] = [listOf(migrations), { externalTables: [], externalEnums: [] }];
  const factory = new SchemaPg(url);
  const adapters: { dispose(): Promise<void> }[] = [];
  const connecting = factory.connect.bind(factory);
  factory.connect = async () => {
    adapters.push(await connecting());
    return adapters.at(-1);
  };
  const engine = await SchemaEngine.new(
    { datamodels: [['schema.prisma', schema]] },
    () => {},
    bindMigrationAwareSqlAdapterFactory(factory),
  );
  return {
    diagnose: () => engine.diagnoseMigrationHistory({ migrationsList, optInToShadowDatabase: false, filters }),
    apply: () => engine.applyMigrations({ migrationsList, filters }),
    // Its session keeps the migrations' lock for as long as it lives.
    [Symbol.asyncDispose]: async () => void (await Promise.all(adapters.map((adapter) => adapter.dispose()))),
  };
}

/** A folder of migrations as that engine takes it. */
function listOf(folder: string) {
  return {
    baseDir: folder,
    lockfile: {
      path: 'migration_lock.toml',
      content: readFileSync(path.join(folder, 'migration_lock.toml'), 'utf8'),
    },
    shadowDbInitScript: '',
    migrationDirectories: ours.map((name) => ({
      path: name,
      migrationFile: {
        path: 'migration.sql',
        content: { tag: 'ok' as const, value: readFileSync(path.join(folder, name, 'migration.sql'), 'utf8') },
      },
    })),
  };
}
