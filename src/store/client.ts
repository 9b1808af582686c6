// How is PostgreSQL reached for what Prisma cannot do: COPY, and migrations?

import pg from 'pg';

/**
 * One connection of plain `pg`, without any time-out on its statements. The caller ends it.
 *
 * @throws {Error} when the server does not take it within ten seconds, with the reason
 */
export async function connectClient(databaseUrl: string, purpose: string): Promise<pg.Client> {
  const client = new pg.Client({
    connectionString: databaseUrl,
    application_name: `hourhand ${purpose}`,
    connectionTimeoutMillis: 10_000,
  });
  client.on('error', () => {}); // A lost connection is told by the statement that it interrupts.
  try {
    await client.connect();
  } catch (cause) {
    const { message, code } = cause as NodeJS.ErrnoException; // pg and the network throw nothing else
    throw new Error(`PostgreSQL: not ready: ${message || code}`, { cause });
  }
  return client;
}
