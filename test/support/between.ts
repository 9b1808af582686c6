// A way to a server that can go silent, as a cut line or a stopped machine does.

import net from 'node:net';

/** A wire to a server that can be held: connections stand, and nothing comes through. */
export async function between(target: string) {
  const to = new URL(target);
  const sockets = new Set<net.Socket>();
  let held = false;
  const server = net.createServer((near) => {
    const far = net.connect(Number(to.port), to.hostname);
    for (const [from, into] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from);
      from.on('error', () => {}).on('close', () => into.destroy());
      from.on('data', (data) => into.write(data));
      if (held) from.pause();
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = new URL(target);
  url.host = `127.0.0.1:${(server.address() as net.AddressInfo).port}`;
  return {
    url: url.href,
    hold() {
      held = true;
      for (const socket of sockets) socket.pause();
    },
    release() {
      held = false;
      for (const socket of sockets) socket.resume();
    },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
