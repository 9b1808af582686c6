// How do a CSV's lines become calls?

import { hash } from 'node:crypto';
import { pipeline as joined, Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip } from 'node:zlib';
import { type CsvError, parse } from 'csv-parse';
import { type CallField, callFields, idField, quoted, sumFits } from './call-fields.ts';
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
  /** Those of them that fell into sealed hours, and these hours: late, and in no figure. */
  readonly sealed: { readonly calls: number; readonly hours: number };
  /** Calls that were there already. */
  readonly repeated: number;
  readonly bad: number;
  /** The last bad line is of such a form that nothing after it could be read. */
  readonly unread: boolean;
  /** The earliest and the latest call of the lines that are not bad, to the millisecond. */
  readonly first?: Date;
  readonly last?: Date;
  /** Users of those lines. */
  readonly users: number;
  /** Amounts of credits in those lines that had more than 8 decimals: they are stored rounded. */
  readonly roundedCredits: number;
  /** Durations in those lines that had more than 6 decimals: they are stored rounded. */
  readonly roundedDurations: number;
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
    return await store.inImport(databaseUrl, signal, (transaction) => importFile(transaction, options), keep);
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
  const { lines, bad: unreadable, hasIds, unread } = file;
  const sealedNone = { calls: 0, hours: 0 };
  const none = { imported: 0, sealed: sealedNone, repeated: 0, users: 0, roundedCredits: 0, roundedDurations: 0 };
  const nothing = (bad: number) => ({ lines, bad, unread, ...none });
  // Only with ids of its own may there be more bad lines to name, and the insert finds them.
  if (unreadable > 0 && !skipBad && !hasIds) return nothing(unreadable);

  const { calls: imported, sealed, tables } = await store.insertStaged(transaction, hasIds ? 'own' : 'hash', label);
  const bad = unreadable + (hasIds ? await nameConflicts(transaction, options) : 0);
  if (bad > 0 && !skipBad) return nothing(bad);
  if (imported > MANY) await store.analyzeCalls(transaction, tables);
  return {
    lines,
    imported,
    sealed,
    repeated: lines - bad - imported,
    bad,
    unread,
    ...(await store.totalsOfStaged(transaction)),
  };
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

/** Bytes of a record, and its fields (the last takes what follows): so memory stays bounded. */
const RECORD_LIMIT = 1_048_576;
const FIELDS_LIMIT = 100;
/** Characters that go to the database at a time, at least. */
const BLOCK = 65_536;

/** What is wrong with a record's form, by the parser's code for it. */
const faults: Readonly<Record<string, string>> = {
  CSV_INVALID_CLOSING_QUOTE: 'expected a comma after the closing quote',
  CSV_MAX_RECORD_SIZE: `expected at most ${RECORD_LIMIT} bytes before a line break or a closing quote`,
  CSV_QUOTE_NOT_CLOSED: 'expected a closing quote, got the end of the file',
  INVALID_OPENING_QUOTE: 'expected quotes around the whole field, got one within it',
};

/** Reads one file's records, and counts them. */
class CallFile {
  lines = 0;
  bad = 0;
  unread = false;
  hasIds = false;
  #bytesRead = 0;
  #line = 1;
  #columns: readonly Column[] | undefined;
  readonly #options: ImportOptions;

  constructor(options: ImportOptions) {
    this.#options = options;
  }

  /**
   * Rows for the staging table, many at a time.
   *
   * Nothing is read after a record of the wrong form: where its quotes end cannot be told any more, and what a user may
   * have written into a field must not become somebody's call.
   */
  async *rows(input: AsyncIterable<Buffer>): AsyncGenerator<string> {
    let fault: CsvError | undefined;
    const parser = parse({
      bom: true,
      record_delimiter: ['\r\n', '\n'],
      relax_column_count: true,
      max_record_size: RECORD_LIMIT,
      ignore_last_delimiters: FIELDS_LIMIT,
      skip_records_with_error: true,
      on_skip: (error) => {
        fault ??= error;
        return undefined;
      },
      on_record: (fields) => (fault ? null : fields),
    });
    let block = '';
    for await (const fields of joined(decompressed(this.#counted(input)), parser, () => {})) {
      if (parser.options.encoding !== 'utf8') throw new ImportRefused(`${headerExpected}, got UTF-16`);
      block += this.#row(fields) ?? '';
      if (block.length < BLOCK) continue;
      yield block;
      block = '';
    }
    yield block;
    const why = fault && `${faults[fault.code] ?? fault.code}: nothing after this line was read`;
    if (!this.#columns) throw new ImportRefused(`${headerExpected}, got ${why ?? 'an empty file'}`);
    if (why) {
      this.unread = true;
      this.lines++;
      this.#refuse(this.#line, this.#columns.find(({ at }) => at === fault?.column)?.name ?? 'fields', why);
    }
    this.#options.onProgress?.(this.#bytesRead, this.lines);
  }

  async *#counted(input: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    for await (const chunk of input) {
      this.#bytesRead += chunk.length;
      yield chunk;
      this.#options.onProgress?.(this.#bytesRead, this.lines);
    }
  }

  #row(fields: string[]): string | undefined {
    const line = this.#line;
    this.#line += fields.join().split('\n').length; // Line breaks within quotes begin lines too.
    if (fields.length === 1 && fields[0]?.trim() === '') return;
    if (!this.#columns) {
      this.#columns = columnsOf(fields);
      this.hasIds = fields.includes('id');
      return;
    }
    this.lines++;
    const [expected, got] = [this.#columns.length, fields.length];
    if (got !== expected) return this.#refuse(line, 'fields', `expected ${expected}, got ${got}`);
    const values: string[] = [];
    let rounded = '';
    for (const { name, at, read, isRounded, expected } of this.#columns) {
      const found = fields[at] ?? '';
      const value = read(found);
      if (value === undefined) return this.#refuse(line, name, `expected ${expected}, got ${quoted(found)}`);
      values.push(value);
      if (isRounded?.(found)) rounded += `${name} `;
    }
    const [input = '', output = ''] = values.slice(INPUT_TOKENS);
    if (!sumFits(input, output)) {
      return this.#refuse(line, 'output_tokens', `expected a 64-bit sum with input_tokens, got ${input} + ${output}`);
    }
    const row = values.join('\t');
    const staged = `${line}\t${rounded}\t${row}`;
    return this.hasIds ? `${staged}\n` : `${staged}\t${hash('sha256', row).slice(0, 32)}\n`;
  }

  #refuse(line: number, field: string, reason: string): undefined {
    this.bad++;
    this.#options.onBad({ line, field, reason });
  }
}

/** A field of a call, and where in a record it is. */
interface Column extends CallField {
  readonly name: string;
  readonly at: number;
}

const required = Object.keys(callFields);
const INPUT_TOKENS = required.indexOf('input_tokens');
const headerExpected = `expected a header with the columns ${required.join(', ')}, and perhaps id`;

/**
 * @returns the header's columns in the order in which a row is staged: an id comes last
 * @throws {ImportRefused} where columns are missing, unknown or doubled
 */
function columnsOf(names: string[]): Column[] {
  const fields: Record<string, CallField> = names.includes('id') ? { ...callFields, id: idField } : callFields;
  const wrong = [
    ...required.filter((name) => !names.includes(name)).map((name) => `no ${name}`),
    ...names.filter((name) => !Object.hasOwn(fields, name)).map((name) => `unknown ${quoted(name)}`),
    ...names.filter((name, at) => names.indexOf(name) < at).map((name) => `${quoted(name)} twice`),
  ];
  if (wrong.length > 0) throw new ImportRefused(`${headerExpected}, got ${wrong.slice(0, 12).join(', ')}`);
  return Object.entries(fields).map(([name, field]) => ({ ...field, name, at: names.indexOf(name) }));
}

/** How gzip begins, and no text does. */
const GZIP = 0x1f;

/** @throws {ImportRefused} where gzip is cut short or corrupt */
async function* decompressed(input: AsyncGenerator<Buffer>): AsyncGenerator<Buffer> {
  const { value: first = Buffer.alloc(0) } = await input.next();
  const whole = (async function* () {
    yield first;
    yield* input;
  })();
  if (first[0] !== GZIP) return yield* whole;
  try {
    yield* joined(Readable.from(whole), createGunzip({ chunkSize: 65_536 }), () => {}); // Its errors come out here.
  } catch (cause) {
    const { code = '', message } = cause as NodeJS.ErrnoException;
    if (!code.startsWith('Z_')) throw cause;
    throw new ImportRefused(`expected whole gzip, got some that is cut short or corrupt (${message})`, { cause });
  }
}
