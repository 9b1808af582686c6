import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** The longest first: one that is begun last is waited for by all others. */
const LONGEST = [
  'poolers',
  'backfills',
  'sealed-late',
  'partitions',
  'real-sets',
  'models',
  'uncovered',
  'cli',
  'page',
];

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const place = ({ moduleId }: TestSpecification) => {
      const at = LONGEST.findIndex((name) => moduleId.endsWith(`/${name}.test.ts`));
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
    // Tests start processes and kill them, so they run in processes. Those wait for others half of the time: one more than a
    // small machine has cores. A process goes from file to file: to load all that a file imports takes a second, and nothing
    // of src or of test/support remembers what was done with it before.
    pool: 'forks',
    isolate: false,
    fileParallelism: true,
    maxWorkers: 3,
    sequence: { sequencer: LongestFirst },
    // Tests wait for states. These limits are for what hangs: a busy machine must not reach them.
    testTimeout: 300_000,
    hookTimeout: 300_000,
    reporters: ['default', 'json'],
    outputFile: { json: '.local/test-results.json' },
  },
});
