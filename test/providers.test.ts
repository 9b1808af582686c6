import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import {
  type Answer,
  type AskOptions,
  askModel,
  listModels,
  type ModelCallType,
  readBaseUrl,
} from '../src/providers/ask.ts';
import { readRetryAfter } from '../src/providers/retry-after.ts';
import { connect, Sql } from '../src/store/db.ts';
import { classOfText, errorClass, type ModelError, modelErrors } from '../src/store/model-errors.ts';
import {
  type Counterpart,
  type Fixture,
  startAimock,
  startHttp,
  startMockoon,
  startNet,
} from './support/counterparts.ts';
import { createDatabase } from './support/database.ts';

const key = 'sk-proj-Q7rT2vXz9LmN4bKc8HdW';
const aFewWords = { error: { message: 'No.', type: 'some_error' } };

/** What providers write, and the class it belongs to. */
const refusals: [ModelError, number, { message: string; type?: string; code?: string }][] = [
  [
    'invalid argument',
    400,
    { message: "Unsupported value: 'top_k' is not one of the accepted ones.", code: 'unsupported_value' },
  ],
  ['invalid argument', 413, { message: 'Request body is beyond what is taken', type: 'request_too_large' }],
  ['invalid argument', 422, { message: 'Unprocessable', type: 'some_error' }],
  ['invalid key', 401, { message: 'Incorrect API key provided.', code: 'invalid_api_key' }],
  ['invalid key', 401, { message: 'User not found.', code: '401' }],
  ['invalid key', 400, { message: 'API key not valid. Please pass a valid API key.', code: 'INVALID_ARGUMENT' }],
  ['invalid key', 403, { message: 'This key may not do that.' }],
  ['no credits', 402, aFewWords.error],
  [
    'no credits',
    400,
    { message: 'Your credit balance is too low to access the API.', type: 'invalid_request_error' },
  ],
  ['no credits', 429, { message: 'You have run out of credits.' }],
  ['expired credential', 401, { message: 'The access token expired an hour ago.' }],
  [
    'expired credential',
    403,
    { message: 'The security token included in the request is expired', code: 'ExpiredTokenException' },
  ],
  ['expired credential', 400, { message: 'API key expired. Please renew the API key.', code: 'INVALID_ARGUMENT' }],
  ['content policy', 400, { message: 'The response was filtered.', code: 'content_filter' }],
  ['content policy', 403, { message: 'Your chosen model requires moderation and your input was flagged.' }],
  ['content policy', 400, { message: 'Your request was rejected as a result of our safety system.' }],
  [
    'region',
    403,
    { message: 'Country, region, or territory not supported', code: 'unsupported_country_region_territory' },
  ],
  ['region', 400, { message: 'User location is not supported for the API use.', code: 'FAILED_PRECONDITION' }],
  ['region', 451, aFewWords.error],
  ['temporary block', 403, { message: 'Your account has been suspended.' }],
  ['temporary block', 429, { message: 'Your address was blocked for an hour.' }],
  [
    'not found',
    404,
    { message: 'The model `gpt-9` does not exist or you do not have access to it.', code: 'model_not_found' },
  ],
  ['not found', 400, { message: 'gpt-9 is not a valid model ID' }],
  ['not found', 410, aFewWords.error],
  ['unavailable', 500, { message: 'The server had an error while processing your request.' }],
  ['unavailable', 503, aFewWords.error],
  ['unavailable', 529, { message: 'Overloaded', type: 'overloaded_error' }],
  ['rate limit', 429, { message: 'Rate limit reached for gpt-4o', code: 'rate_limit_exceeded' }],
  ['rate limit', 429, aFewWords.error],
  [
    'quota',
    429,
    {
      message: 'You exceeded your current quota, please check your plan and billing details.',
      code: 'insufficient_quota',
    },
  ],
  ['network time-out', 408, aFewWords.error],
  ['network time-out', 504, aFewWords.error],
  ['unknown', 418, aFewWords.error],
];
const refusing = ([, status]: (typeof refusals)[number], i: number) => `refuses-${status}-${i}`;

const inAnHour = new Date(Math.floor(Date.now() / 1_000) * 1_000 + 3_600_000);
const echo = "{{header 'Authorization'}}";

let aimock: Counterpart;
let mockoon: Counterpart;

beforeAll(async () => {
  const fixtures: Fixture[] = [
    { match: { model: 'answers' }, response: { content: 'Hi' } },
    { match: { inputText: 'Hi', endpoint: 'embedding' }, response: { embedding: [0.25, -0.5] } },
    { match: { model: 'paints', endpoint: 'image' }, response: { image: { url: 'https://example.com/dot.png' } } },
    { match: { model: 'speaks', endpoint: 'speech' }, response: { audio: 'SGk=', format: 'mp3' } },
    { match: { model: 'films', endpoint: 'video' }, response: { video: { id: 'video-1', status: 'processing' } } },
    { match: { model: 'drops' }, response: { content: 'Hi' }, chaos: { disconnectRate: 1 } },
    { match: { model: 'garbles' }, response: { content: 'Hi' }, chaos: { malformedRate: 1 } },
    { match: { model: 'dawdles' }, response: { content: 'Hi' }, chaos: { latencyMs: 30_000 } },
    { match: { model: 'asks-to-wait' }, response: { error: { message: 'Slow down' }, status: 429, retryAfter: 7 } },
    ...['Unsupported parameter: max_tokens. Use max_completion_tokens instead.'].flatMap((message) => [
      { match: { model: 'renamed', sequenceIndex: 0 }, response: { error: { message }, status: 400 } },
      { match: { model: 'renamed', sequenceIndex: 1 }, response: { content: 'H' } },
      { match: { model: 'renames-for-ever' }, response: { error: { message }, status: 400 } },
    ]),
    {
      match: { model: 'cut-short' },
      response: {
        status: 400,
        error: { message: 'Could not finish the message because max_tokens or model output limit was reached.' },
      },
    },
    ...refusals.map((refusal, i) => ({
      match: { model: refusing(refusal, i) },
      response: { status: refusal[1], error: refusal[2] },
    })),
  ];
  const chat = (name: string) => `/${name}/v1/chat/completions`;
  [aimock, mockoon] = await Promise.all([
    startAimock(fixtures, { keys: [key] }),
    startMockoon([
      { path: '/good/v1/models/:id', body: '{"id": "whisper", "object": "model"}' },
      { path: '/good/v1/chat/completions', body: '{"choices": [{"message": {"content": "Hi"}}], "error": null}' },
      { path: '/bare/v1/models', body: '[{"id": "a"}, {"id": "b"}, {"id": "a"}]' },
      { path: '/none/v1/models', body: '{"object": "list", "data": null}' },
      {
        path: chat('html'),
        headers: { 'Content-Type': 'text/html' },
        body: '<!DOCTYPE html><html><body>Welcome</body></html>',
      },
      { path: chat('empty') },
      { path: chat('cut'), body: '{"choices": [{"message": {"con' },
      { path: chat('shapeless'), body: '{"choices": []}' },
      { path: '/shapeless/v1/embeddings', body: '{"data": [{"embedding": ["a"]}]}' },
      { path: '/shapeless/v1/models/:id', body: '{"object": "model"}' },
      { path: '/shapeless/v1/models', body: '{"models": []}' },
      {
        path: chat('error-in-200'),
        body: '{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}',
      },
      { path: chat('coded-in-200'), body: '{"error": {"message": "Provider returned error", "code": 502}}' },
      { path: chat('said-in-200'), body: '{"error": "HTTP 503 from upstream"}' },
      { path: chat('dated'), status: 503, headers: { 'Retry-After': inAnHour.toUTCString() }, body: '{"error": {}}' },
      { path: chat('overloaded'), status: 529, headers: { 'Retry-After': '60' } },
      { path: chat('nonsense'), status: 429, headers: { 'Retry-After': 'soon' } },
      {
        path: chat('blocked'),
        status: 403,
        headers: { 'Content-Type': 'text/html' },
        body: '<html><head><title>Sorry</title></head><body>You have been blocked</body></html>',
      },
      { path: chat('detail'), status: 422, body: '{"detail": [{"loc": ["body"], "msg": "Field required"}]}' },
      {
        path: chat('listed'),
        status: 400,
        body: '[{"error": {"message": "Request is odd", "details": [{"reason": "API_KEY_INVALID"}]}}]',
      },
      { path: chat('moved'), status: 307, headers: { Location: '/good/v1/chat/completions' } },
      { path: chat('moved-often'), status: 308, headers: { Location: chat('moved-often') } },
      {
        path: chat('echo-json'),
        status: 401,
        headers: { 'Retry-After': echo, 'X-Request-Id': echo },
        body: `{"error": {"message": "Not ${echo}", "code": "${echo}", "type": "${echo}"}}`,
      },
      {
        path: chat('echo-encoded'),
        status: 400,
        body: `{"error": {"message": "{{base64 (header 'Authorization')}} and {{substr (header 'Authorization') 7 13}}***{{substr (header 'Authorization') 30 4}}"}}`,
      },
      {
        path: chat('echo-html'),
        status: 200,
        headers: { 'Content-Type': 'text/html' },
        body: `<html><body>Hello ${echo}</body></html>`,
      },
      { path: chat('echo-shape'), status: 200, body: `{"choices": "${echo}"}` },
    ]),
  ]);
});
afterAll(async () => {
  await aimock?.[Symbol.asyncDispose]();
  await mockoon?.[Symbol.asyncDispose]();
});
afterEach(() => {
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
});

test('a chat is asked for one token, once', async () => {
  expect(await ask('answers')).toEqual({ ok: true, latencyMs: expect.any(Number) });
  expect(await bodies('answers')).toEqual([
    expect.objectContaining({ max_tokens: 1, messages: [{ role: 'user', content: 'Hi' }] }),
  ]);
});

test('an embedding is asked for one word, once, and for numbers', async () => {
  expect(await ask('embeds', { type: 'embedding' })).toMatchObject({ ok: true });
  expect(await bodies('embeds')).toEqual([expect.objectContaining({ embeddingInput: 'Hi' })]);
  await using provider = await startHttp((_, response) => response.end('{"data": [{"embedding": [0.5]}]}'));
  expect(await askAt(provider.url, { type: 'embedding' })).toMatchObject({ ok: true });
  expect(provider.asked.map(({ body }) => JSON.parse(String(body)))).toEqual([
    { model: 'any', input: 'Hi', encoding_format: 'float' },
  ]);
});

test.each(['imageGeneration', 'audioGeneration', 'video', 'custom'] as const)(
  'of the type %s the record is asked for, and nothing is generated',
  async (type) => {
    const model = `org/whisper ${type}`;
    expect(await askOdd('good', { model, type })).toMatchObject({ ok: true });
    const asked = (await mockoon.requests()).filter((one) => decodeURIComponent(one.path).includes(model));
    expect(asked.map(({ method }) => method)).toEqual(['GET']);
  },
);

describe('a record that is not there', () => {
  const list = (...ids: string[]) => JSON.stringify({ data: ids.map((id) => ({ id })) });
  /** A provider without a path for one model; its list is what `listed` answers. */
  const without = (status: number, listed: (query: string) => [status: number, body: string]) =>
    startHttp(({ path }, response) => {
      const [, query] = path.split('/v1/models?');
      const [code, body] =
        query !== undefined || path === '/v1/models'
          ? listed(query ?? '')
          : [status, '{"error": {"message": "404 page not found"}}'];
      response.writeHead(code, { 'Content-Type': 'application/json' }).end(body);
    });
  const drawer = { model: 'draw/er', type: 'imageGeneration' } as const;

  test.each([404, 405, 501])('by a status of %d, is no fault of a model that the list names', async (status) => {
    await using provider = await without(status, () => [200, list('other', 'draw/er')]);
    expect(await askAt(`${provider.url}/v1`, drawer)).toMatchObject({ ok: true });
    expect(provider.asked.map(({ method, path }) => `${method} ${path}`)).toEqual([
      'GET /v1/models/draw%2Fer',
      'GET /v1/models',
    ]);
    await using google = await without(status, () => [200, list('models/draw/er')]);
    expect(await askAt(`${google.url}/v1`, drawer)).toMatchObject({ ok: true });
  });

  test('is believed if the list, read to its end, does not name the model', async () => {
    await using provider = await without(404, (query) => [
      200,
      query === '' ? '{"data": [{"id": "a"}], "has_more": true}' : list('b'),
    ]);
    expect(await askAt(`${provider.url}/v1`, drawer)).toMatchObject({
      ok: false,
      reason: 'not found',
      detail: 'HTTP 404: 404 page not found; its list does not name it either',
    });
    expect(provider.asked).toHaveLength(3);
  });

  test('says nothing of the model where the list cannot be read, or not to its end', async () => {
    await using unlisted = await without(404, () => [404, '{"error": {"message": "404 page not found"}}']);
    expect(await askAt(`${unlisted.url}/v1`, drawer)).toMatchObject({
      ok: false,
      reason: 'invalid argument',
      detail: 'HTTP 404: 404 page not found; its list of models cannot be read: HTTP 404: 404 page not found',
    });
    let page = 0;
    await using endless = await without(404, () => [
      200,
      JSON.stringify({ data: [{ id: `m${page++}` }], has_more: true }),
    ]);
    expect(await askAt(`${endless.url}/v1`, drawer)).toMatchObject({ reason: 'invalid argument' });
  });
});

test.each([
  ['paints', 'imageGeneration', '/v1/images/generations'],
  ['speaks', 'audioGeneration', '/v1/audio/speech'],
  ['films', 'video', '/v1/videos'],
] as const)('a model that %s does it where a generation is asked for', async (model, type, path) => {
  const before = await asked(path);
  expect(await ask(model, { type, generate: [type] })).toMatchObject({ ok: true });
  expect(await asked(path)).toBe(before + 1);
});

test.each(refusals.map((refusal, i) => [refusal[0], refusal[1], refusal[2].message, refusing(refusal, i)] as const))(
  '%s is what %d "%s" means, and it is asked once',
  async (reason, status, message, model) => {
    const answer = await ask(model);
    expect(answer).toMatchObject({ ok: false, reason, detail: `HTTP ${status}: ${message}` });
    expect(await bodies(model)).toHaveLength(1);
  },
);

test('a key that the provider does not take is invalid', async () => {
  const answer = await askModel(
    { baseUrl: aimock.url, key: 'sk-of-somebody-else' },
    { model: 'answers', type: 'chatCompletion' },
    options(),
  );
  expect(answer).toMatchObject({ ok: false, reason: 'invalid key', detail: 'HTTP 401: Invalid API key' });
});

test('a chat that wants max_completion_tokens is asked once more with that, and never a third time', async () => {
  expect(await ask('renamed')).toMatchObject({ ok: true });
  expect((await bodies('renamed')).map((body) => [body.max_tokens, body.max_completion_tokens])).toEqual([
    [1, undefined],
    [undefined, 1],
  ]);
  expect(await ask('renames-for-ever')).toMatchObject({ ok: false, reason: 'invalid argument' });
  expect(await bodies('renames-for-ever')).toHaveLength(2);
});

test('a model that could not finish within one token has answered', async () => {
  expect(await ask('cut-short')).toMatchObject({ ok: true });
  expect(await bodies('cut-short')).toHaveLength(1);
});

test.each([
  ['html', 'HTTP 200: expected JSON, got "Welcome"'],
  ['empty', 'HTTP 200: expected JSON, got nothing'],
  ['cut', 'HTTP 200: expected JSON, got "{"choices": [{"message": {"con"'],
  ['shapeless', expect.stringContaining('HTTP 200: choices: ')],
])('200 and a body that is %s is a malformed answer', async (name, detail) => {
  expect(await askOdd(name)).toMatchObject({ ok: false, reason: 'malformed answer', detail });
});

test('an embedding of no numbers, a record without an id and garbled JSON are malformed answers', async () => {
  expect(await askOdd('shapeless', { type: 'embedding' })).toMatchObject({ reason: 'malformed answer' });
  expect(await askOdd('shapeless', { type: 'video' })).toMatchObject({ reason: 'malformed answer' });
  expect(await ask('garbles')).toMatchObject({ reason: 'malformed answer' });
});

test('a silence, and bytes that do not unpack, are malformed answers', async () => {
  await using silent = await startHttp(
    (_, response) => void response.writeHead(200, { 'Content-Type': 'audio/mpeg' }).end(),
  );
  const speech = { type: 'audioGeneration', generate: ['audioGeneration'] } as const;
  expect(await askAt(silent.url, speech)).toMatchObject({ reason: 'malformed answer' });
  await using garbled = await startHttp((_, response) => {
    response.writeHead(200, { 'Content-Encoding': 'gzip' }).end('{"choices": [{}]}');
  });
  expect(await askAt(garbled.url)).toMatchObject({ reason: 'malformed answer' });
});

test.each([
  ['error-in-200', 'quota', 'HTTP 200: You exceeded your current quota'],
  ['coded-in-200', 'unavailable', 'HTTP 200: Provider returned error'],
  ['said-in-200', 'unavailable', 'HTTP 200: HTTP 503 from upstream'],
  ['blocked', 'temporary block', 'HTTP 403: Sorry You have been blocked'],
  ['detail', 'invalid argument', 'HTTP 422: [{"loc":["body"],"msg":"Field required"}]'],
  ['listed', 'invalid key', 'HTTP 400: Request is odd'],
])('an error is read where it is %s', async (name, reason, detail) => {
  expect(await askOdd(name)).toMatchObject({ ok: false, reason, detail });
});

test('an error of null is none', async () => {
  expect(await askOdd('good')).toMatchObject({ ok: true });
});

test('Retry-After is honoured in seconds and as a date, with 429, 503 and 529; nonsense is none', async () => {
  const before = Date.now();
  const answer = await ask('asks-to-wait');
  const wait = (retryAt(answer)?.getTime() ?? 0) - 7_000;
  expect(wait).toBeGreaterThanOrEqual(before);
  expect(wait).toBeLessThanOrEqual(Date.now());
  expect(await askOdd('dated')).toMatchObject({ reason: 'unavailable', retryAt: inAnHour });
  expect(await askOdd('overloaded')).toMatchObject({ reason: 'unavailable', retryAt: expect.any(Date) });
  expect(await askOdd('nonsense')).not.toHaveProperty('retryAt');
});

test.each([
  ['120', '2026-08-20T14:02:00Z'],
  ['Thu, 20 Aug 2026 14:30:00 GMT', '2026-08-20T14:30:00Z'],
  ['999999999', '2026-08-21T14:00:00Z'],
  ['Thu, 20 Aug 2099 14:30:00 GMT', '2026-08-21T14:00:00Z'],
  ['0', undefined],
  ['-5', undefined],
  ['Thu, 20 Aug 2026 13:59:59 GMT', undefined],
  ['soon', undefined],
  ['', undefined],
  [null, undefined],
])('Retry-After: %s at 14:00 is %s', (value, instant) => {
  expect(readRetryAfter(value, new Date('2026-08-20T14:00:00Z'))).toEqual(instant && new Date(instant));
});

test('a redirect within the origin is followed, with the same method, body and key', async () => {
  expect(await askOdd('moved')).toMatchObject({ ok: true });
  expect((await mockoon.requests()).slice(-2).map(({ method, path }) => `${method} ${path}`)).toEqual([
    'POST /moved/v1/chat/completions',
    'POST /good/v1/chat/completions',
  ]);
  await using provider = await startHttp(({ path, headers }, response) => {
    if (path === '/there') response.end('{"choices": [{}]}');
    else response.writeHead(301, { Location: `//user:password@${headers.host}/there` }).end();
  });
  expect(await askAt(provider.url)).toMatchObject({ ok: true });
  const [first, second] = provider.asked;
  expect(second).toEqual({ ...first, path: '/there' });
  expect(second?.headers.authorization).toBe(`Bearer ${key}`);
});

test('the fourth redirect is not followed', async () => {
  expect(await askOdd('moved-often')).toMatchObject({ reason: 'malformed answer' });
  const asked = (await mockoon.requests()).filter(({ path }) => path.startsWith('/moved-often'));
  expect(asked).toHaveLength(4);
});

test('a redirect to another host is refused, and that host is never asked', async () => {
  await using other = await startHttp((_, response) => response.end('{"choices": [{}]}'));
  for (const host of [`127.0.0.1:${other.port}`, `localhost:${other.port}`]) {
    await using provider = await startHttp((_, response) => {
      response.writeHead(307, { Location: `http://${host}/v1/chat/completions` }).end();
    });
    expect(await askAt(provider.url)).toMatchObject({
      reason: 'malformed answer',
      detail: `HTTP 307: redirected to another host, not followed: http://${host}`,
    });
    expect(provider.asked).toHaveLength(1);
  }
  expect(other.asked).toEqual([]);
});

test('a host that is redirected to is named without the key in its name', async () => {
  const locations = [`https://${key}.example.com/`, `https://eu-west-1.api.example.com/${key}`, `//${key}:x@[bad`];
  const details: string[] = [];
  for (const Location of locations) {
    await using provider = await startHttp((_, response) => void response.writeHead(302, { Location }).end());
    details.push(detail(await askAt(provider.url)));
  }
  expect(details).toEqual([
    'HTTP 302: redirected to another host, not followed: https://[key].example.com',
    'HTTP 302: redirected to another host, not followed: https://eu-west-1.api.example.com',
    'HTTP 302: redirected, but not to a URL',
  ]);
});

test('a provider that takes the key apart, or spells it otherwise, is not quoted at all', async () => {
  const spelled: Record<string, (key: string) => string> = {
    apart: (k) => k.split('').join(' '),
    pieces: (k) => k.replace(/(.{5})/g, '$1 '),
    backwards: (k) => [...k].reverse().join(' '),
    entities: (k) => [...k].map((c) => `&#${c.charCodeAt(0)};`).join(''),
    hexadecimal: (k) => [...k].map((c) => `&#x${c.charCodeAt(0).toString(16)};`).join(''),
  };
  for (const [name, spell] of Object.entries(spelled)) {
    await using telling = await startHttp((req, res) => {
      const told = `${req.headers.authorization}`.slice(7);
      res.writeHead(401).end(JSON.stringify({ error: { message: `No: ${spell(told)}` } }));
    });
    const answer = await askModel({ baseUrl: telling.url, key }, { model: 'gpt', type: 'chatCompletion' }, options());
    expect([name, answer]).toEqual([
      name,
      expect.objectContaining({ reason: 'invalid key', detail: 'HTTP 401: (not shown: the key is in it)' }),
    ]);
  }
});

test.each(['echo-json', 'echo-encoded', 'echo-html', 'echo-shape'])(
  'nothing of the key is left of %s',
  async (name) => {
    const answer = await askOdd(name);
    expect(detail(answer)).toContain('[key]');
    expect(leaks(answer)).toEqual([]);
  },
);

test('a key is not found in a detail whatever its alphabet', async () => {
  for (const plain of [
    'correct-horse-battery',
    'a',
    'ABCDEFGHIJKLMNOPQRSTUVWXYZ',
    'with%/=&+?"<>chars',
    'İsnoheader',
  ]) {
    await using provider = await startHttp(({ headers }, response) => {
      const told = String(headers.authorization).slice(7);
      response
        .writeHead(401)
        .end(JSON.stringify({ error: { message: `Not ${told}, nor ${encodeURIComponent(told)}` } }));
    });
    const answer = await askModel({ baseUrl: provider.url, key: plain }, { model: 'm', type: 'custom' }, options());
    expect(detail(answer)).not.toContain(plain.length > 1 ? plain : ' a,');
    expect(detail(answer)).not.toContain(plain.length > 1 ? encodeURIComponent(plain) : ' a,');
  }
});

test.each([
  `Not ${key.slice(0, 13)}…`,
  `Not the one that ends in ${key.slice(-8)}`,
  `Not ${key.slice(0, 5)}${'*'.repeat(20)}${key.slice(-4)}`,
  `Not ${key.toLowerCase()}`,
])('of the message "%s" the key is taken out', async (message) => {
  await using provider = await startHttp((_, response) => {
    response.writeHead(401).end(JSON.stringify({ error: { message } }));
  });
  expect(detail(await askAt(provider.url))).toMatch(/^HTTP 401: Not (the one that ends in )?\[key\]…?$/);
});

test('a detail is one line of at most 200 characters', async () => {
  await using provider = await startHttp((_, response) => {
    response.writeHead(500).end(`one\r\n\u0000two\u001b[31m ${'word '.repeat(400)}`);
  });
  const told = detail(await askAt(provider.url));
  expect(told).toMatch(/^HTTP 500: one two \[31m word word/);
  expect(told).toHaveLength(200);
});

test.each([
  ['', 'none'],
  ['sk-one\nX-Other: two', 'spaces'],
  ['sk-schlüssel', 'ASCII'],
  [' sk-padded', 'spaces'],
])('the key %j is none that a header takes, and is asked nowhere with', async (unfit, found) => {
  await using provider = await startHttp((_, response) => response.end());
  const answer = await askModel({ baseUrl: provider.url, key: unfit }, { model: 'm', type: 'custom' }, options());
  expect(answer).toMatchObject({ reason: 'no credentials', detail: expect.stringContaining(found) });
  if (unfit) expect(detail(answer)).not.toContain(unfit.trim());
  expect(provider.asked).toEqual([]);
});

test('no answer in time, and a body that dribbles, are time-outs', async () => {
  expect(await ask('dawdles', { timeoutMs: 200 })).toMatchObject({
    reason: 'network time-out',
    detail: 'no answer within 200 ms',
  });
  await using dribbling = await startHttp((_, response) => {
    response.writeHead(200, { 'Content-Type': 'application/json' });
    const timer = setInterval(() => response.write(' '), 20);
    response.on('close', () => clearInterval(timer));
  });
  expect(await askAt(dribbling.url, { timeoutMs: 300 })).toMatchObject({ reason: 'network time-out' });
});

test('a connection that is refused, reset, dropped or cut is told from a malformed answer', async () => {
  const closed = await startNet(() => {});
  await closed[Symbol.asyncDispose]();
  expect(await askAt(closed.url)).toMatchObject({
    reason: 'connection',
    detail: expect.stringContaining('ECONNREFUSED'),
  });
  await using resetting = await startNet((socket) => socket.resetAndDestroy());
  expect(await askAt(resetting.url)).toMatchObject({ reason: 'connection' });
  expect(resetting.asked).toHaveLength(1);
  expect(await ask('drops')).toMatchObject({ reason: 'connection' });
  await using cutting = await startNet((socket) => {
    socket.end('HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"choices":');
  });
  expect(await askAt(cutting.url)).toMatchObject({ reason: 'connection' });
  expect(await askAt('https://nobody.invalid')).toMatchObject({ reason: 'connection' });
  expect(await askAt(aimock.url.replace('http:', 'https:'))).toMatchObject({ reason: 'connection' }); // no TLS there
  await using other = await startNet((socket) => socket.end('220 mail.example.com ESMTP\r\n'));
  expect(await askAt(other.url)).toMatchObject({ reason: 'malformed answer' });
});

test('of a body that has no end no more than a mebibyte is read', async () => {
  let ended = false;
  await using endless = await startHttp((_, response) => {
    response.writeHead(200, { 'Content-Type': 'application/json' });
    const more = () => {
      while (!ended && response.write('x'.repeat(65_536)));
    };
    response.on('drain', more).on('close', () => {
      ended = true;
    });
    more();
  });
  expect(await askAt(endless.url, { timeoutMs: 30_000 })).toMatchObject({
    reason: 'malformed answer',
    detail: 'HTTP 200: longer than 1048576 bytes',
  });
});

test('plain http goes to this machine alone, unless it is allowed', async () => {
  await using provider = await startHttp((_, response) => response.end('{"choices": [{}]}'), '0.0.0.0');
  // Reached as any other host would be: it is no name of the loopback.
  const baseUrl = `http://0.0.0.0:${provider.port}/v1`;
  const answer = await askAt(baseUrl);
  expect(answer).toMatchObject({ reason: 'connection', detail: expect.stringContaining('expected https') });
  expect(provider.asked).toEqual([]);
  expect(await askAt(baseUrl, { allowHttp: true })).toMatchObject({ ok: true });
});

test.each([
  ['https://api.example.com', 'https://api.example.com/v1'],
  ['https://api.example.com/', 'https://api.example.com/v1'],
  ['https://api.example.com/openai/v1/', 'https://api.example.com/openai/v1'],
  ['https://api.example.com/v2', 'https://api.example.com/v2'],
  ['http://127.0.0.1:8080', 'http://127.0.0.1:8080/v1'],
  ['http://127.8.8.8/v1', 'http://127.8.8.8/v1'],
  ['http://[::1]:8080/v1', 'http://[::1]:8080/v1'],
  ['http://localhost/v1', 'http://localhost/v1'],
])('the base URL %s is %s', (text, read) => {
  expect(readBaseUrl(text, { allowHttp: false })).toBe(read);
});

test.each([
  ['http://api.example.com/v1', 'expected https, or http to this machine, got http to api.example.com'],
  ['http://127.0.0.1.example.com', 'expected https, or http to this machine, got http to 127.0.0.1.example.com'],
  ['http://localhost.example.com', 'got http to localhost.example.com'],
  ['ftp://api.example.com', 'got "ftp://api.example.com"'],
  ['api.example.com', 'got "api.example.com"'],
  [key, 'got "[key]"'],
  [`https://user:${key}@api.example.com`, 'got one with credentials in it'],
  [`https://api.example.com/v1?key=${key}`, 'got one with a query or a fragment'],
  [`https://api.example.com/v1#${key}`, 'got one with a query or a fragment'],
])('the base URL %s is refused', (text, found) => {
  const read = () => readBaseUrl(text, { allowHttp: false });
  expect(read).toThrow(RangeError);
  expect(read).toThrow(found);
});

test('what the environment says to the client is for nobody here', async () => {
  vi.stubEnv('OPENAI_CUSTOM_HEADERS', 'Authorization: Bearer another\nX-Other: secret');
  vi.stubEnv('OPENAI_ORG_ID', 'org-other');
  vi.stubEnv('OPENAI_ADMIN_KEY', 'sk-admin');
  vi.stubEnv('OPENAI_BASE_URL', 'http://127.0.0.1:1');
  vi.stubEnv('OPENAI_LOG', 'debug');
  const printed = (['debug', 'info', 'log', 'warn', 'error'] as const).map((name) => vi.spyOn(console, name));
  await using provider = await startHttp((_, response) => response.end('{"choices": [{}]}'));
  expect(await askAt(provider.url)).toMatchObject({ ok: true });
  expect(provider.asked).toHaveLength(1);
  const { headers } = provider.asked[0] ?? {};
  expect(headers).toMatchObject({ authorization: `Bearer ${key}` });
  expect(JSON.stringify(headers)).not.toMatch(/another|secret|org-other|admin/);
  for (const spy of printed) expect(spy).not.toHaveBeenCalled();
});

test('an aborted signal is thrown, before asking and while waiting', async () => {
  const reason = new Error('the worker stops');
  await expect(ask('answers', { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  const controller = new AbortController();
  await using silent = await startHttp(() => controller.abort(reason));
  await expect(askAt(silent.url, { signal: controller.signal, timeoutMs: 30_000 })).rejects.toBe(reason);
});

test('the models of a provider are listed: each once, a bare list too, and none', async () => {
  const listed = await listModels({ baseUrl: aimock.url, key }, options());
  expect(listed).toMatchObject({ ok: true, models: expect.arrayContaining(['answers', 'renamed', 'garbles']) });
  const list = (name: string) => listModels({ baseUrl: `${mockoon.url}/${name}/v1`, key }, options());
  expect(await list('bare')).toEqual({ ok: true, models: ['a', 'b'] });
  expect(await list('none')).toEqual({ ok: true, models: [] });
  expect(await list('shapeless')).toMatchObject({ ok: false, reason: 'malformed answer' });
  expect(await list('missing')).toMatchObject({ ok: false, reason: 'not found' });
});

test('a list of models is followed from page to page, and ends', async () => {
  await using paged = await startHttp(({ path }, response) => {
    const after = Number(new URL(path, 'http://x').searchParams.get('after') ?? -1);
    const data = Array.from({ length: 400 }, (_, i) => ({ id: String(after + 1 + i) }));
    response.end(JSON.stringify({ data, has_more: true }));
  });
  const listed = await listModels({ baseUrl: paged.url, key }, options());
  expect(listed.ok && listed.models.length).toBe(5_000);
  expect(paged.asked).toHaveLength(13);

  await using repeating = await startHttp((_, response) => {
    response.end(JSON.stringify({ data: [{ id: 'a' }, { id: 'tab\there' }], has_more: true }));
  });
  expect(await listModels({ baseUrl: repeating.url, key }, options())).toEqual({ ok: true, models: ['a'] });
  await using telling = await startHttp((req, res) => {
    const told = `${req.headers.authorization}`.slice(7);
    res.end(
      JSON.stringify({ data: ['a', told, `x-${told.slice(3, 12)}`, told.split('').join(' ')].map((id) => ({ id })) }),
    );
  });
  expect(await listModels({ baseUrl: telling.url, key }, options())).toEqual({ ok: true, models: ['a'] });
  expect(repeating.asked).toHaveLength(2);
});

/** What gateways leave behind, and the class it is told to belong to. */
const texts: [string, ModelError][] = [
  ['429 Too many requests', 'rate limit'],
  ['Timeout: Processing exceeded 30 minutes', 'network time-out'],
  ['HTTP 503 from upstream', 'unavailable'],
  ['ECONNREFUSED', 'connection'],
  ['read ECONNRESET', 'connection'],
  ['TypeError: fetch failed', 'connection'],
  ['TypeError: terminated', 'connection'],
  ['certificate has expired', 'connection'],
  ['getaddrinfo ENOTFOUND api.example.com', 'connection'],
  ['connect ETIMEDOUT 10.0.0.1:443', 'network time-out'],
  ['Request timed out.', 'network time-out'],
  ['HTTP 504', 'network time-out'],
  ['Request failed with status code 401', 'invalid key'],
  ['status code 402', 'no credits'],
  ['status=403', 'invalid key'],
  ['{"status":404}', 'not found'],
  ['failed after 4290 tokens', 'unknown'],
  ['1.429 tokens', 'unknown'],
  ['gave up after 500ms', 'unknown'],
  ['request 5f503b7a-429a-4004 is lost', 'unknown'],
  ['Error 451', 'region'],
  ['529 {"type":"error","error":{"type":"overloaded_error"}}', 'unavailable'],
  ['400 The model `gpt-9` does not exist', 'not found'],
  ['The model `omni-moderation-latest` does not exist', 'not found'],
  ['No credentials for provider openai', 'no credentials'],
  ['Missing API key', 'no credentials'],
  ['Unexpected token < in JSON at position 0', 'malformed answer'],
  ['400 Bad Request', 'invalid argument'],
  ['maximum context length is 8192 tokens', 'invalid argument'],
  ['Insufficient Balance', 'no credits'],
  ['first line\nThe prompt was blocked by the content filter\nlast line', 'content policy'],
  ['', 'unknown'],
  ['something else', 'unknown'],
  ['Ошибка: İstek reddedildi', 'unknown'],
  ...refusals.map(([, status, { message, code }]): [string, ModelError] => {
    const text = `${status} ${code ?? ''} ${message}`;
    return [text, classOfText(text)];
  }),
];

test('a free text has the same class in PostgreSQL and here', async () => {
  await using database = await createDatabase({ migrated: false });
  const pool = connect(database.url, { connections: 1, onError: () => {} });
  const rows = await pool.$queryRaw<{ class: string }[]>`
    select ${errorClass(Sql.sql`t.text`)} as class from unnest(${texts.map(([text]) => text)}::text[]) with ordinality as t (text, n)
     order by n`;
  const [absent] = await pool.$queryRaw<[{ class: string }]>`select ${errorClass(Sql.sql`null::text`)} as class`;
  await pool.$disconnect();
  const told = texts.map(([text]) => [text, classOfText(text)]);
  expect(told).toEqual(texts);
  expect(texts.map(([text], i) => [text, rows[i]?.class])).toEqual(told);
  expect(absent.class).toBe('unknown');
});

test('every class but those of the way there comes of an answer', () => {
  const told = new Set([...refusals.map(([reason]) => reason), 'connection', 'no credentials', 'malformed answer']);
  expect([...modelErrors].filter((reason) => !told.has(reason))).toEqual([]);
});

// --- the words of these tests -----------------------------------------------------------------------------------------

interface Asking extends Partial<AskOptions> {
  readonly model?: string;
  readonly type?: ModelCallType;
}

function options({ timeoutMs = 20_000, allowHttp = false, generate = [], signal }: Asking = {}): AskOptions {
  return { timeoutMs, allowHttp, generate, signal };
}

function askAt(baseUrl: string, { model = 'any', type = 'chatCompletion', ...asking }: Asking = {}): Promise<Answer> {
  return askModel({ baseUrl, key }, { model, type }, options(asking));
}

function ask(model: string, asking: Asking = {}): Promise<Answer> {
  return askAt(aimock.url, { ...asking, model });
}

function askOdd(name: string, asking: Asking = {}): Promise<Answer> {
  return askAt(`${mockoon.url}/${name}/v1`, asking);
}

async function bodies(model: string): Promise<Record<string, unknown>[]> {
  const all = (await aimock.requests()).map(({ body }) => Object(body) as Record<string, unknown>); // JSON, or nothing
  return all.filter((body) => body.model === model);
}

async function asked(path: string): Promise<number> {
  return (await aimock.requests()).filter((one) => one.path === path).length;
}

function detail(answer: Answer): string {
  return answer.ok ? '' : answer.detail;
}

function retryAt(answer: Answer): Date | undefined {
  return answer.ok ? undefined : answer.retryAt;
}

/** The pieces of six characters of the key that are in any part of an answer, as they are or in base64. */
function leaks(answer: Answer): string[] {
  const told = JSON.stringify(answer);
  const base64 = Buffer.from(`Bearer ${key}`).toString('base64');
  return [key, base64]
    .flatMap((secret) => Array.from({ length: secret.length - 5 }, (_, i) => secret.slice(i, i + 6)))
    .filter((piece) => told.includes(piece));
}
