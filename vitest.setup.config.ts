// npm run test:setup: a newcomer's machine, whatever it is like. Each of these sets up checkouts of its own.

import { defineConfig } from 'vitest/config';
import quick from './vitest.config.ts';

export default defineConfig({
  test: {
    ...quick.test,
    include: ['test/setup/*.test.ts'],
    testTimeout: 180_000,
    hookTimeout: 180_000,
    outputFile: { json: '.local/setup-results.json' },
  },
});
