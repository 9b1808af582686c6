// What do eight worker processes ask of both servers while there is nothing to do?
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { local } from '../scripts/servers.mjs';
import { at, connected, migrated } from './databases.mjs';
import { memoryOf, openHourhand } from './hourhand.mjs';

export async function bench(servers, { quick }, { add }) {
  const [count, seconds] = quick ? [2, 5] : [8, 90];
  const admin = await connected(servers.databaseUrl);
  await admin.query('create database idle');
  const databaseUrl = at(servers, 'idle');
  await (await migrated(databaseUrl)).end();
  const hourhand = await openHourhand({ ...servers, databaseUrl }, { workers: count });
  const { redis } = hourhand.connections;
  await sleep(quick ? 2_000 : 35_000); // what a start asks for is no idling
  await admin.query(`alter system set log_statement = 'all'`);
  await admin.query('select pg_reload_conf()');
  await sleep(500);
  const statements = () =>
    readFileSync(path.join(local, 'bench', 'postgres.log'), 'utf8').match(/LOG: {2}(execute|statement)/g)?.length ??
    0;
  const commands = async () => Number((await redis.info('stats')).match(/total_commands_processed:(\d+)/)[1]);
  const [before, asked] = [await commands(), statements()];
  await sleep(seconds * 1_000);
  const [a, b] = [((await commands()) - before) / seconds, (statements() - asked) / seconds];
  const list = await redis.client('LIST');
  const workers = list.match(/ name=\S+:w:hourhand-\S+/g)?.length ?? 0;
  await admin.query('alter system reset log_statement');
  const memory = hourhand.processes.map(({ pid }) => memoryOf(pid)?.now).filter(Boolean);
  await hourhand.close();
  await admin.end();
  add({
    what: `${count} worker processes with nothing to do, ${workers} BullMQ workers, ${seconds} s`,
    ratio: `${(a / workers).toFixed(2)} Redis commands a second each, ${b.toFixed(2)} Postgres statements a second in all`,
    hourhand: `${a.toFixed(0)} Redis commands, ${b.toFixed(2)} Postgres statements a second`,
    against: 'the targets',
    target: '≤ 2 Redis commands a second for each BullMQ worker, ≤ 2 Postgres statements a second in all',
    met: a / workers <= 2 && b <= 2,
    beside:
      memory.length > 0
        ? `memory of a process ${(memory.reduce((x, y) => x + y) / memory.length).toFixed(0)} MB`
        : undefined,
  });
}
