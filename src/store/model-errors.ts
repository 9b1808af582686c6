// Why did a call of a model fail?

import { Sql } from './db.ts';

/** Every reason that is told apart; the words are those of `hourhand models status`. */
export const modelErrors = [
  'invalid argument',
  'invalid key',
  'no credits',
  'expired credential',
  'content policy',
  'region',
  'temporary block',
  'not found',
  'unavailable',
  'rate limit',
  'quota',
  'network time-out',
  'connection',
  'no credentials',
  'malformed answer',
  'unknown',
] as const;
export type ModelError = (typeof modelErrors)[number];

/** What only the caller could have avoided says nothing about the model. */
export const callersFault: readonly ModelError[] = ['invalid argument', 'content policy'];

type Words = readonly (readonly [ModelError, string])[];

/**
 * Words that tell more than a status: the first that match decide.
 *
 * The order matters. A prompt "blocked by the content filter" is no block of the account; and what OpenAI calls a quota
 * tells its reader to see to their billing, so that neither may be looked for by that word. Patterns are read by
 * JavaScript and by PostgreSQL, and must mean the same in both: no `\b`, no `\d`, ASCII alone, greedy alone.
 */
const telling: Words = [
  [
    'content policy',
    'content[ _-]?(policy|filter|moderation|management)|policy_violation|usage polic|responsible[ _]?ai|data_inspection|' +
      'prohibited_content|(inappropriate|sensitive|harmful) content|flagged|moderation_blocked|' +
      '(^|[^a-z0-9-])(moderation|safety)([^a-z0-9-]|$)',
  ],
  [
    'region',
    'unsupported_country|(country|region|territory|location)[^.]{0,40}(not (supported|available|allowed)|unsupported|restricted|blocked)|' +
      'not (supported|available) in (your|this) (country|region|location)|unavailable for legal reasons',
  ],
  [
    'expired credential',
    'expired[ _-]?(api[ _-]?)?(key|token|credential|session)|(key|token|credential|session)[^.]{0,60}expired|invalid_grant',
  ],
  [
    'no credits',
    'insufficient[ _-]?(balance|credit|fund)|credit balance|(no|out of|not enough|more|all available) credits|not enough balance|' +
      'credits? (is|are|has|have|been|limit)?[ ]?(been )?(exhausted|depleted|used up|exceeded)|can only afford|' +
      'payment[ _]required|billing_not_active|check your billing|overdue|arrear|account is not active',
  ],
  [
    'quota',
    'insufficient_quota|quota[ _]?(has been |is |was )?(exceeded|exhausted|reached)|(exceed|exceeded|exceeds|out of|over) [^.]{0,30}quota|' +
      'exceeded_[a-z_]*quota|(usage|spend|spending|monthly|daily|hard)[ _]limit|key limit exceeded',
  ],
  [
    'temporary block',
    'suspended|deactivated|abuse|banned|temporarily (blocked|disabled|restricted)|organization_restricted|' +
      '(account|key|address|access|user|you|organization|project|request)[^.]{0,40}(blocked|restricted)',
  ],
  [
    'not found',
    '(model|deployment|engine)[^.]{0,120}(not[ _]?found|(does|do) not exist|doesn.t exist|is not available)|no such model|' +
      'deploymentnotfound|(unknown|invalid|unsupported) model|not a valid model',
  ],
  [
    'invalid key',
    '(invalid|incorrect|wrong|bad|unknown|revoked)[ _-]?(x-)?(api[ _-]?key|authentication|credential|bearer|token([^a-z]|$))|' +
      'api[ _-]?key[^.]{0,40}(not valid|invalid|incorrect|revoked|leaked|disabled)|authentication_error|authenticationerror|' +
      'security token[^.]{0,40}invalid|permission_denied|permission_error',
  ],
  [
    'rate limit',
    'rate[ _-]?limit|rate exceeded|too[ _]?many[ _]?requests|throttl|(requests|tokens)[ _]per[ _](second|min|minute|hour|day)|resource.?exhausted',
  ],
];

/** Words that say of the way there, and of the server, what a status would say better. */
const traffic: Words = [
  [
    'no credentials',
    'no (auth )?credential|(missing|no|provide an) (api[ _-]?key|credential|auth)|key (is )?(missing|required)',
  ],
  [
    'network time-out',
    'time-?out|timed[ _-]?out|etimedout|esockettimedout|deadline[ _]?exceeded|took too long|processing exceeded',
  ],
  [
    'connection',
    'econn|enotfound|eai_again|epipe|ehostunreach|enetunreach|eproto|und_err|socket hang up|fetch failed|network error|' +
      'getaddrinfo|other side closed|(^|: ?)terminated$|connection (error|refused|reset|closed|aborted|lost|terminated)|' +
      'cert_|certificate|self.signed|(^|[^a-z])(ssl|tls)([^a-z]|$)',
  ],
  [
    'malformed answer',
    'unexpected (token|end of)|(invalid|not valid|malformed|bad) (json|answer|response)|cannot parse',
  ],
  [
    'unavailable',
    'overloaded|unavailable|bad gateway|internal (server )?error|server (had an )?error|at capacity|over capacity|no healthy upstream',
  ],
];

const statusClasses: readonly (readonly [ModelError, readonly number[]])[] = [
  ['invalid key', [401, 403]],
  ['no credits', [402]],
  ['not found', [404, 410]],
  ['network time-out', [408, 504]],
  ['rate limit', [429]],
  ['region', [451]],
  ['unavailable', [500, 502, 503, 520, 521, 522, 523, 524, 529]],
  ['invalid argument', [400, 413, 422]],
];

/** A status in a text: a number of its own, and no part of `1.429`, `500ms` or a request's id. */
const statuses: Words = statusClasses.map(([reason, numbers]) => [
  reason,
  `(^|[^0-9a-z.,-])(${numbers.join('|')})([^0-9a-z-]|$)`,
]);

/** Words so common that a status goes before them. */
const general: Words = [
  ['invalid key', 'unauthori[sz]ed|unauthenticated|forbidden|access denied|accessdenied'],
  ['not found', 'not[ _]?found'],
  [
    'invalid argument',
    'invalid|bad request|unsupported|validation|maximum context|context[ _]length|unprocessable|too (large|long)|must be',
  ],
];

const inOrder: Words = [...telling, ...traffic, ...statuses, ...general];

const compile = (words: Words) =>
  // `s`: PostgreSQL's dot takes the end of a line as well.
  words.map(([reason, pattern]) => ({ reason, pattern: new RegExp(pattern, 'is') }));
const tellingPatterns = compile(telling);
const allPatterns = compile(inOrder);

/** What the words alone tell, whatever the status: `undefined` where they leave it to the status. */
export function classOfWords(words: string): ModelError | undefined {
  return tellingPatterns.find(({ pattern }) => pattern.test(words))?.reason;
}

/** What a status tells. */
export function classOfStatus(status: number): ModelError {
  const known = statusClasses.find(([, numbers]) => numbers.includes(status))?.[0];
  return known ?? (status >= 500 && status <= 599 ? 'unavailable' : 'unknown');
}

/** The class of a free text such as a gateway leaves: its words, then a status in it. The same as `errorClass`, here. */
export function classOfText(text: string): ModelError {
  return allPatterns.find(({ pattern }) => pattern.test(text))?.reason ?? 'unknown';
}

/** The class of a column of free texts; null is unknown. No parameters in it: it may be grouped by. */
export function errorClass(column: Sql.Sql): Sql.Sql {
  const cases = inOrder.map(
    ([reason, pattern]) => Sql.sql`when ${column} ~* ${literal(pattern)} then ${literal(reason)}`,
  );
  return Sql.sql`case ${Sql.join(cases, ' ')} else 'unknown' end`;
}

function literal(text: string): Sql.Sql {
  return Sql.raw(`'${text.replaceAll("'", "''")}'`);
}
