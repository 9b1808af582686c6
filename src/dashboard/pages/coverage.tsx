// Which hours are complete?

import type { VNode } from 'preact';
import {
  CELLS,
  type Cell,
  type CoverageDay,
  type CoverageHour,
  coverageByDay,
  coverageOf,
} from '../../store/coverage.ts';
import type { Pool } from '../../store/db.ts';
import { HOUR_MS, type Hour } from '../../time/hour.ts';
import { hoursIn, type Range, spell } from '../../time/range.ts';
import { EVERY, Live } from './live.tsx';
import { amount, count, whole } from './words.ts';

const DAY_MS = 24 * HOUR_MS;
/** Above, a cell is a day. */
const MOST_DAYS_OF_HOURS = 31;

const MEANINGS: Record<Cell, string> = {
  closed: 'every call that had come is counted',
  running: 'being rolled up',
  owed: 'to be rolled up',
  reopened: 'published, and to be rolled up again',
  held: 'asked for by a paused backfill: waits until it is resumed',
  partial: 'some users could not be stored',
  uncovered: 'holds calls that are in no figure: hourhand backfill --uncovered',
  before: 'not covered, and no call is known',
  ahead: 'not ended yet',
};

/** So that nobody needs to tell colours apart. */
const GLYPHS: Record<Cell, string> = {
  closed: '✓',
  running: '…',
  owed: '○',
  reopened: '↻',
  held: '‖',
  partial: '!',
  uncovered: '?',
  before: '–',
  ahead: '',
};

/** The calendar of a range: a cell for each hour, or for each day of a longer one. */
export type Calendar = { readonly range: Range } & (
  | { readonly hours: readonly CoverageHour[] }
  | { readonly days: readonly CoverageDay[] }
);

export async function calendarOf(pool: Pool, range: Range): Promise<Calendar> {
  return hoursIn(range) <= MOST_DAYS_OF_HOURS * 24
    ? { range, hours: await coverageOf(pool, range) }
    : { range, days: await coverageByDay(pool, range) };
}

export function Coverage({ calendar }: { calendar: Calendar }): VNode {
  const { range } = calendar;
  const [first, last] = [range.start, new Date(range.end.getTime() - 1)].map((at) => at.toISOString().slice(0, 10));
  const shown = 'hours' in calendar ? tally(calendar.hours) : tallyDays(calendar.days);
  return (
    <Live
      id="coverage"
      path={`/parts/coverage?${query(range)}`}
      seconds={EVERY.calm}
      label="Coverage"
      shows={calendar}
    >
      <p>
        {spell(range)}:{' '}
        {CELLS.filter((cell) => shown[cell])
          .map((cell) => `${whole(shown[cell] ?? 0)} ${cell}`)
          .join(', ')}
      </p>
      <form class="range" method="get" action="/">
        <label>
          From <input type="date" name="from" value={first} required />
        </label>
        <label>
          to <input type="date" name="to" value={last} required />
        </label>
        <button type="submit">Show</button>
        <a href={`/?${query(moved(range, -1))}`}>Earlier</a>
        <a href={`/?${query(moved(range, 1))}`}>Later</a>
        <a href="/">Last 30 days</a>
      </form>
      {'hours' in calendar ? <Hours hours={calendar.hours} /> : <Days days={calendar.days} />}
      <Legend />
    </Live>
  );
}

/** `from=…&to=…` of a range. */
export function query({ start, end }: Range): string {
  return `from=${start.toISOString().slice(0, 13)}&to=${end.toISOString().slice(0, 13)}`;
}

function moved({ start, end }: Range, by: 1 | -1): Range {
  const length = by * (end.getTime() - start.getTime());
  return { start: new Date(start.getTime() + length), end: new Date(end.getTime() + length) };
}

function Hours({ hours }: { hours: readonly CoverageHour[] }): VNode {
  const days = [...new Set(hours.map(({ hour }) => hour.slice(0, 10)))].reverse();
  const byHour = new Map(hours.map((hour) => [hour.hour as string, hour]));
  const columns = Array.from({ length: 24 }, (_, i) => String(i).padStart(2, '0'));
  const room = ERRORS / Math.max(1, hours.filter(({ error }) => error !== null).length);
  return (
    <table class="hours" aria-label="Hours by day; arrow keys move, Enter opens the hour">
      <thead>
        <tr>
          <th scope="col">UTC</th>
          {columns.map((column) => (
            <th key={column} scope="col">
              {column}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {days.map((day) => (
          <tr key={day}>
            <th scope="row">{day.slice(5)}</th>
            {columns.map((column) => {
              const hour = byHour.get(`${day}T${column}`);
              return <td key={column}>{hour && <HourCell hour={hour} room={room} />}</td>;
            })}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** So many characters for the errors of all cells together: where many hours have one, each is cut, or left out, and the hour's page has the whole. */
const ERRORS = 12_000;
const SHORTEST = 30;

/** Most are closed, and go without a name of it: of a month of hours that is a good part of the page. */
function HourCell({ hour, room }: { hour: CoverageHour; room: number }): VNode {
  if (hour.cell === 'ahead') return <span class="ahead" />;
  return (
    <a
      class={hour.cell === 'closed' ? undefined : hour.cell}
      href={pathOf(hour.hour)}
      aria-label={inWords(hour, room)}
    >
      {GLYPHS[hour.cell]}
    </a>
  );
}

export const pathOf = (hour: Hour) => `/hours/${hour}`;

/** All that is known of an hour at one look. */
function inWords({ hour, cell, users, calls, credits, error, sealed, marked }: CoverageHour, room: number): string {
  const figures = [
    users !== null && count(users, 'user'),
    calls !== null && `${whole(calls)} calls`,
    credits !== null && `${amount(credits)} credits`,
  ].filter((part) => part !== false);
  const why = room < SHORTEST ? undefined : error?.slice(0, Math.min(250, room));
  const more = [sealed && 'sealed', marked && 'users marked', why].filter((part) => typeof part === 'string');
  return [`${hour} ${cell}`, ...figures, ...more].join(', ');
}

function Days({ days }: { days: readonly CoverageDay[] }): VNode {
  return (
    <ol class="days" aria-label="Days; arrow keys move, Enter opens the day">
      {days.map(({ day, cells, calls, credits }) => {
        const date = day.toISOString().slice(0, 10);
        const next = new Date(day.getTime() + DAY_MS);
        const states = CELLS.filter((cell) => cells[cell]);
        const words = `${date}: ${states.map((cell) => `${cells[cell]} ${cell}`).join(', ')}; ${whole(calls)} calls, ${amount(credits)} credits`;
        return (
          <li key={date}>
            <a class={worst(states)} href={`/?${query({ start: day, end: next })}`} aria-label={words}>
              {GLYPHS[worst(states)]}
            </a>
          </li>
        );
      })}
    </ol>
  );
}

/** What a day is shown as: whatever of its hours asks for most attention. */
const WORST: readonly Cell[] = [
  'uncovered',
  'partial',
  'reopened',
  'owed',
  'running',
  'held',
  'closed',
  'before',
  'ahead',
];

function worst(states: readonly Cell[]): Cell {
  return WORST.find((cell) => states.includes(cell)) ?? 'before';
}

function Legend(): VNode {
  return (
    <ul class="legend" aria-label="What the cells mean">
      {CELLS.filter((cell) => cell !== 'ahead').map((cell) => (
        <li key={cell}>
          <span class={cell} aria-hidden="true">
            {GLYPHS[cell]}
          </span>{' '}
          {cell}: {MEANINGS[cell]}
        </li>
      ))}
    </ul>
  );
}

function tally(hours: readonly CoverageHour[]): Partial<Record<Cell, number>> {
  const counted: Partial<Record<Cell, number>> = {};
  for (const { cell } of hours) counted[cell] = (counted[cell] ?? 0) + 1;
  return counted;
}

function tallyDays(days: readonly CoverageDay[]): Partial<Record<Cell, number>> {
  const counted: Partial<Record<Cell, number>> = {};
  for (const { cells } of days) for (const cell of CELLS) counted[cell] = (counted[cell] ?? 0) + (cells[cell] ?? 0);
  return counted;
}
