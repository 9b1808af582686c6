// How do we ask Prisma's schema engine without its binary, which its CLI would download? It exists as WebAssembly too,
// made for Prisma's own driver adapters; this drives it as the CLI drives the binary.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { bindMigrationAwareSqlAdapterFactory } from '@prisma/driver-adapter-utils';
import * as glue from '@prisma/schema-engine-wasm/schema_engine_bg';
import { SchemaPg } from './schema-engine-adapter.mjs';

const filters = { externalTables: [], externalEnums: [] };

/** The engine looks this global up to report a panic. */
globalThis.PRISMA_WASM_PANIC_REGISTRY = {
  message: '',
  set_message(message) {
    this.message = message;
  },
};

function migrationsIn(directory) {
  const names = (existsSync(directory) ? readdirSync(directory, { withFileTypes: true }) : [])
    .filter((entry) => entry.isDirectory())
    .map((entry) => entry.name)
    .sort();
  return {
    baseDir: directory,
    lockfile: { path: 'migration_lock.toml', content: 'provider = "postgresql"\n' }, // says nothing that we do not know
    shadowDbInitScript: '',
    migrationDirectories: names.map((name) => ({
      path: name,
      migrationFile: {
        path: 'migration.sql',
        content: { tag: 'ok', value: readFileSync(path.join(directory, name, 'migration.sql'), 'utf8') },
      },
    })),
  };
}

/**
 * What is missing to come from the migrations, applied to an empty shadow database, to the schema: as a script, or in
 * words; empty when nothing is.
 */
export async function difference({ databaseUrl, schema, migrations, asScript }) {
  const files = [{ path: schema, content: readFileSync(schema, 'utf8') }];
  const adapter = bindMigrationAwareSqlAdapterFactory(new SchemaPg(databaseUrl));
  try {
    const engine = await load(files, adapter);
    const { exitCode, stdout } = await engine.diff({
      from: { tag: 'migrations', ...migrationsIn(migrations) },
      to: { tag: 'schemaDatamodel', files },
      script: asScript,
      exitCode: true, // 2: they differ
      shadowDatabaseUrl: null,
      filters,
    });
    return exitCode === 2 ? stdout : '';
  } catch (error) {
    // The engine knows an adapter's error only by number; the adapter kept it.
    const kept = adapter.errorRegistry?.consumeError?.(0)?.error;
    throw kept ?? new Error(globalThis.PRISMA_WASM_PANIC_REGISTRY.message || error.message, { cause: error });
  }
}

async function load(files, adapter) {
  const require = createRequire(import.meta.url);
  const folder = path.dirname(require.resolve('@prisma/schema-engine-wasm'));
  const code = readFileSync(path.join(folder, 'schema_engine_bg.wasm'));
  const { instance } = await WebAssembly.instantiate(code, { './schema_engine_bg.js': glue });
  glue.__wbg_set_wasm(instance.exports);
  instance.exports.__wbindgen_start();
  const log = (line) => process.env.DEBUG && console.error(line);
  return glue.SchemaEngine.new({ datamodels: files.map((file) => [file.path, file.content]) }, log, adapter);
}
