import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** The longest first: one that is begun last is waited for by all others. */
const LONGEST = ['cli.test.ts', 'models.test.ts', 'real-sets.test.ts'];

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const place = ({ moduleId }: TestSpecification) => {
      const at = LONGEST.findIndex((name) => moduleId.endsWith(`/${name}`));
      return at < 0 ? LONGEST.length : at;
    };
    return (await super.sort(files)).sort((a, b) => place(a) - place(b));
  }
}

export default defineConfig({
  test: {
    // Of test/chaos only what is quick, told by the file's name: npm run test:chaos runs all of it.
    include: ['test/*.test.ts', 'test/chaos/*.quick.test.ts'],
    globalSetup: 'test/support/database.ts',
    // Tests start processes and kill them: one process to a file, and no more files at once than a small machine has cores.
    pool: 'forks',
    fileParallelism: true,
    maxWorkers: 2,
    sequence: { sequencer: LongestFirst },
    testTimeout: 60_000,
    hookTimeout: 60_000,
    reporters: ['default', 'json'],
    outputFile: { json: '.local/test-results.json' },
  },
});
