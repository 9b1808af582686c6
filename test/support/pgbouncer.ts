// A real PgBouncer for tests: Debian's, unpacked into the checkout and started for one test.

import { type ChildProcess, spawn } from 'node:child_process';
import { chmodSync, chownSync, cpSync, existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect as connectTo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { librariesIn, unpackPackages } from '../../scripts/debian.mjs';
import { lock } from '../../scripts/lock.mjs';
import { freePort } from '../../scripts/ports.mjs';
import { run } from '../../scripts/processes.mjs';
import { local } from '../../scripts/servers.mjs';
import { ended, linesOf, until } from './hourhand.ts';
import { at } from './pooler.ts';

const binaries = path.join(local, 'pgbouncer-binaries');
const program = path.join(binaries, 'usr/sbin/pgbouncer');
const env = () => ({ ...process.env, LD_LIBRARY_PATH: librariesIn(binaries) });

/** Unpack PgBouncer unless it is there. @returns its version, or why there is none */
export async function findPgBouncer(): Promise<{ version: string } | { none: string }> {
  const unlock = await lock(path.join(local, 'pgbouncer.lock'));
  try {
    if (!existsSync(program)) await unpackPackages(binaries, [['pgbouncer']]);
    const { code, output } = await run([program, '--version'], { env: env() });
    const version = /PgBouncer (\d+\.\d+)/.exec(output)?.[1];
    return code === 0 && version ? { version } : { none: `it does not run: ${output.trim().split('\n')[0]}` };
  } catch (error) {
    return { none: (error instanceof Error ? error.message : String(error)).replaceAll(/\s+/g, ' ') };
  } finally {
    unlock();
  }
}

/** The number of "nobody", who may run what root may not. */
const NOBODY = 65_534;

/**
 * Start a PgBouncer before the server of this URL, with its user and password.
 *
 * @param mode of its pool: `session` or `transaction`
 */
export async function startPgBouncer(databaseUrl: string, mode: 'session' | 'transaction') {
  const url = new URL(databaseUrl);
  const port = await freePort();
  // A folder that everybody may read: PgBouncer refuses to run as root, and the checkout may be closed to others.
  const folder = mkdtempSync(path.join(tmpdir(), 'pgbouncer-'));
  chmodSync(folder, 0o755);
  cpSync(binaries, path.join(folder, 'program'), { recursive: true });
  const users = path.join(folder, 'users.txt');
  const settings = path.join(folder, 'pgbouncer.ini');
  writeFileSync(users, `"${url.username}" "${decodeURIComponent(url.password)}"\n`);
  writeFileSync(
    settings,
    `[databases]
* = host=${url.hostname} port=${url.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = plain
auth_file = ${users}
pool_mode = ${mode}
ignore_startup_parameters = extra_float_digits,options
max_client_conn = 500
default_pool_size = ${mode === 'session' ? 60 : 12}
server_tls_sslmode = disable
`,
  );
  const isRoot = process.getuid?.() === 0;
  if (isRoot) for (const file of [folder, users, settings]) chownSync(file, NOBODY, NOBODY);
  const child = spawn(path.join(folder, 'program/usr/sbin/pgbouncer'), [settings], {
    env: { ...process.env, LD_LIBRARY_PATH: librariesIn(path.join(folder, 'program')) },
    stdio: ['ignore', 'pipe', 'pipe'],
    ...(isRoot ? { uid: NOBODY, gid: NOBODY } : {}),
  });
  const lines = linesOf(child);
  await until(
    () => listens(port),
    (seen) => {
      if (hasEnded(child)) throw new Error(`PgBouncer did not start: ${lines.join('\n')}`);
      return seen;
    },
  );
  return {
    url: at(databaseUrl, port),
    async [Symbol.asyncDispose](): Promise<void> {
      child.kill('SIGKILL');
      await ended(child);
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

const hasEnded = ({ exitCode, signalCode }: ChildProcess) => exitCode !== null || signalCode !== null;

const listens = (port: number) =>
  new Promise<boolean>((resolve) => {
    const socket = connectTo(port, '127.0.0.1');
    socket.once('connect', () => resolve(true)).once('error', () => resolve(false));
    socket.once('connect', () => socket.destroy());
  });
