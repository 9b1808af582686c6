// How are past hours asked for, and what became of it?

import type { VNode } from 'preact';
import type { Backfill, BackfillOnly, FailedHour } from '../../store/backfills.ts';
import type { Only, Survey } from '../../store/survey.ts';
import { hourOf } from '../../time/hour.ts';
import { type Range, spell } from '../../time/range.ts';
import { pathOf, query } from './coverage.tsx';
import { Act, Csrf, Document, mayChange, type Viewer } from './document.tsx';
import { EVERY, Live } from './live.tsx';
import { Table } from './now.tsx';
import { count, instant, whole } from './words.ts';

/** What a form says, as it was typed. */
export interface Wish {
  readonly from: string;
  readonly to: string;
  readonly user: string;
  readonly only: string;
}

export function BackfillsPart({ backfills, viewer }: { backfills: readonly Backfill[]; viewer: Viewer }): VNode {
  const busy = backfills.some(({ state }) => state === 'running');
  return (
    <Live
      id="backfills"
      path="/parts/backfills"
      seconds={busy ? EVERY.busy : EVERY.calm}
      label="Backfill"
      shows={backfills}
    >
      {mayChange(viewer) && <WishForm wish={NOTHING} />}
      {backfills.length === 0 ? (
        <p>Nobody has asked for past hours yet.</p>
      ) : (
        <Table head={['Backfill', 'Hours', 'State', 'Progress', 'By', 'Do']} label="Backfills">
          {backfills.map((backfill) => (
            <tr key={backfill.id}>
              <th scope="row">
                <a href={`/backfills/${backfill.id}`}>{backfill.id}</a>
              </th>
              <td>
                {spell(backfill)}
                {backfill.userDid && <> of {backfill.userDid}</>}
              </td>
              <td>{backfill.state}</td>
              <td>
                <Bar backfill={backfill} />
              </td>
              <td>
                {backfill.requestedBy}, {instant(backfill.requestedAt)}
              </td>
              <td class="acts">
                <Acts backfill={backfill} viewer={viewer} />
              </td>
            </tr>
          ))}
        </Table>
      )}
    </Live>
  );
}

const NOTHING: Wish = { from: '', to: '', user: '', only: 'all' };

/** What the form offers. */
const ONLY: Record<Only, string> = {
  all: 'all hours',
  missing: 'only those that were never rolled up',
  partial: 'only partial ones',
};
const ASKED_FOR: Record<BackfillOnly, string> = { ...ONLY, uncovered: 'only those that were in no figure' };

function WishForm({ wish }: { wish: Wish }): VNode {
  return (
    <form class="range" method="get" action="/backfills/new">
      <label>
        From <input name="from" value={wish.from} placeholder="2026-08-20T13" required maxlength={40} size={16} />
      </label>
      <label>
        to, not included{' '}
        <input name="to" value={wish.to} placeholder="2026-08-21" required maxlength={40} size={16} />
      </label>
      <label>
        one user alone <input name="user" value={wish.user} maxlength={500} size={16} />
      </label>
      <label>
        which{' '}
        <select name="only">
          {Object.entries(ONLY).map(([only, words]) => (
            <option key={only} value={only} selected={only === wish.only}>
              {words}
            </option>
          ))}
        </select>
      </label>
      <button type="submit">See what that would be</button>
    </form>
  );
}

/** What would be asked for, before it is. */
export function SurveyPage({
  wish,
  viewer,
  range,
  survey,
  problem,
}: {
  wish: Wish;
  viewer: Viewer;
  range?: Range;
  survey?: Survey;
  problem?: string;
}): VNode {
  const closed = survey?.byState.closed ?? 0;
  return (
    <Document title="Backfill" viewer={viewer}>
      <h1>Backfill</h1>
      {mayChange(viewer) ? <WishForm wish={wish} /> : <p>A viewer sees, and asks for nothing.</p>}
      {problem && (
        <p class="error" role="alert">
          {problem}
        </p>
      )}
      {range && survey && (
        <section aria-labelledby="survey-title">
          <h2 id="survey-title">{spell(range)}</h2>
          <p>
            {count(survey.hours, 'hour')}:{' '}
            {Object.entries(survey.byState)
              .map(([state, hours]) => `${whole(hours)} ${state}`)
              .join(', ')}
            .{' '}
            {wish.only === 'all' &&
              closed > 0 &&
              `${count(closed, 'hour is', 'hours are')} closed already, and would be rolled up once more. `}
            {survey.moreUsers && 'At least '}
            {count(survey.users, 'user')} with calls in them.
          </p>
          {survey.asked === 0 ? (
            <p>There is nothing to ask for.</p>
          ) : (
            mayChange(viewer) && (
              <form class="act" method="post" action="/backfills">
                <Csrf csrf={viewer.csrf} />
                <input type="hidden" name="from" value={hourOf(range.start)} />
                <input type="hidden" name="to" value={hourOf(range.end)} />
                <input type="hidden" name="user" value={wish.user} />
                <input type="hidden" name="only" value={wish.only} />
                <button type="submit">
                  {wish.user ? `Ask for ${wish.user} in them` : `Ask for ${count(survey.asked, 'hour')}`}
                </button>
              </form>
            )
          )}
        </section>
      )}
    </Document>
  );
}

export type BackfillView = Backfill & { readonly failures: readonly FailedHour[] };

export function BackfillPage({ view, viewer }: { view: BackfillView; viewer: Viewer }): VNode {
  return (
    <Document title={`Backfill ${view.id}`} viewer={viewer}>
      <h1>Backfill {view.id}</h1>
      <BackfillPart view={view} viewer={viewer} />
    </Document>
  );
}

export function BackfillPart({ view: backfill, viewer }: { view: BackfillView; viewer: Viewer }): VNode {
  const { id, state, userDid, only, requestedBy, requestedFrom, requestedAt } = backfill;
  const { pausedAt, finishedAt, settledBy, failures } = backfill;
  return (
    <Live
      id="backfill"
      path={`/parts/backfills/${id}`}
      seconds={state === 'running' ? EVERY.busy : EVERY.calm}
      label={`${spell(backfill)}${userDid ? ` of ${userDid}` : ''}: ${state}`}
      shows={backfill}
    >
      <p>
        <Bar backfill={backfill} />
      </p>
      <p>
        {ASKED_FOR[only]}, asked for by {requestedBy} ({requestedFrom}) at {instant(requestedAt)}
        {pausedAt &&
          state === 'paused' &&
          `; paused by ${settledBy} at ${instant(pausedAt)}: its hours are not owed meanwhile`}
        {state === 'cancelled' && `; cancelled by ${settledBy}: what had not run is as it was`}
        {finishedAt && state === 'finished' && `; finished at ${instant(finishedAt)}`}.{' '}
        <a href={`/?${query(backfill)}`}>Its hours in the calendar</a>
      </p>
      <div class="acts">
        <Acts backfill={backfill} viewer={viewer} />
      </div>
      {failures.length > 0 && (
        <>
          <h3>What failed</h3>
          <Table head={['Hour', 'Why']} label="What failed">
            {failures.map(({ hour, error }) => (
              <tr key={hour}>
                <th scope="row">
                  <a href={pathOf(hour)}>{hour}</a>
                </th>
                <td>{error}</td>
              </tr>
            ))}
          </Table>
        </>
      )}
    </Live>
  );
}

function Bar({ backfill: { id, hours, done, failed, givenBack } }: { backfill: Backfill }): VNode {
  const words = [
    `${whole(done)} of ${count(hours, 'hour')}`,
    failed > 0 && `${whole(failed)} failed`,
    givenBack > 0 && `${whole(givenBack)} given back`,
  ]
    .filter(Boolean)
    .join(', ');
  return (
    <>
      <progress max={Math.max(1, hours)} value={done + failed} aria-label={`Backfill ${id}: ${words}`} /> {words}
    </>
  );
}

/** What may be done to a backfill in its state. */
function Acts({ backfill: { id, state, failed }, viewer }: { backfill: Backfill; viewer: Viewer }): VNode {
  const about = `backfill ${id}`;
  const act = (verb: string, label: string, confirm?: string) => (
    <Act viewer={viewer} action={`/backfills/${id}/${verb}`} label={label} about={about} confirm={confirm} />
  );
  return (
    <>
      {state === 'running' && act('pause', 'Pause')}
      {state === 'paused' && act('resume', 'Resume')}
      {(state === 'running' || state === 'paused') &&
        act(
          'cancel',
          'Cancel',
          'Cancel this backfill? Hours that have not run become what they were; those that have stay.',
        )}
      {failed > 0 && state !== 'cancelled' && state !== 'paused' && act('retry', 'The failed ones again')}
    </>
  );
}
