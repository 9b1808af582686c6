// Refuses changes while the prefix in Redis belongs to another database.

import type { RequestHandler } from 'express';
import { type Connections, serverOf } from '../connections.ts';
import { READS } from './guard.ts';

/** The prefix is not ours: what is changed there would be another hourhand's. */
class NotOurs extends Error {
  readonly status = 409;
}

/** Lets reads through, and writes while the prefix is this database's. */
export function onlyOwnersWrite({ ownership }: Pick<Connections, 'ownership'>): RequestHandler {
  return async (req, _res, next) => {
    if (READS.includes(req.method)) return next();
    const look = await heldBy(ownership).catch((error: unknown) => {
      // A Redis that is away is told by what needs it: a page may also write to PostgreSQL alone.
      if (serverOf(error) === 'Redis') return undefined;
      throw error;
    });
    if (look?.foreign) throw new NotOurs(`Nothing was changed: ${look.foreign.detail}: ${look.foreign.remedy}`);
    next();
  };
}

/** What is ours is only looked at: a write that is refused further on then has changed nothing. */
async function heldBy(ownership: Connections['ownership']) {
  const look = await ownership.look();
  return look.holding.state === 'ours' || look.foreign ? look : ownership.hold();
}
