// npm run test:chaos: thirty ways to break it, those too that take long.

import { defineConfig } from 'vitest/config';
import quick from './vitest.config.ts';

export default defineConfig({
  test: {
    ...quick.test,
    include: ['test/chaos/*.test.ts'],
    isolate: true,
    // What waits for a lock to run out, or for the next look, waits for half a minute: side by side. But not so many at
    // once, and one file after the other, that a small machine does not start their processes in time.
    maxConcurrency: 4,
    maxWorkers: 1,
    outputFile: { json: '.local/chaos-results.json' },
  },
});
