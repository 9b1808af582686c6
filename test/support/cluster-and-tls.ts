// Servers of a test's own: the nodes of a Redis Cluster, and both servers behind TLS.

import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { Redis } from 'ioredis';
import pg from 'pg';
import { generate } from 'selfsigned';
import { freePort } from '../../scripts/ports.mjs';
import { startPostgres, stopPostgres } from '../../scripts/private-postgres.mjs';
import { findRedis } from '../../scripts/private-redis.mjs';
import { localTest, redisBinaries } from '../../scripts/servers.mjs';
import { until } from './hourhand.ts';

/** A Redis that runs here; none where the tests were given a server elsewhere. */
export const redisHere = await findRedis(redisBinaries);

/** Some are built without TLS: they know none of its settings, and say so before they stumble over what nobody knows. */
export const redisSpeaksTls = redisHere !== undefined && knowsTls(redisHere);

function knowsTls({ command, env }: NonNullable<typeof redisHere>): boolean {
  const { stdout, stderr } = spawnSync(command, ['--tls-port', '0', '--no-such-setting', '1'], { env });
  return `${stdout}${stderr}`.includes('no-such-setting');
}

/** A folder of one's own in the checkout, where PostgreSQL may run whoever we are. */
export async function scratchFolder() {
  await mkdir(localTest, { recursive: true });
  const folder = await mkdtemp(path.join(localTest, 'own-'));
  return { path: folder, [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }) };
}

export interface OwnServer extends AsyncDisposable {
  readonly port: number;
}

/** A Redis that keeps nothing. */
export async function startOwnRedis(settings: readonly string[], port?: number): Promise<OwnServer> {
  if (!redisHere) throw new Error('no Redis runs here');
  const own = port ?? (await freePort());
  const folder = await scratchFolder();
  const always = ['--port', `${own}`, '--bind', '127.0.0.1', '--dir', folder.path, '--save', ''];
  const child = spawn(redisHere.command, [...always, '--maxmemory-policy', 'noeviction', ...settings], {
    env: redisHere.env,
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  let said = '';
  child.stdout.on('data', (chunk) => {
    said += chunk;
  });
  await until(
    async () => said,
    () => said.includes('Ready to accept connections') || child.exitCode !== null,
  );
  if (child.exitCode !== null) {
    await folder[Symbol.asyncDispose]();
    // Free a moment ago; of a cluster's node the one that lies 10,000 above must be free too.
    if (port === undefined && said.includes('Address already in use')) return startOwnRedis(settings);
    throw new Error(`Redis did not start: ${said}`);
  }
  return {
    port: own,
    async [Symbol.asyncDispose]() {
      const ended = child.exitCode === null && child.signalCode === null && once(child, 'exit');
      child.kill('SIGKILL');
      await ended;
      await folder[Symbol.asyncDispose]();
    },
  };
}

/** Three masters, each with its third of the slots, and nothing but this password lets anybody in. */
export async function startCluster(password: string) {
  const settings = ['--cluster-enabled', 'yes', '--cluster-node-timeout', '2000', '--requirepass', password];
  const servers = await Promise.all([1, 2, 3].map(() => startOwnRedis(settings)));
  const nodes = servers.map(({ port }) => new Redis({ port, password }));
  const third = 16_384 / 3;
  await Promise.all(
    nodes.map(async (node, i) => {
      await node.cluster('SET-CONFIG-EPOCH', i + 1);
      await node.cluster('ADDSLOTSRANGE', Math.ceil(i * third), Math.ceil((i + 1) * third) - 1);
    }),
  );
  for (const { port } of servers.slice(1)) await nodes[0]?.cluster('MEET', '127.0.0.1', port);
  const whole = /cluster_state:ok.*cluster_known_nodes:3.*cluster_size:3/s;
  await until(
    () => Promise.all(nodes.map((node) => node.cluster('INFO'))),
    (found) => found.every((info) => whole.test(`${info}`)),
  );
  return {
    url: `redis://:${password}@127.0.0.1:${servers[0]?.port}`,
    password,
    /** Connections to each node alone. */
    nodes,
    async [Symbol.asyncDispose]() {
      for (const node of nodes) node.disconnect();
      await Promise.all(servers.map((server) => server[Symbol.asyncDispose]()));
    },
  };
}

/** A certificate authority that nobody knows, and a certificate of its for 127.0.0.1 alone. */
async function makeCertificates() {
  const how = { algorithm: 'sha256', keyType: 'ec' } as const;
  const authority = await generate([{ name: 'commonName', value: 'tests' }], {
    ...how,
    extensions: [
      { name: 'basicConstraints', cA: true, critical: true },
      { name: 'keyUsage', keyCertSign: true, critical: true },
    ],
  });
  const server = await generate([{ name: 'commonName', value: 'server' }], {
    ...how,
    ca: { key: authority.private, cert: authority.cert },
    extensions: [
      { name: 'basicConstraints', cA: false },
      { name: 'subjectAltName', altNames: [{ type: 7, ip: '127.0.0.1' }] },
    ],
  });
  return { authority: authority.cert, key: server.private, certificate: server.cert };
}

/** A Redis and a PostgreSQL that speak TLS beside plain text, with a certificate of an authority of their own. */
export async function startTlsServers() {
  const folder = await scratchFolder();
  const home = path.join(folder.path, 'postgres');
  const password = randomBytes(12).toString('hex');
  const { authority, key, certificate } = await makeCertificates();
  const file = async (name: string, content: string) => {
    await writeFile(path.join(folder.path, name), content);
    return path.join(folder.path, name);
  };
  const ca = await file('ca.pem', authority);
  const tlsPort = await freePort();
  const [redis, postgres] = await Promise.all([
    startOwnRedis([
      ...['--tls-port', `${tlsPort}`, '--tls-ca-cert-file', ca, '--tls-auth-clients', 'no'],
      ...['--tls-cert-file', await file('server.pem', certificate), '--tls-key-file', await file('key.pem', key)],
      ...['--requirepass', password],
    ]),
    startPostgres({ home, password, passwordIsNew: true, database: 'calls', throwAway: true }),
  ]);
  const databaseUrl = `postgresql://hourhand:${password}@127.0.0.1:${postgres.port}/calls`;
  await speakTls(databaseUrl, key, certificate);
  return {
    password,
    /** The file of the authority's certificate. */
    ca,
    plain: { databaseUrl, redisUrl: `redis://:${password}@127.0.0.1:${redis.port}` },
    tls: {
      databaseUrl: `${databaseUrl}?sslmode=verify-full&sslrootcert=${ca}`,
      redisUrl: `rediss://:${password}@127.0.0.1:${tlsPort}`,
    },
    tlsPort,
    async [Symbol.asyncDispose]() {
      await Promise.all([redis[Symbol.asyncDispose](), stopPostgres(home)]);
      await folder[Symbol.asyncDispose]();
    },
  };
}

/** The server writes its files itself, for they must be its own, whoever it runs as. */
async function speakTls(databaseUrl: string, key: string, certificate: string): Promise<void> {
  const client = new pg.Client({ connectionString: databaseUrl });
  await client.connect();
  try {
    for (const [name, content] of Object.entries({ 'server.key': key, 'server.crt': certificate })) {
      const lines = client.escapeLiteral(content.trim());
      await client.query(
        `copy (select string_to_table(${lines}, E'\\n')) to program 'umask 077 && tr -d "\\r" > ${name}'`,
      );
    }
    await client.query('alter system set ssl = on');
    await client.query('select pg_reload_conf()');
    await until(
      async () => (await client.query('show ssl')).rows[0].ssl,
      (ssl) => ssl === 'on',
    );
  } finally {
    await client.end();
  }
}
