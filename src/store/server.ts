// Says whether we can work with a PostgreSQL, and what to do if not.

import { type Client, EXPECTED } from './driver.ts';

/** The oldest that has all that our statements need; `date_bin` came with it. */
export const OLDEST_POSTGRES = 14;

interface Server {
  database: string;
  version: string;
  major: number;
  standby: boolean;
  off: boolean;
  where: string | null;
  schema: string | null;
  searchPath: string;
  tablesIn: string | null;
  settings: Record<string, string | null>;
}

export interface Look {
  /** Which database of which server it is: the same for all ways that lead to it. */
  readonly database: string;
  /** What was expected and found, and what to do; undefined if nothing is wrong with it. */
  readonly fault: string | undefined;
}

/** Look at the server within a transaction as all of ours are. */
export async function lookAt(client: Client, { writes }: { writes: boolean }): Promise<Look> {
  const { rows } = await client.inTransaction({
    text: `
    select current_database() || ' since '
             || to_char(pg_postmaster_start_time() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') as database,
           current_setting('server_version') as version, current_setting('server_version_num')::int / 10000 as major,
           pg_is_in_recovery() as standby, current_setting('default_transaction_read_only')::bool as off,
           (select case source
                     when 'client' then null
                     when 'user' then format('ROLE %I', current_user)
                     when 'database user' then format('ROLE %I IN DATABASE %I', current_user, current_database())
                     else format('DATABASE %I', current_database()) end
              from pg_settings where name = 'default_transaction_read_only') as where,
           current_schema()::text as schema, current_setting('search_path') as "searchPath",
           (select relnamespace::regnamespace::text from pg_class
             where oid = to_regclass('"StatHour"')) as "tablesIn",
           (select jsonb_object_agg(name, current_setting(name, true)) from unnest($1::text[]) as name) as settings`,
    values: [Object.keys(EXPECTED)],
  });
  const [server] = rows as Server[];
  if (!server) throw new Error('expected an answer, found none');
  const faults = [versionFault, settingsFault, schemaFault, ...(writes ? [writingFault] : [])];
  return { database: server.database, fault: faults.map((faultIn) => faultIn(server)).find(Boolean) };
}

function versionFault({ major, version }: Server): string | undefined {
  if (major >= OLDEST_POSTGRES) return undefined;
  const mend = 'upgrade it, or name another in DATABASE_URL';
  return `expected version ${OLDEST_POSTGRES} or newer, found ${version}: ${mend}`;
}

/** Each transaction sets its own: only what stands between can have changed them. */
function settingsFault({ settings }: Server): string | undefined {
  const wrong = Object.entries(EXPECTED).filter(([name, value]) => settings[name] !== value);
  if (wrong.length === 0) return undefined;
  const spell = (values: (name: string, value: string) => string | null | undefined) =>
    wrong.map(([name, value]) => `${name} ${values(name, value) ?? 'unset'}`).join(', ');
  const found = spell((name) => settings[name]);
  const mend = 'type ALTER ROLE … RESET …, or name PostgreSQL itself in DATABASE_URL';
  return `expected ${spell((_, value) => value)} in our transactions, found ${found}: ${mend}`;
}

function schemaFault({ schema, searchPath, tablesIn }: Server): string | undefined {
  const mend = 'type ALTER ROLE … IN DATABASE … SET search_path = …';
  if (schema === null) return `expected search_path to name a schema that is there, found ${searchPath}: ${mend}`;
  if (tablesIn === null || tablesIn === schema) return undefined;
  const found = `found them in ${tablesIn}`;
  return `expected hourhand's tables in ${schema}, the first schema of search_path, ${found}: ${mend}`;
}

function writingFault({ standby, off, where }: Server): string | undefined {
  if (standby) return 'expected one that takes writes, found a standby: name the primary in DATABASE_URL';
  if (!off) return undefined;
  const mend = where
    ? `type ALTER ${where} SET default_transaction_read_only = off`
    : 'take it out of the options in DATABASE_URL';
  const found = 'found default_transaction_read_only on';
  return `expected one that takes writes, ${found}: ${mend}, or name the primary in DATABASE_URL`;
}

const POOLER =
  'a pooler stands between that takes no options, or no whole transactions: take the options out of DATABASE_URL, ' +
  'set its pool_mode to session or transaction, or name PostgreSQL itself';
const UNPREPARED = 'a pooler stands between that knows no prepared statements: set DATABASE_PREPARED=off';

const GONE = 'it was stopped, or somebody ended our session: see whether it runs, and do this again';

const REMEDIES: Record<string, string> = {
  '08P01': POOLER,
  '25006': 'it is read-only: name the primary in DATABASE_URL, or set default_transaction_read_only = off',
  '26000': UNPREPARED,
  '28000': 'look at the user and sslmode in DATABASE_URL, and at its pg_hba.conf',
  '28P01': 'look at the user and the password in DATABASE_URL',
  '3D000': 'create it there (CREATE DATABASE), or name another in DATABASE_URL',
  '42P05': UNPREPARED,
  '42501':
    "hourhand's own role owns its tables: type CREATE DATABASE … OWNER for it, or GRANT CREATE ON SCHEMA to it",
  '53100': 'its disk is full: make room there, and do this again',
  '53200': 'its memory is full: give it more, and do this again',
  '53300': 'end other connections, or raise its max_connections or the limit of the role',
  '55P03': 'end the long transactions in its way (pg_stat_activity shows them), and do this again',
  '57P01': GONE,
  '57P02': GONE,
  '57P03': 'wait until it has started, and see its log',
};

/** What to do about an error that PostgreSQL answers with, by its SQLSTATE; undefined where only the statement's author knows. */
export function postgresRemedy(state: string | undefined): string | undefined {
  return REMEDIES[state ?? ''];
}
