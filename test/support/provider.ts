// An OpenAI-compatible provider on a socket of its own, that a test can break and mend.

import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { json } from 'node:stream/consumers';

export interface Asked {
  readonly path: string;
  readonly model: string;
  readonly authorization: string | undefined;
}

/** This status; nothing at all; a wish to be left alone for an hour; or a refusal that tells everybody the key that it was given. */
type Saying = number | 'hang' | 'later' | 'echo';

export type Provider = Awaited<ReturnType<typeof startProvider>>;

/** It answers every model, until it is told what else to say of one. */
export async function startProvider() {
  const asked: Asked[] = [];
  const says = new Map<string, Saying>();
  let [now, most] = [0, 0];
  const server = createServer(async (req, res) => {
    now += 1;
    most = Math.max(most, now);
    res.on('close', () => {
      now -= 1;
    });
    const model = await modelOf(req);
    const path = req.url ?? '';
    asked.push({ path, model, authorization: req.headers.authorization });
    answer(req, res, model, says.get(model) ?? says.get('*') ?? 200);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo; // a server that listens on a port has such an address
  return {
    baseUrl: `http://127.0.0.1:${port}/v1`,
    asked,
    /** What it says to a model; `*` is every other. */
    says,
    /** How many it was asked at once at most. */
    most: () => most,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

async function modelOf(req: IncomingMessage): Promise<string> {
  if (req.method === 'GET') return decodeURIComponent(req.url?.split('/models/')[1] ?? '');
  return Object((await json(req)) as object).model;
}

function answer({ url = '', headers }: IncomingMessage, res: ServerResponse, model: string, says: Saying): void {
  if (says === 'hang') return;
  const key = headers.authorization ?? '';
  const status = says === 'echo' ? 401 : says === 'later' ? 429 : says;
  const body =
    says === 'echo'
      ? { error: { message: `Incorrect API key ${key}`, code: key, type: key.slice(7) } }
      : status !== 200
        ? { error: { message: `says ${status}` } }
        : url.endsWith('/models')
          ? { object: 'list', data: [{ id: 'gpt-9' }, { id: 'text-embedding-9' }, { id: 'dall-e-9' }] }
          : url.endsWith('/embeddings')
            ? { data: [{ embedding: [0.1] }] }
            : { id: model, choices: [{ index: 0, message: { role: 'assistant', content: 'Hi' } }] };
  res
    .writeHead(status, {
      'content-type': 'application/json',
      ...(says === 'echo' ? { 'x-key': key } : {}),
      ...(says === 'later' ? { 'retry-after': '3600' } : {}),
    })
    .end(JSON.stringify(body));
}
