// Is this a PostgreSQL that we can work with, and what is to be done where it is not?

import type pg from 'pg';

/** The oldest that has all that our statements need; `date_bin` came with it. */
export const OLDEST_POSTGRES = 14;

/** @returns what was expected and found, and what to do; undefined where nothing is wrong with it */
export async function faultOf(client: pg.Client, { writes }: { writes: boolean }): Promise<string | undefined> {
  const { rows } = await client.query<{
    version: string;
    major: number;
    standby: boolean;
    off: boolean;
    where: string | null;
  }>(`
    select current_setting('server_version') as version, current_setting('server_version_num')::int / 10000 as major,
           pg_is_in_recovery() as standby, current_setting('default_transaction_read_only')::bool as off,
           (select case source
                     when 'client' then null
                     when 'user' then format('ROLE %I', current_user)
                     when 'database user' then format('ROLE %I IN DATABASE %I', current_user, current_database())
                     else format('DATABASE %I', current_database()) end
              from pg_settings where name = 'default_transaction_read_only') as where`);
  const [server] = rows;
  if (server && server.major < OLDEST_POSTGRES) {
    return `expected version ${OLDEST_POSTGRES} or newer, found ${server.version}: upgrade it, or name another in DATABASE_URL`;
  }
  if (!writes) return undefined;
  if (server?.standby) return 'expected one that takes writes, found a standby: name the primary in DATABASE_URL';
  if (server?.off) {
    const mend = server.where
      ? `type ALTER ${server.where} SET default_transaction_read_only = off`
      : 'take it out of the options in DATABASE_URL';
    return `expected one that takes writes, found default_transaction_read_only on: ${mend}, or name the primary in DATABASE_URL`;
  }
  return undefined;
}

const POOLER =
  'a pooler stands between that hands on no options or no prepared statements: name PostgreSQL itself in DATABASE_URL';

const REMEDIES: Record<string, string> = {
  '08P01': POOLER,
  '25006': 'it is read-only: name the primary in DATABASE_URL, or set default_transaction_read_only = off',
  '26000': POOLER,
  '28000': 'look at the user and sslmode in DATABASE_URL, and at its pg_hba.conf',
  '28P01': 'look at the user and the password in DATABASE_URL',
  '3D000': 'create it there (CREATE DATABASE), or name another in DATABASE_URL',
  '42P05': POOLER,
  '42501':
    "hourhand's own role owns its tables: type CREATE DATABASE … OWNER for it, or GRANT CREATE ON SCHEMA to it",
  '53100': 'its disk is full: make room there, and do this again',
  '53200': 'its memory is full: give it more, and do this again',
  '53300': 'end other connections, or raise its max_connections or the limit of the role',
  '57P03': 'wait until it has started, and see its log',
};

/** What to do about an error that PostgreSQL answers with, by its SQLSTATE; undefined where only the statement's author knows. */
export function postgresRemedy(state: string | undefined): string | undefined {
  return REMEDIES[state ?? ''];
}
