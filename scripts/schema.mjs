// Do the migrations say what prisma/schema.prisma says?
//   npm run schema -- generate      writes Prisma's client to src/generated/prisma
//   npm run schema -- author NAME   writes the next migration: what is missing from the schema
//   npm run schema -- drift         exits 1, with the difference, when there is one
// Server: TEST_DATABASE_URL or DATABASE_URL (a shadow database is made there, and dropped), else the private one of tests.
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { localTest, root, startServers } from './servers.mjs';
import { checkNode, generateClient } from './set-up.mjs';

checkNode();
const schema = path.join(root, 'prisma/schema.prisma');
const migrations = path.join(root, 'prisma/migrations');

async function compare(asScript) {
  // Not above: `generate` works before the dev dependencies do.
  const { difference } = await import('./schema-engine.mjs');
  const given = process.env.TEST_DATABASE_URL || process.env.DATABASE_URL;
  const server = given ? undefined : await startServers({ dir: localTest, redis: false, throwAway: true });
  try {
    return await difference({ databaseUrl: given || server.databaseUrl, schema, migrations, asScript });
  } finally {
    await server?.release();
  }
}

const commands = {
  async generate() {
    await generateClient();
    console.log('Written to src/generated/prisma.');
  },

  async author(name) {
    if (!/^[a-z0-9_]+$/.test(name ?? ''))
      throw new Error(`author: expected a name of a-z, 0-9 and _, got ${JSON.stringify(name)}`);
    const script = await compare(true);
    if (!script) return console.log('Nothing to author: the migrations say what the schema says.');
    const now = new Date().toISOString().replace(/\D/g, '').slice(0, 14);
    const directory = path.join(migrations, `${now}_${name}`);
    mkdirSync(directory, { recursive: true });
    writeFileSync(path.join(directory, 'migration.sql'), script);
    const lock = path.join(migrations, 'migration_lock.toml'); // Prisma's CLI asks for it
    if (!existsSync(lock)) writeFileSync(lock, 'provider = "postgresql"\n');
    console.log(
      `${script}\nWritten to ${path.relative(root, directory)}/migration.sql: read it, and add what the schema cannot say.`,
    );
  },

  async drift() {
    const difference = await compare(false);
    if (!difference) return console.log('The migrations say what the schema says.');
    console.log(`To come from the migrations to prisma/schema.prisma:\n${difference}`);
    process.exitCode = 1;
  },
};

const [command, ...args] = process.argv.slice(2);
try {
  if (!Object.hasOwn(commands, command ?? '')) {
    throw new Error(`expected generate, author NAME or drift, got ${JSON.stringify(command ?? '')}`);
  }
  await commands[command](...args);
} catch (error) {
  console.error(`schema: ${error.message.replace(/\n +0: .*/s, '')}`); // without the engine's own stack
  process.exitCode = 1;
}
