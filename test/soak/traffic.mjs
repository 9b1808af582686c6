// What does a writer do as its n-th action? A function of the seed alone, but for the instants of calls that begin now.
import { stream } from './random.mjs';

/** So many hours before the running one hold calls. */
export const HOURS = 200;
export const HOUR_MS = 3_600_000;
const USERS = 40;

const TYPES = ['chatCompletion', 'embedding', 'imageGeneration', 'audioGeneration', 'video', 'custom'];

/** A few users have most of the calls. */
export const userOf = (draw) => `u${Math.floor(USERS * draw.next() ** 2)}`;

/** Hours ago; 0 is the hour that runs. A few hours have most of the changes, so that they meet. */
function agoOf(draw) {
  const where = draw.weighed({ running: 2, hot: 5, any: 3 });
  return { running: () => 0, hot: () => draw.between(1, 8), any: () => draw.between(1, HOURS) }[where]();
}

/** Whatever of a call counts somewhere. */
function figuresOf(draw) {
  const type = draw.pick(TYPES);
  const [input, output] = [draw.between(0, 5_000), draw.between(0, 900)];
  const metrics = type === 'imageGeneration' && draw.chance(0.5) ? { numberOfImages: draw.between(0, 4) } : null;
  return {
    type,
    totalUsage: input + output,
    inputTokens: draw.chance(0.9) ? input : null,
    outputTokens: draw.chance(0.9) ? output : null,
    usageMetrics: metrics && JSON.stringify(metrics),
    credits: `${draw.between(0, 3)}.${String(draw.between(0, 99_999_999)).padStart(8, '0')}`,
    status: draw.weighed({ success: 7, failed: 2, processing: 2 }),
    duration: draw.chance(0.8) ? (draw.between(0, 90_000) / 1_000).toFixed(3) : null,
  };
}

const whenOf = (draw, ago) => ({ ago, into: draw.between(0, HOUR_MS - 1) });

function callOf(draw, id) {
  return {
    id,
    userDid: userOf(draw),
    model: `gpt-${draw.between(0, 2)}`,
    when: whenOf(draw, agoOf(draw)),
    ...figuresOf(draw),
  };
}

/** The id of a call that somebody wrote, or would have written had nothing come between. */
function known(draw, { writers, action }) {
  return `w${draw.between(0, writers - 1)}-${draw.between(0, Math.max(0, action - 1))}-${draw.chance(0.7) ? 0 : draw.between(0, 9)}`;
}

const some = (draw, make) => Array.from({ length: draw.between(1, 6) }, make);

const simple = {
  insert: [8, (draw, at) => ({ calls: [callOf(draw, `${at.name}-0`)] })],
  batch: [
    2,
    (draw, at) => ({ calls: Array.from({ length: draw.between(2, 60) }, (_, i) => callOf(draw, `${at.name}-${i}`)) }),
  ],
  copy: [
    1,
    (draw, at) => ({ calls: Array.from({ length: draw.between(2, 60) }, (_, i) => callOf(draw, `${at.name}-${i}`)) }),
  ],
  update: [6, (draw, at) => ({ ids: some(draw, () => known(draw, at)), figures: figuresOf(draw) })],
  finish: [2, (draw, at) => ({ ids: some(draw, () => known(draw, at)), status: draw.pick(['success', 'failed']) })],
  'change a user': [
    1,
    (draw) => ({
      userDid: userOf(draw),
      ago: draw.between(1, HOURS),
      credits: `0.${draw.between(10_000_000, 99_999_999)}`,
    }),
  ],
  'move in time': [2, (draw, at) => ({ ids: some(draw, () => known(draw, at)), when: whenOf(draw, agoOf(draw)) })],
  'move to a user': [2, (draw, at) => ({ ids: some(draw, () => known(draw, at)), userDid: userOf(draw) })],
  delete: [2, (draw, at) => ({ ids: some(draw, () => known(draw, at)) })],
  'same id': [1, (draw, at) => ({ calls: [callOf(draw, known(draw, at))], ignore: draw.chance(0.5) })],
};

const others = {
  // Two calls whose credits, or tokens, do not fit into a row together; until they are mended.
  unstorable: [
    0.4,
    (draw, at) => {
      const [userDid, ago] = [userOf(draw), draw.between(1, HOURS)];
      const huge = draw.chance(0.5) ? { credits: '999999999999.99999999' } : { totalUsage: '9000000000000000000' };
      return {
        calls: [0, 1].map((i) => ({ ...callOf(draw, `${at.name}-${i}`), userDid, when: whenOf(draw, ago), ...huge })),
      };
    },
  ],
  mend: [0.8, () => ({})],
  held: [
    1,
    (draw, at) => ({
      isolation: draw.weighed({ 'read committed': 4, 'repeatable read': 1, serializable: 1 }),
      steps: Array.from({ length: draw.between(1, 4) }, (_, i) => ({
        ...oneOf(draw, simple, { ...at, name: `${at.name}${'abcd'[i]}` }),
        pause: draw.between(100, 2_000),
        undone: draw.chance(0.15),
      })),
      end: draw.chance(0.75) ? 'commit' : 'rollback',
    }),
  ],
};

function oneOf(draw, kinds, at) {
  const kind = draw.weighed(Object.fromEntries(Object.entries(kinds).map(([name, [weight]]) => [name, weight])));
  return { kind, ...kinds[kind][1](draw, at) };
}

/** @returns `{ kind, pause, … }`: what is done, and how long nothing is done afterwards */
export function actionOf({ seed, writer, writers, action }) {
  const draw = stream(seed, 'writer', writer, action);
  const at = { name: `w${writer}-${action}`, writers, action };
  return { ...oneOf(draw, { ...simple, ...others }, at), pause: draw.between(10, 160) };
}

/** What was there before anybody began. */
export function firstCalls(seed, count) {
  const draw = stream(seed, 'first');
  return Array.from({ length: count }, (_, i) => callOf(draw, `first-${i}`));
}

/** What the writer at the end of an hour does as its n-th: see seam.mjs. */
export function seamOf(seed, n) {
  const draw = stream(seed, 'seam', n);
  const call = (part, i) => ({ ...callOf(draw, `seam-${n}-${part}-${i}`), when: whenOf(draw, HOURS + 1 + n) });
  const calls = (part, most) => Array.from({ length: draw.between(1, most) }, (_, i) => call(part, i));
  return {
    committed: calls('before', 6),
    open: calls('open', 4),
    changed: draw.between(0, 2),
    hold: draw.between(0, 8_000),
    end: draw.chance(0.8) ? 'commit' : 'rollback',
    pause: draw.between(500, 5_000),
  };
}
