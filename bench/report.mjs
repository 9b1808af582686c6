// What do the benches say, in words for the docs? Each case's latest results stand in bench/results.json; bench/README.md, the
// README's table and that of docs/scaling.md are made from them.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { root } from '../scripts/servers.mjs';

const file = (name) => path.join(root, name);
const BEGIN = '<!-- measured: made by npm run bench -- --write -->';
const END = '<!-- /measured -->';

const cell = (text) => String(text ?? '').replaceAll('|', '\\|');
const row = (...cells) => `| ${cells.map(cell).join(' | ')} |`;

export function writeReport({ machine, command, found }) {
  const known = existsSync(file('bench/results.json'))
    ? JSON.parse(readFileSync(file('bench/results.json'), 'utf8'))
    : {};
  for (const name of new Set(found.map((one) => one.case))) {
    known[name] = {
      machine,
      command,
      rows: found.filter((one) => one.case === name).map(({ case: _, ...rest }) => rest),
    };
  }
  writeFileSync(file('bench/results.json'), `${JSON.stringify(known, undefined, 2)}\n`);
  const cases = Object.entries(known);
  const tables = cases.map(([name, { machine: where, command: how, rows }]) =>
    [
      `## ${name}`,
      '',
      `\`${how}\`, on ${where}.`,
      '',
      row('what', 'ratio', 'hourhand', 'against', 'besides', 'target'),
      row(...Array(6).fill('---')),
      ...rows.map((one) =>
        row(
          one.what,
          one.ratio,
          one.hourhand,
          one.against,
          one.beside,
          one.target && `${one.target}: ${one.met ? 'met' : '**missed**'}`,
        ),
      ),
    ].join('\n'),
  );
  replace('bench/README.md', tables.join('\n\n'));
  const short = [
    row('what', 'ratio', 'hourhand', 'against'),
    row(...Array(4).fill('---')),
    ...cases.flatMap(([, { rows }]) => rows.map((one) => row(one.what, one.ratio, one.hourhand, one.against))),
  ];
  replace('README.md', short.join('\n'));
  const sizes = ['hour', 'backfill']
    .flatMap((name) => known[name]?.rows ?? [])
    .map((one) => row(one.what, one.hourhand, one.beside));
  replace(
    'docs/scaling.md',
    [row('what', 'from enqueued to closed', 'besides'), row(...Array(3).fill('---')), ...sizes].join('\n'),
  );
}

function replace(name, text) {
  const whole = readFileSync(file(name), 'utf8');
  const [before, rest] = whole.split(BEGIN);
  if (rest === undefined || !rest.includes(END)) throw new Error(`${name}: expected the marks ${BEGIN} and ${END}`);
  writeFileSync(file(name), `${before}${BEGIN}\n${text}\n${END}${rest.split(END)[1]}`);
}
