// What became of one hour, and how is it run again?

import type { VNode } from 'preact';
import { childId, rollUpHour, rollUpUsers } from '../../queues/stats.ts';
import type { HourRecord, ShardLine } from '../../store/coverage.ts';
import type { Run } from '../../store/runs.ts';
import { endOf, type Hour, startOf } from '../../time/hour.ts';
import { Act, Document, type Viewer } from './document.tsx';
import { EVERY, Live } from './live.tsx';
import { Table } from './now.tsx';
import { amount, instant, span, whole } from './words.ts';

export interface HourView {
  readonly hour: Hour;
  readonly record: HourRecord | undefined;
  readonly runs: readonly Run[];
  readonly shards: readonly ShardLine[];
  /** Of the jobs of its runs and shards, those that the queues still have. */
  readonly jobs: readonly string[];
  readonly ended: boolean;
}

export function HourPage({ view, viewer }: { view: HourView; viewer: Viewer }): VNode {
  const { hour } = view;
  const neighbour = (at: Date) => at.toISOString().slice(0, 13);
  const before = neighbour(new Date(startOf(hour).getTime() - 1));
  const after = neighbour(endOf(hour));
  return (
    <Document title={`Hour ${hour}`} viewer={viewer}>
      <h1>Hour {hour}</h1>
      <p>
        <a href={`/hours/${before}`}>{before}</a> · <a href={`/hours/${after}`}>{after}</a>
      </p>
      <HourPart view={view} viewer={viewer} />
    </Document>
  );
}

export function HourPart({ view, viewer }: { view: HourView; viewer: Viewer }): VNode {
  const { hour, record, runs, shards, ended } = view;
  const seconds = record?.state === 'closed' ? EVERY.calm : EVERY.busy;
  return (
    <Live
      id="hour"
      path={`/parts/hours/${hour}`}
      seconds={seconds}
      label={record ? `It is ${record.state}` : 'The ledger does not know it'}
      shows={view}
    >
      {record?.error && <p class="error">{record.error}</p>}
      {!ended ? (
        <p>It has not ended yet: an hour is rolled up once it has.</p>
      ) : record?.sealedAt ? (
        <p>It was sealed at {instant(record.sealedAt)}: its figures stay as they are, and it is never run again.</p>
      ) : (
        <Act viewer={viewer} action={`/hours/${hour}/run`} label="Run it again" about={`hour ${hour}`} />
      )}
      {record && <Figures record={record} />}
      {shards.length > 0 && <Shards view={view} />}
      <h3>Runs</h3>
      {runs.length === 0 ? (
        <p>None is on record{record?.state === 'closed' && ': an hour without calls is closed without a run'}.</p>
      ) : (
        <Runs view={view} />
      )}
      <p>
        By hand:{' '}
        <code>
          hourhand backfill --from {hour} --to {endOf(hour).toISOString().slice(0, 13)} --wait
        </code>
      </p>
    </Live>
  );
}

function Figures({ record }: { record: HourRecord }): VNode {
  const lines: [string, string | null][] = [
    ['Users', record.users === null ? null : whole(record.users)],
    ['Calls', record.calls === null ? null : whole(record.calls)],
    [
      'Succeeded, failed',
      record.successCalls === null ? null : `${whole(record.successCalls)}, ${whole(record.failedCalls ?? 0n)}`,
    ],
    ['Tokens', record.totalUsage === null ? null : whole(record.totalUsage)],
    ['Credits', record.totalCredits === null ? null : amount(record.totalCredits)],
    ['Run', `${record.run}${record.wanted > record.run ? `, and run ${record.wanted} is asked for` : ''}`],
    ['Asked for by', [record.reason, record.requestedBy].filter(Boolean).join(', ')],
    ['Held', record.held ? 'its backfill is paused: it waits until that is resumed' : null],
    ['Begun', record.startedAt && instant(record.startedAt)],
    ['Closed', record.closedAt && instant(record.closedAt)],
    ['Every call is in it that was there at', record.asOf && instant(record.asOf)],
    ['Published', record.revision === 0 ? 'not yet' : `revision ${record.revision}`],
    ['Late, not applied', record.late === 0 ? null : `${whole(record.late)} writes: hourhand late list`],
    ['Users to be rolled up again', record.marked === 0 ? null : whole(record.marked)],
    ['Failed runs in a row', record.attempts === 0 ? null : String(record.attempts)],
    ['Tried again', record.nextAttemptAt && `at ${instant(record.nextAttemptAt)}`],
    [
      'Recounted from the calls',
      record.auditedAt && `${instant(record.auditedAt)}: ${record.auditFound ?? 'nothing differs'}`,
    ],
  ];
  return (
    <dl>
      {lines.map(([name, value]) =>
        value === null ? null : (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ),
      )}
    </dl>
  );
}

const jobPath = (queue: string, job: string) => `/queues/queue/${queue}/${encodeURIComponent(job)}`;

/** The job of a shard of the current run, where it is known who has allotted that. */
export function childOf(
  { hour, record, runs }: Pick<HourView, 'hour' | 'record' | 'runs'>,
  { shard, lo, hi }: ShardLine,
): string | undefined {
  const run = record?.run ?? 0;
  const parent = runs.find((one) => one.run === run)?.job;
  return parent ? childId({ hour, run, shard, lo, hi }, parent) : undefined;
}

function Shards({ view }: { view: HourView }): VNode {
  const { shards, record, jobs } = view;
  const run = record?.run ?? 0;
  return (
    <>
      <h3>Shards of run {run}</h3>
      <Table head={['Shard', 'State', 'Why']} label={`Shards of run ${run}`}>
        {shards.map((line) => {
          const { shard, lo, hi, userDid, state, error } = line;
          const name = userDid ?? `buckets ${lo}–${hi}`;
          const job = childOf(view, line);
          return (
            <tr key={shard}>
              <th scope="row">
                {job && jobs.includes(job) ? <a href={jobPath(rollUpUsers.queue, job)}>{name}</a> : name}
              </th>
              <td>{state}</td>
              <td>{error}</td>
            </tr>
          );
        })}
      </Table>
    </>
  );
}

function Runs({ view: { runs, jobs } }: { view: HourView }): VNode {
  return (
    <Table head={['Run', 'Asked for by', 'Begun', 'Took', 'Came to', 'Job']} label="Runs">
      {runs.map(({ run, reason, requestedBy, startedAt, endedAt, outcome, error, job }, i) => (
        <tr key={run}>
          <th scope="row">{run}</th>
          <td>{[reason, requestedBy].filter(Boolean).join(', ')}</td>
          <td>{instant(startedAt)}</td>
          <td>{endedAt && span(endedAt.getTime() - startedAt.getTime())}</td>
          <td>
            {[outcome ?? (i === 0 ? 'under way' : 'another run took its place'), error].filter(Boolean).join(': ')}
          </td>
          <td>
            {job && jobs.includes(job) ? (
              <a href={jobPath(rollUpHour.queue, job)}>{job}</a>
            ) : job ? (
              `${job}, no longer kept`
            ) : (
              ''
            )}
          </td>
        </tr>
      ))}
    </Table>
  );
}
