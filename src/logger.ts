// What is said to the person on call?

import { type DestinationStream, type Logger, pino } from 'pino';
import pretty from 'pino-pretty';

export type { Logger };

/** One JSON line per change of state; readable lines where somebody is looking at a terminal. */
export function createLogger(
  level: string,
  stream: DestinationStream & { isTTY?: boolean } = process.stdout,
): Logger {
  const destination = stream.isTTY ? pretty({ destination: stream, ignore: 'pid,hostname', sync: true }) : stream;
  return pino({ level, base: { pid: process.pid }, timestamp: pino.stdTimeFunctions.isoTime }, destination);
}
