// How is each fault provoked? From outside: by signals, by the servers' own commands, and by what an operator may do.
// Each resolves to a word about what it met, or to nothing.
import { setTimeout as sleep } from 'node:timers/promises';
import { changeUser } from './calls.mjs';
import { HOUR_MS } from './traffic.mjs';
import { withPostgres, withRedis } from './world.mjs';

const nothing = 'met nothing';

const workers = {
  async 'kill -9'(world, { worker, hold }) {
    await world.workers[worker - 1].stop('SIGKILL');
    await sleep(hold);
    world.workers[worker - 1].start();
  },
  async terminate(world, { worker, hold }) {
    await world.workers[worker - 1].stop('SIGTERM');
    await sleep(hold);
    world.workers[worker - 1].start();
  },
  async freeze(world, { worker, hold }) {
    world.workers[worker - 1].signal('SIGSTOP');
    await sleep(hold);
    world.workers[worker - 1].signal('SIGCONT');
  },
};

const redis = {
  async 'kill -9'(world, { hold }) {
    await world.stopRedis();
    await sleep(hold);
    await world.startRedis();
  },
  flush: (world) => withRedis(world, (client) => client.flushall()),
  'cut off clients': (world, { times }) =>
    withRedis(world, async (client) => {
      for (let i = 0; i < times; i += 1) {
        await client.client('KILL', 'TYPE', 'normal', 'SKIPME', 'yes');
        await sleep(100);
      }
    }),
  'replica of nowhere': (world, { hold }) =>
    meanwhile(
      world,
      hold,
      (client) => client.replicaof('127.0.0.1', '1'),
      (client) => client.replicaof('NO', 'ONE'),
    ),
  'no memory': (world, { hold }) =>
    meanwhile(
      world,
      hold,
      (client) => client.config('SET', 'maxmemory', '1mb'),
      (client) => client.config('SET', 'maxmemory', '0'),
    ),
};

const meanwhile = (world, hold, begin, end) =>
  withRedis(world, async (client) => {
    await begin(client);
    await sleep(hold);
    await end(client);
  });

const postgres = {
  'immediate stop': (world, { hold }) => restarted(world, 'SIGQUIT', hold),
  'kill -9': (world, { hold }) => restarted(world, 'SIGKILL', hold),
  'terminate workers': (world) =>
    withPostgres(world, async (client) => {
      const { rowCount } = await client.query(
        `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'hourhand'`,
      );
      return `${rowCount} sessions`;
    }),
  'terminate some': (world, { times, which }) =>
    withPostgres(world, async (client) => {
      const { rows } = await client.query(
        `select pid, application_name from pg_stat_activity
          where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid() and application_name <> 'looker'
          order by backend_start`,
      );
      const some = Array.from({ length: times }, (_, i) => chosen(rows, (which + i / times) % 1)).filter(Boolean);
      for (const { pid } of some) await client.query('select pg_terminate_backend($1)', [pid]);
      return some.map((row) => row.application_name).join(', ');
    }),
};

async function restarted(world, how, hold) {
  await world.stopPostgres(how);
  await sleep(hold);
  await world.startPostgres();
}

const stragglers = {
  /**
   * A row that is about to be written waits, with figures that are changed meanwhile, until somebody has taken the mark of that change:
   * nobody can, as long as whoever writes rows of a bucket locks it.
   */
  overtaken: (world, { ago, user, hold, credits }) =>
    withPostgres(world, async (client) => {
      const [hour, row] = [new Date(hourOf(world, ago)), { user, hour: hourOf(world, ago), seconds: null }];
      await client.query('select pg_advisory_lock($1)', [GATE]);
      await straggle(world, row);
      await runAtOnce(world, ago);
      const waits = `select from pg_locks where locktype = 'advisory' and not granted and objid = $1 and objsubid = 1`;
      if (!(await seen(client, STRAGGLER_MS, waits, [GATE]))) return nothing;
      const changed = await changeUser(client, user, ago, credits, world.base);
      await atOnce(world.queues.marks, { hour: spellHour(world, ago) });
      const taken = `where not exists (select from "StatMark" where "userDid" = $1 and hour = $2)`;
      const overtaken = await seen(client, hold, `select ${taken}`, [user, hour]);
      return `${changed} calls${overtaken ? ', marks taken' : ''}`;
    }),
  'slow rows': straggle,
  'hold a bucket': (world, { ago, user, hold }) =>
    withPostgres(world, async (client) => {
      await client.query('select pg_advisory_lock($1, hashtext($2) & 63)', [
        Math.floor(hourOf(world, ago) / HOUR_MS),
        user,
      ]);
      await sleep(hold);
    }),
  'hold an hour': (world, { ago, hold }) =>
    withPostgres(world, async (client) => {
      await client.query('begin');
      await client.query('select from "StatHour" where hour = $1 for update', [new Date(hourOf(world, ago))]);
      await sleep(hold);
    }),
};

/** For so long an hour may wait for its turn. */
const STRAGGLER_MS = 20_000;
/** The lock that stragglers without seconds wait for. */
const GATE = 20_261_125;

/** Look until the query has a row, for at most `ms`. */
async function seen(client, ms, sql, values) {
  for (const deadline = Date.now() + ms; Date.now() < deadline; await sleep(50)) {
    if ((await client.query(sql, values)).rowCount > 0) return true;
  }
  return false;
}

async function straggle(world, { user, seconds, times = 1, hour }) {
  await withPostgres(world, (client) =>
    client.query(
      `insert into straggler ("userDid", seconds, hour) select $1, $2, $3 from generate_series(1, $4::int)`,
      [user, seconds, hour && new Date(hour), times],
    ),
  );
}

/** The next writes of some user's rows wait, after their figures were read. Made before anything is written; only its rows come and go. */
export const STRAGGLER = `
  create table straggler (id serial, "userDid" text, seconds int, hour timestamptz);
  create function straggle() returns trigger language plpgsql as $$
  declare wait int;
  begin
    delete from straggler where id = (select id from straggler where "userDid" = new."userDid"
      and coalesce(hour, new."timestamp") = new."timestamp" limit 1 for update skip locked) returning seconds into wait;
    if not found then return new; end if;
    if wait is null then perform pg_advisory_xact_lock_shared(${GATE}); else perform pg_sleep(wait); end if;
    return new;
  end $$;
  create trigger straggle before insert or update on "ModelCallStat" for each row execute function straggle()`;

const hourOf = ({ base }, ago) => base - ago * HOUR_MS;

/** The one that `which`, from 0 to 1, points at. */
const chosen = (list, which) => list[Math.min(list.length - 1, Math.floor(which * list.length))];

/** Look again and again, for a moment: what is to be met is there for milliseconds. */
async function met(which, look) {
  for (const deadline = Date.now() + 2_000; Date.now() < deadline; await sleep(5)) {
    const found = chosen(await look(), which);
    if (found !== undefined) return found;
  }
  return undefined;
}

const WAITING = ['waiting', 'prioritized', 'delayed', 'failed', 'waiting-children', 'completed'];

const jobs = {
  async 'delete a lock'(world, { queue, which }) {
    const job = await met(which, () => world.queues[queue].getActive());
    if (!job) return nothing;
    return withRedis(world, async (client) =>
      (await client.del(`${world.queues[queue].toKey(job.id)}:lock`)) ? job.name : nothing,
    );
  },
  async 'remove a job'(world, { queue, which }) {
    const job = await met(which, () => world.queues[queue].getJobs(WAITING, 0, 20));
    await job?.remove();
    return job?.name ?? nothing;
  },
  async 'remove a child'(world, { queue, which }) {
    const job = await met(which, () =>
      world.queues[queue].getJobs(['waiting', 'prioritized', 'delayed', 'active'], 0, 20),
    );
    await job?.remove();
    return job?.name ?? nothing;
  },
  async 'retry what failed'(world, { queue, which }) {
    const job = await met(which, () => world.queues[queue].getFailed(0, 20));
    await job?.retry('failed');
    return job?.name ?? nothing;
  },
  async 'run a child again'(world, { which }) {
    const job = await met(which, () => world.queues.users.getCompleted(0, 500));
    await job?.retry('completed');
    return job?.name ?? nothing;
  },
  async promote(world, { queue, which }) {
    const job = await met(which, () => world.queues[queue].getDelayed());
    await job?.promote();
    return job?.name ?? nothing;
  },
  async 'remove a scheduler'(world, { which }) {
    const [queue, id] = chosen(
      [
        ['ticks', 'model.call.stats'],
        ['lateTicks', 'late.model.calls'],
        ['staleTicks', 'cleanup.stale.model.calls'],
        ['modelTicks', 'check.model.status'],
        ['auditTicks', 'audit.model.call.stats'],
      ],
      which,
    );
    return (await world.queues[queue].removeJobScheduler(id)) ? id : nothing;
  },
  /** Its hash, and so its deduplication key, are left behind. */
  async orphan(world, { queue, which }) {
    const at = world.queues[queue];
    return withRedis(world, async (client) => {
      const job = await met(which, () => at.getJobs(['waiting', 'prioritized', 'delayed']));
      if (!job) return nothing;
      const removed = await Promise.all([
        client.lrem(at.toKey('wait'), 1, job.id),
        client.zrem(at.toKey('prioritized'), job.id),
        client.zrem(at.toKey('delayed'), job.id),
      ]);
      return removed.some(Boolean) ? `${job.id} ${job.name}` : nothing;
    });
  },
  async clean(world, { queue, state }) {
    return `${(await world.queues[queue].clean(0, 100, state)).length} jobs`;
  },
  drain: (world, { queue }) => world.queues[queue].drain(),
  /** A second job of an hour that is at work, as after a retry by hand. */
  'double an hour': (world, { ago }) => runAtOnce(world, ago),
};

/** Ask for an hour, and have it run before all others: by a job without a deduplication id, perhaps beside its own. */
async function runAtOnce(world, ago) {
  await world.backfill(between(world, ago, ago - 1));
  const data = { hour: spellHour(world, ago), step: 'allot', run: 0, backfilled: false, again: true };
  await atOnce(world.queues.hours, data);
}

const atOnce = (queue, data) => queue.add(`at once ${data.hour}`, data, { attempts: 5, lifo: true });

const spellHour = (world, ago) => new Date(hourOf(world, ago)).toISOString().slice(0, 13);

const operator = {
  async backfill(world, { from, to, only, times }) {
    const asked = Array.from({ length: times }, () => world.backfill(between(world, from, to), { only }));
    const requests = await Promise.all(asked);
    return `${requests.map(({ hours }) => hours.length).join(' and ')} hours`;
  },
  async 'backfill a user'(world, { from, to, user }) {
    return `${(await world.backfill(between(world, from, to), { user })).hours.length} hours`;
  },
};

const between = (world, from, to) => ({ start: new Date(hourOf(world, from)), end: new Date(hourOf(world, to)) });

const provoke = { workers, redis, postgres, stragglers, jobs, operator };

/** Provoke one fault to its end. A server that is away, for another fault's sake, is no reason to stop. */
export async function commit(world, { lane, kind, ...how }) {
  try {
    const word = await provoke[lane][kind](world, how);
    return typeof word === 'string' && word !== 'OK' ? word : '';
  } catch (error) {
    return `in vain: ${(error.message || error.code).trim().split('\n').at(-1)}`;
  }
}

/** Take back whatever a fault may have left: both servers run and take commands, every worker goes on. */
export async function restore(world) {
  await world.startRedis();
  await world.startPostgres();
  await withRedis(world, async (client) => {
    await client.replicaof('NO', 'ONE');
    await client.config('SET', 'maxmemory', '0');
  });
  await withPostgres(world, (client) => client.query('truncate straggler'));
  for (const worker of world.workers) worker.signal('SIGCONT');
}
