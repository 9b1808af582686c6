// Where does a bench have its calls, and what do several rounds say together?
import pg from 'pg';

export const at = ({ databaseUrl }, name) => Object.assign(new URL(databaseUrl), { pathname: `/${name}` }).href;

export async function connected(connectionString) {
  const client = new pg.Client({ connectionString, options: '-c timezone=UTC' });
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

export function median(figures) {
  const sorted = [...figures].sort((a, b) => a - b);
  return (sorted[Math.floor((sorted.length - 1) / 2)] + sorted[Math.floor(sorted.length / 2)]) / 2;
}

/** `1.03 (1.00 to 1.07)`: the median, and the least and the most of all rounds. */
export const spread = (ratios) =>
  `${median(ratios).toFixed(2)} (${Math.min(...ratios).toFixed(2)} to ${Math.max(...ratios).toFixed(2)})`;
