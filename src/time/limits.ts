// How long may a call take?

/** A limit of its own: for the calls of a type, or for those of one model of one provider. */
export type Limit = { readonly minutes: number } & (
  | { readonly type: string }
  | { readonly provider: string; readonly model: string }
);

export interface Limits {
  /** For every call that no other limit is for. */
  readonly minutes: number;
  /** A model's own limit comes before that of its type. */
  readonly others: readonly Limit[];
}

/** A year: whoever wants longer wants no limit. */
export const MAX_MINUTES = 525_600;

/** The least time after which any call can have exceeded its limit. */
export function shortestOf({ minutes, others }: Limits): number {
  return Math.min(minutes, ...others.map((limit) => limit.minutes));
}

/**
 * Read limits such as `video=180,provider/model=60`. A provider ends at the first slash, so that a model's name may hold
 * more of them; the minutes begin after the last `=`. Nothing at all is no limits.
 *
 * @param types the types that there are
 * @throws {RangeError} naming the first part that is wrong, with what was expected and what was found
 */
export function parseLimits(text: string, types: readonly string[]): Limit[] {
  if (text.trim() === '') return [];
  const seen = new Set<string>();
  return text.split(',').map((part) => {
    const [, name = '', digits = ''] = /^\s*(.*?)\s*=\s*(\d+)\s*$/.exec(part) ?? [];
    const minutes = Number(digits);
    const [, provider, model] = /^([^/]*[^/\s])\s*\/\s*(.+)$/.exec(name) ?? [];
    if ((!model && !types.includes(name)) || minutes < 1 || minutes > MAX_MINUTES) {
      throw new RangeError(
        `expected TYPE=MINUTES or PROVIDER/MODEL=MINUTES, with a type of ${types.join(', ')} and 1 to ${MAX_MINUTES} minutes, got "${part}"`,
      );
    }
    const whose = provider && model ? `${provider}/${model}` : name;
    if (seen.has(whose)) throw new RangeError(`expected one limit for ${whose}, got another: "${part}"`);
    seen.add(whose);
    return provider && model ? { provider, model, minutes } : { type: name, minutes };
  });
}
