// Is everything in order, and what is to be done where it is not?

import type { VNode } from 'preact';
import { hourOf } from '../../time/hour.ts';
import { tell } from '../state.ts';
import type { Status } from '../status.ts';
import { pathOf } from './coverage.tsx';
import { Act, type Viewer } from './document.tsx';
import { EVERY, Live } from './live.tsx';
import { amount, capital, count, instant, span, whole } from './words.ts';

export function Now({ status, viewer }: { status: Status; viewer: Viewer }): VNode {
  return (
    <Live id="now" path="/parts/now" seconds={EVERY.busy} label="Now" shows={status}>
      <Verdict status={status} viewer={viewer} />
      <Facts status={status} />
      <Unsettled status={status} />
    </Live>
  );
}

/** What does the work. */
export function Machinery({ status, viewer }: { status: Status; viewer: Viewer }): VNode {
  return (
    <Live
      id="machinery"
      path="/parts/machinery"
      seconds={EVERY.busy}
      label="Schedulers, queues, models"
      shows={status}
    >
      <h3>Schedulers</h3>
      <Schedulers status={status} viewer={viewer} />
      <h3>Queues</h3>
      <QueueTable status={status} />
      <h3>Models</h3>
      <Models status={status} />
    </Live>
  );
}

/**
 * The sentence of the state of things, in bold: what is wrong comes first. What else is wrong stands below, with what
 * to do.
 */
function Verdict({ status: { state, uncovered }, viewer }: { status: Status; viewer: Viewer }): VNode {
  const others = state.troubles.slice(1);
  return (
    <div class={`verdict ${state.ok ? 'good' : 'bad'}`}>
      <strong>{state.state}</strong>
      {others.length > 0 && (
        <ul>
          {others.map((trouble) => (
            <li key={trouble.what}>{capital(tell(trouble))}</li>
          ))}
        </ul>
      )}
      {uncovered.hours > 0 && (
        <div class="acts">
          <Act viewer={viewer} action="/uncovered/cover" label="Cover these hours" />
        </div>
      )}
    </div>
  );
}

function Facts({ status }: { status: Status }): VNode {
  const { ledger, audit, workers, stale, provisional, uncovered, marks, settled, now } = status;
  const lag = ledger.watermark ? now.getTime() - ledger.watermark.getTime() : undefined;
  const facts: [string, string][] = [
    ['Watermark', ledger.watermark ? `${hourOf(ledger.watermark)}, ${span(lag ?? 0)} ago` : 'none yet'],
    [
      'Settled',
      settled ? `every hour from ${hourOf(ledger.completeFrom ?? settled)} to ${hourOf(settled)}` : 'none yet',
    ],
    ['In no figure', count(uncovered.hours, 'hour with calls', 'hours with calls')],
    ['Owed', `${count(ledger.owed, 'hour')}${ledger.oldestOwed ? `, the oldest ${hourOf(ledger.oldestOwed)}` : ''}`],
    ['Held by paused backfills', count(ledger.held, 'hour')],
    ['Late data', `${count(marks, 'mark')} waiting`],
    [
      'Provisional',
      count(
        provisional.hours,
        'closed hour waits for older transactions',
        'closed hours wait for older transactions',
      ),
    ],
    ['Workers', workers ? inVersions(workers) : 'unknown: Redis does not say'],
    [
      'Stale calls',
      `${count(stale.calls, 'call')} failed in the last 24 hours${stale.at ? `, the last at ${instant(stale.at)}` : ''}`,
    ],
    [
      'Audit',
      [
        audit.last ? `the last at ${instant(audit.last)}` : 'none yet',
        audit.since
          ? `every closed hour recounted since ${instant(audit.since)}, except sealed ones`
          : 'not every closed hour recounted yet',
      ].join('; '),
    ],
  ];
  return (
    <dl>
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

/** `3: 2 of 0.5.0, 1 of 0.4.0` */
function inVersions(versions: readonly string[]): string {
  const counted = new Map<string, number>();
  for (const version of versions) counted.set(version, (counted.get(version) ?? 0) + 1);
  if (counted.size === 0) return 'none';
  return `${versions.length}: ${[...counted]
    .sort()
    .map(([version, n]) => `${n} of ${version}`)
    .join(', ')}`;
}

function Unsettled({ status: { ledger, audit, now } }: { status: Status }): VNode | null {
  const lines = ledger.unsettled.map(({ hour, state, run, error, nextAttemptAt }) => ({
    hour,
    state: `${state}, run ${run}`,
    why: [error?.slice(0, 250), nextAttemptAt && `again in ${span(nextAttemptAt.getTime() - now.getTime())}`]
      .filter(Boolean)
      .join('; '),
  }));
  const found = audit.findings.map(({ hour, found: what, repaired }) => ({
    hour,
    state: repaired ? 'audited, repaired since' : 'audited',
    why: what,
  }));
  if (lines.length + found.length === 0) return null;
  return (
    <Table head={['Hour', 'State', 'Why']} label="Hours that want attention">
      {[...lines, ...found].map(({ hour, state, why }) => (
        <tr key={`${hour} ${state}`}>
          <th scope="row">
            <a href={pathOf(hour)}>{hour}</a>
          </th>
          <td>{state}</td>
          <td>{why}</td>
        </tr>
      ))}
    </Table>
  );
}

function Schedulers({ status: { schedulers, now }, viewer }: { status: Status; viewer: Viewer }): VNode {
  return (
    <Table head={['Scheduler', 'State', 'Last', 'Next', 'Do']} label="Schedulers">
      {schedulers.map(({ id, pattern, state, next, lastAt, pausedAt, pausedBy }) => (
        <tr key={id}>
          <th scope="row">{id}</th>
          <td>
            {state === 'paused' && pausedAt
              ? `paused by ${pausedBy} at ${instant(pausedAt)}`
              : `${state}, ${pattern ?? 'not set yet'}`}
          </td>
          <td>{lastAt ? `${span(now.getTime() - lastAt.getTime())} ago` : 'never'}</td>
          <td>{next ? instant(next) : ''}</td>
          <td class="acts">
            {state === 'paused' ? (
              <Act viewer={viewer} action={`/schedulers/${id}/resume`} label="Resume" about={id} />
            ) : (
              <Act viewer={viewer} action={`/schedulers/${id}/pause`} label="Pause" about={id} />
            )}
            <Act viewer={viewer} action={`/schedulers/${id}/run`} label="Run now" about={id} />
          </td>
        </tr>
      ))}
    </Table>
  );
}

function QueueTable({ status: { queues, redis } }: { status: Status }): VNode {
  if (redis) return <p>Redis does not answer.</p>;
  return (
    <Table head={['Queue', 'Waiting', 'Active', 'Delayed', 'For children', 'Failed', '']} label="Queues">
      {queues.map((queue) => (
        <tr key={queue.queue}>
          <th scope="row">
            <a href={`/queues/queue/${queue.queue}`}>{queue.queue}</a>
          </th>
          <td>{whole(queue.waiting + queue.prioritized)}</td>
          <td>{whole(queue.active)}</td>
          <td>{whole(queue.delayed)}</td>
          <td>{whole(queue['waiting-children'])}</td>
          <td>
            {queue.failed === 0 ? (
              0
            ) : (
              <a
                href={`/queues/queue/${queue.queue}?status=failed`}
                aria-label={`${queue.failed} failed in ${queue.queue}`}
              >
                {whole(queue.failed)}
              </a>
            )}
          </td>
          <td>{queue.paused ? 'paused' : ''}</td>
        </tr>
      ))}
    </Table>
  );
}

/** So many are shown; a gateway may know hundreds. Those that are not up come first. */
const MODELS = 30;
const HEALTH = ['down', 'degraded', 'unknown', 'up'];

function Models({ status: { models, spent, now } }: { status: Status }): VNode {
  if (models.length === 0) return <p>None is known yet: hourhand models import FILE.</p>;
  const sorted = [...models].sort((a, b) => HEALTH.indexOf(a.status) - HEALTH.indexOf(b.status));
  return (
    <>
      <p>
        {HEALTH.map((health) => `${models.filter((model) => model.status === health).length} ${health}`).join(', ')}.
        Probes cost {amount(spent.lastDayCredits)} credits in the last 24 hours.
      </p>
      <Table head={['Model', 'Status', 'Why', 'Since', 'Looked at']} label="Models">
        {sorted.slice(0, MODELS).map(({ provider, model, type, status, reason, detail, since, checkedAt }) => (
          <tr key={`${provider}/${model} ${type}`}>
            <th scope="row">
              {provider}/{model} <small>{type}</small>
            </th>
            <td class={`health ${status}`}>{status}</td>
            <td>{[reason, detail].filter(Boolean).join(': ').slice(0, 200)}</td>
            <td>{instant(since)}</td>
            <td>{checkedAt ? `${span(now.getTime() - checkedAt.getTime())} ago` : 'never'}</td>
          </tr>
        ))}
      </Table>
      {models.length > MODELS && <p>And {models.length - MODELS} more: hourhand models status.</p>}
    </>
  );
}

/** A table that scrolls by itself where the page is narrow, by keyboard as well. */
export function Table({
  head,
  label,
  children,
}: {
  head: readonly string[];
  label: string;
  children: VNode[];
}): VNode {
  return (
    <section class="wide" tabindex={0} aria-label={label}>
      <table>
        <thead>
          <tr>
            {head.map((name) =>
              name ? (
                <th key={name} scope="col">
                  {name}
                </th>
              ) : (
                <td key="none" />
              ),
            )}
          </tr>
        </thead>
        <tbody>{children}</tbody>
      </table>
    </section>
  );
}
