// A bare checkout of what is here, in a folder of its own: as a newcomer has it after `git clone`.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync } from 'node:fs';
import path from 'node:path';
import { root } from '../../../scripts/servers.mjs';

/** The files that git tracks, or would track, as they are now, copied into `dir`, which is made. */
export function bareCheckout(dir: string): string {
  const list = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], { cwd: root });
  for (const name of list.toString().split('\0').filter(Boolean)) {
    const to = path.join(dir, name);
    mkdirSync(path.dirname(to), { recursive: true });
    cpSync(path.join(root, name), to, { force: true });
  }
  return dir;
}
