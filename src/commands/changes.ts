// hourhand changes: what changed in hours that had closed before.

import Table from 'cli-table3';
import type { Connections } from '../connections.ts';
import { type ChangeLine, changeLines } from '../store/changes.ts';
import type { Range } from '../time/range.ts';
import { jsonArray, type Writer, writeBatches } from './write.ts';

/** Written batch by batch, as fast as it is read. No call is read, so that the table of calls needs no lock. */
export async function changes({ pool }: Connections, range: Range, format: 'json' | 'table'): Promise<number> {
  await pool.$transaction((db) => writeBatches(writers[format](), changeLines(db, range)), {
    isolationLevel: 'RepeatableRead',
  });
  return 0;
}

const writers: Record<'json' | 'table', () => Writer<ChangeLine>> = {
  json: () =>
    jsonArray(({ hour, userDid, revision, reason, at, figures }) => ({
      hour,
      user_did: userDid,
      revision,
      reason,
      at,
      figures,
    })),
  table: () => ({
    head: '',
    batch: (lines) => {
      const table = new Table({
        head: ['hour', 'user_did', 'revision', 'reason', 'at', 'figures'],
        style: { head: [], border: [] },
      });
      for (const { hour, userDid, revision, reason, at, figures } of lines) {
        const what = figures.map(
          ({ figure, before, after, by }) => `${figure}: ${before} → ${after}${by ? ` (${signed(by)})` : ''}`,
        );
        table.push([hour, userDid, revision, reason, at.toISOString(), what.join('\n')]);
      }
      return `${table.toString()}\n`;
    },
    tail: () => '',
  }),
};

function signed(by: string): string {
  return by.startsWith('-') ? by : `+${by}`;
}
