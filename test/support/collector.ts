// A collector of traces: OpenTelemetry's protocol over HTTP, as JSON.

import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { json } from 'node:stream/consumers';

export interface Span {
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  name: string;
  kind: number;
  /** Of the process that told of it. */
  service: string;
  pid: number;
}

interface Attribute {
  key: string;
  value: { stringValue?: string; intValue?: number | string };
}

interface Told {
  resourceSpans: { resource: { attributes: Attribute[] }; scopeSpans: { spans: Span[] }[] }[];
}

/** It takes what it is told; or takes it and never answers. */
export async function startCollector({ hangs = false } = {}) {
  const spans: Span[] = [];
  const paths = new Set<string>();
  const server = createServer(async (req, res) => {
    paths.add(`${req.method} ${req.url} ${req.headers['content-type']}`);
    const { resourceSpans } = (await json(req)) as Told; // as the protocol says
    for (const { resource, scopeSpans } of resourceSpans) {
      const value = (key: string) => resource.attributes.find((attribute) => attribute.key === key)?.value;
      const of = {
        service: value('service.name')?.stringValue ?? '',
        pid: Number(value('process.pid')?.intValue),
      };
      for (const scope of scopeSpans) spans.push(...scope.spans.map((span) => ({ ...span, ...of })));
    }
    if (!hangs) res.writeHead(200, { 'Content-Type': 'application/json' }).end('{}');
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo; // a server that listens on a port has such an address
  return {
    url: `http://127.0.0.1:${port}`,
    spans,
    paths,
    named: (name: string) => spans.filter((span) => span.name === name),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
