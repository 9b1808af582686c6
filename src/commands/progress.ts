// How is long work shown?

import { SingleBar } from 'cli-progress';
import { say } from './say.ts';

export interface Progress {
  update(done: number, total?: number): void;
  note(line: string): void;
  stop(): void;
}

/** A bar on a terminal, else a plain line at every tenth. Nothing is shown before there is something to do. */
export function openProgress(unit: string, total: number): Progress {
  return process.stderr.isTTY ? bar(unit, total) : lines(unit, total);
}

function bar(unit: string, total: number): Progress {
  const shown = new SingleBar({
    format: `{bar} {percentage}% | {value}/{total} ${unit} | {duration_formatted}`,
    stream: process.stderr,
    hideCursor: true,
  });
  if (total > 0) shown.start(total, 0);
  return {
    update: (done, of) => {
      if (!shown.isActive) return of ? shown.start(of, done) : undefined;
      if (of !== undefined) shown.setTotal(of);
      shown.update(done);
    },
    note: (line) => process.stderr.write(`\n${line}\n`),
    stop: () => shown.stop(),
  };
}

function lines(unit: string, first: number): Progress {
  let total = first;
  let said = -1;
  return {
    update: (done, of = total) => {
      total = of;
      if (total === 0) return;
      const tenth = Math.floor((10 * done) / total);
      if (tenth > said) say(`${done}/${total} ${unit}`);
      said = Math.max(said, tenth);
    },
    note: say,
    stop: () => {},
  };
}
