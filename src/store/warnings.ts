// Keeps the warnings: what is wrong at this moment and does not stop the work.

import { type Db, instant, type Now, type Pool } from './db.ts';

/** Each kind of warning is raised and ended by one look. */
export const WARNING_KINDS = [
  'clock',
  'partitions',
  'redis-owner',
  'sealed-late',
  'triggers',
  'unaudited',
  'uncovered',
] as const;
export type WarningKind = (typeof WARNING_KINDS)[number];

/** One thing that is wrong. `detail` is a sentence; `remedy` says what to type or to do. */
export interface Finding {
  /** What the warning is about: a partition, an hour; empty if the kind has one subject only. */
  readonly subject: string;
  readonly detail: string;
  readonly remedy: string;
}

/** A warning that stands. */
export interface Warning extends Finding {
  readonly kind: WarningKind;
  /** When it was first seen, by Postgres' clock. */
  readonly since: Date;
}

/**
 * Make the warnings of one kind be these findings: raise the new ones, update the text of the known ones, end the others. `since` of a
 * known one stays. Any number of processes may do it at once.
 *
 * @returns the warnings that this very call raised, and those that it ended
 */
export async function settleWarnings(
  pool: Pool,
  kind: WarningKind,
  findings: readonly Finding[],
  now?: Now,
): Promise<{ raised: Warning[]; ended: Warning[] }> {
  return pool.$transaction(async (db) => {
    const subjects = findings.map(({ subject }) => subject);
    const ended = await db.$queryRaw<Warning[]>`
      delete from "Warning" where kind = ${kind}::text and subject <> all(${subjects}::text[])
      returning kind, subject, since, detail, remedy`;
    const raised = await db.$queryRaw<(Warning & { fresh: boolean })[]>`
      insert into "Warning" as w (kind, subject, since, detail, remedy)
      select ${kind}::text, subject, ${instant(now)}, detail, remedy
        from unnest(${subjects}::text[], ${findings.map(({ detail }) => detail)}::text[],
                    ${findings.map(({ remedy }) => remedy)}::text[]) as f(subject, detail, remedy)
       order by subject
      on conflict (kind, subject) do update set detail = excluded.detail, remedy = excluded.remedy
       where (w.detail, w.remedy) is distinct from (excluded.detail, excluded.remedy)
      returning kind, subject, since, detail, remedy, xmax = 0 as fresh`;
    return { raised: raised.filter(({ fresh }) => fresh).map(({ fresh: _, ...warning }) => warning), ended };
  });
}

/** The warnings that stand, the oldest first. */
export async function openWarnings(db: Db): Promise<Warning[]> {
  return db.$queryRaw<
    Warning[]
  >`select kind, subject, since, detail, remedy from "Warning" order by since, kind, subject`;
}
