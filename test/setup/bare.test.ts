// What a bare checkout says within a moment, before anything long is begun.
import { existsSync, lchownSync, lstatSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { bareCheckout } from './support/checkout.ts';
import {
  environment,
  isRoot,
  mayMount,
  onlyThese,
  type Place,
  temporaryFolder,
  typed,
  which,
} from './support/machine.ts';

const folder = temporaryFolder();
const checkout = path.join(folder.dir, 'hourhand');
const stranger = 30_000 + (process.pid % 30_000);
let place: Place;

beforeAll(() => {
  bareCheckout(checkout);
  const PATH = onlyThese(path.join(folder.dir, 'bin'), { 'redis-server': process.execPath });
  mkdirSync(path.join(folder.dir, 'home'));
  place = { cwd: checkout, env: environment({ PATH, HOME: path.join(folder.dir, 'home') }) };
});

afterAll(() => folder[Symbol.dispose]());

const start = (env: NodeJS.ProcessEnv, more: Partial<Place> = {}) =>
  typed({ ...place, ...more, env: { ...place.env, ...env } }, 'npm', 'start');

/** It ended with 1, at once, said no stack, and left the checkout as it was. */
function refused({ code, said, ms }: Awaited<ReturnType<typeof typed>>, words: RegExp) {
  expect(said).toMatch(words);
  expect(said).not.toMatch(/^ +at /m);
  expect(code).toBe(1);
  expect(ms).toBeLessThan(10_000); // a second, where nothing else runs
  expect(existsSync(path.join(checkout, 'node_modules'))).toBe(false);
  expect(lstatSync(path.join(checkout, '.local/start.lock'), { throwIfNoEntry: false })).toBe(undefined);
}

it('a PORT that is taken is said with what to type', async () => {
  const other = net.createServer();
  const port = await new Promise<number>((resolve) =>
    other.listen(0, '127.0.0.1', () => resolve((other.address() as net.AddressInfo).port)),
  );
  try {
    refused(
      await start({ PORT: String(port) }),
      new RegExp(`^PORT ${port} is taken on 127.0.0.1: free it, or type PORT=\\d+ npm start`, 'm'),
    );
  } finally {
    other.close();
  }
});

it('a PORT that is none, and a HOST of another machine, are said', async () => {
  refused(await start({ PORT: 'abc' }), /^PORT: expected a whole number from 0 to 65535, got "abc"$/m);
  refused(await start({ PORT: '70000' }), /^PORT: expected a whole number from 0 to 65535, got "70000"$/m);
  refused(await start({ PORT: '0', HOST: '192.0.2.1' }), /^HOST 192\.0\.2\.1 is no address of this machine/m);
});

it('without a Redis, a Valkey and apt-get, one sentence says what to type', async () => {
  const PATH = onlyThese(path.join(folder.dir, 'no-redis'));
  refused(
    await start({ PATH, PORT: '0' }),
    /^No redis-server or valkey-server is on the PATH: install .*brew install redis.* or set REDIS_URL .*$/m,
  );
});

it('stop and reset have nothing to do, and make nothing', async () => {
  const fresh = bareCheckout(path.join(folder.dir, 'fresh'));
  const before = readdirSync(fresh);
  const stop = await typed({ ...place, cwd: fresh }, 'npm', 'run', 'stop');
  const reset = await typed({ ...place, cwd: fresh }, 'npm', 'run', 'reset');
  expect([stop.code, reset.code]).toEqual([0, 0]);
  expect(stop.said).toMatch(/^Nothing was running\.$/m);
  expect(reset.said).toMatch(/^The private servers hold nothing: there is nothing to empty\.$/m);
  expect(readdirSync(fresh)).toEqual(before);
});

it.skipIf(!isRoot)(
  'a checkout of somebody else is said, with whose it is (skipped where we are not root)',
  async () => {
    const said = await start({ PORT: '0' }, { uid: stranger, gid: stranger });
    refused(
      said,
      new RegExp(`hourhand/?\\S* belongs to another user \\(0\\), and user ${stranger} may not write there`),
    );
    expect(said.said).toContain(`sudo chown -R ${stranger} '${checkout}`);
  },
);

it.skipIf(!isRoot)(
  'a start of root before is said to whoever starts afterwards (skipped where we are not root)',
  async () => {
    const theirs = bareCheckout(path.join(folder.dir, 'theirs'));
    mkdirSync(path.join(theirs, '.local'));
    writeFileSync(path.join(theirs, '.local/stamps.json'), '{}'); // root's
    for (const name of ['.', '.local']) lchownSync(path.join(theirs, name), stranger, stranger);
    refused(
      await start({ PORT: '0' }, { cwd: theirs, uid: stranger, gid: stranger }),
      /\.local\/stamps\.json belongs to another user \(0\)/,
    );
  },
);

it.skipIf(!mayMount)('a file system that is read-only is said (skipped where we may not mount)', async () => {
  const script = 'mount --bind . . && mount -o remount,bind,ro . && cd "$PWD" && exec npm start';
  const PATH = onlyThese(path.join(folder.dir, 'mount'), { mount: which('mount'), 'redis-server': process.execPath });
  const env = { ...place.env, PATH, PORT: '0' };
  refused(
    await typed({ ...place, env }, which('unshare') ?? 'unshare', '-m', 'sh', '-c', script),
    /hourhand\S* cannot be written, its file system is read-only/,
  );
});

it.skipIf(!mayMount)('a full disk is said, with how much is free (skipped where we may not mount)', async () => {
  const disk = path.join(folder.dir, 'disk');
  mkdirSync(disk);
  const script = `mount -t tmpfs -o size=30m none "${disk}" && cp -r . "${disk}/hourhand" && cd "${disk}/hourhand" && exec npm start`;
  const PATH = onlyThese(path.join(folder.dir, 'cp'), {
    mount: which('mount'),
    cp: which('cp'),
    'redis-server': process.execPath,
  });
  refused(
    await typed(
      { ...place, env: { ...place.env, PATH, PORT: '0' } },
      which('unshare') ?? 'unshare',
      '-m',
      'sh',
      '-c',
      script,
    ),
    /^The disk is full: the packages need about 1000 MB in \S+, and \d+ MB are free\. Make room, then do this again\.$/m,
  );
});

it('a folder in whose name PostgreSQL would stumble is said', async () => {
  const odd = bareCheckout(path.join(folder.dir, 'a $mall one'));
  refused(await start({ PORT: '0' }, { cwd: odd }), /^PostgreSQL does not run where a folder's name has "\$" in it/m);
});

it('a checkout is reached through a symbolic link as well', async () => {
  symlinkSync(checkout, path.join(folder.dir, 'link'));
  refused(await start({ PORT: 'abc' }, { cwd: path.join(folder.dir, 'link') }), /^PORT: expected/m);
});
