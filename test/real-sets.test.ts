// Real sets of calls, from the file to the statistics.

import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { home } from '../src/config.ts';
import { startHourhand } from './support/hourhand.ts';

const data = path.join(home, '..', 'shared', 'data');
if (!existsSync(data)) console.log(`skipped: the real sets are not in ${data}`);

test.skipIf(!existsSync(data)).each([
  ['azure_code', '2023-11-16T18:17', '2023-11-16T19:15'],
  ['nasa_19950801', '1995-08-01T06', '1995-08-01T19'],
  ['aider_dev', '2024-08-13T14', '2025-03-08'],
  ['servegen_dev', '2025-02-02T20', '2025-02-19T16'],
])(
  '%s comes out as an independent program counted it, digit by digit',
  async (name, from, to) => {
    await using hourhand = await startHourhand();
    const span = ['--from', from, '--to', to];
    expect(await hourhand.run(['import', path.join(data, `${name}.csv.gz`)])).toMatchObject({ code: 0 });
    await hourhand.work();
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
  },
  120_000,
);
