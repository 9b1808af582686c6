// Says in the log which late calls nobody counts.

import type { Logger } from 'pino';
import type { Swept } from '../store/marks.ts';

/**
 * Say how many marks were swept away because their hours are uncovered, and which hours these are. The marks are gone
 * afterwards, so that it is said once. A warning if an hour was not known to be uncovered.
 */
export function saySwept(log: Logger, swept: Swept | undefined): void {
  if (!swept || swept.hours === 0) return;
  const { uncovered: marks, hours, fresh, first, last } = swept;
  const level = fresh > 0 ? 'warn' : 'info';
  log[level](
    { marks, hours, fresh, first, last },
    'late calls in hours that nobody rolls up are in no figure: type hourhand backfill --uncovered',
  );
}
