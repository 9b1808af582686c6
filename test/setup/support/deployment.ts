// What the files of a deployment say: the Dockerfile, and what else is read with the readers in test/counterparts.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { home } from '../../../src/config.ts';

/** A package of test/counterparts. */
export const counterpart = createRequire(path.join(home, 'test/counterparts/package.json'));

export const textOf = (file: string): string => readFileSync(path.join(home, file), 'utf8');

/** What every deployment grants a process at the least to end, in seconds: more than a clean stop takes. */
export const GRACE_SECONDS = 10;

/** An instruction of the Dockerfile, such as RUN, with what stands after it on its line. */
export interface Instruction {
  readonly stage: number;
  readonly keyword: string;
  readonly text: string;
}

export function dockerfile(): Instruction[] {
  const { DockerfileParser } = counterpart('dockerfile-ast');
  let stage = 0;
  return DockerfileParser.parse(textOf('Dockerfile'))
    .getInstructions()
    .map((one: { getKeyword(): string; getArgumentsContent(): string }) => {
      const keyword = one.getKeyword();
      if (keyword === 'FROM') stage++;
      return { stage, keyword, text: one.getArgumentsContent() };
    });
}

/** What stands after the last such instruction of the image itself: its last stage. */
export function instruction(keyword: string): string {
  const all = dockerfile();
  const last = all.at(-1)?.stage;
  const found = all.findLast((one) => one.stage === last && one.keyword === keyword);
  if (!found) throw new Error(`the Dockerfile has no ${keyword} in its last stage`);
  return found.text;
}

/** The variables of the image. */
export const imageEnv = (): Record<string, string> =>
  Object.fromEntries(
    instruction('ENV')
      .split(/\s+/)
      .map((pair) => pair.split('=') as [string, string]),
  );

/** The command that says whether a container is well. */
export const healthCheck = (): string[] => JSON.parse(instruction('HEALTHCHECK').replace(/^.*?CMD /, ''));
