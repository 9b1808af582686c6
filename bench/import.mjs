// How long does an import take, against COPY of the same rows into the same table with its triggers?

import { once } from 'node:events';
import { createReadStream, createWriteStream, mkdtempSync, rmSync } from 'node:fs';
import path from 'node:path';
import { pipeline } from 'node:stream/promises';
import { from as copyFrom, to as copyTo } from 'pg-copy-streams';
import { local } from '../scripts/servers.mjs';
import { at, connected, fill, median, migrated, spread, timed, times } from './databases.mjs';
import { command, memoryOf, serversOf } from './hourhand.mjs';

export async function bench(servers, { quick, rounds, rows }, { stop, add }) {
  const calls = Number(rows ?? (quick ? 20_000 : 1_000_000));
  const dir = mkdtempSync(path.join(local, 'import-'));
  const admin = await connected(servers.databaseUrl);
  try {
    const files = await write(servers, admin, dir, calls);
    const spent = { hourhand: [], copy: [] };
    const peaks = [];
    for (let round = 0; round < Number(rounds ?? (quick ? 2 : 3)) && stop.exitCode === undefined; round++) {
      for (const who of ['hourhand', 'copy']) {
        await admin.query('create database round');
        const url = at(servers, 'round');
        await (await migrated(url)).end();
        if (who === 'copy') spent.copy.push(await timed(() => copy(url, files.copy)));
        else
          spent.hourhand.push(
            await timed(async () => {
              peaks.push(await imported({ ...servers, databaseUrl: url }, files.csv, calls));
            }),
          );
        await admin.query('drop database round with (force)');
      }
    }
    if (stop.exitCode !== undefined) return;
    const peak = peaks[0] === undefined ? undefined : Math.max(...peaks);
    add({
      what: `import of ${calls.toLocaleString('en')} calls, the whole command`,
      ratio: `${spread(spent.hourhand.map((ms, i) => ms / spent.copy[i]))} COPY`,
      hourhand: times(spent.hourhand),
      against: `COPY, whose triggers mark each row ${times(spent.copy)}`,
      target: '≤ 2.5 COPY, memory ≤ 200 MB',
      met: median(spent.hourhand) <= 2.5 * median(spent.copy) && (peak === undefined || peak <= 200),
      beside: peak && `peak memory ${peak.toFixed(0)} MB`,
    });
  } finally {
    await admin.end();
    rmSync(dir, { recursive: true, force: true });
  }
}

/** The same calls as a gateway's file, and as COPY has them: a week's, of 5,000 users. */
async function write(servers, admin, dir, calls) {
  await admin.query('create database source');
  const client = await migrated(at(servers, 'source'));
  await fill(client, {
    users: 5_000,
    calls: Math.ceil(calls / 168),
    hours: 168,
    from: new Date('2026-06-01T00:00Z'),
    eachHour: true,
  });
  const files = { csv: path.join(dir, 'calls.csv'), copy: path.join(dir, 'calls.copy') };
  const csv = `select "callTime" as call_time, "userDid" as user_did, "appDid" as app_did, "providerId" as provider, model, type,
    "inputTokens" as input_tokens, "outputTokens" as output_tokens, credits, status, duration as duration_s from "ModelCall" order by "callTime"`;
  // Postgres spells an instant its own way; the file's is ISO-8601.
  await client.query(`set datestyle = ISO; set timezone = 'UTC'`);
  const iso = csv.replace(
    '"callTime" as call_time',
    `to_char("callTime", 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as call_time`,
  );
  await pipeline(
    client.query(copyTo(`copy (${iso} limit ${calls}) to stdout with (format csv, header)`)),
    createWriteStream(files.csv),
  );
  const all = `copy (select * from "ModelCall" order by "callTime" limit ${calls}) to stdout`;
  await pipeline(client.query(copyTo(all)), createWriteStream(files.copy));
  await client.end();
  await admin.query('drop database source with (force)');
  return files;
}

async function copy(url, file) {
  const client = await connected(url);
  await pipeline(createReadStream(file), client.query(copyFrom('copy "ModelCall" from stdin')));
  await client.query('analyze "ModelCall"'); // an import does, too
  await client.end();
}

/** The command, as an operator types it; resolves to its peak memory. */
async function imported(servers, file, calls) {
  const child = command(serversOf(servers), ['import', file], ['pipe', 'pipe']);
  let said = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (said += text));
  let peak;
  const watching = setInterval(() => {
    peak = memoryOf(child.pid)?.peak || peak;
  }, 50);
  const [code] = await once(child, 'close');
  clearInterval(watching);
  if (code !== 0 || !said.replaceAll(',', '').includes(String(calls)))
    throw new Error(`import exited ${code}: ${said}`);
  return peak;
}
