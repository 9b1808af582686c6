// Where are the private PostgreSQL and Redis of this checkout, and who uses them? They run until the last process that
// asked for them has released them. servers.json, readable by its owner alone, says where they are while they run.
import { randomBytes } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { lock } from './lock.mjs';
import { deletePostgres, postgresPid, startPostgres, stopPostgres } from './private-postgres.mjs';
import { redisProcess, startRedis, stopRedis } from './private-redis.mjs';
import { end, identify, lives, root } from './processes.mjs';

export { root };

/** `npm start` and `hourhand` use the servers of `.local`; tests have some of their own, whose data are thrown away. */
export const local = path.join(root, '.local');
export const localTest = path.join(local, 'test');
/** Whoever runs `npm start` holds it, and says there where the dashboard is. */
export const startLock = path.join(local, 'start.lock');
/** Tests that kill servers have some of their own, each in a folder of this. */
export const localOwn = path.join(localTest, 'own');
export const ownServersOfTests = () =>
  existsSync(localOwn) ? readdirSync(localOwn).map((name) => path.join(localOwn, name)) : [];
/** Redis, where the system has none; for both. */
export const redisBinaries = path.join(local, 'redis-binaries');

const homeOf = (dir, name) => path.join(dir, name);

function read(dir) {
  try {
    return JSON.parse(readFileSync(path.join(dir, 'servers.json'), 'utf8')) ?? {};
  } catch {
    return {};
  }
}

function write(dir, state) {
  const file = path.join(dir, 'servers.json');
  // With whose they are: in a copy of the checkout nobody believes the addresses.
  writeFileSync(`${file}.new`, `${JSON.stringify({ ...state, checkout: root }, null, 2)}\n`, { mode: 0o600 });
  renameSync(`${file}.new`, file); // whole or not at all, for whoever reads it meanwhile
}

/** Writes less than before, where there is room: what it says too much is of processes that are seen not to live. */
function forget(dir, state) {
  try {
    write(dir, state);
  } catch (error) {
    if (error.code !== 'ENOSPC') throw error;
  }
}

/** What runs in `dir` at this moment, and for which live processes; `pids` also of servers whose addresses nobody knows. */
export function runningServers(dir) {
  const { databaseUrl, redisUrl, users = [] } = read(dir);
  const postgres = postgresPid(homeOf(dir, 'postgres'));
  const redis = redisProcess(homeOf(dir, 'redis'))?.pid;
  return {
    databaseUrl: postgres && databaseUrl,
    redisUrl: redis && redisUrl,
    pids: { ...(postgres && { postgres }), ...(redis && { redis }) },
    users: users.filter(lives),
  };
}

/**
 * Starts the servers needed, or joins those that run already. Resolves to their addresses and to `release`, which stops
 * them when nobody else uses them any more. `database` is made with the data. `throwAway`: the data are for tests, fast
 * and not kept. `environment` adds to that of PostgreSQL.
 */
export async function startServers({
  dir,
  postgres = true,
  redis = true,
  database = 'postgres',
  throwAway = false,
  environment,
}) {
  return locked(dir, async () => {
    const { databaseUrl, redisUrl, users: others } = runningServers(dir);
    if (throwAway && others.length === 0) await stopAll(dir, throwAway); // left over from a killed run
    const me = identify(process.pid);
    const state = { ...read(dir), databaseUrl, redisUrl, users: [...others, me] };
    write(dir, state);
    const start = async (name, starter, options) => {
      const known = state[name]?.password;
      const password = known ?? randomBytes(24).toString('base64url');
      const home = homeOf(dir, name);
      const server = await starter({
        home,
        port: state[name]?.port,
        password,
        passwordIsNew: !known,
        throwAway,
        ...options,
      });
      // Remembered only now that the server has it: killed before this line, the next start sets another.
      state[name] = { ...server, password };
    };
    const results = await Promise.allSettled([
      postgres && start('postgres', startPostgres, { database, environment }),
      redis && start('redis', startRedis, { binaries: redisBinaries }),
    ]);
    const at = (name) => `${state[name].password}@127.0.0.1:${state[name].port}`;
    const [ofPostgres, ofRedis] = results.map(({ status }) => status === 'fulfilled');
    // Without TLS, whatever PGSSLMODE says of other servers.
    if (postgres && ofPostgres)
      state.databaseUrl = `postgresql://hourhand:${at('postgres')}/${database}?sslmode=disable`;
    if (redis && ofRedis) state.redisUrl = `redis://:${at('redis')}`;
    const servers = [postgres && ofPostgres && 'postgres', redis && ofRedis && 'redis']
      .filter(Boolean)
      .map((name) => identify(state[name].pid));
    try {
      write(dir, state);
      const failed = results.find(({ status }) => status === 'rejected');
      if (failed) throw failed.reason;
    } catch (error) {
      await leave(dir, me, throwAway, servers);
      throw error;
    }
    return {
      databaseUrl: postgres ? state.databaseUrl : undefined,
      redisUrl: redis ? state.redisUrl : undefined,
      release: () => locked(dir, () => leave(dir, me, throwAway, servers)),
    };
  });
}

/** Stops what runs in `dir`, whoever uses it; `throwAway`: and deletes its data. */
export const stopServers = (dir, throwAway = false) => locked(dir, () => stopAll(dir, throwAway));

async function locked(dir, work) {
  const unlock = await lock(path.join(dir, 'servers.lock'));
  try {
    return await work();
  } finally {
    unlock();
  }
}

async function leave(dir, me, throwAway, servers) {
  const state = read(dir);
  const users = (state.users ?? []).filter((user) => lives(user) && user.pid !== me.pid);
  if (users.length === 0) await stopAll(dir, throwAway);
  else forget(dir, { ...state, users });
  // Somebody deleted .local, and with it what was written down of them.
  const known = Object.values(runningServers(dir).pids);
  for (const server of servers.filter((one) => lives(one) && !known.includes(one.pid))) {
    await end(server, ['SIGINT', 2_000]);
  }
}

async function stopAll(dir, throwAway) {
  await Promise.all([stopPostgres(homeOf(dir, 'postgres')), stopRedis(homeOf(dir, 'redis'))]);
  // The addresses go, so that nobody believes them; ports and passwords stay, so that they are the same next time.
  const { postgres, redis } = read(dir);
  if (postgres || redis) forget(dir, { postgres, redis });
  if (!throwAway) return;
  await deletePostgres(homeOf(dir, 'postgres'));
  rmSync(homeOf(dir, 'redis'), { recursive: true, force: true });
}
