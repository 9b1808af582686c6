// Where do traces go?

import { setTimeout as sleep } from 'node:timers/promises';
import {
  type Context,
  context,
  DiagLogLevel,
  diag,
  propagation,
  ROOT_CONTEXT,
  SpanKind,
  trace,
} from '@opentelemetry/api';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http';
import { defaultResource, detectResources, envDetector, resourceFromAttributes } from '@opentelemetry/resources';
import { BatchSpanProcessor, NodeTracerProvider, type ReadableSpan } from '@opentelemetry/sdk-trace-node';
import type { Telemetry } from 'bullmq';
import { BullMQOtel } from 'bullmq-otel';

export interface Traces {
  /** What BullMQ tells of a queue's jobs. */
  of(queue: string): Telemetry;
  /** Send what is left, for a moment at most. */
  stop(): Promise<void>;
}

/** What a clean stop waits for a collector. */
const FLUSH_MS = 800;

/**
 * From now on this process' jobs are traced, to a collector that takes OTLP over HTTP. One that is away or hangs loses traces, and holds up
 * nothing.
 *
 * @param url of the collector's traces; its headers, the sampler, the service's name and more are read by OpenTelemetry itself (`OTEL_…`)
 */
export function startTraces(url: string, version: string, onError: (error: Error) => void): Traces {
  diag.setLogger(
    { ...silent, error: (said) => onError(new Error(messageOf(said))) },
    { logLevel: DiagLogLevel.ERROR, suppressOverrideMessage: true },
  );
  const provider = new NodeTracerProvider({
    resource: defaultResource()
      .merge(
        resourceFromAttributes({
          'service.name': 'hourhand',
          'service.version': version,
          'process.pid': process.pid,
        }),
      )
      .merge(detectResources({ detectors: [envDetector] })),
    spanProcessors: [new WorthTelling(new OTLPTraceExporter({ url }))],
  });
  provider.register();
  const jobs: Telemetry<Context> = new BullMQOtel({ tracerName: 'hourhand', version });
  const ticks = beginning(jobs);
  return {
    of: (queue) => (queue.endsWith('-tick') ? ticks : jobs),
    async stop() {
      const sent = new AbortController();
      const late = sleep(FLUSH_MS, undefined, sent).catch(() => {});
      await Promise.race([provider.shutdown().catch(() => {}), late]);
      sent.abort();
      for (const api of [trace, context, propagation, diag]) api.disable();
    },
  };
}

/**
 * Of the queues of ticks: each tick begins a trace. It carries nothing of whoever set its scheduler up, nor of the tick before it, which
 * armed it: in BullMQ the context of the first would else be handed on for as long as the scheduler lives.
 */
function beginning({ tracer, contextManager }: Telemetry<Context>): Telemetry<Context> {
  return {
    tracer,
    contextManager: {
      with: (context, call) => contextManager.with(context, call),
      active: () => contextManager.active(),
      getMetadata: () => '',
      fromMetadata: () => ROOT_CONTEXT,
    },
  };
}

/** Not the looks for work, and for work that was lost, that every worker does every few seconds: they belong to no job. */
class WorthTelling extends BatchSpanProcessor {
  override onEnd(span: ReadableSpan): void {
    if (span.kind !== SpanKind.INTERNAL || span.parentSpanContext) super.onEnd(span);
  }
}

const silent = { error() {}, warn() {}, info() {}, debug() {}, verbose() {} };

/** Errors come as JSON, with their stack. */
function messageOf(said: string): string {
  try {
    return JSON.parse(said).message ?? said;
  } catch {
    return said;
  }
}
