// Hours whose workers die, hang, or lose their locks, and jobs that nobody finds any more.

import { describe, expect, test } from 'vitest';
import { begun, ended, type Hourhand, h, holdUser, linesOf, startHourhand, until } from '../support/hourhand.ts';

const hour = h('2026-08-20T13');
const at = '2026-08-20T13:10:00Z';
/** A lock runs out after 15 s, and the job is looked for every 5: twice before somebody takes it over. */
const PATIENCE = 120_000;

describe.concurrent('an hour', () => {
  test("13: SIGKILL of the hour's worker right after the children were added: every shard once for that run", async () => {
    await using hourhand = await startHourhand();
    const { hours, users } = hourhand.queues;
    await hourhand.record(...['ada', 'bob', 'cyd'].map((user) => ({ user, at })));
    await users.pause();
    const killed = hourhand.broken({ FAULT: 'dies after children were added' }, 'worker');
    await hourhand.backfill(hour);
    expect(await ended(killed)).toBe('SIGKILL');
    const added = (await users.getJobs()).map((job) => job.id).sort();
    expect(added).toHaveLength(3);

    hourhand.spawn('worker');
    await until(
      () => hours.getWaitingChildrenCount(),
      (n) => n === 1,
      PATIENCE,
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
    const killed = hourhand.broken({ FAULT: 'dies after a run was allotted' }, 'worker');
    await hourhand.backfill(hour);
    expect(await ended(killed)).toBe('SIGKILL');
    expect(await hourhand.hour(hour)).toMatchObject({ state: 'running', run: 1 });

    hourhand.spawn('worker');
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
    hourhand.spawn('worker');
    await hourhand.backfill(hour);
    const partial = await until(
      () => hourhand.hour(hour),
      (row) => row?.state === 'partial',
      PATIENCE,
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
    await using hourhand = await startHourhand({ LOG_LEVEL: 'warn' });
    const { users } = hourhand.queues;
    await hourhand.record({ user: 'ada', at });
    const blocked = linesOf(hourhand.broken({ FAULT: 'blocks for long' }, 'worker'));
    await hourhand.backfill(hour);
    await until(
      () => hourhand.stat('ada', hour),
      (stat) => stat !== undefined,
    );

    hourhand.spawn('worker');
    await closes(hourhand);
    await hourhand.record({ user: 'ada', at });
    await hourhand.backfill(hour);
    await closes(hourhand, 2);
    expect(await hourhand.wrong()).toEqual([]);

    // It wakes, goes on where it was, and is refused.
    await until(
      async () => blocked.filter((line) => /lock/i.test(line)),
      (lines) => lines.length > 0,
      PATIENCE,
    );
    expect(Object.values(await begun(hourhand, users)).sort()).toEqual([1, 2]);
    expect(await hourhand.hour(hour)).toMatchObject({ state: 'closed', run: 2 });
    expect(await hourhand.wrong()).toEqual([]);
  });

  test("19: a running job's lock is deleted: the zombie is cancelled, and the rows are right", async () => {
    await using hourhand = await startHourhand({ LOG_LEVEL: 'warn', WORKER_CONCURRENCY: '1' });
    const { users } = hourhand.queues;
    await hourhand.record({ user: 'ada', at });
    await using held = await holdUser(hourhand, 'ada');
    const zombie = linesOf(hourhand.spawn('worker'));
    await hourhand.backfill(hour);
    const child = await activeChild(hourhand);
    hourhand.spawn('worker');
    await hourhand.redis.del(users.toKey(`${child}:lock`));
    await until(
      async () => ({ begun: (await begun(hourhand, users))[child], zombie }),
      (seen) => seen.begun === 2 && seen.zombie.some((line) => line.includes('Missing lock for job')),
      PATIENCE,
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
    let worker = hourhand.spawn('worker');
    await hourhand.backfill(hour);
    const child = await activeChild(hourhand);
    for (let kills = 1; kills <= 5; kills += 1) {
      worker.kill('SIGKILL');
      await ended(worker);
      // What 15 seconds would do, and the look of another worker.
      await hourhand.redis.del(users.toKey(`${child}:lock`));
      await hourhand.redis.sadd(users.toKey('stalled'), child);
      worker = hourhand.spawn('worker');
      await until(
        async () => (await begun(hourhand, users))[child],
        (times) => times === kills + 1,
        PATIENCE,
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
    hourhand.spawn('worker');
    await until(
      () => hours.getWorkersCount(),
      (n) => n === 1,
    );
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
    PATIENCE,
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
