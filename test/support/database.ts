// A database of one's own, with the schema in it, gone afterwards.

import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { inject } from 'vitest';
import type { TestProject } from 'vitest/node';
import { migrations } from '../../src/config.ts';
import { migrate } from '../../src/store/migrate.ts';

export interface TestDatabase extends AsyncDisposable {
  readonly url: string;
}

/** The server under test: `npm test` starts it and says where it is. */
export function serverUrl(name: 'TEST_DATABASE_URL' | 'TEST_REDIS_URL'): string {
  const url = process.env[name];
  if (!url) throw new Error(`${name} is not set: run the tests with npm test`);
  return url;
}

/** @param locale an ICU locale that sorts otherwise than by bytes; by default the server's own */
export async function createDatabase({ migrated = true, locale = '' } = {}): Promise<TestDatabase> {
  const name = `test_${randomBytes(6).toString('hex')}`;
  const sorted = locale && `template template0 locale_provider icu icu_locale '${locale}'`;
  const copied = migrated && !locale;
  await asAdmin(`create database ${name} ${copied ? inject('copy') : sorted}`);
  const url = urlOf(name);
  if (migrated && !copied) await migrate(url, migrations);
  return { url, [Symbol.asyncDispose]: () => drop(name) };
}

/** A copy as a restored dump is one: the same rows, in another database. Nobody may be connected to the original. */
export async function copyDatabase(original: TestDatabase): Promise<TestDatabase> {
  const name = `test_${randomBytes(6).toString('hex')}`;
  await asAdmin(`create database ${name} template ${new URL(original.url).pathname.slice(1)}`);
  return { url: urlOf(name), [Symbol.asyncDispose]: () => drop(name) };
}

declare module 'vitest' {
  interface ProvidedContext {
    /** How a database is made: as a copy of the one with the schema in it. */
    copy: string;
  }
}

/** Once for all tests: the template, which is migrated as any database is. */
export default async function setUp({ provide }: TestProject): Promise<() => Promise<void>> {
  const name = `test_template_${randomBytes(6).toString('hex')}`;
  const [server] = await asAdmin(`create database ${name}`, 'show server_version_num');
  await migrate(urlOf(name), migrations);
  // A third of what it costs to have every page of the copy written into the log as well; before 15 there is no other way.
  const strategy = Number(server?.server_version_num) >= 15_00_00 ? 'strategy file_copy' : '';
  provide('copy', `template ${name} ${strategy}`);
  return () => drop(name);
}

function urlOf(name: string): string {
  const url = new URL(serverUrl('TEST_DATABASE_URL'));
  url.pathname = `/${name}`;
  return url.href;
}

async function drop(name: string): Promise<void> {
  await asAdmin(`drop database ${name} with (force)`);
}

/** @returns the rows of the last statement */
async function asAdmin(...statements: string[]): Promise<Record<string, string>[]> {
  const client = new pg.Client({ connectionString: serverUrl('TEST_DATABASE_URL') });
  await client.connect();
  try {
    let rows: Record<string, string>[] = [];
    for (const sql of statements) ({ rows } = await client.query(sql));
    return rows;
  } finally {
    await client.end();
  }
}
