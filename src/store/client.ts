// Reaches PostgreSQL for what Prisma cannot do: COPY, and migrations.

import type { EventEmitter } from 'node:events';
import pg from 'pg';
import { Client, reach } from './driver.ts';

/** PostgreSQL did not take a connection. */
export class Unreached extends Error {}

/**
 * One connection of plain `pg`, without time-outs of its own. The caller ends it.
 *
 * @throws {Unreached} when the server does not take it within ten seconds, with the reason
 */
export async function connectClient(databaseUrl: string, purpose: string): Promise<Client> {
  try {
    const client = new Client({
      connectionString: databaseUrl,
      application_name: `hourhand ${purpose}`,
      patient: true,
      ...reach,
    });
    await client.connect();
    return client;
  } catch (cause) {
    const { message, code } = cause as NodeJS.ErrnoException; // pg, the network and a certificate's file throw nothing else
    throw new Unreached(`PostgreSQL: not ready: ${message || code}`, { cause });
  }
}

/** What pg's own client knows of itself and of a connection, and its types leave out. */
interface Cancellable {
  readonly processID: number;
  readonly secretKey: number;
  readonly host: string;
  readonly port: number;
  readonly ssl: boolean | object;
  readonly sslNegotiation: string;
}
interface CancelConnection extends EventEmitter {
  readonly stream: { destroy(): void };
  connect(port: number | string, host?: string): void;
  requestSsl(): void;
  cancel(processID: number, secretKey: number): void;
}

/**
 * Make what ends the statement that a connection runs at that moment; hanging up would leave it running to its end. It
 * sends the protocol's own request, which a pooler hands on to the session that works for us then. The pid of a session,
 * asked before, could belong to a stranger's statement by then.
 */
export function canceller(client: Client): () => void {
  const { processID, secretKey, host, port, ssl, sslNegotiation } = client as unknown as Cancellable;
  return () => {
    const config: object = { ssl, sslNegotiation };
    const request = new pg.Connection(config) as unknown as CancelConnection; // its types name what a query needs
    const end = () => request.stream.destroy();
    const timer = setTimeout(end, reach.connectionTimeoutMillis).unref();
    const send = () => request.cancel(processID, secretKey);
    request.on('error', end); // The server is gone: nothing is left to cancel.
    request.on('end', () => clearTimeout(timer));
    request.on('sslconnect', send);
    request.on('connect', () => {
      if (!ssl) send();
      else if (sslNegotiation !== 'direct') request.requestSsl();
    });
    if (host.startsWith('/')) request.connect(`${host}/.s.PGSQL.${port}`);
    else request.connect(port, host);
  };
}
