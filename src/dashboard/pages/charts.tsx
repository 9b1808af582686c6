// What do people look at?

import { scaleBand, scaleLinear } from 'd3-scale';
import type { VNode } from 'preact';
import type { Bar, Step, TopLine } from '../../store/charts.ts';
import { hourOf } from '../../time/hour.ts';
import { hoursIn, type Range, spell } from '../../time/range.ts';
import type { Remembered } from '../remembered.ts';
import { query } from './coverage.tsx';
import { EVERY, Live } from './live.tsx';
import { Table } from './now.tsx';
import { amount, instant, short, successRate, whole } from './words.ts';

export interface Charts {
  readonly range: Range;
  readonly step: Step;
  readonly bars: readonly Bar[];
  readonly users: Remembered<readonly TopLine[]>;
  readonly models: Remembered<readonly TopLine[]>;
}

/** So that there are never more bars than can be told apart. */
export function stepOf(range: Range): Step {
  const days = hoursIn(range) / 24;
  if (days <= 4) return 'hour';
  return days <= 100 ? 'day' : days <= 700 ? 'week' : 'month';
}

/** What a chart shows of each bar; undefined leaves it out. */
interface Measure {
  readonly id: string;
  readonly label: string;
  readonly of: (bar: Bar) => number | undefined;
  readonly inWords: (bar: Bar) => string;
  /** The scale's end, where it has one. */
  readonly most?: number;
}

const percent = (bar: { successCalls: bigint; failedCalls: bigint }) => {
  const rate = successRate(bar.successCalls, bar.failedCalls);
  return rate === undefined ? 'none has ended' : `${rate.toFixed(2)} %`;
};

const MEASURES: readonly Measure[] = [
  { id: 'calls', label: 'Calls', of: (bar) => Number(bar.calls), inWords: (bar) => whole(bar.calls) },
  { id: 'tokens', label: 'Tokens', of: (bar) => Number(bar.totalUsage), inWords: (bar) => whole(bar.totalUsage) },
  {
    id: 'credits',
    label: 'Credits',
    of: (bar) => Number(bar.totalCredits),
    inWords: (bar) => amount(bar.totalCredits),
  },
  {
    id: 'success',
    label: 'Success rate, %',
    of: (bar) => successRate(bar.successCalls, bar.failedCalls),
    inWords: percent,
    most: 100,
  },
];

export function ChartsPart({ charts }: { charts: Charts }): VNode {
  const { range, step, bars } = charts;
  return (
    <Live
      id="charts"
      path={`/parts/charts?${query(range)}`}
      seconds={'busy' in charts.users || 'busy' in charts.models ? EVERY.busy : EVERY.slow}
      label="Calls, tokens, credits"
      shows={charts}
    >
      <p>
        From the statistics of the hours that were published, by {step}. The range is the calendar's
        {(step === 'week' || step === 'month') && `: of the first and the last ${step}, what lies in it`}.
      </p>
      <ul class="links" aria-label="Other ranges">
        {PERIODS.map(({ label: name, days }) => (
          <li key={name}>
            <a href={`/?last=${days}#charts`}>{name}</a>
          </li>
        ))}
      </ul>
      <div class="charts">
        {MEASURES.map((measure) => (
          <BarChart key={measure.id} measure={measure} bars={bars} step={step} />
        ))}
      </div>
      <details>
        <summary>The same as a table</summary>
        <Table head={[step, ...MEASURES.map(({ label: name }) => name)]} label="Calls, tokens and credits as a table">
          {bars.map((bar) => (
            <tr key={bar.at.getTime()}>
              <th scope="row">{when(bar, step)}</th>
              {MEASURES.map(({ id, inWords }) => (
                <td key={id}>{inWords(bar)}</td>
              ))}
            </tr>
          ))}
        </Table>
      </details>
      <div class="tops">
        <Top title="Users with the most credits" lines={charts.users} />
        <Top title="Models with the most credits" lines={charts.models} />
      </div>
    </Live>
  );
}

const PERIODS = [
  { label: '1 day', days: 1 },
  { label: '7 days', days: 7 },
  { label: '30 days', days: 30 },
  { label: '1 year', days: 365 },
  { label: '2 years', days: 730 },
] as const;

/** An hour or a day by its name; what is longer, or only part of a day, by where it begins and ends. */
function when(bar: Bar, step: Step): string {
  if (step === 'hour') return hourOf(bar.start);
  return step === 'day' && hoursIn(bar) === 24 ? bar.start.toISOString().slice(0, 10) : spell(bar);
}

const [WIDTH, HEIGHT] = [600, 100];

/** The bars are drawn, the words beside them written: they keep their size on a narrow page. */
function BarChart({ measure, bars, step }: { measure: Measure; bars: readonly Bar[]; step: Step }): VNode {
  const { id, label, of, inWords, most } = measure;
  const x = scaleBand<number>()
    .domain(bars.map(({ at }) => at.getTime()))
    .range([0, WIDTH])
    .paddingInner(0.15);
  const highest = most ?? (Math.max(0, ...bars.map((bar) => of(bar) ?? 0)) || 1);
  const y = scaleLinear().domain([0, highest]).nice(2).range([HEIGHT, 0]);
  const [first, last] = [bars.at(0), bars.at(-1)];
  const fixed = (n: number) => Number(n.toFixed(2));
  return (
    <figure>
      <figcaption id={`chart-${id}`}>{label}</figcaption>
      <div class="plot">
        <span class="scale" aria-hidden="true">
          <span>{short(y.domain()[1] ?? 0)}</span>
          <span>0</span>
        </span>
        <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-labelledby={`chart-${id}`}>
          <title>{label}</title>
          {bars.map((bar) => {
            const value = of(bar);
            if (value === undefined) return null;
            const top = fixed(y(value));
            return (
              <rect
                key={bar.at.getTime()}
                x={fixed(x(bar.at.getTime()) ?? 0)}
                y={top}
                width={fixed(x.bandwidth())}
                height={fixed(HEIGHT - top)}
              >
                <title>{`${when(bar, step)}: ${inWords(bar)}`}</title>
              </rect>
            );
          })}
        </svg>
      </div>
      <p class="ends" aria-hidden="true">
        <span>{first && when(first, step)}</span>
        <span>{last && when(last, step)}</span>
      </p>
    </figure>
  );
}

function Top({ title, lines }: { title: string; lines: Remembered<readonly TopLine[]> }): VNode {
  return (
    <div>
      <h3>{title}</h3>
      {'busy' in lines && <p>Being added up…</p>}
      {'error' in lines && <p>Could not be added up: {lines.error}. A shorter range takes less.</p>}
      {'found' in lines && lines.found.length === 0 && <p>None.</p>}
      {'found' in lines && lines.found.length > 0 && (
        <>
          <Table head={['Name', 'Calls', 'Tokens', 'Credits', 'Success']} label={title}>
            {lines.found.map((line) => (
              <tr key={line.name}>
                <th scope="row">{line.name}</th>
                <td>{whole(line.calls)}</td>
                <td>{whole(line.totalUsage)}</td>
                <td>{amount(line.totalCredits)}</td>
                <td>{percent(line)}</td>
              </tr>
            ))}
          </Table>
          <p>As of {instant(lines.at)}.</p>
        </>
      )}
    </div>
  );
}
