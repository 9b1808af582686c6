#!/usr/bin/env node
// The command `hourhand`. It runs what the set-up built, so all it can find missing is the build.
import { existsSync } from 'node:fs';

const cli = new URL('../dist/cli.js', import.meta.url);
if (existsSync(cli)) {
  await import(cli);
} else {
  console.error('hourhand is not built yet: run npm start, or npm ci && npm run generate && npm run build.');
  process.exitCode = 1;
}
