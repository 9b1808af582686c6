// How images are counted, and what becomes of hours that version 0.6.0 counted otherwise.

import { cpSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import pg from 'pg';
import { describe, expect, test } from 'vitest';
import { migrations } from '../src/config.ts';
import { closeHour } from '../src/store/ledger.ts';
import { migrate } from '../src/store/migrate.ts';
import { removeCalls } from '../src/store/retain.ts';
import { sealHour } from '../src/store/seal.ts';
import { differences, rollUp } from '../src/store/stats.ts';
import { endOf, type Hour, startOf } from '../src/time/hour.ts';
import { createDatabase } from './support/database.ts';
import { audited, closedHour, type Hourhand, h, startHourhand, until } from './support/hourhand.ts';

const hour = h('2026-08-20T13');
const at = '2026-08-20T13:10:00Z';
const span = ['--from', '2026-08-20T13', '--to', '2026-08-20T15'];
const image = { at, type: 'imageGeneration' };

/** `usageMetrics` as a gateway may spell it, and the images of a successful call that says so. */
const spelled: [string | null, number][] = [
  ['{"numberOfImages": 4}', 4],
  ['{"numberOfImages": 4.0}', 4],
  ['{"numberOfImages": 4.000000}', 4],
  ['{"numberOfImages": 4e0}', 4],
  ['{"numberOfImages": 40e-1}', 4],
  ['{"numberOfImages": 0.4e1}', 4],
  ['{"numberOfImages": 0}', 0],
  ['{"numberOfImages": -0.0}', 0],
  ['{"numberOfImages": 0e-400}', 0],
  ['{"numberOfImages": 999999999}', 999_999_999],
  ['{"numberOfImages": 999999999.0}', 999_999_999],
  ['{"numberOfImages": 1e3}', 1_000],
  ['{"numberOfImages": "4"}', 4],
  ['{"numberOfImages": "004"}', 4],
  // Whatever is no such number is as if nothing were said.
  ['{"numberOfImages": 1000000000}', 1],
  ['{"numberOfImages": 1000000000.0}', 1],
  ['{"numberOfImages": 2.5}', 1],
  ['{"numberOfImages": 4.0000000001}', 1],
  ['{"numberOfImages": -3}', 1],
  ['{"numberOfImages": -3.0}', 1],
  ['{"numberOfImages": 1e300}', 1],
  ['{"numberOfImages": 1e130000}', 1],
  ['{"numberOfImages": 1e-400}', 1],
  ['{"numberOfImages": "4.0"}', 1],
  ['{"numberOfImages": "4e0"}', 1],
  ['{"numberOfImages": " 4"}', 1],
  ['{"numberOfImages": "4\\n"}', 1],
  ['{"numberOfImages": "٤"}', 1],
  ['{"numberOfImages": ""}', 1],
  ['{"numberOfImages": "many"}', 1],
  ['{"numberOfImages": true}', 1],
  ['{"numberOfImages": null}', 1],
  ['{"numberOfImages": [4]}', 1],
  ['{"numberOfImages": [4.0]}', 1],
  ['{"numberOfImages": {"n": 4}}', 1],
  ['{"images": 4}', 1],
  ['[4]', 1],
  ['"4"', 1],
  ['4', 1],
  ['null', 1],
  [null, 1],
];

test.each(['', 'tr-TR'])(
  'a number of images is read as a number, however it is spelled (locale: "%s")',
  async (locale) => {
    await using hourhand = await startHourhand({}, { locale });
    for (const [i, [metrics]] of spelled.entries()) {
      for (const status of ['success', 'failed']) {
        await hourhand.record({ ...image, user: `${status} ${i}`, id: `${status} ${i}`, status });
        await say(hourhand, `${status} ${i}`, metrics);
      }
    }
    await hourhand.work();
    await hourhand.backfill(hour);
    await hourhand.reaches(hour, 'closed');

    const rows = await hourhand.pool.modelCallStat.findMany();
    const counted = new Map(rows.map((row) => [row.userDid, Number(row.imageGenerations)]));
    for (const [i, [metrics, images]] of spelled.entries()) {
      expect([metrics, counted.get(`success ${i}`)]).toEqual([metrics, images]);
      // A failed call that does not say made none.
      const failed = images === 1 ? 0 : images;
      expect([metrics, counted.get(`failed ${i}`)]).toEqual([metrics, failed]);
    }
    expect(await differing(hourhand)).toEqual([]);
  },
);

test('a number that is only spelled otherwise changes no figure, and leaves no mark', async () => {
  await using hourhand = await closedHour(hour, [{ ...image, user: 'ada', id: 'a', metrics: { numberOfImages: 4 } }]);
  for (const metrics of ['{"numberOfImages": 4.0}', '{"numberOfImages": 4.00}', '{"numberOfImages": 4e0}']) {
    await say(hourhand, 'a', metrics);
    expect(await hourhand.pool.statMark.count()).toBe(0);
    expect(await differing(hourhand)).toEqual([]);
  }
  expect((await hourhand.run(['verify', ...span.slice(0, 3), '2026-08-20T14'])).code).toBe(0);
});

describe('in a database of version 0.6.0, the hours that were counted by its formula', () => {
  test('stay right as they are until they are rolled up again, each user by itself or the whole hour', async () => {
    await using old = await databaseOf060();
    await using hourhand = await startHourhand({ DATABASE_URL: old.url, AUDIT_WITHIN_DAYS: '1' });
    await hourhand.work();
    expect((await audited(hourhand)).returnvalue).toMatchObject({ differing: 0 });
    const verified = await hourhand.run(['verify', ...span]);
    expect([verified.code, verified.stdout]).toEqual([0, '2026-08-20T14 sealed\n']);
    expect(await images(hourhand, hour)).toEqual({ ada: 1, bob: 1 });

    await hourhand.backfillUser('ada', hour);
    await until(
      () => images(hourhand, hour),
      (counted) => counted.ada === 4,
    );
    // An hour with both formulas: neither of its rows is wrong.
    expect(await images(hourhand, hour)).toEqual({ ada: 4, bob: 1 });
    expect((await audited(hourhand)).returnvalue).toMatchObject({ differing: 0 });
    expect((await hourhand.run(['verify', ...span])).code).toBe(0);

    await hourhand.backfill(hour);
    await until(
      () => hourhand.hour(hour),
      (row) => row?.run === 2 && row.state === 'closed',
    );
    expect(await images(hourhand, hour)).toEqual({ ada: 4, bob: 4 });
    expect(await differing(hourhand)).toEqual([]);

    // Now the former figure is wrong.
    await meddle(hourhand, hour, 1);
    expect(await differing(hourhand)).toEqual([
      'ada: imageGenerations: stored 1, counted 4',
      'bob: imageGenerations: stored 1, counted 4',
    ]);
  });

  test('are found wrong if their figures are right by neither formula', async () => {
    await using old = await databaseOf060();
    await using hourhand = await startHourhand({ DATABASE_URL: old.url });
    await meddle(hourhand, hour, 2);
    expect(await differing(hourhand)).toEqual([
      'ada: imageGenerations: stored 2, counted 4',
      'bob: imageGenerations: stored 2, counted 4',
    ]);
  });

  test('are sealed as they are, and none of their calls came late', async () => {
    await using old = await databaseOf060();
    await using hourhand = await startHourhand({ DATABASE_URL: old.url });
    expect(await sealHour(hourhand.pool, hour)).toEqual({ outcome: 'sealed' });
    // The second was sealed by 0.6.0.
    for (const sealed of [hour, h('2026-08-20T14')]) {
      expect(await removeCalls(hourhand.pool, sealed, 1_000)).toEqual({ calls: 2, late: { calls: 0, users: [] } });
      expect(await images(hourhand, sealed)).toEqual({ ada: 1, bob: 1 });
    }
  });

  test('may be closed by a run of which version 0.6.0 had done a part', async () => {
    await using old = await databaseOf060();
    await using hourhand = await startHourhand({ DATABASE_URL: old.url });
    const half = h('2026-08-20T15');
    expect(await images(hourhand, half)).toEqual({ ada: 1 });
    const [bob] = await hourhand.pool.statShard.findMany({ where: { userDid: 'bob' } });
    if (!bob) throw new Error('no shard');
    await hourhand.pool.$transaction((db) => rollUp(db, { hour: half, lo: bob.lo, hi: bob.hi, users: ['bob'] }));
    expect(await closeHour(hourhand.pool, half, 1, 'child', hourhand.policy)).toMatchObject({ outcome: 'closed' });
    expect(await images(hourhand, half)).toEqual({ ada: 1, bob: 4 });
    expect(await differing(hourhand)).toEqual([]);
  });
});

/** Have a call say this of itself, to the letter. */
async function say({ pool }: Hourhand, id: string, metrics: string | null): Promise<void> {
  await pool.$executeRaw`update "ModelCall" set "usageMetrics" = ${metrics}::text::jsonb where id = ${id}`;
}

async function images({ pool }: Hourhand, hour: Hour): Promise<Record<string, number>> {
  const rows = await pool.modelCallStat.findMany({
    where: { timestamp: startOf(hour) },
    orderBy: { userDid: 'asc' },
  });
  return Object.fromEntries(rows.map((row) => [row.userDid, Number(row.imageGenerations)]));
}

async function meddle({ pool }: Hourhand, hour: Hour, images: number): Promise<void> {
  await pool.$executeRaw`
    update "ModelCallStat" set "imageGenerations" = ${images}::int where "timestamp" = ${startOf(hour)}::timestamptz`;
}

/** What `verify` finds in the three hours. */
async function differing({ pool }: Hourhand): Promise<string[]> {
  return pool.$transaction(async (db) => {
    const found: string[] = [];
    for await (const batch of differences(db, { start: startOf(hour), end: endOf(h('2026-08-20T15')) })) {
      found.push(...batch.map(({ userDid, differing }) => `${userDid}: ${differing.join('; ')}`));
    }
    return found;
  });
}

/**
 * A database as version 0.6.0 leaves it, migrated since. In each of three hours ada and bob have one image generation
 * of `4.0`, which that version counted as one image. The first hour is closed, the second sealed, and of the third
 * ada alone was rolled up.
 */
async function databaseOf060() {
  const database = await createDatabase({ migrated: false });
  const folder = mkdtempSync(path.join(tmpdir(), 'migrations-'));
  const released = readdirSync(migrations).filter((name) => name < '20261130' || !/^\d/.test(name));
  for (const name of released) cpSync(path.join(migrations, name), path.join(folder, name), { recursive: true });
  await migrate(database.url, folder);
  rmSync(folder, { recursive: true });

  const client = new pg.Client({ connectionString: database.url });
  await client.connect();
  await client.query(`
    insert into "ModelCall" (id, "userDid", "providerId", model, type, "totalUsage", "usageMetrics", credits, status,
                             "callTime")
    select concat_ws(' ', who, i), who, 'openai', 'gpt-image', 'imageGeneration', 10, '{"numberOfImages": 4.0}', 0.1,
           'success', timestamptz '${at}' + i * interval '1 hour'
      from unnest('{ada,bob}'::text[]) as who, generate_series(0, 2) as i;
    delete from "StatMark";
    insert into "ModelCallStat" ("timeType", "timestamp", "userDid", "totalUsage", "inputTokens", "outputTokens",
                                 "imageGenerations", "totalCredits", "totalCalls", "successCalls", "failedCalls",
                                 "processingCalls", "totalDuration", "byType", run, "computedAt")
    select 'hour', date_trunc('hour', "callTime"), "userDid", 10, 0, 0, 1, 0.1, 1, 1, 0, 0, 0,
           jsonb_build_object('imageGeneration', '{"totalUsage": 10, "totalCredits": "0.10000000", "totalCalls": 1,
                                                    "successCalls": 1}'::jsonb),
           1, now()
      from "ModelCall" where id <> 'bob 2';
    insert into "StatHour" (hour, state, run, wanted, reason, users, calls, "successCalls", "failedCalls",
                            "totalUsage", "totalCredits", "startedAt", "closedAt", "sealedAt", revision, "asOf", fence)
    values ('2026-08-20T13:00Z', 'closed', 1, 1, 'tick', 2, 2, 2, 0, 20, 0.2, now(), now(), null, 1, now(), 0),
           ('2026-08-20T14:00Z', 'closed', 1, 1, 'tick', 2, 2, 2, 0, 20, 0.2, now(), now(), now(), 1, now(), 0),
           ('2026-08-20T15:00Z', 'running', 1, 1, 'tick', null, null, null, null, null, null, now(), null, null, 0, null,
            0);
    insert into "StatShard" (hour, run, shard, lo, hi, "userDid", state)
    select '2026-08-20T15:00Z', 1, case who when 'ada' then 0 else 1 end, hashtext(who) & 63, hashtext(who) & 63, who,
           (case who when 'ada' then 'done' else 'open' end)::"ShardState"
      from unnest('{ada,bob}'::text[]) as who`);
  await client.end();
  await migrate(database.url, migrations);
  return database;
}
