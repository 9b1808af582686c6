// Closed hours are recounted in rotation; what no mark tells of is found, said and repaired, and what changed is kept.

import { describe, expect, test } from 'vitest';
import { hoursToAudit } from '../src/store/audit.ts';
import { forgetChanges } from '../src/store/changes.ts';
import { Sql } from '../src/store/db.ts';
import { startOf } from '../src/time/hour.ts';
import { audited, h, startHourhand, threeHours, until } from './support/hourhand.ts';

const hour = h('2026-08-20T13');
const at = '2026-08-20T13:10:00Z';
const span = ['--from', '2026-08-20T13', '--to', '2026-08-20T14'];
const difference = 'audit: stored figures are not what the calls add up to';

describe('an audit', () => {
  test('finds what came past the triggers, says it in the log, on the job and in the status, and repairs the hour', async () => {
    await using hourhand = await threeHours({ AUDIT_WITHIN_DAYS: '1' });
    await hourhand.silently(
      Sql.sql`update "ModelCall" set credits = 2 where "userDid" = 'ada' and "callTime" = ${new Date(at)}`,
    );
    const found = '1 user-hours differ: ada: totalCredits: stored 0.00000001, counted 2.00000000;';
    const job = await audited(hourhand);
    expect(job.returnvalue).toMatchObject({ differing: 1 });
    expect((await hourhand.queues.audits.getJobLogs(job.id ?? '')).logs[0]).toContain(`2026-08-20T13: ${found}`);
    expect(hourhand.logged.filter(({ msg }) => msg === difference)).toMatchObject([
      { level: 50, hour, users: 1, found: expect.stringContaining(found) },
    ]);
    await until(
      () => hourhand.hour(hour),
      (row) => row?.run === 2 && row.state === 'closed',
    );
    expect(await hourhand.wrong()).toEqual([]);
    expect(await hourhand.pool.statChange.findMany()).toMatchObject([
      { userDid: 'ada', revision: 2, reason: 'repair' },
    ]);

    const status = await hourhand.run(['status']);
    expect(status.stdout).toMatch(/^audit +2026-08-20T13 at 20\S+Z: 1 user-hours differ: ada: .*; repaired since$/m);
    expect(status.stdout).toMatch(/^audited +every closed hour since 20/m);
    const { audit } = JSON.parse((await hourhand.run(['status', '--json'])).stdout);
    expect(audit.findings).toMatchObject([{ hour, repaired: true }]);

    // Looked at again before all others, it is found right.
    expect((await hoursToAudit(hourhand.pool, 1_000))[0]).toBe(hour);
    expect((await audited(hourhand)).returnvalue).toMatchObject({ differing: 0 });
    expect(JSON.parse((await hourhand.run(['status', '--json'])).stdout).audit.findings).toEqual([]);
  });

  test('finds that the calls were truncated, or rows meddled with', async () => {
    await using hourhand = await threeHours({ AUDIT_WITHIN_DAYS: '1' });
    await hourhand.pool.$executeRaw`delete from "ModelCallStat" where "userDid" = 'bob'`;
    await hourhand.pool.$executeRaw`truncate "ModelCall"`;
    expect((await audited(hourhand)).returnvalue).toMatchObject({ differing: 3 });
    await until(
      () => hourhand.pool.modelCallStat.count(),
      (n) => n === 0,
    );
    // What the figures were is known.
    expect(await hourhand.pool.statChange.count({ where: { reason: 'repair' } })).toBe(3);
  });

  test('passes over what a mark tells of, and hours that are not closed, not settled, or sealed', async () => {
    await using hourhand = await threeHours({ AUDIT_WITHIN_DAYS: '1' });
    await hourhand.silently(Sql.sql`update "ModelCall" set credits = 3 where "userDid" = 'ada'`);
    await hourhand.queues.marks.pause(); // nobody takes the marks
    await hourhand.pool.$executeRaw`
      insert into "StatMark" (hour, "userDid", reason) select hour, 'ada', 'late' from "StatHour" where hour = ${startOf(hour)}`;
    await hourhand.pool
      .$executeRaw`update "StatHour" set fence = 1000000000000 where hour = ${startOf(h('2026-08-20T14'))}`;
    await hourhand.pool
      .$executeRaw`update "StatHour" set "sealedAt" = now() where hour = ${startOf(h('2026-08-20T15'))}`;
    expect((await audited(hourhand)).returnvalue).toMatchObject({ differing: 0 });
    expect(hourhand.logged.filter(({ msg }) => msg === difference)).toEqual([]);
  });

  test('sees every closed hour within so many of its kind, those that none has seen first', async () => {
    await using hourhand = await startHourhand();
    await hourhand.pool.$executeRaw`
      insert into "StatHour" (hour, state, run, reason, "closedAt", fence, "auditedAt")
      select h, 'closed', 1, 'tick', now(), 0, case when h < '2026-08-22Z' then h + interval '1 day' end
        from generate_series(timestamptz '2026-08-20Z', '2026-08-23 23:00Z', interval '1 hour') h`;
    expect(await hoursToAudit(hourhand.pool, 8)).toEqual(
      Array.from({ length: 13 }, (_, i) => `2026-08-22T${String(i).padStart(2, '0')}`),
    );
    const seen = new Set<string>();
    for (let audit = 0; audit < 8; audit += 1) {
      for (const hour of await hoursToAudit(hourhand.pool, 8)) {
        seen.add(hour);
        await hourhand.pool.$executeRaw`update "StatHour" set "auditedAt" = now() where hour = ${startOf(hour)}`;
      }
    }
    expect(seen.size).toBe(96);
  });
});

describe('what changed in a closed hour', () => {
  test('is told by how much and why, to people and to machines, and kept for so many days', async () => {
    await using hourhand = await threeHours({ AUDIT_WITHIN_DAYS: '1' });
    await hourhand.record({ user: 'ada', at, credits: '0.5', tokens: 9007199254740993n });
    await hourhand.pool.$executeRaw`delete from "ModelCall" where "userDid" = 'bob' and "callTime" = ${new Date(at)}`;
    await hourhand.tick();
    await until(
      () => hourhand.pool.statChange.count(),
      (n) => n === 2,
    );
    const { stdout } = await hourhand.run(['changes', ...span, '--format', 'json']);
    expect(JSON.parse(stdout)).toMatchObject([
      {
        hour: '2026-08-20T13:00:00Z',
        user_did: 'ada',
        revision: 2,
        reason: 'late',
        at: expect.stringMatching(/^20.*Z$/),
        figures: expect.arrayContaining([
          { figure: 'totalUsage', before: '10', after: '9007199254741003', by: '9007199254740993' },
          { figure: 'totalCredits', before: '0.00000001', after: '0.50000001', by: '0.50000000' },
        ]),
      },
      {
        user_did: 'bob',
        figures: expect.arrayContaining([{ figure: 'totalCalls', before: '1', after: '0', by: '-1' }]),
      },
    ]);
    const table = (await hourhand.run(['changes', ...span])).stdout;
    expect(table).toMatch(/│ 2026-08-20T13:00:00Z │ ada +│ 2 +│ late +│/);
    expect(table).toContain('totalCalls: 1 → 2 (+1)');
    expect(table).toContain('totalCalls: 1 → 0 (-1)');
    await forgetChanges(hourhand.pool, 400);
    expect(await hourhand.pool.statChange.count()).toBe(2);
    await forgetChanges(hourhand.pool, 400, new Date(Date.now() + 401 * 86_400_000));
    expect(await hourhand.pool.statChange.count()).toBe(0);
  });
});
