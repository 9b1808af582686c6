// What is known of the models, for machines?

import { json, Router } from 'express';
import { z } from 'zod';
import type { Connections } from '../connections.ts';
import { requestCheck, UnknownModels } from '../producers/models.ts';
import { checkOf } from '../store/checks.ts';
import { statusLines } from '../store/model-status.ts';
import { operatorOf } from './access.ts';
import { record } from './account.ts';

const request = z.strictObject({
  models: z
    .array(z.string().regex(/^\P{Cc}{0,700}$/u))
    .max(1_000)
    .default([]),
  probe: z.boolean().default(false),
});

/**
 * `GET /api/models`: what `hourhand models status --json` prints. `POST /api/models/check` asks a worker for a look at
 * `{"models": [], "probe": false}` and answers 202 with the check's number; `GET /api/models/checks/N` says what came of it.
 */
export function models({ pool, queues, modelPolicy, log }: Connections): Router {
  const router = Router();
  router.get('/api/models', async (_req, res) => {
    res.json(await statusLines(pool, await modelPolicy.interval()));
  });
  router.get('/api/models/checks/:id', async (req, res) => {
    const check = /^\d{1,15}$/.test(req.params.id) ? await checkOf(pool, Number(req.params.id)) : undefined;
    if (check) res.json(check);
    else res.status(404).json({ error: 'Not found', message: 'There is no such check.' });
  });
  router.post('/api/models/check', json({ limit: '64kb' }), async (req, res) => {
    const parsed = request.safeParse(req.body ?? {});
    if (!parsed.success) {
      const message = 'expected {"models": ["provider/model", …], "probe": false}';
      res.status(400).json({ error: 'Bad request', message });
      return;
    }
    const { models: names, probe } = parsed.data;
    const { name, how } = operatorOf(res);
    const requestedBy = how === 'anonymous' ? 'dashboard' : name;
    const asked = { names, probe, interval: await modelPolicy.interval(), requestedBy };
    await record({ pool, log }, req, res, {
      what: 'check models',
      subject: names.join(', ') || 'all',
      detail: { probe },
    });
    try {
      const { check } = await requestCheck({ pool, queues }, asked);
      res.status(202).json({ check });
    } catch (error) {
      if (!(error instanceof UnknownModels)) throw error;
      res.status(404).json({ error: 'Not found', message: error.message });
    }
  });
  return router;
}
