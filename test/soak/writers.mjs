// How do several writers go on writing, whatever happens to the server?
import { setTimeout as sleep } from 'node:timers/promises';
import * as calls from './calls.mjs';
import { actionOf } from './traffic.mjs';
import { connected } from './world.mjs';

const steps = {
  insert: (client, { calls: some }, base) => calls.insert(client, some, base),
  batch: (client, { calls: some }, base) => calls.insert(client, some, base),
  copy: (client, { calls: some }, base) => calls.copy(client, some, base),
  update: (client, { ids, figures }) => calls.changeFigures(client, ids, figures),
  finish: (client, { ids, status }) => calls.finish(client, ids, status),
  'change a user': (client, { userDid, ago, credits }, base) => calls.changeUser(client, userDid, ago, credits, base),
  'move in time': (client, { ids, when }, base) => calls.moveInTime(client, ids, when, base),
  'move to a user': (client, { ids, userDid }) => calls.moveToUser(client, ids, userDid),
  delete: (client, { ids }) => calls.remove(client, ids),
  'same id': (client, { calls: some, ignore }, base) => calls.insert(client, some, base, ignore),
  unstorable: (client, { calls: some }, base) => calls.insert(client, some, base),
  mend: (client) => calls.mend(client),
  held,
};

/** A transaction that stays open for seconds, with parts that are taken back. */
async function held(client, { isolation, steps: some, end }, base) {
  let rows = 0;
  await client.query(`begin isolation level ${isolation}`);
  for (const { kind, pause, undone, ...step } of some) {
    if (undone) await client.query('savepoint part');
    const changed = await steps[kind](client, step, base);
    if (undone) await client.query('rollback to savepoint part');
    else rows += changed;
    await sleep(pause);
  }
  await client.query(end);
  return end === 'commit' ? rows : 0;
}

/** Others were faster, the server was stopped, or the id is taken: what a gateway's own code has to expect. */
const EXPECTED = /^(40001|40P01|23505|57014|57P0[1-4]|25P0[1-3]|08\w{3}|53300)$/;

/** @returns the writer's end: resolves when `signal` aborts, after what is under way */
export async function write(world, { seed, writer, writers, base, signal }) {
  const session = sessionOf(world, `writer ${writer}`);
  for (let action = 0; !signal.aborted; action += 1) {
    const { kind, pause, ...what } = actionOf({ seed, writer, writers, action });
    const rows = await session.use((client) => steps[kind](client, what, base), signal);
    world.written += rows ?? 0;
    await sleep(pause, undefined, { signal }).catch(() => {});
  }
  await session.end();
}

/** What cannot be stored is mended, at the end. */
export async function mendAll(world) {
  const session = sessionOf(world, 'mender');
  await session.use((client) => calls.mend(client));
  await session.end();
}

/** A connection that is made anew when it breaks. What goes wrong as it may in a transaction is rolled back, and forgotten. */
export function sessionOf(world, name) {
  let client;
  const reconnected = async (signal) => {
    while (!client && !signal?.aborted) {
      client = await connected(world.databaseUrl, name).catch(() => undefined);
      client?.on('notice', ({ message }) => message?.includes('no mark') && world.problem(`${name}: ${message}`));
      if (!client) await sleep(200);
    }
  };
  return {
    async use(work, signal) {
      await reconnected(signal);
      if (!client) return undefined;
      try {
        return await work(client);
      } catch (error) {
        if (error.code?.length === 5 && !EXPECTED.test(error.code))
          world.problem(`${name}: ${error.message} (${error.code})`);
        await client.query('rollback').catch(() => {
          client?.end().catch(() => {});
          client = undefined;
        });
        return undefined;
      }
    },
    end: async () => client?.end().catch(() => {}),
  };
}
