// What if a transaction was open when its hour ended?
import { setTimeout as sleep } from 'node:timers/promises';
import * as calls from './calls.mjs';
import { HOUR_MS, HOURS, seamOf } from './traffic.mjs';
import { sessionOf } from './writers.mjs';

/**
 * Hours older than all others play hours that end at this moment: nobody covers them but this one. Each is written to without
 * marks, as before its end, by a transaction that ended and by one that is still open; only then is it asked for. That transaction's id is
 * therefore older than the hour's fence, as that of a real writer is.
 */
export async function writeAcrossTheEnd(world, { seed, base, signal }) {
  const session = sessionOf(world, 'the gateway');
  for (let n = 0; !signal.aborted; n += 1) {
    const { committed, open, changed, hold, end, pause } = seamOf(seed, n);
    const [start, stop] = [HOURS + 1 + n, HOURS + n].map((ago) => new Date(base - ago * HOUR_MS));
    const range = { start, end: stop };
    const unmarked = (client) => client.query(`set local session_replication_role = replica`);
    const rows = await session.use(async (client) => {
      await client.query('begin');
      await unmarked(client);
      await calls.insert(client, committed, base);
      await client.query('commit');
      await client.query('begin');
      await unmarked(client);
      await calls.insert(client, open, base);
      const ids = committed.slice(0, changed).map(({ id }) => id);
      await calls.moveToUser(client, ids.slice(0, 1), 'u39');
      await calls.remove(client, ids.slice(1));
      await asked(world, range);
      await sleep(hold, undefined, { signal }).catch(() => {});
      await client.query(end);
      return committed.length + (end === 'commit' ? open.length : 0);
    }, signal);
    world.written += rows ?? 0;
    // Whatever became of the transaction: no hole is left among the covered hours.
    if (rows === undefined) await asked(world, range);
    await sleep(pause, undefined, { signal }).catch(() => {});
  }
  await session.end();
}

/** As often as it takes: a server may be away. It is in the ledger before Redis is asked anything. */
async function asked(world, range) {
  for (let done = false; !done && !world.stopped; ) {
    done = await world.backfill(range).then(
      () => true,
      () => world.covers(range).catch(() => false),
    );
    if (!done) await sleep(300);
  }
}
