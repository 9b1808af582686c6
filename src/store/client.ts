// How is PostgreSQL reached for what Prisma cannot do: COPY, and migrations?

import pg from 'pg';
import { reach } from './db.ts';

/**
 * One connection of plain `pg`, without any time-out on its statements. The caller ends it.
 *
 * @throws {Error} when the server does not take it within ten seconds, with the reason
 */
export async function connectClient(databaseUrl: string, purpose: string): Promise<pg.Client> {
  try {
    const client = new pg.Client({
      connectionString: databaseUrl,
      application_name: `hourhand ${purpose}`,
      ...reach,
    });
    client.on('error', () => {}); // A lost connection is told by the statement that it interrupts.
    await client.connect();
    return client;
  } catch (cause) {
    const { message, code } = cause as NodeJS.ErrnoException; // pg, the network and a certificate's file throw nothing else
    throw new Error(`PostgreSQL: not ready: ${message || code}`, { cause });
  }
}
