// What is told to whoever typed the command?

import type { NumericColumn } from '../store/decimals.ts';

/** A line for a person. On stderr, so that stdout is the command's data alone. */
export function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

/** How many of the values that were read have more decimals than are stored, if any has. */
export function sayRounded(count: number, what: string, { places }: NumericColumn): void {
  if (count === 0) return;
  say(`${count} ${what}${count === 1 ? ' was' : 's were'} rounded to ${places} decimals`);
}
