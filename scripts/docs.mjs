// What the docs say of the environment, from the schema that reads it: `npm run docs` writes it, `-- --check` compares.
// Then: do their links lead somewhere, and are the commands there that they name? It reads the built code: `npm run build` first.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import GithubSlugger from 'github-slugger';
import { headings, home } from '../dist/config.js';

const BEGIN = '<!-- configuration: made by npm run docs -->';
const END = '<!-- /configuration -->';

/** What everyone sets sooner or later who has servers and users of their own: the README's part of the table. */
const FIRST = [
  'DATABASE_URL',
  'REDIS_URL',
  'HOST',
  'PORT',
  'DASHBOARD_CREDENTIALS_FILE',
  'WORKER_CONCURRENCY',
  'MODEL_CALL_STATS_CRON_TIME',
  'ALARM_WEBHOOK_URL',
];

const checking = process.argv.includes('--check');
const problems = [...generated(), ...brokenLinks(), ...wrongCommands()];
for (const problem of problems) console.log(problem);
if (problems.length === 0) console.log('the docs are as the schema says; their links and commands are there');
process.exitCode = problems.length === 0 ? 0 : 1;

// --- the tables ------------------------------------------------------------------------------------------------------

function generated() {
  const all = Object.entries(headings).map(([heading, variables]) => `## ${heading}\n\n${table(variables)}`);
  const first = Object.values(headings).flatMap((variables) => Object.entries(variables));
  const parts = {
    'README.md': table(Object.fromEntries(first.filter(([name]) => FIRST.includes(name)))),
    'docs/configuration.md': `\n${all.join('\n\n')}\n`,
  };
  const stale = Object.entries(parts).filter(([file, part]) => {
    const text = read(file);
    const [before, rest] = text.split(BEGIN);
    if (rest === undefined || !rest.includes(END)) throw new Error(`${file}: expected the marks ${BEGIN} and ${END}`);
    const made = `${before}${BEGIN}\n${part}\n${END}${rest.split(END)[1]}`;
    if (!checking && made !== text) writeFileSync(path.join(home, file), made);
    return made !== text;
  });
  if (checking) return stale.map(([file]) => `${file}: not as the schema says: type npm run docs`);
  for (const [file] of stale) console.log(`${file}: written`);
  return [];
}

function table(variables) {
  const cell = (text) => text.replaceAll('|', '\\|');
  const rows = Object.entries(variables).map(([name, [schema, fallback, meaning]]) => {
    const { expected, unit } = schema.meta();
    // The cores differ from machine to machine, and so would the table.
    const byDefault = name === 'WORKER_CONCURRENCY' ? 'cores, at most 4' : shown(fallback);
    return `| \`${name}\` | ${byDefault} | ${!unit || unit === 'none' ? '' : unit} | ${cell(meaning)} | ${cell(expected)} |`;
  });
  return ['| variable | default | unit | what it does | expected |', '|---|---|---|---|---|', ...rows].join('\n');
}

function shown(fallback) {
  if (fallback === undefined) return 'private server';
  return fallback === '' ? 'none' : `\`${fallback}\``;
}

// --- links and commands ----------------------------------------------------------------------------------------------

function brokenLinks() {
  return pages().flatMap((page) =>
    [...prose(read(page)).matchAll(/\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)/g)]
      .filter(([, file, anchor]) => {
        const target = file === '' ? page : path.join(path.dirname(page), file);
        if (!existsSync(path.join(home, target))) return true;
        return anchor !== undefined && !(target.endsWith('.md') && anchorsOf(read(target)).includes(anchor));
      })
      .map(([link]) => `${page}: ${link.slice(1)} leads nowhere`),
  );
}

function wrongCommands() {
  const { scripts } = JSON.parse(read('package.json'));
  const following = new Map();
  /** What the tab key would offer behind these words. */
  const after = (...words) => {
    const key = words.join(' ');
    if (!following.has(key)) {
      const asked = [path.join(home, 'bin/hourhand.mjs'), 'complete', '--', ...words, ''];
      const { stdout } = spawnSync(process.execPath, asked, { encoding: 'utf8' });
      following.set(key, new Set(stdout.split('\n').map((line) => line.split('\t')[0])));
    }
    return following.get(key);
  };
  return pages().flatMap((page) => {
    const text = codeOf(read(page));
    const npm = [...text.matchAll(/\bnpm run ([a-z][\w:]*)/g)].filter(([, script]) => !scripts[script]);
    const ours = [...text.matchAll(/(?:^|[|(] ?|npx )hourhand ([a-z][a-z-]*)(?: ([a-z]+)\b)?/gm)].filter(
      ([, command, below]) =>
        !after().has(command) ||
        (below && ['models', 'backfills', 'schedule', 'identity'].includes(command) && !after(command).has(below)),
    );
    return [...npm, ...ours].map(([said]) => `${page}: ${said.trim()}: there is no such command`);
  });
}

/** Every page in Markdown, as a path in the checkout. */
function pages(folder = '') {
  return readdirSync(path.join(home, folder), { withFileTypes: true }).flatMap((entry) => {
    const name = path.join(folder, entry.name);
    if (entry.isDirectory()) return /^\.|^dist|^node_modules$/.test(entry.name) ? [] : pages(name);
    return name.endsWith('.md') ? [name] : [];
  });
}

function anchorsOf(text) {
  const slugger = new GithubSlugger();
  return [...prose(text).matchAll(/^#+ (.*)$/gm)].map(([, heading]) => slugger.slug(heading.replaceAll('`', '')));
}

/** Blocks of code, and what stands in backticks. */
function codeOf(text) {
  return [...text.matchAll(/^```[\s\S]*?^```|`([^`\n]+)`/gm)].map(([block, span]) => span ?? block).join('\n');
}

/** Without blocks of code, whose lines are neither links nor headings. */
function prose(text) {
  return text.replaceAll(/^```[\s\S]*?^```/gm, '');
}

function read(file) {
  return readFileSync(path.join(home, file), 'utf8');
}
