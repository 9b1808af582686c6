// Does such a server answer at the address that somebody gave us? Plain JavaScript, and Node built-ins only: npm start asks before it
// installs and builds anything, and hourhand before it waits for a client that never hears what it wants.
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import tls from 'node:tls';

/** What each is asked, and how it answers whoever has not signed in. Nothing is changed by it. */
const SPEECHES = {
  PostgreSQL: { question: Buffer.from('0000000804d2162f', 'hex'), answer: /^[SN]/ }, // may we speak TLS?
  Redis: { question: 'PING\r\n', answer: /^[+-]/ },
  'Redis with TLS': { question: 'PING\r\n', answer: /^[+-]/, encrypted: true },
};
const SERVERS = {
  PostgreSQL: { variable: 'DATABASE_URL', port: 5432, protocols: ['postgres:', 'postgresql:'] },
  Redis: { variable: 'REDIS_URL', port: 6379, protocols: ['redis:', 'rediss:'] },
};
const KNOWN = /^(postgres(ql)?|rediss?|valkeys?|https?|mysql|mariadb|mongodb|amqps?):$/;
/** What a silent server gets before it is asked whether it is another, and then to answer that. */
const PATIENCE = 1_000;

/** `postgres://user@/database?host=/folder` names a socket, and is no URL to any other than PostgreSQL: we name a host. */
export function withHost(text) {
  return text?.replace(/^(postgres(ql)?:\/\/[^/]*@)(?=\/)/, '$1localhost');
}

/** What is wrong with a URL, beginning with `expected`, and without what is in it; undefined if nothing is. */
export function urlProblem(text, protocols) {
  const expected = `expected a URL that begins with ${protocols.map((name) => `${name}//`).join(' or ')}`;
  if (!URL.canParse(withHost(text))) {
    return `${expected}, got (not shown); it has one host, a port of at most 65535, and in a password # is written %23, and / %2F`;
  }
  const { protocol, username, password, searchParams } = new URL(withHost(text));
  if (!protocols.includes(protocol)) {
    return `${expected}, got ${KNOWN.test(protocol) ? `${protocol}//… ` : ''}(not shown)`;
  }
  try {
    decodeURIComponent(username + password);
  } catch {
    return 'expected each % of its user and password to be written %25, got (not shown)';
  }
  // Prisma's own word, which its driver for PostgreSQL does not know: our tables would be in another schema than was said.
  if (SERVERS.PostgreSQL.protocols.includes(protocol) && !['public', null].includes(searchParams.get('schema'))) {
    return 'expected another schema than public to be named by ?options=-c%20search_path%3DNAME, got ?schema=… (not shown)';
  }
  return undefined;
}

/** Where a URL leads: `host` and `port`, or the `path` of a socket; `shown` is for people, and holds no secret. */
export function addressOf(server, text) {
  const { protocol, hostname, port, searchParams } = new URL(withHost(text));
  const setting = (name) => (server === 'PostgreSQL' && searchParams.get(name)) || '';
  const host = (setting('host') || decodeURIComponent(hostname) || 'localhost').replace(/^\[(.+)\]$/, '$1');
  const number = Number(setting('port') || port || SERVERS[server].port);
  if (host.startsWith('/')) return { path: `${host}/.s.PGSQL.${number}`, shown: host };
  return { host, port: number, encrypted: protocol === 'rediss:', shown: `${host}:${number}` };
}

/**
 * What keeps us from the server that a URL names, in one sentence; undefined where one of its kind answers within `ms`.
 *
 * @param server PostgreSQL or Redis
 * @param mend what to do about a wrong address
 */
export async function unreachable(server, text, { ms, mend = `mend ${SERVERS[server].variable}` }) {
  const address = addressOf(server, text);
  const wanted = address.encrypted ? 'Redis with TLS' : server;
  const problem = await problemAt(address, wanted, { ms, mend, text });
  return problem && `${server} at ${address.shown}: ${problem}`;
}

/**
 * Look at the servers that were given, by the names of their variables.
 *
 * @throws {Error} with a sentence for each that is none, or does not answer within `ms`
 */
export async function checkGiven(urls, ms = 5_000) {
  const problems = await Promise.all(
    Object.entries(urls).map(async ([variable, text]) => {
      if (text === undefined) return undefined;
      const server = variable.endsWith('DATABASE_URL') ? 'PostgreSQL' : 'Redis';
      const wrong = urlProblem(text, SERVERS[server].protocols);
      return wrong ? `${variable}: ${wrong}` : unreachable(server, text, { ms, mend: `mend ${variable}` });
    }),
  );
  const said = problems.filter(Boolean);
  if (said.length > 0) throw new Error(said.join('\n'));
}

async function problemAt(address, wanted, { ms, mend, text }) {
  const over = new AbortController();
  try {
    const asked = ask(address, wanted, ms, over.signal);
    const soon = await Promise.race([asked, sleep(Math.min(PATIENCE, ms))]);
    if (soon?.code)
      return `${unreached(soon.code, ms)}: ${soon.code === 'ENOTFOUND' ? mend : `start it, or ${mend}`}`;
    if (isAnswer(wanted, soon)) return refusalIn(wanted, soon) ?? tlsProblem(text, soon);
    const other = await whoElse(address, wanted, soon, over.signal);
    const hint =
      wanted.startsWith('Redis') && other?.includes('Redis') ? ' (redis:// is without TLS, rediss:// with)' : '';
    if (other) return `expected ${wanted}, found ${other}: ${mend}${hint}`;
    const late = await asked;
    if (isAnswer(wanted, late)) return refusalIn(wanted, late) ?? tlsProblem(text, late);
    if (late.code) return `${unreached(late.code, ms)}: start it, or ${mend}`;
    return `expected ${wanted}, found ${unheard(late, wanted, ms)}: look at what listens there, or ${mend}`;
  } finally {
    over.abort();
  }
}

const isAnswer = (speech, heard) => heard?.said !== undefined && SPEECHES[speech].answer.test(heard.said);

function unheard({ said, closed }, wanted, ms) {
  if (said) return 'something else';
  if (!closed) return `no answer within ${ms / 1000} s`;
  const why = wanted === 'Redis with TLS' ? ', as does one that wants a certificate of ours (tls-auth-clients)' : '';
  return `one that hangs up${why}`;
}

function unreached(code, ms) {
  if (code === 'ENOTFOUND') return 'there is no such host (ENOTFOUND)';
  if (code === 'ECONNREFUSED' || code === 'ENOENT') return `nobody listens there (${code})`;
  return code === 'LATE' ? `no connection within ${ms / 1000} s` : `no connection (${code})`;
}

/** What Redis says as it hangs up: its client would try again and again, and only hear that it was hung up on. */
function refusalIn(wanted, { said }) {
  if (wanted === 'PostgreSQL') return undefined;
  if (said.startsWith('-DENIED')) {
    return 'expected one that takes other machines, found one in protected mode: give it a password (requirepass), or set protected-mode no';
  }
  if (!said.startsWith('-ERR max number of clients')) return undefined;
  return 'max number of clients reached: end other connections, or raise its maxclients';
}

/** PostgreSQL says at once whether it speaks TLS; its client would wait to be told, and not say what to do. */
function tlsProblem(text, { said }) {
  const { searchParams } = new URL(withHost(text));
  const mode =
    searchParams.get('sslmode') ?? (/^(true|1)$/.test(searchParams.get('ssl') ?? '') ? 'require' : 'disable');
  if (said !== 'N' || mode === 'disable') return undefined;
  return 'expected TLS, for sslmode or ssl is in DATABASE_URL, found a PostgreSQL without: turn its ssl on, or take that out';
}

async function whoElse(address, wanted, heard, signal) {
  if (heard?.said?.startsWith('HTTP/')) return 'an HTTP server';
  if (heard?.said?.startsWith('SSH-')) return 'an SSH server';
  const others = Object.keys(SPEECHES).filter((speech) => speech !== wanted);
  const answers = await Promise.all(others.map((speech) => ask(address, speech, PATIENCE, signal)));
  const at = answers.findIndex((answer, index) => isAnswer(others[index], answer));
  return at < 0 ? undefined : `a ${others[at]}`;
}

/** Ask in one server's way: what is said first, or that it hangs up, is silent, or is not reached, and why. */
function ask({ path, host, port }, speech, ms, signal) {
  const { question, encrypted } = SPEECHES[speech];
  return new Promise((resolve) => {
    const name = net.isIP(host ?? '') ? undefined : host;
    // Whose certificate it is does not matter here: nothing is told, and the client looks at it.
    const socket = encrypted
      ? tls.connect({ host, port, servername: name, rejectUnauthorized: false })
      : net.connect(path ? { path } : { host, port });
    let connected = false;
    const end = (heard) => {
      clearTimeout(timer);
      signal.removeEventListener('abort', stop);
      socket.destroy();
      resolve(heard);
    };
    const stop = () => end({});
    const timer = setTimeout(() => end(connected ? {} : { code: 'LATE' }), ms);
    signal.addEventListener('abort', stop);
    socket.on('connect', () => {
      connected = true;
      if (!encrypted) socket.write(question);
    });
    socket.on('secureConnect', () => socket.write(question));
    socket.on('data', (chunk) => end({ said: chunk.toString('latin1') }));
    socket.on('error', ({ code }) => end(connected ? { closed: true } : { code }));
    socket.on('close', () => end({ closed: true }));
  });
}
