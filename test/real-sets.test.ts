// Real sets of calls, from the file to the statistics.

import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { home } from '../src/config.ts';
import { type Hourhand, startHourhand } from './support/hourhand.ts';

const data = path.join(home, '..', 'shared', 'data');
if (!existsSync(data)) console.log(`skipped: the real sets are not in ${data}`);

const sets = [
  { name: 'azure_code', from: '2023-11-16T18:17', to: '2023-11-16T19:15' },
  { name: 'nasa_19950801', from: '1995-08-01T06', to: '1995-08-01T19' },
  { name: 'aider_dev', from: '2024-08-13T14', to: '2025-03-08' },
  { name: 'servegen_dev', from: '2025-02-02T20', to: '2025-02-19T16' },
];

describe.skipIf(!existsSync(data))('a real set of calls', () => {
  let hourhand: Hourhand;
  beforeAll(async () => {
    hourhand = await startHourhand({ FANOUT_MIN_CALLS: '20000' });
    await hourhand.work();
  });
  afterAll(() => hourhand[Symbol.asyncDispose]());

  test.each(sets)(
    '$name comes out as an independent program counted it, digit by digit',
    async ({ name, from, to }) => {
      const span = ['--from', from, '--to', to];
      expect(await hourhand.run(['import', path.join(data, `${name}.csv.gz`)])).toMatchObject({ code: 0 });
      expect(await hourhand.run(['backfill', ...span, '--wait'])).toMatchObject({ code: 0 });
      const expected = (kind: string) =>
        gunzipSync(readFileSync(path.join(data, `${name}.expected.${kind}.csv.gz`))).toString();
      const [users, types, verified] = await Promise.all([
        hourhand.run(['stats', ...span, '--format', 'csv']),
        hourhand.run(['stats', ...span, '--by', 'type', '--format', 'csv']),
        hourhand.run(['verify', ...span]),
      ]);
      expect(users.stdout).toBe(expected('user_hour'));
      expect(types.stdout).toBe(expected('user_hour_type'));
      expect(verified).toMatchObject({ code: 0, stdout: '' });
      await hourhand.pool.$executeRaw`truncate "ModelCall"`; // two of the spans overlap
    },
    600_000, // the largest has 259,601 calls, and machines are busy
  );
});
