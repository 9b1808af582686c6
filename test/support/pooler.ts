// An adversarial transaction pooler: each transaction gets another server connection, in which a stranger has worked.

import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { type AddressInfo, connect as connectTo, createServer, type Socket } from 'node:net';
import pg from 'pg';

/** What a stranger leaves set in a server connection. */
export type Settings = Readonly<Record<string, string>>;

export interface PoolerOptions {
  /** Where the server is, and as whom the pooler signs in there. Clients are taken without a password. */
  readonly databaseUrl: string;
  /** One server connection for each stranger. */
  readonly strangers: readonly Settings[];
  /** Whether a client's `TimeZone` and `DateStyle` are dropped as well, not only its `options`. */
  readonly dropsStartup?: boolean;
}

/** The parameters of a start-up that PgBouncer keeps for each client, as far as hourhand sends them. */
const HANDED_ON = ['TimeZone', 'DateStyle', 'client_encoding', 'application_name'];

const SSL_REQUEST = 80_877_103;
const GSS_REQUEST = 80_877_104;
const CANCEL_REQUEST = 80_877_102;

/** Numbers that no process of the server has. */
const FIRST_PID = 1_000_000_000;

export type Pooler = Awaited<ReturnType<typeof startPooler>>;

/** Start a pooler on a free port. */
export async function startPooler({ databaseUrl, strangers, dropsStartup = false }: PoolerOptions) {
  const slots: Slot[] = await Promise.all(
    strangers.map(async (stranger) => ({
      stranger,
      server: await openServer(databaseUrl, stranger),
      busy: false,
      transactions: 0,
    })),
  );
  const announced = slots[0]?.server?.announced ?? new Map<string, string>();
  const clients = new Map<number, Client>();
  const waiting: (() => void)[] = [];
  let next = 0;
  let pid = FIRST_PID;

  /** The next free server connection in turn. */
  async function take(): Promise<Slot> {
    for (;;) {
      const turn = [...slots.keys()].map((i) => (next + i) % slots.length).find((i) => slots[i]?.busy === false);
      const slot = slots[turn ?? -1];
      if (turn !== undefined && slot) {
        next = turn + 1;
        slot.busy = true;
        return slot;
      }
      await new Promise<void>((resolve) => waiting.push(resolve));
    }
  }

  /** Leave the connection to its stranger, and then to the next client. */
  async function giveBack(slot: Slot, { whole }: { whole: boolean }): Promise<void> {
    await Promise.all(slot.server?.cancels ?? []);
    if (!whole) slot.server?.socket.destroy();
    await slot.server?.dirty().catch(() => slot.server?.socket.destroy());
    slot.busy = false;
    waiting.shift()?.();
  }

  async function serve(socket: Socket): Promise<void> {
    const reader = readerOf(socket);
    let startup = await reader.startup();
    while ([SSL_REQUEST, GSS_REQUEST].includes(startup.readInt32BE(4))) {
      socket.write('N');
      startup = await reader.startup();
    }
    if (startup.readInt32BE(4) === CANCEL_REQUEST) return cancel(startup);
    const own = dropsStartup ? new Map<string, string>() : handedOn(startup);
    const client: Client = { pid: pid++, secret: randomInt(2 ** 31), socket };
    clients.set(client.pid, client);
    socket.once('close', () => clients.delete(client.pid));
    const statuses = [...announced, ...own].map(([name, value]) => message('S', text(name, value)));
    const key = message('K', int32(client.pid, client.secret));
    socket.write(Buffer.concat([message('R', int32(0)), ...statuses, key, message('Z', Buffer.from('I'))]));
    for (;;) {
      const first = await reader.next();
      if (first === undefined || first.kind === 'X') return void socket.end();
      const slot = await take();
      let whole = false;
      try {
        if (!slot.server || slot.server.socket.destroyed) slot.server = await openServer(databaseUrl, slot.stranger);
        await slot.server.adopt(own);
        slot.transactions += 1;
        client.server = slot.server;
        await transaction(client.server, { first, reader, socket });
        whole = true;
      } finally {
        client.server = undefined;
        void giveBack(slot, { whole });
      }
    }
  }

  /** End the statement that this client runs at this moment. The statements of other clients go on. */
  function cancel(request: Buffer): void {
    const client = clients.get(request.readInt32BE(8));
    if (client?.secret === request.readInt32BE(12)) client.server?.cancel();
  }

  const listener = createServer((socket) => {
    socket.on('error', () => {});
    serve(socket).then(
      () => socket.end(),
      () => socket.destroy(),
    );
  });
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const { port } = listener.address() as AddressInfo; // a server that listens on a port has such an address
  return {
    url: at(databaseUrl, port),
    /** How many transactions each of the server connections has served. */
    served: () => slots.map(({ transactions }) => transactions),
    async [Symbol.asyncDispose](): Promise<void> {
      listener.close();
      for (const { socket } of clients.values()) socket.destroy();
      for (const { server } of slots) server?.socket.destroy();
    },
  };
}

/** The same database, asked for at another port of this machine. */
export function at(databaseUrl: string, port: number): string {
  const url = new URL(databaseUrl);
  url.host = `127.0.0.1:${port}`;
  return url.href;
}

interface Client {
  readonly pid: number;
  readonly secret: number;
  readonly socket: Socket;
  server?: ServerConnection | undefined;
}

interface Slot {
  readonly stranger: Settings;
  server?: ServerConnection;
  busy: boolean;
  transactions: number;
}

/**
 * Hand messages on, both ways, until the server has answered all of them and has no transaction open.
 *
 * @throws {Error} when either side hangs up before
 */
async function transaction(
  server: ServerConnection,
  { first, reader, socket }: { first: Message; reader: Reader; socket: Socket },
): Promise<void> {
  // How many answers of the kind ReadyForQuery are still to come, and whether a message waits for its Sync.
  let unanswered = 0;
  let unsynced = false;
  let over = false;
  const finished = new Promise<void>((resolve, reject) => {
    server.listen({
      heard: ({ kind, bytes }) => {
        if (!socket.write(bytes)) {
          server.socket.pause();
          socket.once('drain', () => server.socket.resume());
        }
        if (kind !== 'Z') return;
        unanswered -= 1;
        over = unanswered === 0 && !unsynced && bytes.toString('latin1', 5) === 'I';
        if (over) resolve();
      },
      hungUp: reject,
    });
  });
  const handOn = async ({ kind, bytes }: Message) => {
    if ('QSF'.includes(kind)) unanswered += 1;
    if ('QS'.includes(kind)) unsynced = false;
    else if ('PBDEC'.includes(kind)) unsynced = true;
    if (!server.socket.write(bytes)) await Promise.race([once(server.socket, 'drain'), finished]);
  };
  await handOn(first);
  for (;;) {
    await Promise.race([finished, reader.arrived()]);
    if (over) return;
    const said = reader.shift();
    if (said === undefined || said.kind === 'X') throw new Error('the client has hung up');
    await handOn(said);
  }
}

// --- a server connection ---------------------------------------------------------------------------------------------

type ServerConnection = Awaited<ReturnType<typeof openServer>>;

interface Listener {
  heard(answer: Message): void;
  hungUp(error: Error): void;
}

/** Sign in, and leave the connection as the stranger does. */
async function openServer(connectionString: string, stranger: Settings) {
  const signIn = new pg.Client({ connectionString, application_name: 'pooler' });
  // Only the sign-in is left to pg; afterwards the socket is ours. The types of pg do not name these fields.
  const internals = signIn as unknown as {
    connection: { stream: Socket; on(event: string, listen: (message: Record<string, string>) => void): void };
    processID: number;
    secretKey: number;
  };
  const announced = new Map<string, string>();
  internals.connection.on('parameterStatus', ({ parameterName = '', parameterValue = '' }) =>
    announced.set(parameterName, parameterValue),
  );
  await signIn.connect();
  const socket = internals.connection.stream;
  const { remotePort = 0, remoteAddress } = socket;
  let listener: Listener | undefined;
  socket.removeAllListeners();
  socket.on('error', () => {});
  socket.on('close', () => listener?.hungUp(new Error('the server has hung up')));
  socket.on(
    'data',
    splitter((answer) => listener?.heard(answer)),
  );

  /** A statement of the pooler's own. */
  const run = (sql: string) =>
    new Promise<void>((resolve, reject) => {
      let fault: Error | undefined;
      const heard = ({ kind, bytes }: Message) => {
        if (kind === 'E') fault = new Error(bytes.toString('utf8', 5).replaceAll('\0', ' '));
        if (kind !== 'Z') return;
        if (fault) reject(fault);
        else resolve();
      };
      listener = { heard, hungUp: reject };
      if (socket.destroyed) reject(new Error('the server has hung up'));
      else socket.write(message('Q', text(sql)));
    });
  const assign = (settings: Iterable<[string, string]>) =>
    [...settings].map(([name, value]) => `set ${name} to ${literal(value)}`);

  const server = {
    socket,
    announced,
    /** Cancels that are under way. Until the server has taken them they could hit the next client. */
    cancels: new Set<Promise<unknown>>(),
    listen: (given: Listener): void => {
      listener = given;
    },
    dirty: () => run(['reset all', ...assign(Object.entries(stranger))].join('; ')),
    /** Set what the client said at its start-up. */
    adopt: async (own: ReadonlyMap<string, string>) => {
      if (own.size > 0) await run(assign(own).join('; '));
    },
    cancel(): void {
      const other = connectTo(remotePort, remoteAddress);
      const done = new Promise<void>((resolve) => other.once('close', () => resolve()));
      other.on('error', () => {});
      other.end(int32(16, CANCEL_REQUEST, internals.processID, internals.secretKey));
      other.resume();
      server.cancels.add(done);
      void done.then(() => server.cancels.delete(done));
    },
  };
  await server.dirty();
  return server;
}

// --- the protocol ----------------------------------------------------------------------------------------------------

interface Message {
  readonly kind: string;
  readonly bytes: Buffer;
}

/** Cut a stream of bytes into messages. */
function splitter(onMessage: (message: Message) => void): (chunk: Buffer) => void {
  let rest: Buffer = Buffer.alloc(0);
  return (chunk) => {
    rest = rest.length > 0 ? Buffer.concat([rest, chunk]) : chunk;
    while (rest.length >= 5 && rest.length > rest.readInt32BE(1)) {
      const end = rest.readInt32BE(1) + 1;
      onMessage({ kind: rest.toString('latin1', 0, 1), bytes: rest.subarray(0, end) });
      rest = rest.subarray(end);
    }
  };
}

type Reader = ReturnType<typeof readerOf>;

/** What a client says, message by message; `undefined` when it has hung up. */
function readerOf(socket: Socket) {
  const queue: (Message | undefined)[] = [];
  let wake = () => {};
  let starting = true;
  let start: Buffer = Buffer.alloc(0);
  const add = (said: Message | undefined) => {
    queue.push(said);
    if (queue.length > 100) socket.pause();
    wake();
  };
  const split = splitter(add);
  socket.on('data', (chunk) => {
    if (!starting) return split(chunk);
    start = Buffer.concat([start, chunk]);
    wake();
  });
  socket.once('close', () => add(undefined));
  const changed = () =>
    new Promise<void>((resolve) => {
      wake = resolve;
    });
  const reader = {
    /** The next message without a kind: such is a start-up, and what may come before it. */
    async startup(): Promise<Buffer> {
      while (start.length < 8 || start.length < start.readInt32BE(0)) {
        if (queue.length > 0) throw new Error('the client has hung up');
        await changed();
      }
      const message = start.subarray(0, start.readInt32BE(0));
      start = start.subarray(message.length);
      starting = [SSL_REQUEST, GSS_REQUEST].includes(message.readInt32BE(4));
      if (!starting && start.length > 0) split(start);
      return message;
    },
    async arrived(): Promise<void> {
      while (queue.length === 0) await changed();
    },
    shift(): Message | undefined {
      const said = queue.shift();
      if (queue.length < 50) socket.resume();
      return said;
    },
    async next(): Promise<Message | undefined> {
      await reader.arrived();
      return reader.shift();
    },
  };
  return reader;
}

/** What is kept for a client of what it said at its start-up. */
function handedOn(startup: Buffer): Map<string, string> {
  const words = startup.toString('utf8', 8).split('\0');
  const found = new Map<string, string>();
  for (let i = 0; words[i]; i += 2) {
    const name = HANDED_ON.find((one) => one.toLowerCase() === words[i]?.toLowerCase());
    if (name) found.set(name, words[i + 1] ?? '');
  }
  return found;
}

function message(kind: string, body: Buffer): Buffer {
  return Buffer.concat([Buffer.from(kind, 'latin1'), int32(body.length + 4), body]);
}

function int32(...numbers: number[]): Buffer {
  const buffer = Buffer.alloc(4 * numbers.length);
  for (const [i, number] of numbers.entries()) buffer.writeInt32BE(number, 4 * i);
  return buffer;
}

const text = (...words: string[]) => Buffer.from(words.map((word) => `${word}\0`).join(''));
const literal = (value: string) => `'${value.replaceAll("'", "''")}'`;
