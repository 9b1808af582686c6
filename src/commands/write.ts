// How does a report of any length reach its reader?

import { once } from 'node:events';

/** A report's parts: what begins it, each batch of its lines, what ends it. */
export interface Writer<Line> {
  readonly head: string;
  batch(lines: Line[]): string;
  tail(): string;
}

/** Write batch by batch, no faster than it is read: no report is too long for memory. */
export async function writeBatches<Line>(
  { head, batch, tail }: Writer<Line>,
  batches: AsyncIterable<Line[]>,
): Promise<void> {
  await write(head);
  for await (const lines of batches) await write(batch(lines));
  await write(tail());
}

/** One array, an object a line. */
export function jsonArray<Line>(objectOf: (line: Line) => object): Writer<Line> {
  let some = false;
  return {
    head: '[',
    batch: (lines) => {
      const text = `${some ? ',' : ''}\n${lines.map((line) => JSON.stringify(objectOf(line))).join(',\n')}`;
      some = true;
      return text;
    },
    tail: () => '\n]\n',
  };
}

async function write(text: string): Promise<void> {
  if (text !== '' && !process.stdout.write(text)) await once(process.stdout, 'drain');
}
