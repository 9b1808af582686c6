// What may an operator read of what a provider said?

const DETAIL_CHARACTERS = 200;
/** Longer texts are cut before they are looked through; what is shown is far shorter. */
const LOOKED_THROUGH = 4_096;
/** So much of the key in a row is taken for it: providers echo keys cut in the middle. */
const KEY_PIECE = 6;

/** A run that may be a key of anybody's, or ours in some encoding. Letters and digits both, else it is a word. */
const RUN = /[A-Za-z0-9_\-+/=.]{16,}/g;
/** A key as providers mask it: sk-ab****yz. */
const MASKED = /[A-Za-z0-9_\-+/=.]*\*{3,}[A-Za-z0-9_\-+/=.*]*/g;

/**
 * A detail for an operator: one line, at most 200 characters, and in it neither the key nor a piece of it, nor anything
 * that looks like a key.
 */
export function redact(text: string, key: string): string {
  const seen = withoutControls(text.slice(0, LOOKED_THROUGH));
  const shown = cut(withoutRuns(withoutKey(seen, key)), DETAIL_CHARACTERS);
  // Taken apart, or spelled otherwise: there is no telling how, and so nothing of it is shown but the status before it.
  return holdsKey(shown, key) ? `${/^HTTP \d{3}: /.exec(shown)?.[0] ?? ''}(not shown: the key is in it)` : shown;
}

/** Whether a text holds a piece of the key, whatever stands between its characters, forwards or backwards, or as HTML entities. */
export function holdsKey(text: string, key: string): boolean {
  const [seen, secret] = [plain(text), plain(key)];
  const least = Math.min(KEY_PIECE, secret.length);
  const pieces = Array.from({ length: secret.length - least + 1 }, (_, at) => secret.slice(at, at + least));
  const backwards = [...seen].reverse().join('');
  return secret !== '' && pieces.some((piece) => seen.includes(piece) || backwards.includes(piece));
}

/** Its letters and digits alone. */
function plain(text: string): string {
  return text
    .replace(/&#(x?)([0-9a-f]{1,6});?/gi, (_, hex, code) => character(Number.parseInt(code, hex ? 16 : 10)))
    .replace(/[^A-Za-z0-9]/g, '')
    .toLowerCase();
}

function character(code: number): string {
  return code <= 0x10ffff ? String.fromCodePoint(code) : '';
}

/** A host's name keeps its labels, unless they look like a key one by one. */
export function redactHost(host: string, key: string): string {
  return cut(withoutKey(host, key).split('.').map(withoutRuns).join('.'), 100);
}

function withoutControls(text: string): string {
  return text.replace(/[\p{C}\p{Z}]+/gu, ' ').trim();
}

function withoutRuns(text: string): string {
  return text
    .replace(MASKED, '[key]')
    .replace(RUN, (run) => (/[A-Za-z]/.test(run) && /[0-9]/.test(run) ? '[key]' : run));
}

/** The key in any case, as it is or percent-encoded, whole or in pieces. */
function withoutKey(text: string, key: string): string {
  return [key, encodeURIComponent(key)].reduce(withoutPieces, text);
}

function withoutPieces(text: string, key: string): string {
  if (key === '') return text;
  const [lower, keyLower] = [text.toLowerCase(), key.toLowerCase()];
  if (lower.length !== text.length) return withoutPieces(lower, key); // a letter whose small form is longer
  const least = Math.min(KEY_PIECE, key.length);
  let shown = '';
  for (let at = 0; at < text.length; ) {
    const length = pieceAt(lower, at, keyLower, least);
    shown += length > 0 ? '[key]' : text[at];
    at += length || 1;
  }
  return shown.replace(/(\[key\])+/g, '[key]');
}

/** How long is the piece of the key that begins here? 0 where it is shorter than `least`. */
function pieceAt(text: string, at: number, key: string, least: number): number {
  let length = 0;
  while (at + length < text.length && key.includes(text.slice(at, at + Math.max(least, length + 1)))) {
    length = Math.min(Math.max(least, length + 1), text.length - at);
  }
  return length >= least ? length : 0;
}

function cut(text: string, characters: number): string {
  return text.length <= characters ? text : `${text.slice(0, characters - 1)}…`;
}
