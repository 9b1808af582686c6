// Unpacks programs of Debian's and Ubuntu's packages into the checkout. Node built-ins only.
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import path from 'node:path';
import { lastLines, run } from './processes.mjs';

/** Where the libraries are that came with an unpacked program, as LD_LIBRARY_PATH wants it. */
export const librariesIn = (dir) =>
  ['lib', 'usr/lib']
    .map((folder) => path.join(dir, folder))
    .filter(existsSync)
    .flatMap((folder) => readdirSync(folder).map((name) => path.join(folder, name)))
    .join(':');

/**
 * Unpacks packages, with the libraries that this system lacks, into `dir`. It needs no root and installs nothing.
 *
 * @param choices lists of packages: the first list that can be had is taken
 * @throws {Error} saying what apt-get said of the first list
 */
export async function unpackPackages(dir, choices) {
  for (const tool of ['apt-get', 'dpkg-deb']) {
    if ((await run([tool, '--version'])).code !== 0) throw new Error(`There is no ${tool}.`);
  }
  const unfinished = `${dir}.new`;
  rmSync(unfinished, { recursive: true, force: true });
  const folder = (name) => {
    mkdirSync(path.join(unfinished, name), { recursive: true });
    return path.join(unfinished, name);
  };
  const packages = folder('packages');
  const unpacked = folder('unpacked');
  // Nothing of the system's is written: neither its cache nor its locks nor its logs. No user of apt's own has to reach
  // this place. Without a network, apt-get gives up soon.
  const settings = (...list) => list.flatMap((setting) => ['-o', setting]);
  const always = settings(
    `Dir::Cache=${folder('cache')}`,
    `Dir::Log=${folder('log')}`,
    'Debug::NoLocking=1',
    'APT::Sandbox::User=',
    'APT::Update::Error-Mode=any',
    'Acquire::http::Timeout=10',
    'Acquire::https::Timeout=10',
    'Acquire::Retries=1',
  );
  const ownLists = settings(`Dir::State::lists=${folder('lists')}`);
  folder('cache/archives/partial');
  folder('lists/partial');

  const must = async (command, cwd) => {
    const { code, output } = await run(command, { cwd, env: { ...process.env, LC_ALL: 'C' } });
    if (code !== 0) throw new Error(`${command[0]} ${command.at(-1)}: ${lastLines(output, 3)}`);
    return output;
  };
  const apt = (options, ...args) => must(['apt-get', ...always, ...options, ...args], packages);
  const download = async (options, names) => {
    // What an installation would add to this system: the program, also if it is installed and not on the PATH, and the
    // libraries that are missing.
    const plan = await apt(options, '-s', '-y', '--no-install-recommends', '--reinstall', 'install', ...names);
    await apt(options, 'download', ...[...plan.matchAll(/^Inst (\S+)/gm)].map((match) => match[1]));
  };
  const downloadFirst = async (options) => {
    let first;
    for (const names of choices) {
      try {
        return await download(options, names);
      } catch (error) {
        first ??= error;
      }
    }
    throw first;
  };
  try {
    // The system's own lists of packages save seconds. They may be missing, as in containers, or too old.
    await downloadFirst([]).catch(async () => {
      await apt(ownLists, 'update');
      await downloadFirst(ownLists);
    });
    for (const file of readdirSync(packages)) await must(['dpkg-deb', '-x', path.join(packages, file), unpacked]);
    rmSync(dir, { recursive: true, force: true });
    renameSync(unpacked, dir);
  } catch (error) {
    throw new Error(`Tried apt-get: ${error.message}`, { cause: error });
  } finally {
    rmSync(unfinished, { recursive: true, force: true });
  }
}
