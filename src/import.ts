// How do a CSV's lines become calls?

import { hash } from 'node:crypto';
import { pipeline as joined, Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { StringDecoder } from 'node:string_decoder';
import { createGunzip } from 'node:zlib';
import { type CallField, callFields, idField, quoted, sumFits } from './call-fields.ts';
import { CsvReader, type CsvRecord } from './csv.ts';
import * as store from './store/import.ts';

/** A line that cannot be a call. */
export interface BadLine {
  /** Where the record begins; the header's line is 1. */
  readonly line: number;
  /** The column, or `fields` where it is their number. */
  readonly field: string;
  /** What was expected, and what was found. */
  readonly reason: string;
}

export interface ImportResult {
  /** Records read, the header and blank lines not counted: imported + repeated + bad. */
  readonly lines: number;
  /** Calls written: none where a line was bad and was not to be skipped. */
  readonly imported: number;
  /** Calls that were there already. */
  readonly repeated: number;
  readonly bad: number;
  /** The earliest and the latest call of the lines that are not bad, to the millisecond. */
  readonly first?: Date;
  readonly last?: Date;
  /** Users of those lines. */
  readonly users: number;
}

/** The input is no such file, and nothing was imported. The message is one line for whoever gave it. */
export class ImportRefused extends Error {
  override readonly name = 'ImportRefused';
}

export interface ImportOptions {
  readonly databaseUrl: string;
  /** Bytes, gzip or plain: told by how they begin. Destroyed when the import ends, however it does. */
  readonly input: Readable;
  /** Import the other lines where some are bad. */
  readonly skipBad: boolean;
  /** Called for each bad line in the file's order; those that contradict a call of the same id come after all others. */
  readonly onBad: (bad: BadLine) => void;
  /** Called while the input is read, with what was read of it (compressed bytes) and the records found so far. */
  readonly onProgress?: (bytesRead: number, rows: number) => void;
  readonly signal?: AbortSignal;
  /** Stored as the metadata of every call. */
  readonly label?: object;
}

/**
 * Import calls in one transaction and in bounded memory: all of them, or (bad lines aside, where they are skipped) none.
 *
 * A call's id is a hash of what its row says and the count of that row among its equals: equal rows of one file are
 * separate calls, and the same rows given again, in whatever file or order of columns, change nothing. Where the file
 * has a column `id`, that is the call's id, and a line that contradicts the call of its id is bad.
 *
 * @returns what was done: nothing, with `bad` above 0, where a line is bad and is not to be skipped
 * @throws {ImportRefused} where the header or the compression is wrong
 * @throws the signal's reason where it aborts, and errors of the input and of the database as they are
 */
export async function importCalls(options: ImportOptions): Promise<ImportResult> {
  const { databaseUrl, input, signal, skipBad } = options;
  input.on('error', () => {}); // It may fail before the pipeline listens, which then throws that error.
  try {
    const keep = ({ bad }: ImportResult) => bad === 0 || skipBad;
    const result = await store.inImport(databaseUrl, signal, (transaction) => importFile(transaction, options), keep);
    // The import stands whatever becomes of this: the server does the same by itself, later.
    if (result.imported > MANY) await store.analyzeCalls(databaseUrl).catch(() => {});
    return result;
  } finally {
    input.destroy();
  }
}

/** From so many new calls on, the planner is told of them at once. */
const MANY = 10_000;

async function importFile(transaction: store.ImportTransaction, options: ImportOptions): Promise<ImportResult> {
  const { input, skipBad, signal, label } = options;
  const file = new CallFile(options);
  await pipeline(input, (bytes) => file.rows(bytes), store.stagingStream(transaction), { signal });
  const { lines, bad: unreadable, hasIds } = file;
  const nothing = (bad: number) => ({ lines, imported: 0, repeated: 0, bad, users: 0 });
  // Only with ids of its own may there be more bad lines to name, and the insert finds them.
  if (unreadable > 0 && !skipBad && !hasIds) return nothing(unreadable);

  const imported = await store.insertStaged(transaction, hasIds ? 'own' : 'hash', label);
  const bad = unreadable + (hasIds ? await nameConflicts(transaction, options) : 0);
  if (bad > 0 && !skipBad) return nothing(bad);
  const span = await store.spanOfStaged(transaction);
  return { lines, imported, repeated: lines - bad - imported, bad, ...span };
}

async function nameConflicts(transaction: store.ImportTransaction, { onBad }: ImportOptions): Promise<number> {
  let count = 0;
  for await (const { line, id, columns } of store.conflictsOfStaged(transaction)) {
    const reason = `expected what call ${quoted(id)} says already, got another ${columns.join(', ')}`;
    onBad({ line, field: 'id', reason });
    count++;
  }
  if (count > 0) await store.unstageConflicts(transaction);
  return count;
}

/** Reads one file's records, and counts them. */
class CallFile {
  lines = 0;
  bad = 0;
  #bytesRead = 0;
  #header: Header | undefined;
  readonly #options: ImportOptions;

  constructor(options: ImportOptions) {
    this.#options = options;
  }

  get hasIds(): boolean {
    return this.#header?.ids ?? false;
  }

  /** Rows for the staging table, a block of them for each piece of the input. */
  async *rows(input: AsyncIterable<Buffer>): AsyncGenerator<string> {
    const decoder = new StringDecoder('utf8');
    const reader = new CsvReader();
    for await (const chunk of decompressed(this.#counted(input))) {
      yield this.#block(reader.read(decoder.write(chunk)));
      this.#options.onProgress?.(this.#bytesRead, this.lines);
    }
    yield this.#block(reader.read(decoder.end()));
    yield this.#block(reader.end());
    if (!this.#header) throw new ImportRefused(`${headerExpected}, got an empty file`);
  }

  async *#counted(input: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    for await (const chunk of input) {
      this.#bytesRead += chunk.length;
      yield chunk;
    }
  }

  #block(records: Iterable<CsvRecord>): string {
    let block = '';
    for (const record of records) {
      if (this.#header) block += this.#row(record, this.#header) ?? '';
      else this.#header = readHeader(record);
    }
    return block;
  }

  #row({ line, fields, fault }: CsvRecord, { names, columns, ids }: Header): string | undefined {
    this.lines++;
    if (fault) return this.#refuse(line, names[fault.field], fault.reason);
    const [expected, got] = [names.length, fields.length];
    if (got !== expected) return this.#refuse(line, undefined, `expected ${expected}, got ${got}`);
    const values: string[] = [];
    for (const { name, at, field } of columns) {
      const found = fields[at] ?? '';
      const value = field.read(found);
      if (value === undefined) return this.#refuse(line, name, `expected ${field.expected}, got ${quoted(found)}`);
      values.push(value);
    }
    const [input = '', output = ''] = values.slice(INPUT_TOKENS);
    if (!sumFits(input, output)) {
      return this.#refuse(line, 'output_tokens', `expected a 64-bit sum with input_tokens, got ${input} + ${output}`);
    }
    const row = values.join('\t');
    return ids ? `${line}\t${row}\n` : `${line}\t${row}\t${hash('sha256', row).slice(0, 32)}\n`;
  }

  #refuse(line: number, field = 'fields', reason: string): undefined {
    this.bad++;
    this.#options.onBad({ line, field, reason });
  }
}

interface Header {
  readonly names: readonly string[];
  /** In the order in which a row is staged: an id comes last. */
  readonly columns: readonly { readonly name: string; readonly at: number; readonly field: CallField }[];
  readonly ids: boolean;
}

const required = Object.keys(callFields);
const INPUT_TOKENS = required.indexOf('input_tokens');
const headerExpected = `expected a header with the columns ${required.join(', ')}, and perhaps id`;

/** @throws {ImportRefused} where columns are missing, unknown or doubled */
function readHeader({ fields: names, fault }: CsvRecord): Header {
  const fields: Record<string, CallField> = names.includes('id') ? { ...callFields, id: idField } : callFields;
  const faults = [
    ...(fault ? [fault.reason] : []),
    ...required.filter((name) => !names.includes(name)).map((name) => `no ${name}`),
    ...names.filter((name) => !Object.hasOwn(fields, name)).map((name) => `unknown ${quoted(name)}`),
    ...names.filter((name, at) => names.indexOf(name) < at).map((name) => `${quoted(name)} twice`),
  ];
  if (faults.length > 0) throw new ImportRefused(`${headerExpected}, got ${faults.slice(0, 12).join(', ')}`);
  const columns = Object.entries(fields).map(([name, field]) => ({ name, field, at: names.indexOf(name) }));
  return { names, columns, ids: names.includes('id') };
}

/** @throws {ImportRefused} where gzip is cut short or corrupt */
async function* decompressed(input: AsyncGenerator<Buffer>): AsyncGenerator<Buffer> {
  let head = Buffer.alloc(0);
  while (head.length < GZIP.length) {
    const { value, done } = await input.next();
    if (done) break;
    head = Buffer.concat([head, value]);
  }
  const whole = (async function* () {
    yield head;
    yield* input;
  })();
  if (!head.subarray(0, GZIP.length).equals(GZIP)) return yield* whole;
  try {
    yield* joined(Readable.from(whole), createGunzip({ chunkSize: 65_536 }), () => {}); // Its errors come out here.
  } catch (cause) {
    const { code = '', message } = cause as NodeJS.ErrnoException;
    if (!code.startsWith('Z_')) throw cause;
    throw new ImportRefused(`expected whole gzip, got some that is cut short or corrupt (${message})`, { cause });
  }
}

const GZIP = Buffer.from([0x1f, 0x8b]);
