// What does a provider's API answer?

import { z } from 'zod';
import type { ModelCallType } from '../generated/prisma/enums.ts';
import type { ModelError } from '../store/model-errors.ts';
import { readBaseUrl } from './base-url.ts';
import { classify, complaintIn, spell } from './classify.ts';
import { exchange, loadClient, type Question, type Received, Refused } from './exchange.ts';
import { holdsKey, redact } from './redact.ts';
import { readRetryAfter } from './retry-after.ts';

export type { ModelCallType } from '../generated/prisma/enums.ts';
export { readBaseUrl } from './base-url.ts';

export interface Endpoint {
  readonly baseUrl: string;
  /** A secret: in no error, no log and no detail. */
  readonly key: string;
}

export interface AskOptions {
  /** For the whole answer, its body and its redirects included. */
  readonly timeoutMs: number;
  readonly allowHttp: boolean;
  readonly signal?: AbortSignal;
  /** Types of which a real generation is asked for, rather than the model's own record. */
  readonly generate: readonly ModelCallType[];
}

export type Answer =
  | { readonly ok: true; readonly latencyMs: number }
  | {
      readonly ok: false;
      readonly reason: ModelError;
      /** One line for an operator, without the key. */
      readonly detail: string;
      readonly latencyMs: number;
      readonly retryAt?: Date;
    };
type Failure = Extract<Answer, { ok: false }>;

const MIB = 2 ** 20;
/** A catalogue of some hundred models, each with its description, is near one MiB already. */
const LIST_BYTES = 8 * MIB;
/** An image comes as text in its answer. */
const GENERATED_BYTES = 32 * MIB;
const MODELS = 5_000;
const PAGES = 50;

/** One request of an attempt: sent, answered, and read as JSON of this shape. */
type Ask = <T>(question: Question, shape: z.ZodType<T>, limit?: number) => Promise<T>;
type Send = (question: Question, limit?: number) => Promise<Received>;

/**
 * Ask whether a model answers: a chat for one token, an embedding for one word, and any other for its record, or, where
 * `generate` names its type, for the smallest real thing there is. What is generated is thrown away.
 *
 * It is one request, and is not repeated. There are three exceptions: redirects within the origin; a chat whose provider
 * refuses `max_tokens` and names `max_completion_tokens`, which is asked once more with that; and a record that is not
 * there, upon which the provider's list is asked.
 *
 * Any failure is an answer.
 *
 * @throws the reason of a `signal` that was aborted, and nothing else
 */
export async function askModel(
  endpoint: Endpoint,
  { model, type }: { model: string; type: ModelCallType },
  options: AskOptions,
): Promise<Answer> {
  const answer = await attempt(endpoint, options, async (ask, send) => {
    if (type === 'chatCompletion') return chat(ask, model);
    if (type === 'embedding') return embed(ask, model);
    if (type === 'custom' || !options.generate.includes(type)) return showRecord(ask, model);
    if (type === 'imageGeneration') return generateImage(ask, model);
    if (type === 'audioGeneration') return speak(send, model);
    return createVideo(ask, model);
  });
  return answer.ok ? { ok: true, latencyMs: answer.latencyMs } : answer;
}

/**
 * The names of the models that a provider lists, each once: at most 5,000 of them, on at most 50 pages. Names that no
 * table would take (longer than 200 characters, or with control characters) are left out, and so are those with a piece
 * of the key in them.
 *
 * @throws the reason of a `signal` that was aborted, and nothing else
 */
export async function listModels(
  endpoint: Endpoint,
  options: Omit<AskOptions, 'generate'>,
): Promise<{ ok: true; models: string[] } | Failure> {
  const answer = await attempt(endpoint, options, async (ask) => {
    const { names } = await modelNames(ask);
    return [...names].filter((name) => isName(name) && !holdsKey(name, endpoint.key)).slice(0, MODELS);
  });
  return answer.ok ? { ok: true, models: answer.value } : answer;
}

/** The names in a provider's list, as they are; `whole` unless the list has more models or pages than are read. */
async function modelNames(ask: Ask): Promise<{ names: ReadonlySet<string>; whole: boolean }> {
  const names = new Set<string>();
  let after: string | undefined;
  for (let page = 0; page < PAGES && names.size < MODELS; page++) {
    const query = after === undefined ? {} : { query: { after } };
    const { data, has_more } = await ask((client) => client.models.list(query), list, LIST_BYTES);
    const before = names.size;
    for (const { id } of data) names.add(id);
    after = data.at(-1)?.id;
    // A provider that knows no pages answers with the first one again.
    if (!has_more || names.size === before) return { names, whole: true };
  }
  return { names, whole: false };
}

function isName(text: string): boolean {
  return text.length <= 200 && !/\p{C}/u.test(text) && text === text.trim() && text !== '';
}

// --- the requests ----------------------------------------------------------------------------------------------------

const completion = z.object({ choices: z.array(z.object({})).min(1) });
const embedding = z.object({
  data: z.array(z.object({ embedding: z.union([z.array(z.number()).min(1), z.string().min(1)]) })).min(1),
});
const record = z.object({ id: z.string().min(1) });
const image = z.object({
  data: z.array(z.union([z.object({ url: z.string() }), z.object({ b64_json: z.string() })])).min(1),
});
const entries = z.array(z.object({ id: z.string() }));
/** A bare array where a provider sends that, and null where there are none. */
const list = z.union([
  entries.transform((data) => ({ data, has_more: false })),
  z.object({ data: entries.nullable().transform((data) => data ?? []), has_more: z.boolean().nullish() }),
]);

async function chat(ask: Ask, model: string): Promise<unknown> {
  const messages = [{ role: 'user' as const, content: 'Hi' }];
  const within = (limit: { max_tokens: 1 } | { max_completion_tokens: 1 }) =>
    ask((client) => client.chat.completions.create({ model, messages, ...limit }), completion).catch(cutShort);
  return within({ max_tokens: 1 }).catch((error: unknown) => {
    if (!saidOf400(error).includes('max_completion_tokens')) throw error;
    return within({ max_completion_tokens: 1 });
  });
}

/** A model that complains that it could not finish within one token has answered. */
function cutShort(error: unknown): void {
  if (!/(max_tokens|max_completion_tokens|output limit) (was|has been|were) reached/i.test(saidOf400(error)))
    throw error;
}

function saidOf400(error: unknown): string {
  return error instanceof Refused && error.status === 400 ? error.said : '';
}

function embed(ask: Ask, model: string): Promise<unknown> {
  // A format of our own choice: left to the client it is base64, which not every provider knows.
  return ask((client) => client.embeddings.create({ model, input: 'Hi', encoding_format: 'float' }), embedding);
}

/** Statuses of a provider that has no path for the record of one model, or of one that has no such model. */
const NO_RECORD = [404, 405, 410, 501];

/**
 * Ask for a model's own record. Where the provider says that there is none, its list decides: not every provider has
 * records. Without a whole list nothing is known of the model.
 */
async function showRecord(ask: Ask, model: string): Promise<void> {
  try {
    await ask((client) => client.models.retrieve(model), record);
  } catch (error) {
    if (!(error instanceof Refused) || !NO_RECORD.includes(error.status)) throw error;
    const { names, whole } = await modelNames(ask).catch((reason: unknown) => {
      throw new Refused(
        'invalid argument',
        `${error.message}; its list of models cannot be read: ${refusedBy(reason).message}`,
      );
    });
    // Google's list writes models/NAME of what is asked for as NAME.
    if (names.has(model) || names.has(`models/${model}`)) return;
    if (whole) throw new Refused('not found', `${error.message}; its list does not name it either`);
    throw new Refused('invalid argument', `${error.message}; its list is too long to be read to its end`);
  }
}

function generateImage(ask: Ask, model: string): Promise<unknown> {
  return ask((client) => client.images.generate({ model, prompt: 'A dot', n: 1 }), image, GENERATED_BYTES);
}

async function speak(send: Send, model: string): Promise<void> {
  const received = await send(
    (client) => client.audio.speech.create({ model, voice: 'alloy', input: 'Hi' }),
    GENERATED_BYTES,
  );
  const type = received.headers.get('content-type') ?? '';
  const isSound =
    received.status < 300 && /^(audio\/|application\/octet-stream)/.test(type) && received.body.length > 0;
  if (isSound) return;
  const answer = jsonIn(received); // an error, else it is no answer
  throw new Refused('malformed answer', `HTTP ${received.status}: expected sound, got ${quote(answer.text)}`);
}

function createVideo(ask: Ask, model: string): Promise<unknown> {
  return ask((client) => client.videos.create({ model, prompt: 'A dot' }), record, GENERATED_BYTES);
}

// --- what comes of them ----------------------------------------------------------------------------------------------

/** Run the requests of one attempt under one time-out, and make an answer of whatever goes wrong. */
async function attempt<T>(
  endpoint: Endpoint,
  { timeoutMs, allowHttp, signal }: Omit<AskOptions, 'generate'>,
  work: (ask: Ask, send: Send) => Promise<T>,
): Promise<{ ok: true; value: T; latencyMs: number } | Failure> {
  await loadClient(); // not the model's time
  signal?.throwIfAborted();
  const { key } = endpoint;
  const since = performance.now();
  const controller = new AbortController();
  const abort = () => controller.abort();
  const timer = setTimeout(abort, timeoutMs);
  signal?.addEventListener('abort', abort, { once: true });
  const latency = () => Math.round(performance.now() - since);
  try {
    const { baseUrl } = checked(endpoint, allowHttp);
    const send: Send = (request, limit = MIB) =>
      exchange({ baseUrl, key, signal: controller.signal, limit }, request);
    const ask: Ask = async (question, shape, limit) => inShape(jsonIn(await send(question, limit)), shape);
    return { ok: true, value: await work(ask, send), latencyMs: latency() };
  } catch (error) {
    signal?.throwIfAborted();
    const refused = controller.signal.aborted
      ? new Refused('network time-out', `no answer within ${timeoutMs} ms`)
      : refusedBy(error);
    const { reason, message, host, retryAt } = refused;
    const detail = [redact(message, key), host].filter(Boolean).join(' ');
    return { ok: false, reason, detail, latencyMs: latency(), ...(retryAt && { retryAt }) };
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', abort);
  }
}

/** A key that no header takes would be quoted in the error of whoever tries. */
function checked({ baseUrl, key }: Endpoint, allowHttp: boolean): { baseUrl: string } {
  if (!/^[\x21-\x7e]+$/.test(key)) {
    const found = key === '' ? 'none' : 'one with spaces, line ends or characters beyond ASCII';
    throw new Refused('no credentials', `expected a key that a header takes, got ${found}`);
  }
  try {
    return { baseUrl: readBaseUrl(baseUrl, { allowHttp }) };
  } catch (error) {
    throw new Refused('connection', error instanceof Error ? error.message : String(error));
  }
}

/** What `fetch` could not do. Its errors are "fetch failed"; the reason is in the cause. */
function refusedBy(error: unknown): Refused {
  if (error instanceof Refused) return error;
  const causes: unknown[] = [];
  for (let cause = error; cause && causes.length < 5; cause = Object(cause).cause ?? Object(cause).errors?.[0]) {
    causes.push(cause);
  }
  const code = causes.map((cause) => String(Object(cause).code ?? '')).findLast((one) => one !== '') ?? '';
  const detail = [code, String(Object(causes.at(-1)).message ?? error)].filter(Boolean).join(': ');
  // The parser's and the decompressor's codes: something was answered, but it was not HTTP. Node 24's parser has only its name.
  const isParser = causes.some((cause) => Object(cause).name === 'HTTPParserError');
  if (isParser || /^(HPE_|Z_|UND_ERR_HEADERS_OVERFLOW)/.test(code)) return new Refused('malformed answer', detail);
  if (/TIMEDOUT|TIMEOUT/.test(code)) return new Refused('network time-out', detail);
  if (error instanceof TypeError || code !== '') return new Refused('connection', detail);
  return new Refused('unknown', detail);
}

interface Json {
  readonly status: number;
  readonly text: string;
  readonly value: unknown;
}

/** @throws {Refused} where the status or the answer says that it is an error */
function jsonIn({ status, headers, body }: Received): Json {
  const text = new TextDecoder().decode(body);
  const value = parse(text);
  const complaint = complaintIn(value ?? text, status < 200 || status > 299);
  if (!complaint) return { status, text, value };
  const { code, message } = complaint;
  throw new Refused(classify(status, complaint), `HTTP ${status}${message.trim() ? `: ${message}` : ''}`, {
    said: `${code} ${message}`,
    status,
    retryAt: readRetryAfter(headers.get('retry-after'), new Date()),
  });
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function inShape<T>({ status, text, value }: Json, shape: z.ZodType<T>): T {
  const parsed = shape.safeParse(value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const where = issue?.path.join('.');
  const expected = value === undefined ? 'expected JSON' : `${where ? `${where}: ` : ''}${issue?.message}`;
  throw new Refused('malformed answer', `HTTP ${status}: ${expected}, got ${quote(text)}`);
}

function quote(text: string): string {
  return text.trim() === '' ? 'nothing' : `"${spell(text).trim().slice(0, 2_000)}"`;
}
