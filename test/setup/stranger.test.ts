// A user whom the system hardly knows, beside tests, through kills, stops and resets: with the packages there already.
import { execFileSync, spawnSync } from 'node:child_process';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
} from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, expect } from 'vitest';
import { root } from '../../scripts/servers.mjs';
import { until } from '../support/hourhand.ts';
import { bareCheckout } from './support/checkout.ts';
import {
  belongings,
  type Command,
  environment,
  give,
  isRoot,
  itWithProc as it,
  killAll,
  onlyThese,
  type Place,
  processesOf,
  temporaryFolder,
  type,
  typed,
  which,
} from './support/machine.ts';

const folder = temporaryFolder();
const checkout = path.join(folder.dir, 'home', 'my hourhand');
/** Of root's making: somebody whom passwd does not know, where the kernel lets such a one run PostgreSQL. */
const unknown = 40_000 + (process.pid % 20_000);
const maps = ['--map-user=65534', '--map-group=65534', 'true'];
const mayBeUnknown = isRoot && spawnSync('unshare', maps, { uid: unknown, gid: unknown }).status === 0;
const uid = mayBeUnknown ? unknown : isRoot ? 1 : (process.getuid?.() ?? 0);
const who = mayBeUnknown
  ? 'a user without an entry in passwd'
  : `user ${uid} (we may not be one whom passwd does not know)`;
/** Where there is no other Redis it has to do. */
const hasApt =
  which('apt-get') !== undefined &&
  which('dpkg-deb') !== undefined &&
  (which('redis-server') === undefined || aptReachesItsServers());
const redis = hasApt
  ? 'a Redis that is unpacked into the checkout'
  : 'the Redis of the PATH (SKIPPED: one that is unpacked; there is no apt-get here, or it does not reach its servers)';
let place: Place;
let up: Command;

beforeAll(() => {
  bareCheckout(checkout);
  const how = statSync(root).dev === statSync(checkout).dev ? '-al' : '-a'; // links, where that can be
  for (const dir of ['node_modules', 'test/counterparts/node_modules']) {
    execFileSync('cp', [how, path.join(root, dir), path.join(checkout, dir)]);
  }
  give(path.join(folder.dir, 'home'), uid);
  // All that the system has, but a Redis only where there is no other way to one.
  const programs = ['/usr/bin', '/bin', '/usr/sbin', '/sbin']
    .flatMap((dir) => readdirSync(dir))
    .filter((name) => !hasApt || !/^(redis|valkey)-/.test(name));
  const PATH = onlyThese(
    path.join(folder.dir, 'bin'),
    Object.fromEntries(programs.map((name) => [name, which(name)])),
  );
  const env = environment({
    PATH,
    HOME: path.join(folder.dir, 'home'),
    TMPDIR: undefined,
    PORT: '0',
    TZ: 'Asia/Kolkata',
    PGSSLMODE: 'require', // of other servers
  });
  place = { cwd: checkout, env, ...(isRoot ? { uid, gid: uid } : {}) };
});

afterAll(async () => {
  await up?.interrupt();
  killAll(folder.dir);
  folder[Symbol.dispose]();
});

function aptReachesItsServers(): boolean {
  const lists = path.join(folder.dir, 'lists');
  mkdirSync(path.join(lists, 'partial'), { recursive: true });
  const settings = [
    ...[`Dir::State::lists=${lists}`, `Dir::Cache=${lists}`, 'Debug::NoLocking=1', 'APT::Sandbox::User='],
    ...['APT::Update::Error-Mode=any', 'Acquire::http::Timeout=10', 'Acquire::https::Timeout=10'],
  ];
  return spawnSync('apt-get', ['update', ...settings.flatMap((one) => ['-o', one])]).status === 0;
}

const npm = (...args: string[]) => typed(place, 'npm', ...args);
async function start(): Promise<void> {
  up = type(place, 'npm', 'start');
  await up.says(/^dashboard: /m);
}
/** The hour in which these tests begin: one that ends meanwhile closes, and would be a difference. */
const begun = new Date().toISOString().slice(0, 13);
/** What the ledger and the stored statistics say, as far as nothing but a lost or doubled hour changes it. */
async function figures(): Promise<string> {
  const { code, said } = await typed(
    place,
    process.execPath,
    ...['bin/hourhand.mjs', 'stats', '--from', '2026-01-01', '--to', begun, '--format', 'csv'],
  );
  expect(code, said).toBe(0);
  return said;
}

it(`${who}, with ${redis}, gets the page`, async () => {
  await start();
  expect(up.said()).toMatch(/^hour \S+ closed: \d+ users, \d+ calls$/m);
  expect(existsSync(path.join(checkout, '.local/redis-binaries'))).toBe(hasApt);
});

it('npm test beside a running npm start passes, and leaves it alone', async () => {
  const before = await figures();
  const test = await npm('test', '--', 'test/time.test.ts', 'test/marks.test.ts');
  expect(test.code, test.said).toBe(0);
  expect(await figures()).toBe(before);
  expect(existsSync(path.join(checkout, '.local/test/postgres'))).toBe(false);
});

it('in a copy of the checkout nothing is taken for its own that runs in the first one', async () => {
  const copy = path.join(folder.dir, 'home', 'a copy');
  execFileSync('mkdir', [copy], { uid: place.uid, gid: place.gid });
  const all = ['.local', 'bin', 'dist', 'node_modules', 'package.json', 'prisma', 'samples', 'scripts', 'src'];
  for (const name of all.filter((one) => one !== 'node_modules')) {
    execFileSync('cp', ['-a', path.join(checkout, name), copy]);
  }
  symlinkSync(path.join(checkout, 'node_modules'), path.join(copy, 'node_modules'));
  const there = { ...place, cwd: copy };
  const asked = await typed(there, process.execPath, 'bin/hourhand.mjs', 'status');
  expect(asked.said).toMatch(/the private servers of this checkout are not there yet: type npm start/);
  const start = await typed({ ...there, env: { ...place.env, PORT: 'abc' } }, 'npm', 'start');
  expect(start.said).toMatch(/^PORT: expected/m);
  expect((await typed(there, 'npm', 'run', 'stop')).said).toMatch(/^Nothing was running\.$/m);
  expect(await figures()).toMatch(/sample-/);
});

it('after kill -9 of everything npm start finds all that was there, and leaves no litter', async () => {
  const before = await figures();
  expect(before.split('\n').length).toBeGreaterThan(10);
  const litter = () => belongings(uid, folder.dir).filter((name) => !name.startsWith('process')).length;
  const ofOneServer = litter();
  killAll(folder.dir);
  await until(
    async () => processesOf(folder.dir),
    (left) => left.length === 0,
  );
  // Nor does it need what was written down of the servers, and all that was built.
  truncateSync(path.join(checkout, '.local/servers.json'));
  const asked = await typed(place, process.execPath, 'bin/hourhand.mjs', 'status');
  expect(asked.said).toMatch(/the private servers of this checkout are not there yet: type npm start/);
  rmSync(path.join(checkout, 'dist/store'), { recursive: true });
  await start();
  expect(await figures()).toBe(before);
  if (mayBeUnknown) expect(litter()).toBe(ofOneServer);
});

it('npm run stop ends npm start, and stops servers that a killed one has left', async () => {
  const stop = await npm('run', 'stop');
  expect(stop.said).toMatch(/^ {2}node scripts\/start\.mjs \(pid \d+\) is asked to end$/m);
  expect(await up.ends()).toBe(0);
  expect(processesOf(folder.dir)).toEqual([]);

  await start();
  killAll(folder.dir, /npm|start\.mjs|cli\.js/);
  await up.ends();
  const left = await npm('run', 'stop');
  expect(left.said).toMatch(/^ {2}postgres \(pid \d+\), left over, is stopped$/m);
  expect(left.said).toMatch(/^ {2}redis \(pid \d+\), left over, is stopped$/m);
  expect(left.code).toBe(0);
  expect(processesOf(folder.dir)).toEqual([]);
});

it('npm run stop ends npm run servers while it sets up', async () => {
  rmSync(path.join(checkout, 'dist'), { recursive: true });
  const servers = type(place, 'npm', 'run', 'servers');
  await servers.says(/^ {2}prisma client /m);
  const stop = await npm('run', 'stop');
  expect(stop.said).toMatch(/^ {2}node scripts\/start\.mjs --servers-only \(pid \d+\) is asked to end$/m);
  expect(await servers.ends()).not.toBe(0);
  expect(processesOf(folder.dir)).toEqual([]);
});

it('Ctrl-C ends npm start while it waits for a server that does not come', async () => {
  await start();
  killAll(folder.dir, /npm|start\.mjs|cli\.js/);
  await up.ends();
  const { pid } = JSON.parse(readFileSync(path.join(checkout, '.local/redis/process.json'), 'utf8'));
  process.kill(pid, 'SIGSTOP');
  up = type(place, 'npm', 'start');
  await up.says(/^ {2}build /m);
  const lock = path.join(checkout, '.local/servers.lock');
  await until(
    async () => lstatSync(lock, { throwIfNoEntry: false }),
    (there) => there !== undefined,
  );
  const begun = performance.now();
  expect(await up.interrupt(), up.said()).not.toBe(0);
  expect(performance.now() - begun).toBeLessThan(20_000); // a minute is what Redis would be given
  expect(processesOf(folder.dir)).toEqual([]);
});

it('servers whose addresses cannot be written down are stopped again', async () => {
  const reset = await npm('run', 'reset', '--', '--yes'); // to make its data anew takes PostgreSQL a moment
  expect(reset.code, reset.said).toBe(0);
  up = type(place, 'npm', 'start');
  await until(
    async () => existsSync(path.join(checkout, '.local/redis/process.json')),
    (there) => there,
  );
  const obstacle = path.join(checkout, '.local/servers.json.new');
  execFileSync('mkdir', [obstacle], { uid: place.uid, gid: place.gid });
  expect(await up.ends(), up.said()).toBe(1);
  rmSync(obstacle, { recursive: true });
  expect(processesOf(folder.dir)).toEqual([]);
  await start();
});

it('npm run reset deletes nothing where nobody can answer, and everything with --yes; npm start begins anew', async () => {
  const data = path.join(checkout, '.local/postgres/data');
  const { ino } = statSync(data);
  const asked = await npm('run', 'reset');
  expect(asked.said).toMatch(/type npm run reset -- --yes$/m);
  expect(asked.code).toBe(2);
  expect(statSync(data).ino).toBe(ino);

  const reset = await npm('run', 'reset', '--', '--yes');
  expect(reset.code, reset.said).toBe(0);
  expect(existsSync(data)).toBe(false);
  await start();
  expect(up.said()).toMatch(/^sample: \d+ calls of \d+ users loaded/m);
});

it('Ctrl-C leaves no process, no temporary file and no shared memory of this user, also where .local is deleted meanwhile', async () => {
  rmSync(path.join(checkout, '.local'), { recursive: true });
  expect(await up.interrupt(), up.said()).toBe(0);
  if (mayBeUnknown) expect(belongings(uid, folder.dir)).toEqual([]);
  expect(processesOf(folder.dir)).toEqual([]);
});
