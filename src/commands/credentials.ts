// hourhand credentials: a line for the file of those who may use the dashboard.

import { randomBytes } from 'node:crypto';
import { createInterface } from 'node:readline/promises';
import { Writable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { hash } from 'bcryptjs';
import { isName, MAX_PASSWORD_BYTES, nameExpected, type Role, tokenHash } from '../dashboard/credentials.ts';
import { say } from './say.ts';
import { UsageError } from './usage.ts';

/** What a guess costs, at us as at whoever steals the file: about a third of a second. */
const COST = 12;
const MIN_PASSWORD = 8;

/**
 * Print the line to standard output. A password comes from standard input; a token is made, and told once, on standard error.
 *
 * @throws {UsageError} where the name or the password cannot be one
 */
export async function credentials(name: string, { role, token }: { role: Role; token: boolean }): Promise<number> {
  if (!isName(name)) throw new UsageError(`expected ${nameExpected}, got ${JSON.stringify(name)}`);
  process.stdout.write(`${name}:${role}:${token ? newToken() : await hash(await password(), COST)}\n`);
  return 0;
}

function newToken(): string {
  const token = randomBytes(32).toString('base64url');
  say(`the token, shown this once (Authorization: Bearer …): ${token}`);
  return tokenHash(token);
}

async function password(): Promise<string> {
  const given = process.stdin.isTTY ? await typed() : (await text(process.stdin)).replace(/\r?\n$/, '');
  if (given.length < MIN_PASSWORD || Buffer.byteLength(given) > MAX_PASSWORD_BYTES || /[\0\r\n]/.test(given)) {
    throw new UsageError(
      `expected a password of one line, at least ${MIN_PASSWORD} characters and at most ${MAX_PASSWORD_BYTES} bytes, got another`,
    );
  }
  return given;
}

/** Twice, and shown to nobody. */
async function typed(): Promise<string> {
  const silent = new Writable({ write: (_chunk, _encoding, done) => done() });
  const terminal = createInterface({ input: process.stdin, output: silent, terminal: true, historySize: 0 });
  terminal.on('SIGINT', () => process.exit(130));
  try {
    say('password:');
    const first = await terminal.question('');
    say('once more:');
    if ((await terminal.question('')) !== first) throw new UsageError('expected the same password twice, got two');
    return first;
  } finally {
    terminal.close();
  }
}
