// Who hears that an hour has closed?

import type { Pool } from '../store/db.ts';
import { type ClosePolicy, type Closing, closeHour } from '../store/ledger.ts';
import type { Hour } from '../time/hour.ts';
import type { Context } from './context.ts';

/** Close an hour from the ledger, and say what came of it: on the job always, in the log once for each run that closed. */
export async function closeHourAloud(
  { job, log }: Pick<Context, 'job' | 'log'>,
  { pool, policy }: { pool: Pool; policy: ClosePolicy },
  hour: Hour,
  run: number,
  as: 'parent' | 'child',
): Promise<Closing> {
  const closing = await closeHour(pool, hour, run, as, policy);
  if (closing.outcome === 'closed') {
    const { users, calls, already } = closing;
    await job.log(`run ${run}: closed, ${users} users, ${calls} calls`);
    if (!already) log.info({ hour, run, users, calls: Number(calls) }, 'hour closed');
  } else if (closing.outcome !== 'unfinished') {
    await job.log(`run ${run}: ${closing.outcome}`);
  }
  return closing;
}
