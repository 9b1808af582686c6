// The docs' table of the environment, from the schema that reads it: `npm run docs` writes it, `-- --check` compares.
// It reads the built code: `npm run build` first.
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { environment, home } from '../dist/config.js';

const FILES = ['README.md', 'docs/configuration.md'];
const BEGIN = '<!-- configuration: made by npm run docs -->';
const END = '<!-- /configuration -->';

const cell = (text) => text.replaceAll('|', '\\|');
const rows = Object.entries(environment).map(([name, [schema, fallback, meaning]]) => {
  // The cores differ from machine to machine, and so would the table.
  const shown =
    name === 'WORKER_CONCURRENCY'
      ? 'cores, at most 4'
      : fallback === undefined
        ? 'private server'
        : fallback === ''
          ? 'none'
          : `\`${fallback}\``;
  return `| \`${name}\` | ${shown} | ${cell(meaning)} | ${cell(schema.meta().expected)} |`;
});
const table = ['| variable | default | what it does | expected |', '|---|---|---|---|', ...rows].join('\n');

const stale = [];
for (const file of FILES) {
  const at = path.join(home, file);
  const text = readFileSync(at, 'utf8');
  const [before, rest] = text.split(BEGIN);
  if (rest === undefined || !rest.includes(END)) throw new Error(`${file}: expected the marks ${BEGIN} and ${END}`);
  const made = `${before}${BEGIN}\n${table}\n${END}${rest.split(END)[1]}`;
  if (made === text) continue;
  stale.push(file);
  if (!process.argv.includes('--check')) writeFileSync(at, made);
}

const checking = process.argv.includes('--check');
if (stale.length === 0) console.log('the docs are as the schema says');
else console.log(`${stale.join(', ')}: ${checking ? 'not as the schema says: type npm run docs' : 'written'}`);
process.exitCode = checking && stale.length > 0 ? 1 : 0;
