// Why did a provider refuse, by what it says and by the status it says it with?

import { z } from 'zod';
import { classOfStatus, classOfText, classOfWords, type ModelError } from '../store/model-errors.ts';

/** What a provider says of a failure. */
export interface Complaint {
  /** `code`, `type` and the like, for programs. */
  readonly code: string;
  readonly message: string;
}

/** More than this of a page is not read for its words. */
const READ_CHARACTERS = 4_096;

const word = z.union([z.string(), z.number()]).nullish().catch(undefined);
const fields = z.object({
  message: z.unknown(),
  detail: z.unknown(),
  error_description: z.unknown(),
  code: word,
  type: word,
  status: word,
  reason: word,
  // Google's own reasons (API_KEY_INVALID) are in here, and what a router heard from the provider behind it.
  details: z.array(z.object({ reason: word })).catch([]),
  metadata: z.object({ reasons: z.unknown(), raw: z.unknown() }).partial().catch({}),
});

/**
 * The error object in an answer, in any of the shapes in use: `{error: {…}}`, `{error: "…"}`, `[{error: …}]`, or, where
 * the status has already said that it is one, the answer itself.
 */
export function complaintIn(answer: unknown, isError: boolean): Complaint | undefined {
  const [first] = Array.isArray(answer) ? answer : [answer];
  if (typeof first !== 'object' || first === null) return isError ? { code: '', message: spell(answer) } : undefined;
  const error = 'error' in first ? first.error : undefined;
  if (error !== undefined && error !== null && error !== false) {
    return readError(typeof error === 'object' ? error : { ...first, message: spell(error) });
  }
  return isError ? readError(first) : undefined;
}

function readError(error: object): Complaint {
  const read = fields.parse({ message: undefined, detail: undefined, error_description: undefined, ...error });
  const code = [read.code, read.type, read.status, read.reason, ...read.details.map(({ reason }) => reason)];
  const behind = [read.metadata.reasons, read.metadata.raw].filter(Boolean).map(spell);
  const message = spell(read.message ?? read.detail ?? read.error_description ?? error);
  return { code: code.filter((one) => one != null).join(' '), message: [message, ...behind].join('; ') };
}

/** A text as it is, anything else as JSON; a page without its mark-up. */
export function spell(value: unknown): string {
  const text = typeof value === 'string' ? value : (JSON.stringify(value) ?? '');
  const page = /<(!doctype|html|head|body)[\s>]/i.test(text.slice(0, READ_CHARACTERS));
  const shown = text.slice(0, 4 * READ_CHARACTERS);
  return page ? shown.replace(/<(script|style).*?<\/\1>/gis, ' ').replace(/<[^<>]*>/g, ' ') : shown;
}

/**
 * By words first, since providers disagree about statuses and agree on what they write beside them; then by status.
 * An error that comes with a 200 has its words alone, and the status that is often among them.
 */
export function classify(status: number, { code, message }: Complaint): ModelError {
  const words = `${code} ${message}`.slice(0, READ_CHARACTERS);
  const told = classOfWords(words);
  if (told) return told;
  return status >= 400 ? classOfStatus(status) : classOfText(words);
}
