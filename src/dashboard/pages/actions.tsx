// Who did what?

import type { VNode } from 'preact';
import type { ActionLine } from '../../store/actions.ts';
import { Document, type Viewer } from './document.tsx';
import { EVERY, Live } from './live.tsx';
import { Table } from './now.tsx';
import { instant } from './words.ts';

/** So many on a page. */
export const ACTIONS = 100;

export function ActionsPage({ actions, viewer }: { actions: readonly ActionLine[]; viewer: Viewer }): VNode {
  const oldest = actions.at(-1);
  return (
    <Document title="Who did what" viewer={viewer}>
      <h1>Who did what</h1>
      <p>
        Every change that somebody asked for, on these pages, in the queues or by the command line; the newest first.
      </p>
      <ActionTable actions={actions} />
      {actions.length === ACTIONS && oldest && <a href={`/actions?before=${oldest.seq}`}>Older</a>}
    </Document>
  );
}

/** The newest of them. */
export function ActionsPart({ actions }: { actions: readonly ActionLine[] }): VNode {
  return (
    <Live id="actions" path="/parts/actions" seconds={EVERY.calm} label="Who did what" shows={actions}>
      <ActionTable actions={actions} />
      <a href="/actions">All of it</a>
    </Live>
  );
}

function ActionTable({ actions }: { actions: readonly ActionLine[] }): VNode {
  if (actions.length === 0) return <p>Nobody has changed anything yet.</p>;
  return (
    <Table head={['When', 'Who', 'What', 'From where', 'Came to']} label="Who did what">
      {actions.map(({ seq, at, who, role, what, subject, from, outcome }) => (
        <tr key={seq}>
          <th scope="row">{instant(at)}</th>
          <td>{[who, role].filter(Boolean).join(', ')}</td>
          <td>{[what, subject].filter(Boolean).join(' ')}</td>
          <td>{from}</td>
          <td>{outcome ?? ''}</td>
        </tr>
      ))}
    </Table>
  );
}
