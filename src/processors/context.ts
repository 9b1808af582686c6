// What is every processor handed?

import type { Job } from 'bullmq';
import type { Logger } from 'pino';

/** A job under way: its lock's token is there, and `signal` aborts when the lock is lost or the deadline has passed. */
export interface Context {
  readonly job: Job;
  readonly token: string;
  readonly signal: AbortSignal;
  readonly log: Logger;
}

export type Process = (context: Context) => Promise<unknown>;
