// hourhand late: list what came late for sealed hours, and accept it as not applied.

import type { Connections } from '../connections.ts';
import { lateHours, unsealedOf } from '../store/late.ts';
import { acceptLate } from '../store/retain.ts';
import { shownName } from '../store/scope.ts';
import type { Hour } from '../time/hour.ts';
import { say } from './say.ts';

const MOST = 1_000;

/** Some users, as people read them; a name that is too long for a mark is not known. */
export function namesOf(users: readonly string[]): string {
  return users.map((user) => (user === '' ? 'a user with a very long name' : shownName(user))).join(', ');
}

/** The sealed hours for which something came late that nobody has accepted, the oldest first. */
export async function listLate({ pool }: Connections, { json }: { json: boolean }): Promise<number> {
  const hours = await lateHours(pool, undefined, MOST);
  if (json) process.stdout.write(`${JSON.stringify(hours, null, 2)}\n`);
  for (const { hour, writes, users, firstAt, lastAt } of json ? [] : hours) {
    const when = firstAt && lastAt ? `, from ${firstAt.toISOString()} to ${lastAt.toISOString()}` : '';
    process.stdout.write(`${hour} late, not applied: ${writes} writes (${namesOf(users)})${when}\n`);
  }
  if (hours.length === 0) say('nothing came late for a sealed hour that has not been accepted');
  else if (hours.length === MOST) say(`the oldest ${MOST} hours; there may be more`);
  return 0;
}

/**
 * All of the hours, or none.
 *
 * @returns the exit code: 1 if an hour is not sealed; then nothing was changed
 */
export async function acceptLateHours(
  { pool }: Connections,
  hours: readonly Hour[],
  { by }: { by: string },
): Promise<number> {
  const unsealed = await unsealedOf(pool, hours);
  if (unsealed.length > 0) {
    say(`expected sealed hours, got ${unsealed.join(', ')}: what comes late for other hours is counted by itself`);
    return 1;
  }
  const accepted = await pool.$transaction((db) => acceptLate(db, hours, by));
  for (const { hour, writes, users } of accepted) {
    process.stdout.write(`${hour} accepted: ${writes} writes of ${users} users stay unapplied\n`);
  }
  const none = hours.filter((hour) => !accepted.some((line) => line.hour === hour));
  if (none.length > 0) say(`nothing to accept of ${none.join(', ')}`);
  return 0;
}
