// Who is known at the dashboard, and how do they prove it?

import { createHash, timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';

/** A viewer reads; an operator changes as well. */
export const ROLES = ['viewer', 'operator'] as const;
export type Role = (typeof ROLES)[number];

export interface Credential {
  readonly name: string;
  readonly role: Role;
  /** bcrypt of a password, for people who sign in; `sha256:<hex>` of a token, for machines. */
  readonly hash: string;
}

const NAME = /^[\w.@+-]{1,100}$/;
const PASSWORD = /^\$2[aby]\$(0[4-9]|1\d)\$[./A-Za-z\d]{53}$/;
const TOKEN = /^sha256:[\da-f]{64}$/;

export const nameExpected = 'a name of at most 100 letters, digits and . _ @ + -';
export const isName = (text: string) => NAME.test(text);

/** What bcrypt reads of a password. */
export const MAX_PASSWORD_BYTES = 72;

/**
 * Lines `NAME:ROLE:HASH`, divided by line breaks or `;`; blank ones and those that begin with # are passed over.
 *
 * @throws {Error} naming the number of a line that cannot be read, and never what stands in it
 */
export function parseCredentials(text: string): Credential[] {
  const credentials: Credential[] = [];
  for (const [at, line] of text.split(/\r?\n|;/).entries()) {
    const trimmed = line.trim();
    if (trimmed === '' || trimmed.startsWith('#')) continue;
    const [name = '', role = '', ...rest] = trimmed.split(':');
    const hash = rest.join(':');
    const wrong =
      (!isName(name) && nameExpected) ||
      (!isRole(role) && `viewer or operator after the name`) ||
      (!PASSWORD.test(hash) && !TOKEN.test(hash) && 'NAME:ROLE:HASH with a hash of bcrypt or sha256:') ||
      (credentials.some((other) => other.name === name) && 'a name that is not there already');
    if (wrong || !isRole(role)) throw new Error(`expected ${wrong} in line ${at + 1}, got another (not shown)`);
    credentials.push({ name, role, hash });
  }
  return credentials;
}

const isRole = (text: string): text is Role => ROLES.some((role) => role === text);

/**
 * Those of the environment and those of the file, as of now.
 *
 * @throws {Error} naming the file where it cannot be read, or a line of it
 */
export function readCredentials(given: readonly Credential[], file: string): Credential[] {
  if (file === '') return [...given];
  try {
    const credentials = [...given, ...parseCredentials(readFileSync(file, 'utf8'))];
    const twice = credentials.find(({ name }, i) => credentials.findIndex((other) => other.name === name) < i);
    if (twice) throw new Error(`expected each name once, got ${twice.name} in DASHBOARD_CREDENTIALS too`);
    return credentials;
  } catch (cause) {
    const { message, code } = cause as NodeJS.ErrnoException; // the file system and our own throw nothing else
    throw new Error(
      `DASHBOARD_CREDENTIALS_FILE: ${code ? `expected a file that can be read, got ${code}` : message}`,
      {
        cause,
      },
    );
  }
}

export const isPerson = ({ hash }: Credential) => hash.startsWith('$');

/** The hash of a token, as a credential has it. Tokens are random enough to need no salt and no patience. */
export const tokenHash = (token: string) => `sha256:${createHash('sha256').update(token).digest('hex')}`;

/** Whose token it is; all are compared, and each in the same time. */
export function holderOf(credentials: readonly Credential[], token: string): Credential | undefined {
  const hash = Buffer.from(tokenHash(token));
  let holder: Credential | undefined;
  for (const credential of credentials) {
    const stored = Buffer.from(credential.hash);
    if (stored.length === hash.length && timingSafeEqual(stored, hash)) holder = credential;
  }
  return holder;
}

/** What a session remembers of the credential that began it: another password, and the session is void. */
export const fingerprint = ({ hash }: Credential) => createHash('sha256').update(hash).digest('hex');
