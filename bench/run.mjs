// How fast is it? On servers of its own that are thrown away: npm run bench [-- stale | late] [--quick] [--rounds 3], and for
// stale [--rows 10000000 --stale 1000000 --batch 2000]. Without a name, all of them. It reads the built code.
import path from 'node:path';
import { parseArgs } from 'node:util';
import { local, startServers } from '../scripts/servers.mjs';
import { checkNode, setUp } from '../scripts/set-up.mjs';
import { awaitStopRequest, exitAfter } from '../scripts/stop-request.mjs';

checkNode();
const stop = awaitStopRequest();
const all = ['stale', 'late'];

async function run() {
  const number = { type: 'string' };
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      quick: { type: 'boolean', default: false },
      rounds: number,
      rows: number,
      stale: number,
      batch: number,
    },
  });
  const unknown = positionals.find((name) => !all.includes(name));
  if (unknown) throw new Error(`expected ${all.join(' or ')}, got "${unknown}"`);
  await setUp({ needsRedis: true });
  for (const name of positionals.length > 0 ? positionals : all) {
    if (stop.exitCode !== undefined) break;
    const { bench } = await import(`./${name}.mjs`); // not before the packages are there
    console.log(`${name}:`);
    const servers = await startServers({ dir: path.join(local, 'bench'), throwAway: true });
    try {
      await bench(servers, values, stop);
    } finally {
      await servers.release();
    }
  }
  return stop.exitCode ?? 0;
}

await exitAfter(run, stop);
