// How is each fault provoked? From outside: by signals, by the servers' own commands, and by what an operator may do.
// Each resolves to a word about what it met, or to nothing.
import { setTimeout as sleep } from 'node:timers/promises';
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
  'slow rows': (world, { user, seconds, times }) =>
    withPostgres(world, async (client) => {
      await client.query(
        `insert into straggler ("userDid", seconds) select $1, $2 from generate_series(1, $3::int)`,
        [user, seconds, times],
      );
    }),
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

/**
 * The next writes of some user's rows take seconds, after their figures were read. Made before anything is written; only the rows of
 * `straggler` come and go.
 */
export const STRAGGLER = `
  create table straggler (id serial, "userDid" text, seconds int);
  create function straggle() returns trigger language plpgsql as $$
  declare wait int;
  begin
    delete from straggler where id = (select id from straggler where "userDid" = new."userDid" limit 1 for update skip locked)
      returning seconds into wait;
    if wait is not null then perform pg_sleep(wait); end if;
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
  /** A second job of an hour that may be at work: without its deduplication id, as after a retry by hand. */
  async 'double an hour'(world, { ago }) {
    const hour = new Date(hourOf(world, ago)).toISOString().slice(0, 13);
    const data = { hour, step: 'allot', run: 0, backfilled: false, again: true };
    await withPostgres(world, (client) =>
      client.query(
        `update "StatHour" set wanted = run + 1, state = case when state = 'running' then state else 'open' end where hour = $1`,
        [new Date(hourOf(world, ago))],
      ),
    );
    await world.queues.hours.addBulk([1, 2].map(() => ({ name: `hour ${hour}`, data, opts: { attempts: 5 } })));
  },
};

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
