// Which port is free?
import { randomInt } from 'node:crypto';
import net from 'node:net';

const isFree = (port) =>
  new Promise((resolve) => {
    const server = net.createServer();
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });

/** The port wanted, else one at random below those that the system gives to outgoing connections. */
export async function freePort(wanted) {
  for (let port = wanted ?? randomInt(15_000, 30_000); ; port = randomInt(15_000, 30_000)) {
    if (await isFree(port)) return port;
  }
}
