// Providers to ask: real servers in processes of their own, and sockets for what those cannot do.

import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes, randomInt, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import http from 'node:http';
import net, { type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { home } from '../../src/config.ts';
import { until } from './hourhand.ts';

/** What a provider was asked. */
export interface Asked {
  readonly method: string;
  readonly path: string;
  readonly headers: Record<string, unknown>;
  readonly body: unknown;
}

export interface Counterpart extends AsyncDisposable {
  readonly url: string;
  /** All it was asked so far, oldest first. */
  requests(): Promise<Asked[]>;
}

/** An entry of a fixture file of aimock. */
export interface Fixture {
  readonly match: {
    readonly model?: string;
    readonly inputText?: string;
    readonly endpoint?: 'chat' | 'embedding' | 'image' | 'speech' | 'video';
    readonly sequenceIndex?: number;
  };
  readonly response: object;
  readonly chaos?: { readonly disconnectRate?: number; readonly malformedRate?: number; readonly latencyMs?: number };
}

/**
 * A provider as OpenAI is one. It answers what the fixtures say, and 503 to anything else.
 *
 * @param keys the keys that it takes; without them any
 * @param latency milliseconds before each answer
 */
export async function startAimock(
  fixtures: readonly Fixture[],
  { keys = [], latency = 0 }: { keys?: readonly string[]; latency?: number } = {},
): Promise<Counterpart> {
  return startCounterpart({
    file: ['fixtures.json', JSON.stringify({ fixtures })],
    command: (port, file) => [
      ...['@copilotkit/aimock/dist/cli.js', '--host', '127.0.0.1', '--port', port, '--fixtures', file, '--strict'],
      ...['--log-level', 'silent', ...(latency > 0 ? ['--chaos-latency', String(latency)] : [])],
    ],
    env: { AIMOCK_API_KEYS: keys.join(',') || undefined },
    ready: '/health',
    async requests(url) {
      const authorization = `Bearer ${keys[0] ?? 'any'}`;
      return readJson<Asked[]>(await fetch(`${url}/__aimock/journal`, { headers: { authorization } }));
    },
  });
}

/** A route of an odd provider: texts are templates, in which `{{header 'Authorization'}}` is what it was asked with. */
export interface Route {
  readonly path: string;
  readonly status?: number;
  readonly headers?: Record<string, string>;
  readonly body?: string;
}

/** A provider that answers these texts, whatever the method. */
export async function startMockoon(routes: readonly Route[]): Promise<Counterpart> {
  const token = randomBytes(16).toString('hex');
  return startCounterpart({
    file: ['environment.json', JSON.stringify(mockoonEnvironment(routes))],
    command: (port, file) => [
      ...['@mockoon/cli/bin/run.js', 'start', '--data', file, '--hostname', '127.0.0.1', '--port', port],
      ...['--disable-log-to-file', '--disable-external-refs', '--max-transaction-logs', '1000'],
    ],
    env: { MOCKOON_ADMIN_API_TOKEN: token },
    ready: '/',
    async requests(url) {
      const authorization = `Bearer ${token}`;
      const logs = await readJson<MockoonLog[]>(
        await fetch(`${url}/mockoon-admin/logs?limit=1000`, { headers: { authorization } }),
      );
      return logs
        .map(({ request }) => ({
          method: request.method.toUpperCase(),
          path: request.urlPath,
          headers: Object.fromEntries(request.headers.map(({ key, value }) => [key.toLowerCase(), value])),
          body: request.body,
        }))
        .filter((asked) => asked.path !== '/' && !asked.path.startsWith('/mockoon-admin'));
    },
  });
}

interface MockoonLog {
  readonly request: {
    readonly method: string;
    readonly urlPath: string;
    readonly headers: { key: string; value: string }[];
    readonly body: string;
  };
}

/** The fields that mockoon's newest file format wants; an older one it would first ask to migrate. */
function mockoonEnvironment(routes: readonly Route[]): object {
  const written = routes.map(({ path: endpoint, status = 200, headers = {}, body = '' }) => ({
    uuid: randomUUID(),
    type: 'http',
    documentation: '',
    method: 'all',
    endpoint: endpoint.replace(/^\//, ''),
    responseMode: null,
    streamingMode: null,
    streamingInterval: 0,
    responses: [
      {
        uuid: randomUUID(),
        body,
        latency: 0,
        statusCode: status,
        label: '',
        headers: Object.entries({ 'Content-Type': 'application/json', ...headers }).map(([key, value]) => ({
          key,
          value,
        })),
        bodyType: 'INLINE',
        filePath: '',
        databucketID: '',
        sendFileAsBody: false,
        rules: [],
        rulesOperator: 'OR',
        disableTemplating: false,
        fallbackTo404: false,
        default: true,
        crudKey: 'id',
        callbacks: [],
      },
    ],
  }));
  return {
    uuid: randomUUID(),
    lastMigration: 33,
    name: 'odd providers',
    port: 3000,
    hostname: '127.0.0.1',
    endpointPrefix: '',
    latency: 0,
    folders: [],
    routes: written,
    rootChildren: written.map(({ uuid }) => ({ type: 'route', uuid })),
    proxyMode: false,
    proxyRemovePrefix: false,
    proxyHost: '',
    proxyReqHeaders: [],
    proxyResHeaders: [],
    tlsOptions: { enabled: false, type: 'CERT', pfxPath: '', certPath: '', keyPath: '', caPath: '', passphrase: '' },
    cors: false,
    headers: [],
    data: [],
    callbacks: [],
  };
}

async function startCounterpart(how: {
  file: [name: string, text: string];
  command: (port: string, file: string) => string[];
  env: Record<string, string | undefined>;
  ready: string;
  requests: (url: string) => Promise<Asked[]>;
}): Promise<Counterpart> {
  // Its home as well: mockoon makes a folder there.
  const dir = await mkdtemp(path.join(tmpdir(), 'hourhand-counterpart-'));
  const file = path.join(dir, how.file[0]);
  await writeFile(file, how.file[1]);
  const { child, url } = await start(dir, file, how);
  return {
    url,
    requests: () => how.requests(url),
    async [Symbol.asyncDispose]() {
      await end(child);
      await rm(dir, { recursive: true, force: true });
    },
  };
}

/** Somebody may have taken the port meanwhile: it then ends, and is started at another. */
async function start(
  dir: string,
  file: string,
  { command, env, ready }: Pick<Parameters<typeof startCounterpart>[0], 'command' | 'env' | 'ready'>,
): Promise<{ child: ChildProcess; url: string }> {
  for (let attempt = 1; ; attempt++) {
    const port = await freePort();
    const url = `http://127.0.0.1:${port}`;
    const [script, ...args] = command(String(port), file);
    const child = spawn(
      process.execPath,
      [path.join(home, 'test/counterparts/node_modules', String(script)), ...args],
      {
        cwd: dir,
        env: { PATH: process.env.PATH, HOME: dir, ...env },
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    );
    let said = '';
    for (const stream of [child.stdout, child.stderr]) stream?.on('data', (chunk) => (said += chunk));
    const answers = () => fetch(`${url}${ready}`).then(Boolean, () => false);
    const state = await until(
      async () => (child.exitCode === null ? (await answers()) && 'ready' : 'ended'),
      (seen) => seen !== false,
    ).catch(async (error: unknown) => {
      await end(child);
      throw error;
    });
    if (state === 'ready') return { child, url };
    if (attempt === 3) throw new Error(`${script} ended (exit code ${child.exitCode}): ${said}`);
  }
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}

/** Below the ports that the system gives to outgoing connections, of which the tests have many. */
async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(15_000, 30_000);
    const server = net.createServer();
    const free = await new Promise<boolean>((resolve) => {
      server.once('error', () => resolve(false));
      server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
    });
    if (free) return port;
  }
}

async function readJson<T>(response: Response): Promise<T> {
  if (!response.ok) throw new Error(`${response.url}: ${response.status} ${await response.text()}`);
  return response.json() as Promise<T>; // what the counterpart's version of today writes
}

export interface Socket extends AsyncDisposable {
  readonly port: number;
  readonly url: string;
  /** What reached it; for a bare socket one entry a connection. */
  readonly asked: Asked[];
}

/** A server whose answers are written by hand. */
export async function startHttp(
  answer: (asked: Asked, response: http.ServerResponse) => void,
  host = '127.0.0.1',
): Promise<Socket> {
  const asked: Asked[] = [];
  const server = http.createServer(async (request, response) => {
    let body = '';
    for await (const chunk of request) body += chunk;
    const { method = '', url = '', headers } = request;
    const one = { method, path: url, headers, body };
    asked.push(one);
    answer(one, response);
  });
  return listening(server, asked, () => server.closeAllConnections(), host);
}

/** A server that does as it likes with a connection once something was asked on it. */
export async function startNet(answer: (socket: net.Socket) => void): Promise<Socket> {
  const asked: Asked[] = [];
  const sockets = new Set<net.Socket>();
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {}); // the asker may hang up
    socket.once('data', (chunk) => {
      asked.push({ method: '', path: '', headers: {}, body: String(chunk) });
      answer(socket);
    });
  });
  return listening(server, asked, () => {
    for (const socket of sockets) socket.destroy();
  });
}

async function listening(
  server: net.Server,
  asked: Asked[],
  hangUp: () => void,
  host = '127.0.0.1',
): Promise<Socket> {
  server.listen(0, host);
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo; // it listens on a port, so it is no pipe
  return {
    port,
    url: `http://127.0.0.1:${port}`,
    asked,
    async [Symbol.asyncDispose]() {
      const closed = once(server, 'close');
      server.close();
      hangUp();
      await closed;
    },
  };
}
