// Hours whose workers die, hang, or lose their locks, and jobs that nobody finds any more.

import { describe, expect, test } from 'vitest';
import { begun, ended, type Hourhand, h, holdUser, startHourhand, until } from '../support/hourhand.ts';

const hour = h('2026-08-20T13');
const at = '2026-08-20T13:10:00Z';

describe.concurrent('an hour', () => {
  test("13: SIGKILL of the hour's worker right after the children were added: every shard once for that run", async () => {
    await using hourhand = await startHourhand();
    const { hours, users } = hourhand.queues;
    await hourhand.record(...['ada', 'bob', 'cyd'].map((user) => ({ user, at })));
    await users.pause();
    await hourhand.backfill(hour);
    await hourhand.dieOf('dies after children were added');
    const added = (await users.getJobs()).map((job) => job.id).sort();
    expect(added).toHaveLength(3);

    await hourhand.startWorker();
    await until(
      () => hours.getWaitingChildrenCount(),
      (n) => n === 1,
    );
    expect((await users.getJobs()).map((job) => job.id).sort()).toEqual(added);
    await users.resume();
    await closes(hourhand);
    expect(await hourhand.wrong()).toEqual([]);
    expect(await begun(hourhand, users)).toEqual(Object.fromEntries(added.map((id) => [id, 1])));
    expect((await hourhand.hour(hour))?.run).toBe(1);
  });

  test('14: SIGKILL right after the run was allotted: the run is burnt, and the next one closes the hour', async () => {
    await using hourhand = await startHourhand();
    await hourhand.record({ user: 'ada', at }, { user: 'bob', at });
    await hourhand.backfill(hour);
    await hourhand.dieOf('dies after a run was allotted');
    expect(await hourhand.hour(hour)).toMatchObject({ state: 'running', run: 1 });

    await hourhand.startWorker();
    await closes(hourhand);
    expect(await hourhand.wrong()).toEqual([]);
    expect((await hourhand.hour(hour))?.run).toBe(2);
    expect(Object.values(await begun(hourhand, hourhand.queues.users))).toEqual([1, 1]);
  });

  test("15: one user's child fails on every attempt: the hour is partial, that user named, all others stored; owed again after a back-off", async () => {
    await using hourhand = await startHourhand();
    await hourhand.pool.$executeRaw`create function refuse() returns trigger language plpgsql as $$
      begin raise exception 'no room for %', new."userDid" using errcode = '53100'; end $$`;
    await hourhand.pool.$executeRaw`create trigger refuse before insert on "ModelCallStat" for each row
      when (new."userDid" = 'eve') execute function refuse()`;
    await hourhand.record(...['ada', 'bob', 'eve'].map((user) => ({ user, at })));
    await hourhand.startWorker();
    await hourhand.backfill(hour);
    const partial = await until(
      () => hourhand.hour(hour),
      (row) => row?.state === 'partial',
    );
    expect(partial?.error).toBe('eve: no room for eve (53100)');
    expect(await hourhand.wrong()).toEqual(['eve 2026-08-20 13:00:00+00']);
    const [child] = await hourhand.queues.users.getFailed();
    expect(child?.attemptsMade).toBe(5);

    const again = partial?.nextAttemptAt ?? new Date(0);
    expect((await hourhand.tick(new Date(again.getTime() - 1))).enqueued).toEqual([]);
    await hourhand.pool.$executeRaw`drop trigger refuse on "ModelCallStat"`;
    await until(
      async () => {
        await hourhand.tick();
        return hourhand.state(hour);
      },
      (state) => state === 'closed',
    );
    expect(await hourhand.wrong()).toEqual([]);
    expect((await hourhand.hour(hour))?.run).toBe(2);
  });

  test("18: a worker's event loop is blocked for longer than its lock: two executions, right rows", async () => {
    await using hourhand = await startHourhand();
    const { users } = hourhand.queues;
    await hourhand.record({ user: 'ada', at });
    const { lines: blocked } = await hourhand.startWorker({ FAULT: 'blocks for long' });
    await hourhand.backfill(hour);
    await until(
      () => hourhand.stat('ada', hour),
      (stat) => stat !== undefined,
    );

    await hourhand.startWorker();
    await closes(hourhand);
    await hourhand.record({ user: 'ada', at });
    await hourhand.backfill(hour);
    await closes(hourhand, 2);
    expect(await hourhand.wrong()).toEqual([]);

    // It wakes, goes on where it was, and is refused.
    await until(
      async () => blocked.filter((line) => /lock/i.test(line)),
      (lines) => lines.length > 0,
    );
    expect(Object.values(await begun(hourhand, users)).sort()).toEqual([1, 2]);
    expect(await hourhand.hour(hour)).toMatchObject({ state: 'closed', run: 2 });
    expect(await hourhand.wrong()).toEqual([]);
  });

  test("19: a running job's lock is deleted: the zombie is cancelled, and the rows are right", async () => {
    await using hourhand = await startHourhand({ WORKER_CONCURRENCY: '1' });
    const { users } = hourhand.queues;
    await hourhand.record({ user: 'ada', at });
    await using held = await holdUser(hourhand, 'ada');
    const { lines: zombie } = await hourhand.startWorker();
    await hourhand.backfill(hour);
    const child = await activeChild(hourhand);
    await hourhand.startWorker();
    await hourhand.redis.del(users.toKey(`${child}:lock`));
    await until(
      async () => ({ begun: (await begun(hourhand, users))[child], zombie }),
      (seen) => seen.begun === 2 && seen.zombie.some((line) => line.includes('Missing lock for job')),
    );
    await held.release();
    await closes(hourhand);
    expect(await hourhand.wrong()).toEqual([]);
    expect((await hourhand.hour(hour))?.run).toBe(1);
  });

  test("20: SIGKILL of the same job's worker, five times: it completes", async () => {
    await using hourhand = await startHourhand({ WORKER_CONCURRENCY: '1' });
    const { users } = hourhand.queues;
    await hourhand.record({ user: 'ada', at });
    await using held = await holdUser(hourhand, 'ada');
    let worker = (await hourhand.startWorker()).child;
    await hourhand.backfill(hour);
    const child = await activeChild(hourhand);
    for (let kills = 1; kills <= 5; kills += 1) {
      worker.kill('SIGKILL');
      await ended(worker);
      // What 15 seconds would do, and the look of another worker.
      await hourhand.redis.del(users.toKey(`${child}:lock`));
      await hourhand.redis.sadd(users.toKey('stalled'), child);
      worker = (await hourhand.startWorker()).child;
      await until(
        async () => (await begun(hourhand, users))[child],
        (times) => times === kills + 1,
      );
    }
    await held.release();
    await closes(hourhand);
    expect(await hourhand.wrong()).toEqual([]);
    expect(
      await until(
        () => users.getJobState(child),
        (state) => state === 'completed',
      ),
    ).toBe('completed');
  });

  test('22: a waiting hour job is removed from its list, and its hash left: the watchdog frees the hour', async () => {
    await using hourhand = await startHourhand();
    const { hours } = hourhand.queues;
    await hourhand.startWorker();
    await hours.pause();
    await hourhand.record({ user: 'ada', at });
    await hourhand.cover(hour, hour);
    await hourhand.tick();
    const [job] = await hours.getJobs();
    for (const list of ['wait', 'paused']) await hourhand.redis.lrem(hours.toKey(list), 0, job?.id ?? '');
    expect(await job?.getState()).toBe('unknown');
    await hours.resume();
    await closes(hourhand);
    expect(await hourhand.wrong()).toEqual([]);
    expect(await hourhand.redis.exists(hours.toKey(job?.id ?? ''))).toBe(0);
  });
});

async function closes(hourhand: Hourhand, run?: number): Promise<void> {
  await until(
    () => hourhand.hour(hour),
    (row) => row?.state === 'closed' && (run === undefined || row.run === run),
  );
}

/** The hour's only child, once somebody is at it. */
async function activeChild({ queues }: Hourhand): Promise<string> {
  const [child] = await until(
    () => queues.users.getActive(),
    (active) => active.length === 1,
  );
  return child?.id ?? '';
}
