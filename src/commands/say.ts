// What is told to whoever typed the command?

/** A line for a person. On stderr, so that stdout is the command's data alone. */
export function say(line: string): void {
  process.stderr.write(`${line}\n`);
}
