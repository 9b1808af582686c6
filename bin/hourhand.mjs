#!/usr/bin/env node
// The command `hourhand`. It runs what the set-up built, so all it can find missing is the build, and a Node that is new
// enough: written for an older one to read until there.
import { existsSync } from 'node:fs';

const cli = new URL('../dist/cli.js', import.meta.url);
const [major, minor] = process.versions.node.split('.').map(Number);
if (major < 20 || (major === 20 && minor < 19)) {
  fail(`hourhand needs Node 20.19 or newer; this is ${process.version} (${process.execPath}).`);
} else if (!existsSync(cli)) {
  fail(
    'hourhand is not built yet: run npm start, or npm ci --include=dev --ignore-scripts && npm run generate && npm run build.',
  );
} else {
  import(cli.href);
}

function fail(line) {
  console.error(line);
  process.exitCode = 1;
}
