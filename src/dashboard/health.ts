// Does the process live, and is everything as it must be?

import { setTimeout as sleep } from 'node:timers/promises';
import { Router } from 'express';
import type { Connections } from '../connections.ts';
import { inspectScheduler, type Wish, wishes } from '../producers/schedules.ts';
import { askForKey, maxmemoryPolicy } from '../queues/redis.ts';
import { type AlarmPolicy, type Wrong, wrongNow } from '../store/alarms.ts';
import { reasonOf } from '../store/db.ts';
import { uncoveredSpan } from '../store/gaps.ts';
import { pendingMigrations } from '../store/migrate.ts';
import type { Warning } from '../store/warnings.ts';
import { whoAsks } from './access.ts';
import { onceAtATime } from './once.ts';
import { warningsNow } from './warnings.ts';

const LIMIT_MS = 2_000;

/** `warn`: something is wrong that does not keep us from the work. */
type Finding = { ok: boolean; warn?: true; expected: string; found: string };
type Check = Finding & { name: string };

/** `/healthz` answers for as long as the process lives, and asks nobody: not even who asks. */
export function alive(version: string): Router {
  return Router().get('/healthz', (_req, res) => {
    res.json({ status: 'ok', version });
  });
}

/**
 * `/readyz` asks Redis, PostgreSQL and the schedulers each time, and the ledger what is wrong for too long, all at once and for two
 * seconds at most, and nothing twice at once: it is open to everybody, who could otherwise make it late. 200 when each is as it must be, else 503; in either case what was expected and what was found, which is told to
 * those alone who are known.
 */
export function readiness(
  connections: Connections,
  { version, migrations }: { version: string; migrations: string },
): Router {
  const { config, pool, redis, queues, alarmPolicy } = connections;
  const look = onceAtATime(async () => {
    const [alarms, warnings, ...others] = await Promise.all([
      alarmChecks(pool, alarmPolicy),
      warningChecks(connections),
      check('redis', 'an answer within 2 s', async () => {
        await askForKey(redis, config.REDIS_PREFIX);
        return { ok: true, found: 'an answer' };
      }),
      check('redis maxmemory-policy', 'noeviction', async () => {
        const found = await maxmemoryPolicy(redis);
        return { ok: found === 'noeviction' || found.startsWith('unknown'), found };
      }),
      check('postgres', 'an answer within 2 s', async () => {
        await pool.$queryRaw`select 1`;
        return { ok: true, found: 'an answer' };
      }),
      check('migrations', 'all applied', async () => {
        const pending = await pendingMigrations(pool, migrations);
        const ok = pending.length === 0;
        return { ok, found: ok ? 'all applied' : `not applied: ${pending.join(', ')}` };
      }),
      ...wishes(queues, config).map((wish) =>
        check(`scheduler ${wish.id}`, 'live, off or paused', () => scheduler(pool, wish)),
      ),
    ]);
    return [...others, ...alarms, ...warnings];
  });
  const router = Router();
  router.get('/readyz', async (_req, res) => {
    const checks = await look();
    const ready = checks.every(({ ok }) => ok);
    const told = whoAsks(res) ? checks : checks.map(({ name, ok, warn }) => ({ name, ok, warn }));
    res.status(ready ? 200 : 503).json({ status: ready ? 'ok' : 'not ready', version, checks: told });
  });
  return router;
}

/** Ask one thing, and find it wanting when it throws or does not answer in time. */
async function check(
  name: string,
  expected: string,
  ask: () => Promise<Omit<Finding, 'expected'> & { expected?: string }>,
): Promise<Check> {
  const answered = new AbortController();
  const late = sleep(LIMIT_MS, undefined, { signal: answered.signal }).then(() => {
    throw new Error(`no answer within ${LIMIT_MS / 1000} s`);
  });
  try {
    return { name, expected, ...(await Promise.race([ask(), late])) };
  } catch (error) {
    return { name, ok: false, expected, found: reasonOf(error) };
  } finally {
    late.catch(() => {}); // the race is over
    answered.abort();
  }
}

/** What is wrong for too long at this very moment, one by one, whether or not anybody has raised an alarm yet. */
async function alarmChecks(pool: Connections['pool'], policy: AlarmPolicy): Promise<Check[]> {
  let wrong: Wrong[] = [];
  const all = await check('alarms', 'none', async () => {
    wrong = await wrongNow(pool, policy);
    return { ok: wrong.length === 0, found: `${wrong.length || 'none'}` };
  });
  if (wrong.length === 0) return [all];
  return wrong.map(({ kind, subject, expected, found }) => {
    const name = ['alarm', kind, subject].filter(Boolean).join(' ');
    return { name, ok: false, expected, found };
  });
}

/** What is wrong at this moment and does not stop the work, one by one. It never makes the answer a 503. */
async function warningChecks(connections: Connections): Promise<Check[]> {
  let warnings: Warning[] = [];
  const all = await check('warnings', 'none', async () => {
    warnings = await warningsNow(connections, await uncoveredSpan(connections.pool));
    return { ok: true, found: `${warnings.length || 'none'}` };
  });
  if (!all.ok) return [{ ...all, ok: true, warn: true }]; // whether Postgres answers is a check of its own
  if (warnings.length === 0) return [all];
  return warnings.map(({ kind, subject, since, detail, remedy }) => {
    const name = ['warning', kind, subject].filter(Boolean).join(' ');
    const found = `${detail.replace(/\.$/, '')}, since ${since.toISOString()}: ${remedy}`;
    return { name, ok: true, warn: true, expected: 'none', found };
  });
}

async function scheduler(pool: Connections['pool'], wish: Wish): Promise<Finding> {
  const { pattern, state, next, pausedAt, pausedBy } = await inspectScheduler(pool, wish);
  if (state === 'paused') {
    return { ok: true, expected: 'paused', found: `paused by ${pausedBy} since ${pausedAt?.toISOString()}` };
  }
  const expected = pattern === 'off' ? 'off' : `live, ${pattern ?? 'as the first worker says'}, in UTC`;
  const found = next ? `${state}, next ${next.toISOString()}` : state;
  return { ok: state === 'live' || state === 'off', expected, found };
}
