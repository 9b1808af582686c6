// Where does a bench have its calls, and what do several rounds say together?
import pg from 'pg';

export const at = ({ databaseUrl }, name) => Object.assign(new URL(databaseUrl), { pathname: `/${name}` }).href;

export async function connected(connectionString) {
  const client = new pg.Client({ connectionString, options: '-c timezone=UTC -c hourhand.protocol=2' });
  client.on('error', () => {}); // its server may be stopped under it
  await client.connect();
  return client;
}

/** Migrates an empty database. What is loaded by the connection that it resolves to leaves no marks. */
export async function migrated(databaseUrl) {
  const [{ migrate }, { migrations }] = await Promise.all(
    ['store/migrate.js', 'config.js'].map((f) => import(`../dist/${f}`)),
  );
  await migrate(databaseUrl, migrations);
  const client = await connected(databaseUrl);
  await client.query(`set hourhand.marks_itself = 'yes'`);
  return client;
}

/** The gateway's table as it would be without hourhand: its indexes and checks, and no triggers. */
export const withoutTriggers = (client) => client.query('alter table "ModelCall" disable trigger user');

/**
 * Writes so many calls of so many users, spread over hours from `from` on: each user at least once where there is room, the rest
 * as Zipf has it (the first users have most). The same every time.
 */
export async function fill(client, { users, calls, from, hours = 1, eachHour = false }) {
  await client.query('select setseed(0.25)');
  await client.query(
    `insert into "ModelCall" (id, "userDid", "appDid", "providerId", model, type, status, "totalUsage", "inputTokens", "outputTokens",
                              credits, duration, "usageMetrics", "callTime")
     select gen_random_uuid(), 'z1' || substr(encode(sha256(('user ' || who)::bytea), 'hex'), 1, 33), 'z1app' || who % 10, 'provider-' || who % 8,
            'model-' || n % 20, kind::"ModelCallType", state::"ModelCallStatus", tokens + tokens / 3, tokens, tokens / 3,
            round((tokens * dear / 10000)::numeric, 8), round((dear * 30)::numeric, 1),
            case when kind = 'imageGeneration' and state = 'success' then jsonb_build_object('numberOfImages', 1 + n % 4) end,
            $3::timestamptz + hour * interval '1 hour' + spot * interval '3599 seconds'
       from (select n, hour, case when n <= $1::int and not $5::boolean then n else least($1::int, floor(exp(luck * ln($1::int + 1)))::int) end as who,
                    case when what < 0.8 then 'chatCompletion' when what < 0.9 then 'embedding' when what < 0.95 then 'imageGeneration'
                         when what < 0.97 then 'audioGeneration' when what < 0.99 then 'video' else 'custom' end as kind,
                    case when fate < 0.935 then 'success' when fate < 0.999 then 'failed' else 'processing' end as state,
                    (50 + exp(size * 8))::bigint as tokens, dear, spot
               from generate_series(0, $4::int - 1) as hour, generate_series(1, $2::int) as n,
                    lateral (select random() + 0 * (n + hour) as luck, random() as what, random() as fate, random() as size,
                                    random() as dear, random() as spot) as dice) as call
      order by hour, spot`,
    [users, calls, from, hours, eachHour],
  );
  await client.query('vacuum (analyze) "ModelCall"');
  await client.query('checkpoint');
}

export function median(figures) {
  const sorted = [...figures].sort((a, b) => a - b);
  return (sorted[Math.floor((sorted.length - 1) / 2)] + sorted[Math.floor(sorted.length / 2)]) / 2;
}

/** `1.03 (1.00 to 1.07)`: the median, and the least and the most of all rounds. */
export const spread = (ratios) =>
  `${median(ratios).toFixed(2)} (${Math.min(...ratios).toFixed(2)} to ${Math.max(...ratios).toFixed(2)})`;

/** Milliseconds as one reads them: `31 ms`, `1.49 s`. */
export function time(ms) {
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  return ms < 1_000 ? `${ms.toFixed(0)} ms` : `${(ms / 1_000).toFixed(2)} s`;
}
export const times = (all) =>
  all.length === 1
    ? `${time(all[0])} (once)`
    : `${time(median(all))} (${time(Math.min(...all))} to ${time(Math.max(...all))})`;

export async function timed(work) {
  const since = performance.now();
  await work();
  return performance.now() - since;
}
