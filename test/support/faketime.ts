// Starts a PostgreSQL whose clock a test can move, while all other processes keep the true one: by libfaketime.

import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import pg from 'pg';
import { local, localOwn } from '../../scripts/servers.mjs';
import { migrations } from '../../src/config.ts';
import { migrate } from '../../src/store/migrate.ts';
import { ownServersIn } from './servers.ts';

const LIBRARY = 'libfaketime.so.1';
const unpacked = path.join(local, 'faketime');

/** The library, unpacked into the checkout; or why it cannot be had. */
export function findFaketime(): { library: string; missing?: never } | { library?: never; missing: string } {
  try {
    return { library: libraryIn('/usr/lib') ?? libraryIn(unpacked) ?? unpack() };
  } catch (error) {
    return { missing: `no libfaketime: ${error instanceof Error ? error.message : error}` };
  }
}

function libraryIn(folder: string): string | undefined {
  if (!existsSync(folder)) return undefined;
  const files = folder === unpacked ? readdirSync(folder, { recursive: true, encoding: 'utf8' }) : faketimeIn(folder);
  const found = files.find((name) => path.basename(name) === LIBRARY);
  return found && path.join(folder, found);
}

/** Where the package puts it, without a look through the whole system. */
const faketimeIn = (folder: string) =>
  readdirSync(folder)
    .map((name) => path.join(name, 'faketime', LIBRARY))
    .filter((name) => existsSync(path.join(folder, name)));

/** On Debian and Ubuntu, without root and without installing anything. */
function unpack(): string {
  const unfinished = `${unpacked}.${process.pid}`;
  mkdirSync(path.join(unfinished, 'partial'), { recursive: true });
  const must = (command: string, ...args: string[]) => {
    const { status, error, stderr } = spawnSync(command, args, {
      cwd: unfinished,
      encoding: 'utf8',
      timeout: 60_000,
    });
    if (status !== 0) throw new Error(`${command}: ${error?.message ?? stderr.trim().split('\n').at(-1)}`);
  };
  try {
    const settings = ['Debug::NoLocking=1', 'APT::Sandbox::User=', 'Acquire::http::Timeout=10', 'Acquire::Retries=1'];
    must('apt-get', ...settings.flatMap((setting) => ['-o', setting]), 'download', 'libfaketime');
    for (const file of readdirSync(unfinished).filter((name) => name.endsWith('.deb')))
      must('dpkg-deb', '-x', file, '.');
    rmSync(unpacked, { recursive: true, force: true });
    renameSync(unfinished, unpacked);
  } finally {
    rmSync(unfinished, { recursive: true, force: true });
  }
  const library = libraryIn(unpacked);
  if (!library) throw new Error(`${LIBRARY} is not in the package`);
  return library;
}

/**
 * Start a PostgreSQL whose clock can be moved while it runs.
 *
 * @param name of its directory, as of `ownServers`
 */
export async function startPostgresWithClock(library: string, name: string) {
  const dir = path.join(localOwn, name);
  mkdirSync(dir, { recursive: true });
  const file = path.join(dir, 'clock');
  const write = (seconds: number) => {
    writeFileSync(`${file}.new`, `${seconds < 0 ? '' : '+'}${seconds}\n`, { mode: 0o644 });
    renameSync(`${file}.new`, file); // whole, for whoever reads it at this moment
  };
  write(0);
  const server = await ownServersIn(
    {
      LD_PRELOAD: library,
      FAKETIME_TIMESTAMP_FILE: file,
      FAKETIME_NO_CACHE: '1',
      FAKETIME_DONT_FAKE_MONOTONIC: '1',
      FAKETIME_DISABLE_SHM: '1',
    },
    name,
    'postgres',
  );
  const serverUrl = server.env.DATABASE_URL ?? '';
  let offset = 0;
  return {
    /** Let the clock say this instant now; it goes on from there. */
    set(instant: string): void {
      offset = (new Date(instant).getTime() - Date.now()) / 1_000;
      write(offset);
    },
    /** Let the clock step by so many minutes. */
    step(minutes: number): void {
      offset += minutes * 60;
      write(offset);
    },
    /** A database with the schema in it, which goes with the server. */
    async database(): Promise<string> {
      const url = new URL(serverUrl);
      url.pathname = `/clock_${randomBytes(6).toString('hex')}`;
      const client = new pg.Client({ connectionString: serverUrl });
      await client.connect();
      await client.query(`create database ${url.pathname.slice(1)}`).finally(() => client.end());
      await migrate(url.href, migrations);
      return url.href;
    },
    [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
  };
}
