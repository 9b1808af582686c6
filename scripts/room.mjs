// Is there room on the disk, and what is said when there is none? Node built-ins only.
import { statfsSync } from 'node:fs';
import { root } from './processes.mjs';

const MEGABYTE = 2 ** 20;

function freeMegabytes() {
  const { bavail, bsize } = statfsSync(root);
  return Math.floor((bavail * bsize) / MEGABYTE);
}

/** @throws {Error} in words when less than these megabytes are free, before half of it is written */
export function checkRoom(megabytes, what) {
  const free = freeMegabytes();
  if (free >= megabytes) return;
  throw new Error(
    `The disk is full: ${what} need about ${megabytes} MB in ${root}, and ${free} MB are free. Make room, then do this again.`,
  );
}

/** What to say in front of an error that comes of a full disk; nothing of any other. */
export const whyFull = (message) =>
  /ENOSPC|no space left on device/i.test(message)
    ? `The disk is full: ${freeMegabytes()} MB are free in ${root}. Make room, then do this again. It was said by:\n`
    : '';
