// How is a figure shown that takes seconds to add up?

/** What was found, and when; `busy` where it is being looked for for the first time, `error` where that failed. */
export type Remembered<T> =
  | { readonly found: T; readonly at: Date }
  | { readonly busy: true }
  | { readonly error: string };

/** A reader is not kept waiting for longer; what is not there by then comes with a later look. */
const PATIENCE_MS = 100;
const KEEP_MS = 60_000;
const KEPT = 50;

interface Entry<T> {
  found?: { value: T; at: Date };
  error?: string;
  looking?: Promise<void>;
  /** Not looked for again before. */
  until: number;
}

/**
 * Remember what long looks found, by key: one look at a time for each key, none more often than each minute, nor than a tenth of the time
 * that it takes. Whoever asks gets what was found last. Of those that wait, only the keys that were asked for last are looked for.
 *
 * @param reasonOf what a failed look says to a person
 */
export function remembering<T>(reasonOf: (error: unknown) => string) {
  const entries = new Map<string, Entry<T>>();
  let last: Promise<unknown> = Promise.resolve();

  function look(key: string, ask: () => Promise<T>, entry: Entry<T>): Promise<void> {
    // One after the other, whoever asks for how many ranges: each reads much.
    const looking = last.then(async () => {
      if (entries.get(key) !== entry) return; // others have taken its place: whoever still looks asks again
      const began = Date.now();
      try {
        entry.found = { value: await ask(), at: new Date(began) };
        entry.error = undefined;
      } catch (error) {
        entry.error = reasonOf(error);
      }
      entry.looking = undefined;
      entry.until = Date.now() + Math.max(KEEP_MS, 10 * (Date.now() - began));
    });
    last = looking;
    entry.looking = looking;
    entries.delete(key);
    entries.set(key, entry); // the newest last
    for (const old of [...entries.keys()].slice(0, -KEPT)) entries.delete(old);
    return looking;
  }

  return async (key: string, ask: () => Promise<T>): Promise<Remembered<T>> => {
    const entry = entries.get(key) ?? { until: 0 };
    const looking = entry.looking ?? (Date.now() >= entry.until ? look(key, ask, entry) : undefined);
    if (!entry.found && looking) await Promise.race([looking, new Promise((late) => setTimeout(late, PATIENCE_MS))]);
    if (entry.found) return { found: entry.found.value, at: entry.found.at };
    return entry.error === undefined ? { busy: true } : { error: entry.error };
  };
}
