// What comes next? The same for the same seed and name, whatever else was drawn meanwhile.
import { createHash } from 'node:crypto';

/** A stream of its own for each name: who draws more often than planned disturbs nobody else. */
export function stream(...names) {
  let drawn = 0;
  const next = () => {
    drawn += 1;
    const digest = createHash('sha256')
      .update([...names, drawn].join('/'))
      .digest();
    return digest.readUIntBE(0, 6) / 2 ** 48;
  };
  /** A whole number, both ends included. */
  const between = (from, to) => from + Math.floor(next() * (to - from + 1));
  return {
    next,
    between,
    chance: (probability) => next() < probability,
    pick: (list) => list[between(0, list.length - 1)],
    /** One of the keys of `{ key: weight }`. */
    weighed(weights) {
      let left = next() * Object.values(weights).reduce((sum, weight) => sum + weight, 0);
      for (const [key, weight] of Object.entries(weights)) {
        left -= weight;
        if (left < 0) return key;
      }
      return Object.keys(weights)[0];
    },
  };
}
