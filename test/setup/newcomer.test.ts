// The first minute on a machine that offers little: from a bare checkout to the page, through npm ci, and nothing is left.
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, expect } from 'vitest';
import { findRedis } from '../../scripts/private-redis.mjs';
import { redisBinaries } from '../../scripts/servers.mjs';
import { bareCheckout } from './support/checkout.ts';
import {
  type Command,
  environment,
  filesIn,
  isRoot,
  itWithProc as it,
  killAll,
  mayMount,
  onlyThese,
  type Place,
  processesOf,
  temporaryFolder,
  type,
  typed,
  which,
} from './support/machine.ts';

const folder = temporaryFolder({ heavy: true });
const home = path.join(folder.dir, "Zoë's Büro & co, 100%");
const checkout = path.join(home, 'hourhand 時');
const temporary = path.join(folder.dir, 'tmp');
let place: Place;
let up: Command;
let page: string;

beforeAll(async () => {
  for (const dir of [path.join(home, '.npm'), temporary]) mkdirSync(dir, { recursive: true });
  bareCheckout(checkout);
  // Neither apt-get, git, unzip, a compiler nor ps; of setpriv, which root needs here, there is no choice.
  const PATH = onlyThese(path.join(folder.dir, 'bin'), {
    'valkey-server': await redisProgram(path.join(folder.dir, 'redis')),
    setpriv: which('setpriv'),
    mount: which('mount'),
  });
  place = {
    cwd: checkout,
    env: environment({ PATH, HOME: home, TMPDIR: temporary, PORT: '0', LANG: 'tr_TR.UTF-8' }),
  };
  chmodSync(home, 0o700);
  if (mayMount) {
    const script = 'mount -t tmpfs -o ro,size=1m none "$HOME/.npm" && exec npm start';
    up = type(place, which('unshare') ?? 'unshare', '-m', 'sh', '-c', script);
  } else {
    if (!isRoot) chmodSync(path.join(home, '.npm'), 0o500);
    up = type(place, 'npm', 'start');
  }
});

afterAll(async () => {
  await up?.interrupt();
  killAll(folder.dir);
  folder[Symbol.dispose]();
});

/** A Redis that runs on this system: its own, or the one that this checkout has unpacked, with its libraries. */
async function redisProgram(at: string): Promise<string | undefined> {
  const found = await findRedis(redisBinaries);
  const { LD_LIBRARY_PATH: libraries } = found?.env ?? {};
  if (!found || !libraries) return found?.command;
  writeFileSync(at, `#!/bin/sh\nLD_LIBRARY_PATH='${libraries}' exec '${found.command}' "$@"\n`, { mode: 0o755 });
  return at;
}

const get = (at: string) =>
  fetch(new URL(at, page)).then(async (answer) => ({ ok: answer.ok, text: await answer.text() }));
const readOnly =
  mayMount || !isRoot ? 'an npm cache that cannot be written' : 'an empty npm cache (we may not mount)';

it('while the first npm start sets up, a second says so, and which it is', async () => {
  await up.says(/ packages …/);
  const second = await typed(place, 'npm', 'start');
  expect(second.said).toMatch(
    /^npm start runs already \(pid \d+\), and is still setting up: wait for it, or stop it/m,
  );
  expect(second.code).toBe(1);
});

it(`under a home that nobody else may enter, in a path of blanks, quotes and letters of all kinds, with ${readOnly}, a valkey-server, and neither apt-get, git, unzip, a compiler nor ps, npm start serves the page`, async () => {
  [, page = ''] = await up.says(/^dashboard: (http:\S+)/m);
  expect((await get('/')).text).toMatch(/sample/);
  expect(up.said()).toMatch(/^hour \S+ closed: \d+ users, \d+ calls$/m);
  expect(existsSync(path.join(checkout, '.local/npm-cache'))).toBe(mayMount || !isRoot);
});

it('a second npm start says where the first is, and leaves it alone', async () => {
  const second = await typed(place, 'npm', 'start');
  expect(second.said).toMatch(/^npm start runs already \(pid \d+\), see \S+, or stop it \(npm run stop\)\.$/m);
  expect(second.said).toContain(`see ${page},`);
  expect(second.code).toBe(1);
  expect((await get('/healthz')).ok).toBe(true);
});

it('npm ci under a running npm start takes nothing from it: the page, the board and a backfill go on', async () => {
  const again = type(place, 'npm', 'ci', '--cache', path.join(checkout, '.local/npm-cache'), '--prefer-offline');
  // It looks at all times, also while there are no packages.
  const answers: string[] = [];
  const looking = (async () => {
    for (let code: number | undefined; code === undefined; ) {
      code = await Promise.race([again.ends(), new Promise<undefined>((resolve) => setTimeout(resolve, 250))]);
      for (const at of ['/', '/healthz', '/readyz']) if (!(await get(at)).ok) answers.push(at);
    }
  })();
  expect(await again.ends(), again.said()).toBe(0);
  await looking;
  expect(answers).toEqual([]);
  const board = await get('/queues/');
  const [script = 'none'] = board.text.match(/static\/js\/main[^"]*/) ?? [];
  expect((await get(`/queues/${script}`)).ok).toBe(true);
  // What PostgreSQL reads from its own files at the moment of need: zones, and the language of the triggers.
  const { databaseUrl } = JSON.parse(readFileSync(path.join(checkout, '.local/servers.json'), 'utf8'));
  const client = new pg.Client({ connectionString: databaseUrl });
  await client.connect();
  await client.query("set timezone = 'Asia/Kolkata'; do $$ begin perform 1; end $$").finally(() => client.end());
  const hour = new Date(Date.now() - 3_600_000).toISOString().slice(0, 13);
  const next = new Date().toISOString().slice(0, 13);
  const backfill = await typed(
    place,
    process.execPath,
    'bin/hourhand.mjs',
    'backfill',
    '--from',
    hour,
    '--to',
    next,
    '--wait',
  );
  expect(backfill.code, backfill.said).toBe(0);
});

it('Ctrl-C ends it all, and nothing is left running or written outside the checkout', async () => {
  expect(await up.interrupt(), up.said()).toBe(0);
  expect(processesOf(folder.dir)).toEqual([]);
  expect(filesIn(temporary)).toEqual([]);
  const outside = filesIn(home).filter(
    (name) => !name.startsWith(path.basename(checkout)) && !name.startsWith('.npm/_cacache'),
  );
  expect(outside).toEqual(['.npm']);
});
