// A pooler in session mode: it drops the options that a client asks for, and has keys of its own for cancelling.

import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

const SSL_REQUEST = 80_877_103;
const CANCEL_REQUEST = 80_877_102;

export interface SessionPooler extends AsyncDisposable {
  /** The database's URL, through the pooler. */
  readonly url: string;
  /** What the clients' startup messages said, one text for each: names and values in turn. */
  readonly startups: string[][];
}

/** Start one on a free port, before the server of a URL that says `sslmode=disable`. */
export async function startSessionPooler(databaseUrl: string): Promise<SessionPooler> {
  const { port, hostname } = new URL(databaseUrl);
  const sockets = new Set<Socket>();
  const keys = new Map<string, Buffer>();
  const startups: string[][] = [];
  const server = createServer((near) => {
    const far = connect(Number(port), hostname);
    for (const [socket, other] of [[near, far] as const, [far, near] as const]) {
      sockets.add(socket);
      socket.on('error', () => other.destroy()).on('close', () => other.destroy());
    }
    const start = (message: Buffer) => {
      const code = message.readInt32BE(4);
      if (code === SSL_REQUEST) {
        near.write('N');
        near.once('data', start);
        return;
      }
      if (code === CANCEL_REQUEST) {
        const key = keys.get(message.subarray(8).toString('hex'));
        if (key) far.end(Buffer.concat([message.subarray(0, 8), key]));
        else far.end();
        return;
      }
      startups.push(message.toString('utf8', 8).split('\0').slice(0, -2));
      far.write(withoutOptions(message));
      near.pipe(far);
      far.on('data', (chunk) => near.write(withOwnKey(chunk, keys)));
    };
    near.once('data', start);
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const url = new URL(databaseUrl);
  url.port = String((server.address() as AddressInfo).port); // it listens on one
  return {
    url: url.href,
    startups,
    async [Symbol.asyncDispose]() {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}

/** A startup message is one chunk: nothing follows it before it is answered. */
function withoutOptions(message: Buffer): Buffer {
  const words = message.toString('utf8', 8).split('\0');
  const at = words.indexOf('options');
  if (at >= 0) words.splice(at, 2);
  const body = Buffer.from(words.join('\0'));
  const head = Buffer.alloc(8);
  head.writeInt32BE(8 + body.length);
  head.writeInt32BE(message.readInt32BE(4), 4);
  return Buffer.concat([head, body]);
}

/** The key for cancelling stands in the chunk that ends the sign-in, before ReadyForQuery. */
function withOwnKey(chunk: Buffer, keys: Map<string, Buffer>): Buffer {
  const at = chunk.indexOf(Buffer.from('4b0000000c', 'hex'));
  if (at < 0 || chunk.toString('latin1', at + 13, at + 14) !== 'Z') return chunk;
  const own = Buffer.alloc(8);
  own.writeInt32BE(randomInt(1_000_000_000, 2_000_000_000)); // no process of the server has such a number
  own.writeInt32BE(randomInt(2 ** 31), 4);
  keys.set(own.toString('hex'), Buffer.from(chunk.subarray(at + 5, at + 13)));
  return Buffer.concat([chunk.subarray(0, at + 5), own, chunk.subarray(at + 13)]);
}
