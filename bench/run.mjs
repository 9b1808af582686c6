// How fast is it? On servers of its own that are thrown away: npm run bench [-- --case hour --case backfill … --rounds 3 --quick
// --json --write]. Without a case, all of them. It reads the built code. --write puts what was found into bench/README.md and
// README.md. For stale also [--rows 10000000 --stale 1000000 --batch 2000], for hour [--users 1000 --users 10000].
import { cpus } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { local, startServers } from '../scripts/servers.mjs';
import { checkNode, setUp } from '../scripts/set-up.mjs';
import { awaitStopRequest, exitAfter } from '../scripts/stop-request.mjs';
import { writeReport } from './report.mjs';

checkNode();
const stop = awaitStopRequest();
const all = ['hour', 'backfill', 'workers', 'import', 'verify', 'tick', 'idle', 'stale', 'late', 'page'];

async function run() {
  const number = { type: 'string' };
  const flag = { type: 'boolean', default: false };
  const { values } = parseArgs({
    options: {
      case: { type: 'string', multiple: true, default: all },
      rounds: number,
      quick: flag,
      json: flag,
      write: flag,
      users: { type: 'string', multiple: true },
      rows: number,
      stale: number,
      batch: number,
    },
  });
  const unknown = values.case.find((name) => !all.includes(name));
  if (unknown) throw new Error(`--case: expected ${all.join(', ')}, got "${unknown}"`);
  const say = values.json ? () => {} : console.log;
  await setUp({ needsRedis: true });
  const found = [];
  for (const name of values.case) {
    if (stop.exitCode !== undefined) break;
    const { bench } = await import(`./${name}.mjs`); // not before the packages are there
    say(`\n${name}:`);
    const servers = await startServers({ dir: path.join(local, 'bench'), throwAway: true });
    const add = (row) => {
      found.push({ case: name, ...row });
      const { what, ratio, hourhand, against, target, met, beside } = row;
      say(`  ${what}: ${ratio}`);
      say(`    hourhand ${hourhand}; ${against}${beside ? `; ${beside}` : ''}`);
      if (target) say(`    ${met ? 'met' : 'MISSED'}: ${target}`);
    };
    try {
      await bench(servers, values, { stop, add, say });
    } finally {
      await servers.release();
    }
  }
  if (stop.exitCode !== undefined) return stop.exitCode;
  const machine = `${cpus().length} × ${cpus()[0].model.trim()}, Node ${process.version}`;
  const command = `npm run bench${values.case === all ? '' : ` -- ${values.case.map((name) => `--case ${name}`).join(' ')}`}`;
  if (values.json) console.log(JSON.stringify({ machine, command, found }, undefined, 2));
  if (values.write) writeReport({ machine, command, found });
  return 0;
}

await exitAfter(run, stop);
