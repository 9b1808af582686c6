// A bare checkout of what is here, in a folder of its own: as a newcomer has it after `git clone`.
import { cpSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { root } from '../../../scripts/servers.mjs';

/** How the names end that git ignores. It is not asked itself: it may not be there. */
const ignored = readFileSync(path.join(root, '.gitignore'), 'utf8')
  .split('\n')
  .filter(Boolean)
  .map((line) => (line.startsWith('*') ? line.slice(1) : `/${line.replace(/\/$/, '')}`));

/** The files that git tracks, or would track, as they are now, copied into `dir`, which is made. */
export function bareCheckout(dir: string): string {
  const isOurs = (file: string) => {
    const name = `/${path.relative(root, file)}`;
    return name !== '/.git' && !ignored.some((end) => name.endsWith(end));
  };
  mkdirSync(dir, { recursive: true });
  // One by one, for the folder may lie in .local.
  for (const from of readdirSync(root).map((name) => path.join(root, name))) {
    if (isOurs(from)) cpSync(from, path.join(dir, path.basename(from)), { recursive: true, filter: isOurs });
  }
  return dir;
}
