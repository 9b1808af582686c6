// How is PostgreSQL reached for what Prisma cannot do: COPY, and migrations?

import pg from 'pg';
import { reach } from './db.ts';

/**
 * One connection of plain `pg`; what the role says of time-outs holds there. The caller ends it.
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

/** What ends the statement that a connection runs at this moment, by another one: hanging up would leave it running to its end. */
export async function canceller(client: pg.Client, databaseUrl: string, purpose: string): Promise<() => void> {
  const { rows } = await client.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
  const cancelling = async () => {
    const other = await connectClient(databaseUrl, purpose);
    await other.query('SELECT pg_cancel_backend($1)', [rows[0]?.pid]).finally(() => other.end());
  };
  return () => void cancelling().catch(() => {}); // The server is gone: nothing is left to cancel.
}
