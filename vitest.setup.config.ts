// npm run test:setup: a newcomer's machine, whatever it is like. Each of these sets up checkouts of its own.

import { defineConfig } from 'vitest/config';
import quick from './vitest.config.ts';

export default defineConfig({
  test: {
    ...quick.test,
    include: ['test/setup/*.test.ts'],
    outputFile: { json: '.local/setup-results.json' },
  },
});
