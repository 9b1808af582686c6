// Compares the triggers and indexes of ModelCall with what the migrations made.

import { type Db, instant, type Now } from './db.ts';
import { migrationsIn } from './migrate.ts';
import type { Finding } from './warnings.ts';

/** One part of `ModelCall` that hourhand relies on, and the statement that makes it. */
interface Part {
  readonly name: string;
  readonly sql: string;
}

/** What the migrations made of `ModelCall`, each by its last statement. */
export interface CallParts {
  readonly triggers: readonly (Part & { readonly type: number })[];
  readonly indexes: readonly Part[];
  /** The function that the triggers call; `body` without its comments. */
  readonly function: Part & { readonly body: string };
}

/** The bits of `pg_trigger.tgtype` for each row, and for each event after it. */
const FOR_EACH_ROW = 1;
const EVENTS = { INSERT: 4, DELETE: 8, UPDATE: 16 } as const;

/** @throws {Error} if the migrations make no trigger function: this build is not whole */
export function callPartsOf(folder: string): CallParts {
  const triggers = new Map<string, CallParts['triggers'][number]>();
  const indexes = new Map<string, Part>();
  let made: CallParts['function'] | undefined;
  for (const statement of migrationsIn(folder).flatMap(({ sql }) => statementsOf(sql))) {
    const sql = inOneLine(statement);
    const [, trigger, event] = /^CREATE TRIGGER "(\w+)" AFTER (INSERT|DELETE|UPDATE) ON "ModelCall" /.exec(sql) ?? [];
    if (trigger)
      triggers.set(trigger, { name: trigger, sql, type: FOR_EACH_ROW + EVENTS[event as keyof typeof EVENTS] });
    const [, index] = /^CREATE (?:UNIQUE )?INDEX (?:IF NOT EXISTS )?"(\w+)" ON "ModelCall" ?\(/.exec(sql) ?? [];
    if (index) indexes.set(index, { name: index, sql });
    const [, droppedTrigger] = /^DROP TRIGGER (?:IF EXISTS )?"(\w+)" ON "ModelCall"/.exec(sql) ?? [];
    triggers.delete(droppedTrigger ?? '');
    const [, droppedIndex] = /^DROP INDEX (?:IF EXISTS )?"(\w+)"/.exec(sql) ?? [];
    indexes.delete(droppedIndex ?? '');
    const [, body] = /^CREATE (?:OR REPLACE )?FUNCTION "markLateCall"\(\).* AS \$\$(.*)\$\$$/.exec(sql) ?? [];
    if (body)
      made = { name: 'markLateCall', sql: sql.replace(/^CREATE FUNCTION/, 'CREATE OR REPLACE FUNCTION'), body };
  }
  if (!made) throw new Error(`expected the function "markLateCall" in the migrations of ${folder}, found none`);
  return { triggers: [...triggers.values()], indexes: [...indexes.values()], function: made };
}

/** The statements of a script: a semicolon at a line's end separates them, except within `$$`. */
function statementsOf(script: string): string[] {
  return script
    .split('$$')
    .map((text, i) => (i % 2 === 0 ? text.replace(/;[ \t]*(--.*)?$/gm, '\0') : text))
    .join('$$')
    .split('\0');
}

/** A statement without its comments, in one line. None of ours has two dashes or two blanks in a text. */
function inOneLine(statement: string): string {
  return statement.replace(/--.*$/gm, '').replace(/\s+/g, ' ').trim();
}

/** What each trigger's condition must name: without it, it would not fire for what comes late, or would for all. */
const CONDITION = ['callTime', 'date_bin', 'clock_timestamp'];

interface FoundTrigger {
  readonly table: string;
  readonly partition: boolean;
  readonly name: string | null;
  readonly enabled: string | null;
  readonly type: number | null;
  readonly calls: string | null;
  readonly condition: string | null;
}

/**
 * What is wrong with the triggers and indexes of `ModelCall`, from the catalogue alone: in the table itself and in
 * each of its partitions. Empty if late calls leave their marks and the statements find their indexes.
 */
export async function faultsOfCalls(db: Db, parts: CallParts): Promise<Finding[]> {
  const [triggers, functions, indexes] = await Promise.all([
    triggersOf(db, parts),
    functionOf(db, parts),
    indexesOf(db, parts),
  ]);
  return [
    ...faultOfFunction(parts.function, functions), // first: no trigger can be made without it
    ...parts.triggers.flatMap((part) => faultsOfTrigger(part, parts.function.name, triggers)),
    ...parts.indexes.flatMap((part) =>
      faultOfIndex(
        part,
        indexes,
        triggers.some(({ partition }) => partition),
      ),
    ),
  ];
}

/** A row for each table and trigger that must be there. */
async function triggersOf(db: Db, { triggers }: CallParts): Promise<FoundTrigger[]> {
  return db.$queryRaw<FoundTrigger[]>`
    with recursive tables as (
      select to_regclass('"ModelCall"')::oid as oid, false as partition
      union all
      select inhrelid, true from tables join pg_inherits on inhparent = tables.oid
    )
    select tables.oid::regclass::text as table, partition, wanted.name, tgenabled::text as enabled,
           tgtype::int as type, tgfoid::regproc::text as calls, pg_get_triggerdef(g.oid) as condition
      from tables cross join unnest(${triggers.map(({ name }) => name)}::text[]) as wanted(name)
           left join pg_trigger g on g.tgrelid = tables.oid and tgname = wanted.name
     order by partition, 1`;
}

function faultsOfTrigger(
  { name, sql, type }: CallParts['triggers'][number],
  calls: string,
  found: readonly FoundTrigger[],
): Finding[] {
  const lines = found.filter((line) => line.name === name);
  const missing = lines.filter((line) => line.enabled === null);
  if (missing.some(({ partition }) => !partition)) {
    return [
      {
        subject: name,
        detail: `The trigger ${name} of ModelCall is gone: ${WITHOUT}`,
        remedy: `type in psql: ${sql};`,
      },
    ];
  }
  const [whole] = lines;
  const isOther =
    whole &&
    (whole.type !== type ||
      whole.calls?.replaceAll('"', '').split('.').at(-1) !== calls ||
      CONDITION.some((word) => !whole.condition?.includes(word)));
  if (isOther) {
    const remedy = `type in psql: DROP TRIGGER "${name}" ON "ModelCall"; ${sql};`;
    return [
      { subject: name, detail: `The trigger ${name} of ModelCall is another than hourhand's: ${WITHOUT}`, remedy },
    ];
  }
  const silent = lines.filter(({ enabled }) => enabled === null || !'OA'.includes(enabled));
  if (silent.length === 0) return [];
  const where = silent.some(({ partition }) => !partition)
    ? 'ModelCall'
    : `${silent[0]?.table}${silent.length > 1 ? ` and ${silent.length - 1} more partitions` : ''}`;
  const remedy = `type in psql: ALTER TABLE "ModelCall" ENABLE TRIGGER "${name}";`; // its partitions' triggers too
  return [{ subject: name, detail: `The trigger ${name} of ${where} is disabled: ${WITHOUT}`, remedy }];
}

const WITHOUT = 'calls that come late leave no mark, and are in no figure until an audit finds them';

/** `body` is null if there is none; `sees`: it finds our tables, whatever the gateway's `search_path` is. */
async function functionOf(db: Db, { function: { name } }: CallParts) {
  return db.$queryRaw<[{ schema: string; body: string | null; owners: boolean | null; sees: boolean | null }]>`
    select quote_ident(schema) as schema, prosrc as body, prosecdef as owners,
           exists (select from unnest(proconfig) as setting
                    where starts_with(setting || ',', 'search_path=' || quote_ident(schema) || ',')) as sees
      from (select current_schema()::text as schema) as ours
           left join pg_proc on proname = ${name}::text and pronamespace = schema::regnamespace and pronargs = 0`;
}

function faultOfFunction(
  { name, sql, body }: CallParts['function'],
  [found]: Awaited<ReturnType<typeof functionOf>>,
): Finding[] {
  const as = found.body !== null && inOneLine(found.body) === body.trim() && found.owners && found.sees;
  if (as) return [];
  const detail = `The function ${name} is ${found.body === null ? 'gone' : "another than hourhand's"}: ${WITHOUT}`;
  const remedy = `type in psql: ${sql}; ALTER FUNCTION "${name}"() SET search_path = ${found.schema}, pg_temp;`;
  return [{ subject: name, detail, remedy }];
}

/** `valid`: usable as a whole, in each partition too. */
async function indexesOf(db: Db, { indexes }: CallParts) {
  return db.$queryRaw<{ name: string; valid: boolean }[]>`
    select c.relname::text as name,
           bool_and(i.indisvalid and i.indisready and coalesce(part.indisvalid and part.indisready, true)) as valid
      from pg_index i join pg_class c on c.oid = i.indexrelid
           left join pg_inherits h on h.inhparent = i.indexrelid
           left join pg_index part on part.indexrelid = h.inhrelid
     where i.indrelid = to_regclass('"ModelCall"') and c.relname = any(${indexes.map(({ name }) => name)}::text[])
     group by 1`;
}

/** Where there are no partitions, it is made while everybody goes on writing. */
function faultOfIndex(
  { name, sql }: Part,
  found: readonly { name: string; valid: boolean }[],
  partitioned: boolean,
): Finding[] {
  const index = found.find((one) => one.name === name);
  if (index?.valid) return [];
  const is = index ? 'invalid' : 'gone';
  const detail = `The index ${name} of ModelCall is ${is}: figures are right, and take much longer`;
  const make = sql.replace(/ INDEX (IF NOT EXISTS )?/, partitioned ? ' INDEX ' : ' INDEX CONCURRENTLY ');
  return [{ subject: name, detail, remedy: `type in psql: ${index ? `DROP INDEX "${name}"; ` : ''}${make};` }];
}

/** Whether late calls left no mark while this was wrong; a lacking index costs time alone. */
export const isTriggerFault = ({ subject }: Finding, parts: CallParts): boolean =>
  subject === parts.function.name || parts.triggers.some(({ name }) => name === subject);

/** A time in which late calls left no mark: from when a fault was first seen, until it was seen no more. */
export interface Silence {
  readonly from: Date;
  readonly until: Date;
}

/** The times of which a closed hour has not been audited since they ended. */
export async function unaudited(db: Db, silences: readonly Silence[]): Promise<Silence[]> {
  return db.$queryRaw<Silence[]>`
    select silence."from", silence.until
      from unnest(${silences.map(({ from }) => from)}::timestamptz[],
                  ${silences.map(({ until }) => until)}::timestamptz[]) as silence("from", until)
     where exists (select from "StatHour" l
                    where l.hour >= date_trunc('hour', silence."from", 'UTC') - interval '1 hour'
                      and l.hour < silence.until and l.state = 'closed' and l."sealedAt" is null
                      and (l."auditedAt" < silence.until) is not false)
     order by 1`;
}

/** What Postgres' clock says. */
export async function clockOf(db: Db, now?: Now): Promise<Date> {
  const [{ at }] = await db.$queryRaw<[{ at: Date }]>`select ${instant(now)} as at`;
  return at;
}
