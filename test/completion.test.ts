// What the tab key completes, in the shells themselves; and the command's own file, wherever a link to it lies.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { text } from 'node:stream/consumers';
import { afterAll, describe, expect, test } from 'vitest';
import { home, version } from '../src/config.ts';
import { SCHEDULER_IDS } from '../src/queues/schedulers.ts';

const bin = path.join(home, 'bin', 'hourhand.mjs');
const folder = mkdtempSync(path.join(tmpdir(), 'hourhand-completion-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** What is typed until the tab key is pressed, and what may follow. */
const lines: [line: string, words: string[]][] = [
  ['bac', ['backfill', 'backfills']],
  ['models ch', ['check']],
  ['schedule pause ', [...SCHEDULER_IDS]],
  ['backfill --from 2026-08-20T13:00 --on', ['--only']],
  ['backfill --only=m', ['missing']],
  ['credentials ada --role o', ['operator']],
  ['help mod', ['models']],
  ['status ', []],
  ['import --sk', ['--skip-bad']],
  ['import ', ['calls.csv']],
];
const here = path.join(folder, 'here');
mkdirSync(here);
writeFileSync(path.join(here, 'calls.csv'), '');

// Only an interactive shell completes, and says so to a terminal: bash and zsh are given what they would hand over, and
// what they would be handed is printed. Fish has a word for it.
const shells = {
  bash: (script: string) => `
    compopt() { compgen -f -- ""; }
    source ${script}; source ${script}
    ${lines.map(([line]) => `COMP_WORDS=(hourhand ${wordsOf(line, /\s|(?<=[:=])|(?=[:=])/)}); COMP_CWORD=$((\${#COMP_WORDS[@]} - 1)); _hourhand; printf '%s\\n' "\${COMPREPLY[@]}" =`).join('\n')}`,
  zsh: (script: string) => `
    compdef() { :; }
    _describe() { print -l -- "\${completions[@]%%:*}"; (( \${#completions} )); }
    _arguments() { print -l *; }
    source ${script}
    ${lines.map(([line]) => `words=(hourhand ${wordsOf(line, /\s/)}); CURRENT=\${#words}; _hourhand; echo =`).join('\n')}`,
  fish: (script: string) => `
    source ${script}
    ${lines.map(([line]) => `complete -C 'hourhand ${line}' | string replace -r '\\t.*' ''; echo =`).join('\n')}`,
};

describe.concurrent.each(Object.keys(shells) as (keyof typeof shells)[])('the tab key', (shell) => {
  const there = (process.env.PATH ?? '').split(':').some((dir) => dir && list(dir).includes(shell));
  test.skipIf(!there)(
    `completes commands, options, choices and files in ${shell}${there ? '' : ', which is not here'}`,
    async () => {
      const { code, stdout: script } = await run([process.execPath, bin, 'completion', shell]);
      expect(code).toBe(0);
      const file = path.join(folder, `${shell}.script`);
      writeFileSync(file, script);
      const said = await run([shell, '-c', shells[shell](`'${file}'`)]);
      expect(said.stderr).toBe('');
      const found = said.stdout.split(/^=\n/m).map((words) =>
        words
          .split('\n')
          .filter((word) => word !== '')
          .map((word) => word.replace('--only=', '')) // which fish says again
          .sort(),
      );
      expect(Object.fromEntries(lines.map(([line], i) => [line, found[i]]))).toEqual(
        Object.fromEntries(lines.map(([line, words]) => [line, [...words].sort()])),
      );
    },
  );
});

test('a press of the tab key loads no client of a server', async () => {
  const coverage = path.join(folder, 'coverage');
  const words = ['complete', '--', 'schedule', 'pause', 'model'];
  const { stdout } = await run([process.execPath, bin, ...words], { NODE_V8_COVERAGE: coverage });
  expect(stdout).toMatch(/^model\.call\.stats\t.*\n:4\n$/);
  const loaded = readdirSync(coverage).flatMap((name) => {
    const { result } = JSON.parse(readFileSync(path.join(coverage, name), 'utf8')) as { result: { url: string }[] };
    return result.map(({ url }) => url);
  });
  expect(loaded.filter((url) => url.includes('commander'))).not.toEqual([]);
  expect(loaded.filter((url) => /node_modules\/(@prisma|bullmq|ioredis|pg|express)\//.test(url))).toEqual([]);
});

describe.concurrent('the command itself', () => {
  test('runs through a link, from any folder', async () => {
    const link = path.join(folder, 'hourhand');
    symlinkSync(bin, link);
    expect(await run([link, '--version'])).toEqual({ code: 0, stdout: `${version}\n`, stderr: '' });
  });

  test('says what to type, where it is not built', async () => {
    const copy = path.join(folder, 'checkout', 'bin');
    mkdirSync(copy, { recursive: true });
    cpSync(bin, path.join(copy, 'hourhand.mjs'));
    expect(await run([process.execPath, path.join(copy, 'hourhand.mjs')])).toEqual({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(/^hourhand is not built yet: run npm start, .*\n$/),
    });
  });

  test.each(['18.20.8', '20.18.3'])('says which Node it needs, on %s', async (old) => {
    const older = path.join(folder, `node-${old}.mjs`);
    writeFileSync(older, `Object.defineProperty(process.versions, 'node', { value: '${old}' });`);
    expect(await run([process.execPath, '--import', older, bin, '--version'])).toEqual({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(/^hourhand needs Node 20\.19 or newer; this is v.*\n$/),
    });
  });
});

async function run([command = '', ...args]: string[], env: Record<string, string> = {}) {
  const child = spawn(command, args, {
    cwd: here,
    env: { PATH: process.env.PATH, HOME: folder, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const [stdout, stderr, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')]);
  return { code: code as number | null, stdout, stderr }; // as Node documents it
}

function wordsOf(line: string, cut: RegExp): string {
  return line
    .split(cut)
    .map((word) => `'${word}'`)
    .join(' ');
}

function list(dir: string): string[] {
  try {
    return readdirSync(dir);
  } catch {
    return [];
  }
}
