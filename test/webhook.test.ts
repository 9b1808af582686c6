import { Webhook } from 'standardwebhooks';
import { expect, test } from 'vitest';
import { announceTransitions } from '../src/producers/models.ts';
import { expireStatuses, writeJudgements } from '../src/store/model-status.ts';
import { giveProviders } from '../src/store/models.ts';
import { type Hourhand, startHourhand, until } from './support/hourhand.ts';
import { startReceiver } from './support/receiver.ts';

const secret = 'a secret of enough letters'.replaceAll(' ', '-');

test('a transition is told to the webhook, signed, and once it was taken not again', async () => {
  await using receiver = await startReceiver();
  await using hourhand = await startHourhand({
    MODEL_WEBHOOK_URL: `${receiver.url}/hook`,
    MODEL_WEBHOOK_SECRET: secret,
  });
  await hourhand.work();
  await transition(hourhand);
  const [told] = await until(
    async () => receiver.told,
    (all) => all.length > 0,
  );
  expect(
    new Webhook(secret, { format: 'raw' }).verify(told?.body ?? '', told?.headers as Record<string, string>),
  ).toEqual({
    type: 'model.status',
    timestamp: expect.any(String),
    data: {
      provider: 'acme',
      model: 'gpt',
      type: 'chatCompletion',
      from: 'up',
      to: 'unknown',
      reason: null,
      detail: 'not looked at for twice the interval',
      source: null,
    },
  });
  await announced(hourhand);
  await announceTransitions(hourhand.pool, hourhand.queues);
  await until(
    () => hourhand.queues.announcements.getJobCountByTypes('waiting', 'active', 'delayed'),
    (jobs) => jobs === 0, // the first may not have ended yet
  );
  expect(receiver.told).toHaveLength(1);
});

test('a job that comes again after its transition was told tells it to nobody', async () => {
  await using receiver = await startReceiver();
  await using hourhand = await startHourhand({ MODEL_WEBHOOK_URL: receiver.url, MODEL_WEBHOOK_SECRET: secret });
  await hourhand.work();
  await transition(hourhand);
  const { announcements } = hourhand.queues;
  const [job] = await until(
    () => announcements.getCompleted(),
    (jobs) => jobs.length > 0,
  );
  await job?.retry('completed');
  await until(
    () => announcements.getCompleted(),
    (jobs) => Object(jobs[0]?.returnvalue).nothing === 'to tell',
  );
  expect(receiver.told).toHaveLength(1);
});

test('what a check judges is told, and of what became old untold nothing is', async () => {
  await using receiver = await startReceiver();
  await using hourhand = await startHourhand({ MODEL_WEBHOOK_URL: receiver.url, MODEL_WEBHOOK_SECRET: secret });
  const { pool, queues } = hourhand;
  await transition(hourhand);
  await queues.announcements.obliterate({ force: true });
  await pool.$executeRaw`update "ModelTransition" set at = at - interval '1 day'`;
  const down = { status: 'down', reason: 'unavailable', detail: 'HTTP 503', source: 'probe', failures: 2 } as const;
  const gpt = { providerId: 'acme', model: 'gpt', type: 'chatCompletion' } as const;
  expect(await writeJudgements(pool, [{ ...gpt, ...down, latencyMs: null, retryAt: null }], true)).toEqual({
    down: 1,
  });
  await announceTransitions(pool, queues);
  await hourhand.work();
  await until(
    () => pool.modelTransition.count({ where: { announcedAt: { not: null } } }),
    (n) => n === 1,
  );
  expect(receiver.told.map(({ body }) => JSON.parse(body).data)).toEqual([
    expect.objectContaining({ from: 'unknown', to: 'down', reason: 'unavailable', source: 'probe' }),
  ]);
});

test('a webhook that refuses is told again, under the same id, until it takes it', async () => {
  await using receiver = await startReceiver([500, 307]);
  await using hourhand = await startHourhand({ MODEL_WEBHOOK_URL: receiver.url, MODEL_WEBHOOK_SECRET: secret });
  await hourhand.work();
  await transition(hourhand);
  await announced(hourhand);
  expect(receiver.told.map(({ path }) => path)).toEqual(['/', '/', '/']);
  expect(new Set(receiver.told.map(({ headers }) => headers['webhook-id'])).size).toBe(1);
});

test('what was not taken is asked for again by a later look, even if Redis has forgotten it', async () => {
  await using receiver = await startReceiver();
  await using hourhand = await startHourhand({ MODEL_WEBHOOK_URL: receiver.url, MODEL_WEBHOOK_SECRET: secret });
  await transition(hourhand);
  await hourhand.queues.announcements.obliterate({ force: true });
  await hourhand.work();
  await announceTransitions(hourhand.pool, hourhand.queues);
  await announced(hourhand);
});

test('without a webhook nothing is told, then or later', async () => {
  await using hourhand = await startHourhand();
  await transition(hourhand, false);
  expect(await hourhand.queues.announcements.getJobCountByTypes('waiting')).toBe(0);
});

test('neither the address nor the secret of a webhook is in a job or an error', async () => {
  const gone = await startReceiver();
  await gone[Symbol.asyncDispose]();
  await using hourhand = await startHourhand({
    MODEL_WEBHOOK_URL: `${gone.url}/token-in-the-path`,
    MODEL_WEBHOOK_SECRET: secret,
  });
  await hourhand.work();
  await transition(hourhand);
  const [job] = await until(
    () => hourhand.queues.announcements.getJobs(['delayed']),
    (jobs) => Boolean(jobs[0]?.failedReason),
  );
  expect(job?.failedReason).toBe('the webhook did not answer: ECONNREFUSED');
  expect(JSON.stringify([job, hourhand.logged])).not.toMatch(/token-in-the-path|a-secret/);
});

/** A model's status becomes another: it expires. */
async function transition({ pool, queues }: Hourhand, announce = true): Promise<void> {
  const model = { model: 'gpt', type: 'chatCompletion' as const };
  await giveProviders(pool, [
    { id: 'acme', baseUrl: 'https://acme.example/v1', apiKeyEnv: 'KEY', concurrency: 1, models: [model] },
  ]);
  await pool.modelStatus.updateMany({ data: { status: 'up', checkedAt: new Date(Date.now() - 3_600_000) } });
  expect(await expireStatuses(pool, 900, announce)).toBe(1);
  await announceTransitions(pool, queues);
}

function announced({ pool }: Hourhand) {
  return until(
    () => pool.modelTransition.findMany(),
    (rows) => rows.length === 1 && rows[0]?.announcedAt !== null,
  );
}
