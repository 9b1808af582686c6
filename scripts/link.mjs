// Links every module of bench, scripts and test/soak without running one: an import of a name that is not exported fails.
// To be run with node --experimental-vm-modules.
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import vm from 'node:vm';
import { root } from './processes.mjs';

const FOLDERS = ['bench', 'scripts', 'test/soak'];
const context = vm.createContext();
const modules = new Map();

/** A module of ours is read and not run; any other is loaded, and stands for itself by the names that it exports. */
function moduleAt(url) {
  if (!modules.has(url)) modules.set(url, isOurs(url) ? Promise.resolve(parsed(url)) : loaded(url));
  return modules.get(url);
}

const isOurs = (url) => FOLDERS.some((folder) => url.startsWith(`${pathToFileURL(path.join(root, folder)).href}/`));

const parsed = (url) =>
  new vm.SourceTextModule(readFileSync(fileURLToPath(url), 'utf8'), { identifier: url, context });

async function loaded(url) {
  const names = Object.keys(await import(url));
  return new vm.SyntheticModule(names, () => {}, { identifier: url, context });
}

const linker = (specifier, { identifier }) =>
  moduleAt(specifier.startsWith('.') ? new URL(specifier, identifier).href : import.meta.resolve(specifier));

const faults = [];
let count = 0;
for (const folder of FOLDERS) {
  for (const name of readdirSync(path.join(root, folder)).filter((one) => one.endsWith('.mjs'))) {
    count += 1;
    const module = await moduleAt(pathToFileURL(path.join(root, folder, name)).href);
    try {
      if (module.status === 'unlinked') await module.link(linker);
    } catch (error) {
      faults.push(`${folder}/${name}: ${error.message}`);
    }
  }
}
for (const fault of faults) console.error(fault);
console.log(`${count} modules, ${faults.length} that cannot be linked`);
process.exitCode = faults.length > 0 ? 1 : 0;
