// How does a process listen, and how does it stop?

import { once } from 'node:events';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';

/** What `close` waits for answers under way. */
const DRAIN_MS = 500;

/** Where to listen, and the variables that say so. */
export interface Place {
  readonly host: string;
  readonly port: number;
  readonly names: { readonly host: string; readonly port: string };
}

/**
 * Listen, on a free port where it is 0.
 *
 * @returns the URL
 * @throws {Error} naming the variable that is to be changed when nobody can listen there
 */
export async function listen(server: Server, place: Place): Promise<string> {
  const { host } = place;
  try {
    await once(server.listen(place.port, host), 'listening');
  } catch (cause) {
    throw new Error(whyNot(cause as NodeJS.ErrnoException, place), { cause }); // listen fails with a system error
  }
  const { port } = server.address() as AddressInfo; // a server that listens on a port has such an address
  return `http://${host.includes(':') ? `[${host}]` : host}:${port}`;
}

function whyNot({ code, message }: NodeJS.ErrnoException, { host, port, names }: Place): string {
  if (code === 'EADDRINUSE')
    return `${names.port} ${port} is taken on ${host}: free it, or set ${names.port} to another (0 takes any)`;
  if (code === 'EACCES') return `${names.port} ${port} is not open to this user on ${host}: set it to 1024 or more`;
  if (code === 'EADDRNOTAVAIL') return `${names.host} ${host} is no address of this machine: set it to 127.0.0.1`;
  return `${names.port} ${port} on ${host}: ${message}`;
}

/** Takes no longer than about half a second, whoever is still connected. */
export async function close(server: Server): Promise<void> {
  const timer = setTimeout(() => server.closeAllConnections(), DRAIN_MS);
  await new Promise((resolve) => server.close(resolve));
  clearTimeout(timer);
}
