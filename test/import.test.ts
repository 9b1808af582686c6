import { createReadStream, existsSync, readFileSync } from 'node:fs';
import { connect as connectTo, createServer, type Socket } from 'node:net';
import { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { gunzipSync, gzipSync } from 'node:zlib';
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type BadLine, type ImportOptions, ImportRefused, importCalls } from '../src/import.ts';
import { loadSample } from '../src/sample.ts';
import { connect } from '../src/store/db.ts';
import { createDatabase, type TestDatabase } from './support/database.ts';
import { until } from './support/hourhand.ts';
import { inPartitions } from './support/partitions.ts';

const names = [
  'call_time',
  'user_did',
  'app_did',
  'provider',
  'model',
  'type',
  'input_tokens',
  'output_tokens',
  'credits',
  'status',
  'duration_s',
];
type Row = Record<string, string | undefined>;
const plain: Row = {
  call_time: '2026-08-20T13:10:00.000Z',
  user_did: 'ada',
  app_did: 'app',
  provider: 'openai',
  model: 'gpt',
  type: 'chatCompletion',
  input_tokens: '10',
  output_tokens: '5',
  credits: '0.10000000',
  status: 'success',
  duration_s: '1.5',
};

/** Lines as a CSV writer makes them, of calls that differ from a plain one as told. */
function csv(rows: Row[], columns = names, end = '\n'): string {
  const quote = (value: string) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  return [columns, ...rows.map((row) => columns.map((name) => quote({ ...plain, ...row }[name] ?? '')))]
    .map((line) => line.join(',') + end)
    .join('');
}

let database: TestDatabase;
let client: pg.Client;

beforeAll(async () => {
  database = await createDatabase();
  client = new pg.Client({ connectionString: database.url });
  await client.connect();
});
afterAll(async () => {
  await client.end();
  await database[Symbol.asyncDispose]();
});
beforeEach(async () => {
  await client.query('truncate "ModelCall"');
});

async function ask<Found extends pg.QueryResultRow = Row>(sql: string): Promise<Found[]> {
  return (await client.query<Found>(sql)).rows;
}

const count = async () => Number((await ask('select count(*) from "ModelCall"'))[0]?.count);

/** One column of all calls, as text, in its own order. */
async function stored(expression: string): Promise<(string | null)[]> {
  const rows = await ask<{ value: string | null }>(
    `select (${expression})::text as value from "ModelCall" order by 1`,
  );
  return rows.map((row) => row.value);
}

async function load(input: string | Buffer | Readable, options: Partial<ImportOptions> = {}) {
  const bad: BadLine[] = [];
  const stream = input instanceof Readable ? input : Readable.from([Buffer.from(input)]);
  const result = await importCalls({
    databaseUrl: database.url,
    input: stream,
    skipBad: false,
    onBad: (line) => bad.push(line),
    ...options,
  });
  return { ...result, named: bad };
}

/** A stream that yields its bytes in pieces of `size`. */
function pieces(bytes: Buffer, size: number): Readable {
  return Readable.from(
    Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) => bytes.subarray(i * size, (i + 1) * size)),
  );
}

describe('a line becomes a call', () => {
  test('with every field as the file says', async () => {
    const loaded = await load(csv([{ call_time: '2026-08-20T13:10:00.123456Z' }]));

    expect(loaded).toMatchObject({ lines: 1, imported: 1, repeated: 0, bad: 0, users: 1, named: [] });
    expect(loaded.first).toEqual(new Date('2026-08-20T13:10:00.123Z'));
    const [call] = await ask('select *, "callTime" at time zone \'UTC\' as at from "ModelCall"');
    expect(call).toMatchObject({
      userDid: 'ada',
      appDid: 'app',
      providerId: 'openai',
      model: 'gpt',
      type: 'chatCompletion',
      totalUsage: '15',
      inputTokens: '10',
      outputTokens: '5',
      credits: '0.10000000',
      status: 'success',
      duration: '1.500000',
      metadata: null,
      usageMetrics: null,
    });
    expect(await stored(`"callTime" at time zone 'UTC'`)).toEqual(['2026-08-20 13:10:00.123456']);
  });

  test('columns may come in any order, and change nothing about what it is', async () => {
    await load(csv([{}, { user_did: 'bob' }]));
    expect(await load(csv([{ user_did: 'bob' }, {}], names.toReversed()))).toMatchObject({
      imported: 0,
      repeated: 2,
    });
  });

  test('an empty field is unknown: null, no credits, or the word unknown', async () => {
    await load(
      csv([
        { app_did: '', provider: '', model: '', input_tokens: '', output_tokens: '', credits: '', duration_s: '' },
      ]),
    );
    const [call] = await ask('select * from "ModelCall"');
    expect(call).toMatchObject({
      appDid: null,
      providerId: 'unknown',
      model: 'unknown',
      totalUsage: '0',
      inputTokens: null,
      outputTokens: null,
      credits: '0.00000000',
      duration: null,
    });
  });

  test('a word that means null to COPY is only a word', async () => {
    await load(csv([{ app_did: '\\N' }, { app_did: '' }, { app_did: '\\.' }]));
    expect(await stored('"appDid"')).toEqual(['\\.', '\\N', null]);
  });

  test('text is kept to the letter', async () => {
    const odd = [
      'tab\there',
      'line\nbreak',
      'CR\rLF\r\n',
      '\\t \\ \\\\',
      '"quoted", and comma',
      "it's",
      'naïve 東京 🦜',
      ' spaces ',
    ];
    await load(csv(odd.map((app_did) => ({ app_did }))));
    expect((await stored('"appDid"')).toSorted()).toEqual(odd.toSorted());
  });

  test('tokens are exact to the last of 64 bits', async () => {
    await load(
      csv([
        { input_tokens: '9223372036854775806', output_tokens: '1' },
        { input_tokens: '0009', output_tokens: '' },
        { input_tokens: '', output_tokens: '9223372036854775805' },
      ]),
    );
    expect(await ask('select "totalUsage" from "ModelCall" order by 1')).toEqual(
      ['9', '9223372036854775805', '9223372036854775807'].map((totalUsage) => ({ totalUsage })),
    );
  });

  test('credits are exact, also where a program wrote an exponent', async () => {
    const written = [
      '0E-8',
      '1.2E-7',
      '999999999999.99999999',
      '0.1000000000000',
      '007.5',
      '1e3',
      '0.30000000000000004e-0',
    ];
    expect(await load(csv(written.map((credits) => ({ credits }))))).toMatchObject({ roundedCredits: 1 });
    expect(await stored('credits')).toEqual(
      [
        ...['0.00000000', '0.00000012', '0.10000000', '0.30000000', '7.50000000', '1000.00000000'],
        '999999999999.99999999',
      ].toSorted(),
    );
  });

  test('amounts and durations of more decimals are rounded as PostgreSQL rounds them, and counted', async () => {
    const written = [
      ...['0.000000005', '0.0000000049999999999999999999', '0.000000015', '0.000000025', '1.999999995', '5e-9'],
      ...[
        '49E-10',
        '4.9999999999999999999e-9',
        '12345678901.123456785',
        '99999999999.999999994999',
        '1e-400',
        '9e-7',
      ],
      ...['0.0000005', '0.0000004999', '2.0000005', '1.0000000000', '15e-7', '0.30000000000000004', '0e-9', '3'],
    ];
    const file = csv(written.map((value, i) => ({ app_did: `${i}`, credits: value, duration_s: value })));
    const expected = await ask<{ credits: string; duration: string; rounded: boolean[] }>(
      `select v::numeric(20,8)::text as credits, v::numeric(20,6)::text as duration,
              array[v::numeric <> v::numeric(20,8), v::numeric <> v::numeric(20,6)] as rounded
         from unnest('{${written}}'::text[]) with ordinality as w(v, place) order by place`,
    );
    const counts = [0, 1].map((at) => expected.filter(({ rounded }) => rounded[at]).length);
    expect(counts).toEqual([13, 17]);
    const rounded = { roundedCredits: counts[0], roundedDurations: counts[1] };
    expect(await load(file)).toMatchObject({ imported: 20, ...rounded });
    expect(await ask('select credits, duration from "ModelCall" order by "appDid"::int')).toEqual(
      expected.map(({ credits, duration }) => ({ credits, duration })),
    );
    // The id is that of the rounded row: neither the same file nor one that was rounded before adds a call.
    expect(await load(file)).toMatchObject({ imported: 0, repeated: 20, ...rounded });
    const before = expected.map(({ credits, duration }, i) => ({ app_did: `${i}`, credits, duration_s: duration }));
    expect(await load(csv(before))).toMatchObject({
      imported: 0,
      repeated: 20,
      roundedCredits: 0,
      roundedDurations: 0,
    });
  });

  test('a thousand calls of less than half the last decimal are nothing, and each is said', async () => {
    const rows = Array.from({ length: 1_000 }, () => ({ credits: '0.000000004' }));
    expect(await load(csv(rows))).toMatchObject({ imported: 1_000, roundedCredits: 1_000, roundedDurations: 0 });
    expect(await ask('select sum(credits) as sum from "ModelCall"')).toEqual([{ sum: '0.00000000' }]);
  });

  test('durations are rounded to microseconds', async () => {
    const written = ['1e-05', '0.0000005', '0.00000049', '99999999999999.9999994', '2.5E1', '9.9999999'];
    await load(csv(written.map((duration_s) => ({ duration_s }))));
    expect(await ask('select duration from "ModelCall" order by duration')).toEqual(
      ['0.000000', '0.000001', '0.000010', '10.000000', '25.000000', '99999999999999.999999'].map((duration) => ({
        duration,
      })),
    );
  });

  test.each([
    ['2024-08-13T14:40:43Z', '2024-08-13 14:40:43'],
    ['2024-08-13T14:40Z', '2024-08-13 14:40:00'],
    ['2024-08-13T14:40:43.5', '2024-08-13 14:40:43.5'],
    ['2024-08-13T14:40:43+05:30', '2024-08-13 09:10:43'],
    ['2024-08-13T14:40:43-0100', '2024-08-13 15:40:43'],
    ['2024-02-29T23:30:00-01', '2024-03-01 00:30:00'],
    ['2024-08-13T13:59:59.9999999Z', '2024-08-13 13:59:59.999999'],
    ['1970-01-01T00:00:00Z', '1970-01-01 00:00:00'],
    ['1969-12-31T23:30:00-01:00', '1970-01-01 00:30:00'],
    ['9999-12-31T23:59:59.999999999Z', '9999-12-31 23:59:59.999999'],
  ])('the instant %s stays in its hour', async (call_time, instant) => {
    await load(csv([{ call_time }]));
    expect(await stored(`"callTime" at time zone 'UTC'`)).toEqual([instant]);
  });

  test('a label becomes its metadata', async () => {
    await load(csv([{}]), { label: { sample: true } });
    expect(await stored('metadata')).toEqual(['{"sample": true}']);
  });
});

describe('a bad line', () => {
  test.each([
    ['call_time', '', 'got ""'],
    [
      'call_time',
      'yesterday',
      'expected an ISO-8601 instant from 1970 to 9999 such as 2024-08-13T14:40:43.000Z, got "yesterday"',
    ],
    ['call_time', '2024-02-30T00:00:00Z', 'got'],
    ['call_time', '2024-08-13T24:00:00Z', 'got'],
    ['call_time', '1969-12-31T23:59:59.999Z', 'got'],
    ['call_time', '1970-01-01T00:00:00+00:01', 'got'],
    ['call_time', '9999-12-31T23:59:59-00:01', 'got'],
    ['user_did', '', 'expected 1 to 512 characters'],
    ['user_did', 'u'.repeat(513), `got "${'u'.repeat(60)}…"`],
    ['user_did', 'a\0b', 'expected 1 to 512 characters of UTF-8 without NUL or U+FFFD, got "a\\u0000b"'],
    ['app_did', 'a\uFFFDb', 'got "a\uFFFDb"'],
    ['provider', 'x'.repeat(65_537), 'expected 0 to 65536 characters'],
    [
      'type',
      'ChatCompletion',
      'expected one of chatCompletion, embedding, imageGeneration, audioGeneration, video, custom, got "ChatCompletion"',
    ],
    ['type', '', 'got ""'],
    ['status', 'ok', 'expected one of processing, success, failed, got "ok"'],
    ['input_tokens', '-1', 'expected an integer from 0 to 9223372036854775807, or nothing, got "-1"'],
    ['input_tokens', '1.0', 'got "1.0"'],
    ['input_tokens', '9223372036854775808', 'got'],
    ['output_tokens', '9223372036854775799', 'expected a 64-bit sum with input_tokens, got 10 + 9223372036854775799'],
    ['credits', '-0.1', 'expected a decimal from 0, below 10^12 when rounded to 8 decimals, got "-0.1"'],
    ['credits', '-0', 'got'],
    ['credits', '999999999999.999999995', 'got'],
    ['credits', '1000000000000', 'got'],
    ['credits', '1e12', 'got'],
    ['credits', '1e999', 'got'],
    ['credits', '1e999999999', 'got'],
    ['credits', 'NaN', 'got'],
    [
      'duration_s',
      '-1',
      'expected a decimal number of seconds from 0, below 10^14 when rounded to 6 decimals, or nothing, got "-1"',
    ],
    ['duration_s', '99999999999999.9999995', 'got'],
    ['type', '\u001b[2J\u202e\u009b\u2028\n', 'got "\\u001b[2J\\u{202e}\\u{9b}\\u{2028}\\n"'],
  ])('is named, and nothing is imported: %s %j', async (field, value, reason) => {
    const loaded = await load(csv([{ user_did: 'before' }, { [field]: value }, { user_did: 'after' }]));

    expect(loaded).toMatchObject({ lines: 3, imported: 0, repeated: 0, bad: 1, users: 0 });
    expect(loaded.named).toEqual([{ line: 3, field, reason: expect.stringContaining(reason) }]);
    expect(loaded.named[0]?.reason).toMatch(/^[ -~…\uFFFD]*$/);
    expect(await count()).toBe(0);
  });

  test('is one of bytes that are no UTF-8, also where they end the file', async () => {
    const file = csv([{ app_did: 'na\u00efve' }, {}, { duration_s: '1\u00ef' }]).trimEnd();
    expect(await load(Buffer.from(file, 'latin1'))).toMatchObject({
      bad: 2,
      named: [
        { line: 2, field: 'app_did' },
        { line: 4, field: 'duration_s' },
      ],
    });
  });

  const [header = '', line = ''] = csv([{}]).split('\n');

  test.each([
    ['a field too few', line.replace(',1.5', ''), 'expected 11, got 10'],
    ['a field too many', `${line},`, 'expected 11, got 12'],
    ['very many fields', `${line}${','.repeat(1_000_000)}`, 'expected 11, got 100'],
    ['a long word', 'x'.repeat(1_000_000), 'expected 11, got 1'],
  ])('of another number of fields spoils no other: %s', async (_, odd, reason) => {
    const loaded = await load([header, line, odd, line, ''].join('\n'), { skipBad: true });
    expect(loaded).toMatchObject({ lines: 3, imported: 2, bad: 1, named: [{ line: 3, field: 'fields', reason }] });
  });

  const forged = line.replace('gpt', `"\n${line.replace('ada', 'victim')}\n"`);

  // What follows may lie within a field, where a user may have written it: it must not become somebody's call.
  test.each([
    ['a quote within a field', line.replace('gpt', 'g"p"t'), 'quotes around the whole field, got one within it'],
    ['text after a closing quote', `${line.replace('gpt', '"gpt"-5')}\n${forged}`, 'a comma after the closing quote'],
    ['a quote never closed', line.replace('gpt', '"gpt'), 'a closing quote, got the end of the file'],
    ['a field without end', line.replace('gpt', `"${'x'.repeat(3_000_000)}`), 'at most 1048576 bytes'],
    ['very many lines in a field', line.replace('gpt', `"${`\n${line}`.repeat(20_000)}"`), 'at most 1048576 bytes'],
  ])('of the wrong form is the last that is read: %s', async (_, odd, reason) => {
    const file = [header, 'bad', line, '', odd, line.replace('ada', 'victim'), ''];
    for (const size of [1_000, 10_000_000]) {
      const loaded = await load(pieces(Buffer.from(file.join('\n')), size), { skipBad: true });
      expect(loaded).toMatchObject({ lines: 3, imported: 1 - loaded.repeated, bad: 2 });
      expect(loaded.named).toEqual([
        { line: 2, field: 'fields', reason: 'expected 11, got 1' },
        {
          line: 5,
          field: 'model',
          reason: expect.stringMatching(new RegExp(`^expected ${reason}.*: nothing after this line was read$`)),
        },
      ]);
      expect(await stored('"userDid"')).toEqual(['ada']);
    }
  });

  test('is counted in lines of the file: those within quotes, blank ones and the header too', async () => {
    const quoted = csv([{ model: 'two\nlines' }, { type: 'a\r\nb' }, { status: 'x' }], names, '\r\n');
    expect((await load(quoted)).named).toMatchObject([
      { line: 4, field: 'type' },
      { line: 6, field: 'status' },
    ]);
    const blank = `\n${csv([{}, { type: '' }]).replaceAll('\n', '\n\n  \n\n')}`;
    expect((await load(blank)).named).toMatchObject([{ line: 10, field: 'type' }]);
  });

  test('is skipped on request, and counts for nothing', async () => {
    const rows = [{ user_did: 'bob', call_time: '2020-01-01T00:00:00Z', type: '' }, {}, { credits: 'much' }, {}];
    const loaded = await load(csv(rows), { skipBad: true });
    expect(loaded).toMatchObject({
      lines: 4,
      imported: 2,
      repeated: 0,
      bad: 2,
      users: 1,
      first: new Date('2026-08-20T13:10:00Z'),
    });
    expect(loaded.named.map(({ line }) => line)).toEqual([2, 4]);
    expect(await load(csv([{}, {}]))).toMatchObject({ imported: 0, repeated: 2 });
  });
});

describe('a file', () => {
  const rows = [{}, { model: 'two\nlines, "quoted"' }, { user_did: 'na\u00efve \u6771 \u{1F99C}' }, {}];

  test.each([
    ['in one piece', (file: string) => pieces(Buffer.from(file), 1_000_000)],
    ['in pieces of a byte', (file: string) => pieces(Buffer.from(file), 1)],
    ['with a byte order mark', (file: string) => pieces(Buffer.from(`\uFEFF${file}`), 2)],
    [
      'with a byte order mark, quoted throughout',
      (file: string) =>
        pieces(Buffer.from(`\uFEFF${file.replace(/^.*/, (line) => line.replace(/\w+/g, '"$&"'))}`), 9),
    ],
    ['with CRLF and blank lines', () => pieces(Buffer.from(csv(rows, names, '\r\n\r\n')), 3)],
    ['without a last line break', (file: string) => pieces(Buffer.from(file.trimEnd()), 50)],
    [
      'quoted to its end, without a last line break',
      (file: string) => pieces(Buffer.from(file.trimEnd().replace(/1.5$/, '"1.5"')), 50),
    ],
    ['with CRLF after quotes', (file: string) => pieces(Buffer.from(file.replaceAll('1.5\n', '"1.5"\r\n')), 1)],
    ['in gzip', (file: string) => pieces(gzipSync(file), 1_000_000)],
    ['in gzip, in pieces of a byte', (file: string) => pieces(gzipSync(file), 1)],
    [
      'in gzip of two members',
      (file: string) => pieces(Buffer.concat([gzipSync(file.slice(0, 150)), gzipSync(file.slice(150))]), 100),
    ],
    ['with its columns turned round', () => pieces(Buffer.from(csv(rows, names.toReversed())), 64)],
  ])('%s is the same calls', async (_, stream) => {
    await load(csv(rows));
    expect(await load(stream(csv(rows)))).toMatchObject({ lines: 4, imported: 0, repeated: 4, bad: 0 });
  });

  test.each([
    ['without a column', csv([{}], names.slice(1)), 'got no call_time'],
    ['with an unknown column', csv([{}], [...names, 'cost\u001b']), 'got unknown "cost\\u001b"'],
    ['with a column twice', csv([{}], [...names, 'type']), 'got "type" twice'],
    ['with a header in another case', csv([{}]).replace('type', 'Type'), 'got no type, unknown "Type"'],
    ['with a name that every object has', csv([{}], [...names, 'constructor']), 'got unknown "constructor"'],
    ['without a header', csv([{}]).split('\n').slice(1).join('\n'), 'got no call_time, no user_did'],
    ['of nothing', '', 'got an empty file'],
    ['of blank lines', '\n\r\n  \n', 'got an empty file'],
    ['of gzip of nothing', gzipSync(''), 'got an empty file'],
    ['in UTF-16', Buffer.from(`\uFEFF${csv([{}])}`, 'utf16le'), 'got UTF-16'],
    ['with a header that never ends', 'x'.repeat(3_000_000), 'expected at most 1048576 bytes'],
  ])('%s is refused in one clear line', async (_, file, found) => {
    const error = await load(file).catch((error) => error);
    expect(error).toBeInstanceOf(ImportRefused);
    expect(error.message).toContain('expected a header with the columns call_time, user_did, app_did');
    expect(error.message).toContain(found);
    expect(error.message).toMatch(/^[ -~\uFFFD]{1,1500}$/);
  });

  test('with a header alone is no calls', async () => {
    expect(await load(csv([]))).toEqual({
      lines: 0,
      imported: 0,
      sealed: { calls: 0, hours: 0 },
      repeated: 0,
      unread: false,
      bad: 0,
      users: 0,
      first: undefined,
      last: undefined,
      roundedCredits: 0,
      roundedDurations: 0,
      named: [],
    });
  });

  test.each([
    ['cut short', (bytes: Buffer) => bytes.subarray(0, -200)],
    ['cut short in its last bytes', (bytes: Buffer) => bytes.subarray(0, -1)],
    [
      'with a wrong checksum',
      (bytes: Buffer) => Buffer.from(bytes.map((byte, at) => (at === bytes.length - 8 ? byte ^ 1 : byte))),
    ],
    [
      'overwritten within',
      (bytes: Buffer) => Buffer.concat([bytes.subarray(0, 500), Buffer.alloc(100, 7), bytes.subarray(600)]),
    ],
  ])('of gzip %s is refused, and nothing is imported', async (_, spoil) => {
    const bytes = gzipSync(
      csv(Array.from({ length: 3_000 }, (_, i) => ({ input_tokens: String((i * 7919) % 10_007) }))),
    );
    const refused = load(spoil(bytes), { skipBad: true });
    await expect(refused).rejects.toThrow(ImportRefused);
    await expect(refused).rejects.toThrow(/^expected whole gzip, got some that is cut short or corrupt \(.+\)$/);
    expect(await count()).toBe(0);
  });

  test('that cannot be read fails with the reason of that', async () => {
    await expect(load(createReadStream('/nowhere.csv'))).rejects.toThrow('ENOENT');
    for (const bytes of [Buffer.from(csv([{}])), gzipSync(csv([{}])).subarray(0, 50)]) {
      const failing = Readable.from(
        (async function* () {
          yield bytes;
          throw new Error('the disk went away');
        })(),
      );
      await expect(load(failing)).rejects.toThrow(/^the disk went away$/);
    }
    expect(await count()).toBe(0);
  });

  test('tells how far it was read', async () => {
    const bytes = gzipSync(csv([{}, {}, {}]));
    const told: [number, number][] = [];
    await load(pieces(bytes, 40), { onProgress: (read, rows) => told.push([read, rows]) });
    expect(told.at(-1)).toEqual([bytes.length, 3]);
  });
});

describe('equal rows', () => {
  test('of one file are separate calls, and the same file again changes nothing', async () => {
    const file = csv([{}, { user_did: 'bob' }, {}, {}]);
    expect(await load(file)).toMatchObject({ imported: 4, repeated: 0, users: 2 });
    expect(await load(file)).toMatchObject({ imported: 0, repeated: 4 });
    expect(await load(csv([{}, {}, {}, {}]))).toMatchObject({ imported: 1, repeated: 3 });
  });

  test('are those that would be stored alike', async () => {
    await load(
      csv([
        {
          input_tokens: '0010',
          credits: '00.1',
          duration_s: '15e-1',
          call_time: '2026-08-20T14:10:00.0000009+01:00',
        },
        {},
      ]),
    );
    expect(await load(csv([{ provider: 'openai' }]))).toMatchObject({ imported: 0, repeated: 1 });
    expect(new Set((await stored('id')).map((id) => id?.split('-')[0])).size).toBe(1);
  });

  test.each(names)('differ where %s does', async (name) => {
    const other: Row = { call_time: '2026-08-20T13:10:00.000001Z', type: 'custom', status: 'failed' };
    await load(csv([{}]));
    expect(await load(csv([{ [name]: other[name] ?? '7' }]))).toMatchObject({ imported: 1, repeated: 0 });
  });

  test('differ where text and its neighbour are cut elsewhere', async () => {
    expect(
      await load(
        csv([
          { provider: 'a\tb', model: 'c' },
          { provider: 'a', model: 'b\tc' },
        ]),
      ),
    ).toMatchObject({ imported: 2 });
    expect(new Set((await stored('id')).map((id) => id?.split('-')[0])).size).toBe(2);
  });

  test('imported twice at the same moment are there once', async () => {
    const file = csv(Array.from({ length: 2_000 }, (_, i) => ({ input_tokens: String(i % 1_000) })));
    const loaded = await Promise.all([load(file), load(file), load(file)]);
    expect(loaded.map(({ imported, repeated }) => imported + repeated)).toEqual([2_000, 2_000, 2_000]);
    expect(loaded.reduce((sum, { imported }) => sum + imported, 0)).toBe(2_000);
    expect(await count()).toBe(2_000);
  });
});

describe('a column id', () => {
  const withId = ['model', 'id', ...names.filter((name) => name !== 'model')];

  test('is the id of the call, and the same call twice is one', async () => {
    expect(await load(csv([{ id: 'one' }, { id: 'two' }, { id: 'one' }], withId))).toMatchObject({
      lines: 3,
      imported: 2,
      repeated: 1,
      bad: 0,
    });
    expect(await stored('id')).toEqual(['one', 'two']);
    expect(await load(csv([{ id: 'two' }, { id: 'three' }], withId))).toMatchObject({ imported: 1, repeated: 1 });
  });

  test.each([[''], ['i'.repeat(513)], ['a\0']])('must be there: %j', async (id) => {
    expect(await load(csv([{ id: 'one' }, { id }], withId))).toMatchObject({
      imported: 0,
      named: [{ line: 3, field: 'id', reason: expect.stringContaining('expected 1 to 512') }],
    });
  });

  test('with other figures is a bad line, wherever the first is, and every bad line is named', async () => {
    await load(csv([{ id: 'old', app_did: '', duration_s: '' }], withId));
    const file = csv(
      [
        { id: 'one' },
        { id: 'one', credits: '0.2', app_did: '' },
        { id: 'old' },
        { id: 'two', type: '' },
        { id: 'one' },
        { id: 'new', user_did: 'bob' },
      ],
      withId,
    );
    expect(await load(file)).toMatchObject({
      lines: 6,
      imported: 0,
      bad: 3,
      named: [
        { line: 5, field: 'type' },
        { line: 3, field: 'id', reason: 'expected what call "one" says already, got another app_did, credits' },
        { line: 4, field: 'id', reason: 'expected what call "old" says already, got another app_did, duration_s' },
      ],
    });
    expect(await stored('id')).toEqual(['old']);

    expect(await load(file, { skipBad: true })).toMatchObject({
      lines: 6,
      imported: 2,
      repeated: 1,
      bad: 3,
      users: 2,
    });
    expect(await stored(`id || ' ' || credits`)).toEqual(['new 0.10000000', 'old 0.10000000', 'one 0.10000000']);
  });

  test.each(names)('with another %s is a bad line', async (name) => {
    const other: Row = { call_time: '2026-08-20T13:10:00.000001Z', type: 'custom', status: 'failed' };
    await load(csv([{ id: 'one' }], withId));
    expect(await load(csv([{ id: 'one', [name]: other[name] ?? '7' }], withId))).toMatchObject({
      named: [{ line: 2, field: 'id', reason: expect.stringMatching(`another ${name}$`) }],
    });
  });

  test('whose line is bad and skipped has no say in users, span and rounded amounts', async () => {
    await load(csv([{ id: 'one' }], withId));
    const loaded = await load(
      csv(
        [
          { id: 'one', user_did: 'eve', call_time: '2020-01-01T00:00:00Z', credits: '0.000000001' },
          { id: 'two', duration_s: '1.5000001' },
          { id: 'three', credits: '0.000000001', type: '' },
        ],
        withId,
      ),
      { skipBad: true },
    );
    expect(loaded).toMatchObject({
      roundedCredits: 0,
      roundedDurations: 1,
      imported: 1,
      repeated: 0,
      bad: 2,
      users: 1,
      first: new Date('2026-08-20T13:10:00Z'),
    });
  });

  test('with the same figures beyond the decimals that are stored is the same call', async () => {
    await load(csv([{ id: 'one', credits: '0.1' }], withId));
    const again = csv([{ id: 'one', credits: '0.100000000000000005', duration_s: '1.4999999999' }], withId);
    expect(await load(again)).toMatchObject({ imported: 0, repeated: 1, roundedCredits: 1, roundedDurations: 1 });
  });

  test('may contradict in more lines than are fetched at once', async () => {
    const rows = Array.from({ length: 2_500 }, (_, i) => ({ id: `call ${(i * 7919) % 2_500}` }));
    await load(csv(rows, withId));
    const others = rows.toReversed().map((row) => ({ ...row, model: 'other' }));
    const { named } = await load(csv([...others, { id: 'new' }, { id: 'new', model: 'other' }], withId));
    expect(named.map(({ line }) => line)).toEqual([...Array.from({ length: 2_500 }, (_, i) => i + 2), 2_503]);
  });
});

describe('the calls of the ids that a file gives are looked up by the key, and no other call is read', () => {
  const withId = ['id', ...names];
  const start = Date.UTC(2026, 7, 19, 13, 10);
  const timeOf = (call: number) => new Date(start + (call % 48) * 3_600_000).toISOString();
  const BEFORE = 20_000;

  test.each<[string, { locale?: string; layout?: string }]>([
    ['one table', {}],
    ['one table, in a database that sorts as Swedes do', { locale: 'sv-SE' }],
    ['one table, whose ids are sorted by bytes', { layout: 'bytes' }],
    ['partitions', { layout: 'partitions' }],
    ['partitions, in a database that sorts as Swedes do', { locale: 'sv-SE', layout: 'partitions' }],
  ])('%s', async (_, { locale, layout }) => {
    await using database = await createDatabase({ locale });
    const pool = connect(database.url, { connections: 1, onError: () => {} });
    if (layout === 'bytes') {
      await pool.$executeRaw`alter table "ModelCall" alter id type text collate "C"`;
    }
    if (layout === 'partitions') await inPartitions({ environment: { DATABASE_URL: database.url }, pool });
    await pool.$transaction(async (db) => {
      await db.$executeRaw`select set_config('hourhand.marks_itself', 'yes', true)`;
      await db.$executeRaw`
        insert into "ModelCall" (id, "userDid", "appDid", "providerId", model, type, "totalUsage", "inputTokens",
                                 "outputTokens", credits, status, duration, "callTime")
        select 'old ' || i, 'ada', 'app', 'openai', 'gpt', 'chatCompletion', 15, 10, 5, 0.1, 'success', 1.5,
               ${new Date(start)}::timestamptz + i % 48 * interval '1 hour'
          from generate_series(1, ${BEFORE}::int) as i`;
    });
    await pool.$executeRaw`analyze "ModelCall"`;
    const read = async (inserted: number) => {
      const ask = async () => {
        const [row] = await pool.$queryRaw<[{ inserted: number; read: number }]>`
          select sum(n_tup_ins)::int as inserted, sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::int as read
            from pg_stat_user_tables where relname ~ '^ModelCall(_(before_)?[0-9]+|_default)?$'`;
        return row;
      };
      return (await until(ask, (seen) => seen.inserted === inserted)).read;
    };
    const before = await read(BEFORE);

    const hundred = Array.from({ length: 100 }, (_, i) => 7 * i + 1);
    const calls = hundred.flatMap((i) => [
      { id: `old ${i}`, call_time: timeOf(i) },
      { id: `new ${i}`, call_time: timeOf(i) },
      { id: `old ${i + 1}`, call_time: timeOf(i + 2) },
      { id: `new ${i}`, call_time: timeOf(i) },
    ]);
    const loaded = await load(csv(calls, withId), { databaseUrl: database.url, skipBad: true });
    expect(loaded).toMatchObject({ lines: 400, imported: 100, repeated: 200, bad: 100 });
    expect(loaded.named.map(({ line }) => line)).toEqual(hundred.map((_, i) => 4 * i + 4));
    expect((await read(BEFORE + 100)) - before).toBeLessThan(3 * 400);
    await pool.$disconnect();
  });
});

describe('an import ends cleanly', () => {
  const endless = () =>
    Readable.from(
      (function* () {
        yield Buffer.from(csv([]));
        const block = Buffer.from(
          csv(Array.from({ length: 400 }, () => ({})))
            .split('\n')
            .slice(1)
            .join('\n'),
        );
        for (;;) yield block;
      })(),
    );
  const silent = () => {
    const stream = new Readable({ read() {} });
    stream.push(csv([{}]));
    return stream;
  };
  const sessions = () =>
    ask(
      `select pid from pg_stat_activity where application_name = 'hourhand import' and datname = current_database()`,
    );

  test.each([
    ['reads', endless],
    ['waits for its input', silent],
  ])('when it is aborted while it %s', async (_, input) => {
    const stopping = new AbortController();
    const stream = input();
    const loading = load(stream, { signal: stopping.signal, onProgress: () => stopping.abort(new Error('enough')) });
    await expect(loading).rejects.toThrow('enough');
    expect(stream.destroyed).toBe(true);
    await expect.poll(sessions).toEqual([]);
    expect(await count()).toBe(0);
  });

  test('when it is aborted before it begins', async () => {
    await expect(load(csv([{}]), { signal: AbortSignal.abort(new Error('enough')) })).rejects.toThrow('enough');
  });

  test('when it is aborted while the insert waits for another writer', async () => {
    await load(csv([{}]));
    const [id] = await stored('id');
    await client.query('truncate "ModelCall"');
    await client.query('begin');
    await client.query(
      `insert into "ModelCall" (id, "userDid", "providerId", model, type) values ($1, 'eve', 'p', 'm', 'custom')`,
      [id],
    );
    const stopping = new AbortController();
    const loading = load(csv([{}]), { signal: stopping.signal });
    const refused = expect(loading).rejects.toThrow('enough');
    while ((await ask(`select from pg_locks where not granted`)).length === 0) await sleep(10);
    stopping.abort(new Error('enough'));
    await refused;
    await expect.poll(sessions).toEqual([]);
    await client.query('rollback');
    expect(await count()).toBe(0);
  });

  test('when the connection is lost', async () => {
    const stream = silent();
    const loading = load(stream);
    const lost = expect(loading).rejects.toThrow(/terminat/i);
    while (
      (await ask(`select from pg_stat_activity where query like 'COPY staged%' and datname = current_database()`))
        .length === 0
    )
      await sleep(10);
    await ask(
      `select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'hourhand import' and datname = current_database()`,
    );
    await lost;
    expect(stream.destroyed).toBe(true);
  });

  test('when the database cannot be reached', async () => {
    const stream = silent();
    await expect(load(stream, { databaseUrl: 'postgresql://app@127.0.0.1:1/none' })).rejects.toThrow('ECONNREFUSED');
    expect(stream.destroyed).toBe(true);
  });

  test('when a listener throws', async () => {
    const onBad = () => {
      throw new Error('the terminal went away');
    };
    await expect(load(csv([{ type: '' }, {}]), { onBad })).rejects.toThrow('the terminal went away');
    await expect.poll(sessions).toEqual([]);
  });
});

test('the input is read no faster than the database takes it', async () => {
  const sockets: Socket[] = [];
  const server = new URL(database.url);
  let passed = 0;
  // Between the import and its server: passes the first megabyte on, and then nothing more.
  const proxy = createServer((socket) => {
    // One that comes later would leave its server waiting for a password, and no database can be dropped meanwhile.
    if (passed > 1_000_000) return void socket.destroy();
    const onward = connectTo(Number(server.port), server.hostname);
    sockets.push(socket, onward);
    onward.pipe(socket);
    socket.on('data', (data) => {
      passed += data.length;
      onward.write(data);
      if (passed > 1_000_000) socket.pause();
    });
    for (const end of [socket, onward]) end.on('error', () => {});
  }).listen(0);
  const { port } = proxy.address() as { port: number };
  const block = Buffer.from(
    csv(Array.from({ length: 400 }, () => ({})))
      .split('\n')
      .slice(1)
      .join('\n'),
  );
  let given = 0;
  const input = Readable.from(
    (function* () {
      yield Buffer.from(csv([]));
      for (; given < 200_000_000; given += block.length) yield block;
    })(),
  );

  const stopping = new AbortController();
  const url = new URL(database.url);
  url.port = String(port);
  const loading = load(input, { databaseUrl: url.href, signal: stopping.signal });
  const ended = expect(loading).rejects.toThrow();
  for (let before = -1; before !== given || given === 0; await sleep(300)) before = given;
  expect(given).toBeGreaterThan(500_000);
  expect(given).toBeLessThan(50_000_000);

  stopping.abort();
  for (const socket of sockets) socket.destroy();
  await ended;
  proxy.close();
});

describe.skipIf(!existsSync(new URL('../../shared/data/', import.meta.url)))('real calls', () => {
  const folder = new URL('../../shared/data/', import.meta.url);
  const sets = ['aider_dev', 'azure_code', 'nasa_19950801'];
  const isPresent = (set: string) => existsSync(new URL(`${set}.csv.gz`, folder));
  const missing = sets.filter((set) => !isPresent(set));
  if (missing.length > 0) console.warn(`skipped, not in ${folder.pathname}: ${missing.join(', ')}`);

  test.each(sets.filter(isPresent))('%s is imported whole and to the last digit, and once', async (set) => {
    const summary = JSON.parse(readFileSync(new URL(`${set}.summary.json`, folder), 'utf8'));
    const loaded = await load(createReadStream(new URL(`${set}.csv.gz`, folder)));
    expect(loaded).toMatchObject({
      lines: summary.rows,
      imported: summary.rows,
      repeated: 0,
      bad: 0,
      users: summary.users,
    });
    expect([loaded.first, loaded.last]).toEqual([new Date(summary.min), new Date(summary.max)]);
    const [sums] = await ask(`
      select sum(credits)::text as total_credits, sum("totalUsage")::int8 as total_usage, count(*) as total_calls,
             count(*) filter (where status = 'success') as success_calls, count(distinct "userDid") as users from "ModelCall"`);
    const { total_credits, total_usage, total_calls, success_calls, users } = summary;
    const expected = { total_credits, total_usage, total_calls, success_calls, users };
    expect(sums).toEqual(Object.fromEntries(Object.entries(expected).map(([name, value]) => [name, String(value)])));

    if (summary.rows > 10_000) {
      const [table] = await ask<{ reltuples: number }>(`select reltuples from pg_class where relname = 'ModelCall'`);
      expect(table?.reltuples).toBeGreaterThan(10_000);
      return; // Again would take seconds, and show nothing that the others do not.
    }
    const plain = gunzipSync(readFileSync(new URL(`${set}.csv.gz`, folder)));
    expect(await load(plain)).toMatchObject({ imported: 0, repeated: summary.rows });
    expect(await count()).toBe(summary.rows);
  });
});

describe('the sample', () => {
  const file = new URL('../samples/azure-code.csv', import.meta.url).pathname;

  test('is loaded into an empty database, labelled, its newest hour just ended, and only once', async () => {
    const now = new Date('2027-01-01T01:00:00.000Z');
    const sample = await loadSample({ databaseUrl: database.url, file, now });
    expect(sample).toEqual({
      calls: 304,
      users: 12,
      range: { start: new Date('2026-12-31T22:00:00Z'), end: new Date('2027-01-01T01:00:00Z') },
    });
    expect(new Set(await stored('metadata'))).toEqual(new Set(['{"sample": true}']));
    const [call] = await ask(`
      select count(distinct date_trunc('hour', "callTime")) as hours, bool_and("userDid" like 'sample-%' and "appDid" like 'sample-app-%') as named,
             count(distinct type) as types, count(*) filter (where status = 'failed') > 0 as failures from "ModelCall"`);
    expect(call).toEqual({ hours: '3', named: true, types: '3', failures: true });

    expect(await loadSample({ databaseUrl: database.url, file, now })).toBeUndefined();
    expect(await count()).toBe(304);
  });

  test('stays out of a database that has a call', async () => {
    await load(csv([{}]));
    expect(await loadSample({ databaseUrl: database.url, file, now: new Date() })).toBeUndefined();
    expect(await count()).toBe(1);
  });
});
