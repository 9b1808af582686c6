// What is written down of every change, and who may read it?

import { type Request, type Response, Router } from 'express';
import type { Connections } from '../connections.ts';
import { type Action, recentActions, recordAction, settleAction } from '../store/actions.ts';
import { reasonOf } from '../store/db.ts';
import { operatorOf } from './access.ts';

type Written = Pick<Connections, 'pool' | 'log'>;

/** No line, no change. */
export class NoLine extends Error {
  readonly status = 503;
}

/** Where somebody asks from: through a proxy that is trusted, where that says they are. */
export const addressOf = (req: Request) => (req.ip ?? 'unknown').replace(/^::ffff:/, '').slice(0, 100);

/**
 * Write down what the one who asks is about to change, and its status when the answer has ended. To be awaited before the change.
 *
 * @throws {NoLine} where the line could not be written: then nothing must be changed
 */
export async function record(
  { pool, log }: Written,
  req: Request,
  res: Response,
  action: Pick<Action, 'what' | 'subject' | 'detail'> & Partial<Pick<Action, 'who' | 'role'>>,
): Promise<void> {
  const { name, role } = action.who === undefined ? operatorOf(res) : { name: action.who, role: action.role };
  const line = { ...action, who: name, role: role ?? null, from: addressOf(req) };
  const seq = await recordAction(pool, line).catch((cause: unknown) => {
    throw new NoLine('What is changed is written down first, and that failed: nothing was changed.', { cause });
  });
  res.once('close', () => {
    const outcome = res.writableFinished ? `${res.statusCode}` : 'nobody waited for the answer';
    settleAction(pool, seq, outcome).catch((error: unknown) =>
      log.warn({ seq, outcome, reason: reasonOf(error) }, 'account: an outcome was not written'),
    );
  });
}

const MOST = 500;

/** `GET /api/actions?before=SEQ&limit=N`: what was changed by hand, the newest first. */
export function account({ pool }: Pick<Connections, 'pool'>): Router {
  const router = Router();
  router.get('/api/actions', async (req, res) => {
    const [before, limit] = [numberOf(req.query.before, undefined), numberOf(req.query.limit, 50)];
    if (Number.isNaN(before) || !limit || limit > MOST) {
      const message = `expected before=SEQ and limit=1 to ${MOST}, each once and a whole number, got another`;
      res.status(400).json({ error: 'Bad request', message });
      return;
    }
    res.json(await recentActions(pool, { before, limit }));
  });
  return router;
}

function numberOf<Fallback>(value: unknown, fallback: Fallback): number | Fallback {
  if (value === undefined) return fallback;
  return typeof value === 'string' && /^\d{1,15}$/.test(value) ? Number(value) : Number.NaN;
}
