// How does a gateway write, change and delete calls? Each function is one statement, and says how many rows it changed.
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { from as copyFrom } from 'pg-copy-streams';
import { HOUR_MS } from './traffic.mjs';

const COLUMNS = [
  ...['id', 'userDid', 'providerId', 'model', 'type', 'totalUsage', 'inputTokens', 'outputTokens', 'usageMetrics'],
  ...['credits', 'status', 'duration', 'callTime'],
];
const columns = COLUMNS.map((name) => `"${name}"`).join(', ');

/** `base`: when the hour began that ran at the start. Calls of the running hour begin now. */
const instantOf = ({ ago, into }, base) =>
  new Date(ago === 0 ? Date.now() : base - ago * HOUR_MS + into).toISOString();

const rowOf = (call, base) => ({ ...call, providerId: 'openai', callTime: instantOf(call.when, base) });

export async function insert(client, calls, base, ignore = false) {
  const rows = calls.map((call) => rowOf(call, base));
  for (const row of rows) row.usageMetrics = row.usageMetrics && JSON.parse(row.usageMetrics);
  const { rowCount } = await client.query(
    `insert into "ModelCall" (${columns}) select ${columns} from jsonb_populate_recordset(null::"ModelCall", $1)
     ${ignore ? 'on conflict do nothing' : ''}`,
    [JSON.stringify(rows)],
  );
  return rowCount;
}

export async function copy(client, calls, base) {
  const lines = calls
    .map((call) => rowOf(call, base))
    .map((row) => `${COLUMNS.map((name) => row[name] ?? '\\N').join('\t')}\n`);
  await pipeline(Readable.from(lines), client.query(copyFrom(`copy "ModelCall" (${columns}) from stdin`)));
  return calls.length;
}

const update = async (client, sql, values) => (await client.query(sql, values)).rowCount;

export const changeFigures = (client, ids, { type, ...f }) =>
  update(
    client,
    `update "ModelCall" set type = $2, "totalUsage" = $3, "inputTokens" = $4, "outputTokens" = $5, "usageMetrics" = $6,
            credits = $7, status = $8, duration = $9, "updatedAt" = now() where id = any($1)`,
    [ids, type, f.totalUsage, f.inputTokens, f.outputTokens, f.usageMetrics, f.credits, f.status, f.duration],
  );

export const finish = (client, ids, status) =>
  update(
    client,
    `update "ModelCall" set status = $2, duration = 1.5, "updatedAt" = now() where id = any($1) and status = 'processing'`,
    [ids, status],
  );

export const changeUser = (client, userDid, ago, credits, base) =>
  update(
    client,
    `update "ModelCall" set credits = $2 where "userDid" = $1 and "callTime" >= $3 and "callTime" < $3::timestamptz + interval '1 hour'`,
    [userDid, credits, instantOf({ ago, into: 0 }, base)],
  );

export const moveInTime = (client, ids, when, base) =>
  update(client, 'update "ModelCall" set "callTime" = $2 where id = any($1)', [ids, instantOf(when, base)]);

export const moveToUser = (client, ids, userDid) =>
  update(client, 'update "ModelCall" set "userDid" = $2 where id = any($1)', [ids, userDid]);

export const remove = (client, ids) => update(client, 'delete from "ModelCall" where id = any($1)', [ids]);

/** Whatever cannot be stored becomes ordinary. */
export const mend = (client) =>
  update(
    client,
    `update "ModelCall" set credits = least(credits, 1), "totalUsage" = least("totalUsage", 1000)
      where credits > 100000000000 or "totalUsage" > 1000000000000`,
  );
