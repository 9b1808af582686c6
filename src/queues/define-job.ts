// What must a producer and a processor agree on?

import { type Job, type JobsOptions, type Queue, UnrecoverableError } from 'bullmq';
import type { z } from 'zod';

/** The agreement about one kind of job, and nothing else. */
export interface JobDefinition<Data> {
  readonly queue: string;
  readonly schema: z.ZodType<Data>;
  /** What an operator reads in Bull Board. */
  readonly name: (data: Data) => string;
  /** Two jobs with one id are one job until the first has finished. Children have a `jobId` instead. */
  readonly deduplicationId?: (data: Data) => string;
  readonly options: JobsOptions;
}

const DAY = 24 * 3600;

/** An operator sees a week of what was done; what failed stays for two, or until it is retried. */
const kept: JobsOptions = {
  removeOnComplete: { age: 7 * DAY, count: 2_000 },
  removeOnFail: { age: 14 * DAY, count: 5_000 },
  keepLogs: 100,
  stackTraceLimit: 5,
};

/** Errors of the server and of the traffic pass: five attempts in about a minute, then what Postgres says is owed takes over. */
export const retried: JobsOptions = {
  ...kept,
  attempts: 5,
  backoff: { type: 'exponential', delay: 1_000, jitter: 0.5 },
};

/**
 * A tick takes any name and any data for a tick: a promoted one can lose both.
 * Nothing of it is kept: a retained tick's id would block the next one at the same instant.
 */
export const tickOptions: JobsOptions = { removeOnComplete: true, removeOnFail: true, attempts: 1 };

/** A tick that a person asks for. While one waits or runs it stands for every other. */
export const askedTick: JobToAdd = {
  name: 'tick, asked for',
  data: { asked: true },
  opts: { ...tickOptions, deduplication: { id: 'tick-asked-for' } },
};

/** Whether a person asked for this tick. */
export function isAskedFor({ data }: Pick<Job, 'data'>): boolean {
  return Object(data).asked === true;
}

export interface JobToAdd {
  readonly name: string;
  readonly data: object;
  readonly opts: JobsOptions;
}

/** A job as BullMQ takes it. */
export function jobOf<Data extends object>(
  definition: JobDefinition<Data>,
  data: NoInfer<Data>,
  opts: JobsOptions = {},
): JobToAdd {
  const id = definition.deduplicationId?.(data);
  const deduplication = id ? { deduplication: { id } } : {};
  return { name: definition.name(data), data, opts: { ...definition.options, ...deduplication, ...opts } };
}

const CHUNK = 500;

/**
 * Add jobs in chunks: thousands in one transaction keep Redis from everyone else. Every id is checked, because a bulk
 * add is a pipeline: where a parent or a lock is gone it returns a negative number in place of an id, and throws nothing.
 * Adding the same jobs again adds nothing (deduplication ids, or the children's own ids).
 *
 * @throws {Error} saying how many were refused, and the first of them
 */
export async function addJobs(queue: Queue, jobs: readonly JobToAdd[]): Promise<void> {
  for (let i = 0; i < jobs.length; i += CHUNK) {
    const chunk = jobs.slice(i, i + CHUNK);
    const added = await queue.addBulk(chunk.map((job) => ({ ...job })));
    const refused = chunk.filter((_, n) => !isJobId(added[n]?.id));
    if (refused.length > 0 || added.length !== chunk.length) {
      throw new Error(
        `${queue.name}: Redis refused ${refused.length} of ${chunk.length} jobs, the first "${refused[0]?.name}"`,
      );
    }
  }
}

function isJobId(id: string | undefined): boolean {
  return id !== undefined && id !== '' && !String(id).startsWith('-');
}

/** Data that does not parse will not parse on the next attempt either. */
export function parseData<Data>(definition: JobDefinition<Data>, job: Job): Data {
  const parsed = definition.schema.safeParse(job.data);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  const found = JSON.stringify(issue?.path.reduce<unknown>((value, key) => Object(value)[key], job.data));
  throw new UnrecoverableError(
    `${definition.queue} ${job.id}: ${issue?.path.join('.')}: ${issue?.message}, got ${found}`,
  );
}
