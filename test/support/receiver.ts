// A webhook of one's own.

import { createServer, type IncomingHttpHeaders } from 'node:http';
import type { AddressInfo } from 'node:net';
import { text } from 'node:stream/consumers';

/** A webhook on a socket: it answers with these statuses, then with 204; where one is 0, never. */
export async function startReceiver(statuses: number[] = []) {
  const told: { path: string | undefined; body: string; headers: IncomingHttpHeaders }[] = [];
  const server = createServer(async (req, res) => {
    told.push({ path: req.url, body: await text(req), headers: req.headers });
    const status = statuses.shift() ?? 204;
    if (status > 0) res.writeHead(status, { location: '/elsewhere' }).end();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo; // a server that listens on a port has such an address
  return {
    url: `http://127.0.0.1:${port}`,
    told,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
