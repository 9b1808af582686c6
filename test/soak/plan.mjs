// Which faults happen, when, and to whom? A function of the seed alone.
import { stream } from './random.mjs';
import { HOURS, userOf } from './traffic.mjs';

/** In milliseconds, between two faults of a lane. Lanes overlap; the faults of one lane come one after another. */
const GAPS = {
  workers: [3_000, 9_000],
  redis: [8_000, 20_000],
  postgres: [12_000, 30_000],
  stragglers: [2_000, 7_000],
  jobs: [1_000, 4_000],
  operator: [4_000, 12_000],
};

/** How often each kind comes, and what is drawn for it. `hold`: for how long it lasts, in milliseconds. */
const KINDS = {
  workers: {
    'kill -9': [5, (r, workers) => ({ worker: r.between(1, workers), hold: r.between(0, 3_000) })],
    terminate: [2, (r, workers) => ({ worker: r.between(1, workers), hold: r.between(0, 2_000) })],
    // Longer than its locks, and than it takes to be missed.
    freeze: [2, (r, workers) => ({ worker: r.between(1, workers), hold: r.between(20_000, 26_000) })],
  },
  redis: {
    'kill -9': [3, (r) => ({ hold: r.between(0, 4_000) })],
    flush: [3, () => ({})],
    'cut off clients': [2, (r) => ({ times: r.between(1, 10) })],
    'replica of nowhere': [2, (r) => ({ hold: r.between(500, 5_000) })],
    'no memory': [2, (r) => ({ hold: r.between(500, 6_000) })],
  },
  postgres: {
    'immediate stop': [2, (r) => ({ hold: r.between(0, 3_000) })],
    'kill -9': [1, (r) => ({ hold: r.between(0, 2_000) })],
    'terminate workers': [2, () => ({})],
    'terminate some': [3, (r) => ({ times: r.between(1, 4), which: r.next() })],
  },
  stragglers: {
    // Figures that are read and not yet written: what goes wrong without locks needs seconds of this.
    // In a quiet hour: where marks are taken, whoever comes next waits for those, locks or not. The user has calls in nearly every hour.
    overtaken: [
      5,
      (r) => ({
        ago: r.between(9, HOURS),
        user: 'u0',
        hold: r.between(8_000, 15_000),
        credits: r.between(1, 99) / 100,
      }),
    ],
    'slow rows': [2, (r) => ({ user: userOf(r), seconds: r.between(2, 9), times: r.between(1, 4) })],
    'hold a bucket': [2, (r) => ({ ago: r.between(1, HOURS), user: userOf(r), hold: r.between(1_000, 9_000) })],
    'hold an hour': [2, (r) => ({ ago: r.between(1, 8), hold: r.between(1_000, 6_000) })],
  },
  jobs: {
    'delete a lock': [3, (r) => ({ queue: r.pick(['hours', 'users', 'marks']), which: r.next() })],
    'remove a job': [
      3,
      (r) => ({ queue: r.pick(['hours', 'users', 'marks', 'ticks', 'lateTicks']), which: r.next() }),
    ],
    'remove a child': [3, (r) => ({ queue: 'users', which: r.next() })],
    'retry what failed': [3, (r) => ({ queue: r.pick(['hours', 'users', 'marks']), which: r.next() })],
    'run a child again': [2, (r) => ({ which: r.next() })],
    promote: [
      3,
      (r) => ({ queue: r.pick(['ticks', 'lateTicks', 'staleTicks', 'hours', 'users', 'marks']), which: r.next() }),
    ],
    'remove a scheduler': [2, (r) => ({ which: r.next() })],
    orphan: [2, (r) => ({ queue: r.pick(['hours', 'marks']), which: r.next() })],
    clean: [
      1,
      (r) => ({
        queue: r.pick(['hours', 'users', 'marks']),
        state: r.pick(['failed', 'completed', 'wait', 'delayed']),
      }),
    ],
    drain: [1, (r) => ({ queue: r.pick(['hours', 'users', 'marks']) })],
    'double an hour': [3, (r) => ({ ago: r.between(1, 12) })],
  },
  operator: {
    backfill: [
      4,
      (r) => ({ ...range(r, 30), only: r.weighed({ all: 3, missing: 1, partial: 1 }), times: r.between(1, 2) }),
    ],
    'backfill a user': [2, (r) => ({ ...range(r, HOURS), user: userOf(r) })],
  },
};

function range(r, most) {
  const from = r.between(1, HOURS);
  return { from, to: Math.max(0, from - r.between(1, most)) };
}

/** Every fault, by its instant in milliseconds after the start; none begins in the last seconds. */
export function planOf({ seed, minutes, workers }) {
  const end = minutes * 60_000 - 3_000;
  const faults = Object.entries(GAPS).flatMap(([lane, [least, most]]) => {
    const draw = stream(seed, 'plan', lane);
    const weights = Object.fromEntries(Object.entries(KINDS[lane]).map(([kind, [weight]]) => [kind, weight]));
    const planned = [];
    for (let at = draw.between(least, most); at < end; at += draw.between(least, most)) {
      const kind = draw.weighed(weights);
      planned.push({ at, lane, kind, ...KINDS[lane][kind][1](draw, workers) });
    }
    return planned;
  });
  return faults.sort((a, b) => a.at - b.at);
}

export const lanes = Object.keys(GAPS);

/** One line: `  12.4 s  redis       kill -9, hold 1200`. */
export function spell({ at, lane, kind, ...rest }, instant = at) {
  const details = Object.entries(rest).map(
    ([name, value]) => `, ${name} ${typeof value === 'number' && value < 1 ? value.toFixed(3) : value}`,
  );
  return `${(instant / 1000).toFixed(1).padStart(7)} s  ${lane.padEnd(11)}${kind}${details.join('')}`;
}
