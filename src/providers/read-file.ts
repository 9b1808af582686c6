// Which providers and models does a file name?

import { z } from 'zod';
import { ModelCallType } from '../generated/prisma/enums.ts';
import { CREDITS, readDecimal } from '../store/decimals.ts';
import type { GivenProvider } from '../store/models.ts';
import { readBaseUrl } from './ask.ts';

/** Probes of one provider at once, where the file does not say: enough that a few that hang keep nobody waiting. */
const CONCURRENCY = 32;

const name = (max: number) =>
  z
    .string()
    .min(1)
    .max(max)
    .regex(/^[^\p{C}]*$/u, 'expected no control characters')
    .refine((text) => text === text.trim(), 'expected no blanks around it');

/** A number is read by its shortest decimal text, and so never as the float that it is. */
const amount = z
  .union([z.string(), z.number()])
  .transform(String)
  .refine(
    (text) => readDecimal(text, CREDITS) !== undefined,
    'expected an amount from 0, below 10^12, such as "0.0001"',
  );

function providersFile(options: { allowHttp: boolean }) {
  const baseUrl = z.string().transform((text, context) => {
    try {
      return readBaseUrl(text, options);
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      context.issues.push({ code: 'custom', message, input: text });
      return z.NEVER;
    }
  });
  const model = z.strictObject({ model: name(512), type: z.enum(ModelCallType), probeCredits: amount.optional() });
  const provider = z.strictObject({
    // `provider/model` must be readable: a provider's name ends at the first slash.
    id: name(128).regex(/^[^/]*$/, 'expected no slash'),
    baseUrl,
    apiKeyEnv: z
      .string()
      .regex(/^[A-Za-z_][A-Za-z0-9_]*$/, 'expected the name of an environment variable, not a key itself'),
    concurrency: z.int().min(1).max(1_000).default(CONCURRENCY),
    models: z.array(model).max(10_000),
  });
  return z.strictObject({ providers: z.array(provider).min(1).max(1_000) }).superRefine(({ providers }, context) => {
    for (const path of repeated(providers)) {
      context.addIssue({ code: 'custom', path, message: 'expected it once, got it twice' });
    }
  });
}

/** Where a provider, or a model of the same type, is named a second time. */
function repeated(providers: readonly { id: string; models: readonly { model: string; type: string }[] }[]) {
  const again = (texts: readonly string[]) => [...texts.keys()].filter((i) => texts.indexOf(texts[i] ?? '') < i);
  return [
    ...again(providers.map(({ id }) => id)).map((i) => ['providers', i, 'id']),
    ...providers.flatMap(({ models }, i) =>
      again(models.map(({ model, type }) => `${type} ${model}`)).map((n) => ['providers', i, 'models', n]),
    ),
  ];
}

/**
 * Read a file of providers: `{"providers": [{"id", "baseUrl", "apiKeyEnv", "concurrency"?, "models": [{"model", "type",
 * "probeCredits"?}]}]}`.
 *
 * @throws {Error} naming every place that is wrong, one a line (20 at most), and no value: a key may stand in the wrong place
 */
export function readProviders(json: string, options: { allowHttp: boolean }): GivenProvider[] {
  const parsed = providersFile(options).safeParse(parse(json));
  if (parsed.success) return parsed.data.providers;
  const { issues } = parsed.error;
  const lines = issues.slice(0, 20).map(({ path, message }) => `${path.join('.') || 'the file'}: ${message}`);
  if (issues.length > 20) lines.push(`and ${issues.length - 20} more`);
  throw new Error(lines.join('\n'));
}

function parse(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    throw new Error('expected JSON, got something that is none'); // V8's own words quote the text
  }
}
