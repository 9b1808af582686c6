// Finds the transactions that hold a lock, such as those on the table of calls.

import { setTimeout as sleep } from 'node:timers/promises';

/** A transaction that holds a lock. */
export interface Holder {
  /** PostgreSQL's own name for the transaction. */
  readonly transaction: string;
  /** Null for a transaction that was prepared for a commit in two phases: it belongs to no session. */
  readonly pid: number | null;
  readonly role: string | null;
  readonly application: string | null;
  /** The name of the prepared transaction, else null. */
  readonly gid: string | null;
  /** When it began, in ISO-8601; null if our role may not see that. */
  readonly since: string | null;
}

/**
 * The holders of some locks, the oldest first. A lock that a session still waits for does not count. Every role may
 * read `pg_locks`, but not when a stranger's transaction began.
 *
 * @param which a condition on a row `l` of `pg_locks`
 */
export const holdersOf = (which: string) => `
  select l.virtualtransaction as transaction, coalesce(a.leader_pid, l.pid) as pid,
         coalesce(a.usename, p.owner)::text as role,
         coalesce(nullif(a.application_name, ''), a.backend_type) as application, p.gid,
         to_char(min(coalesce(a.xact_start, p.prepared)) at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as since
    from pg_locks l
         left join pg_stat_activity a on a.pid = l.pid
         left join pg_prepared_xacts p
                on l.pid is null and p.transaction::text = split_part(l.virtualtransaction, '/', 2)
   where l.granted and l.pid is distinct from pg_backend_pid()
     and l.database = (select oid from pg_database where datname = current_database()) and (${which})
   group by 1, 2, 3, 4, 5
   order by min(coalesce(a.xact_start, p.prepared)) nulls last, pid`;

/** The holders of `ModelCall` or of its default partition. */
export const holdersQuery = holdersOf(
  `l.locktype = 'relation' and l.relation in (to_regclass('"ModelCall"'), to_regclass('"ModelCall_default"'))`,
);

/**
 * Look twice: a transaction that is there both times has held the table for longer than `ms`.
 *
 * @param ask how `holdersQuery` is asked
 * @returns the oldest of such transactions; `undefined` at once if nobody holds the table
 */
export async function longHolder(ask: () => Promise<Holder[]>, ms: number): Promise<Holder | undefined> {
  const before = await ask();
  if (before.length === 0) return undefined;
  await sleep(ms);
  const known = new Set(before.map(({ transaction }) => transaction));
  return (await ask()).find(({ transaction }) => known.has(transaction));
}

/** Who it is, for a person. */
export function spellHolder({ pid, role, application, gid, since }: Holder): string {
  const who = pid === null ? `the prepared transaction ${gid}` : `the session ${pid}`;
  const what = application ? ` (${application})` : '';
  return `${who} of role ${role ?? 'unknown'}${what}${since ? `, whose transaction began at ${since},` : ''}`;
}

/** What ends it. */
export function remedyFor({ pid, gid }: Holder): string {
  return pid === null
    ? `end that transaction: ROLLBACK PREPARED '${(gid ?? '').replaceAll("'", "''")}'`
    : `let that transaction end, or end its session: SELECT pg_terminate_backend(${pid})`;
}
