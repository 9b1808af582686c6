// What was changed by hand: who, when, what, from where, and what came of it?

import { type Db, instant, type Now, Sql } from './db.ts';

export interface Action {
  readonly who: string;
  /** At the dashboard. */
  readonly role?: string | null;
  readonly what: string;
  readonly subject?: string | null;
  readonly detail?: unknown;
  /** An address, or the command line of a machine. */
  readonly from: string;
}

export interface ActionLine extends Action {
  readonly seq: number;
  readonly at: Date;
  /** Null: under way, or the process died of it. */
  readonly outcome: string | null;
}

/** Nothing that somebody sends makes a line longer. */
const bounded = (text: string | null | undefined) => text?.replaceAll('\0', '').slice(0, 500) ?? null;

/**
 * Write down what is about to be done. To be called before the change: where no line can be written, nothing is changed.
 *
 * @returns the line's number, for `settleAction`
 */
export async function recordAction(db: Db, { who, role, what, subject, detail, from }: Action): Promise<number> {
  const [{ seq }] = await db.$queryRaw<[{ seq: bigint }]>`
    insert into "OperatorAction" (at, who, role, what, subject, detail, "from")
    values (clock_timestamp(), ${bounded(who)}, ${role ?? null}::text, ${what}, ${bounded(subject)}::text,
            ${detail === undefined ? null : JSON.stringify(detail)}::jsonb, ${bounded(from)})
    returning seq`;
  return Number(seq);
}

/** Write down what came of it. */
export async function settleAction(db: Db, seq: number, outcome: string): Promise<void> {
  await db.$executeRaw`update "OperatorAction" set outcome = ${bounded(outcome)} where seq = ${seq}::bigint`;
}

/** The newest lines first, those before a line where one is named. */
export async function recentActions(
  db: Db,
  { limit, before }: { limit: number; before?: number | undefined },
): Promise<ActionLine[]> {
  const earlier = before === undefined ? Sql.empty : Sql.sql`where seq < ${before}::bigint`;
  const lines = await db.$queryRaw<(Omit<ActionLine, 'seq'> & { seq: bigint })[]>`
    select seq, at, who, role, what, subject, detail, "from", outcome
      from "OperatorAction" ${earlier} order by seq desc limit ${limit}::int`;
  return lines.map((line) => ({ ...line, seq: Number(line.seq) }));
}

/** Forget the lines of more than so many days ago. */
export async function forgetActions(db: Db, days: number, now?: Now): Promise<void> {
  await db.$executeRaw`delete from "OperatorAction" where at < ${instant(now)} - ${days}::int * interval '24 hours'`;
}
