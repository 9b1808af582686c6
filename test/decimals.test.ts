// Amounts have eight decimals. One with more is rounded by one rule, whichever way it comes in, and that is said.

import { expect, test } from 'vitest';
import { readConfig } from '../src/config.ts';
import { CREDITS, readDecimal, spellDecimal } from '../src/store/decimals.ts';
import { startHourhand } from './support/hourhand.ts';

test('each way in rounds half away from zero, and says how many amounts it rounded', async () => {
  const setting = { MODEL_PROBE_DEFAULT_CREDITS: '0.123456785' };
  await using hourhand = await startHourhand();

  const header =
    'call_time,user_did,app_did,provider,model,type,input_tokens,output_tokens,credits,status,duration_s';
  const line = (credits: string, duration: string) =>
    `2026-08-20T13:10:00Z,file,,openai,gpt,chatCompletion,10,5,${credits},success,${duration}`;
  const lines = [line('0.000000015', '1'), line('0.000000004', '0.0000005'), line('0.1000000000', '1.5')];
  const imported = await hourhand.run(['import', '-'], [header, ...lines, ''].join('\n'), setting);
  expect(imported.code).toBe(0);
  expect(imported.stderr).toMatch(/^3 calls of 1 users imported, 0 were there already\n2 amounts were rounded to 8/m);
  expect(imported.stderr).toContain('2 amounts were rounded to 8 decimals\n1 duration was rounded to 6 decimals\n');
  // A setting of this process, too.
  expect(imported.stderr).toContain(
    'MODEL_PROBE_DEFAULT_CREDITS: 0.123456785 was rounded to 8 decimals, 0.12345679\n',
  );
  expect(readConfig({ ...hourhand.environment, ...setting }).MODEL_PROBE_DEFAULT_CREDITS).toBe('0.12345679');

  await hourhand.record({ user: 'sql', at: '2026-08-20T13:10:00Z', credits: '0.000000015' });
  const calls = await hourhand.pool.modelCall.findMany({ orderBy: [{ userDid: 'asc' }, { credits: 'asc' }] });
  expect(calls.map(({ userDid, credits }) => [userDid, credits.toFixed(8)])).toEqual([
    ['file', '0.00000000'],
    ['file', '0.00000002'],
    ['file', '0.10000000'],
    ['sql', '0.00000002'],
  ]);

  const models = ['0.000000015', 1e-7, 0.1, '0.1000000000'].map((probeCredits, i) => ({
    model: `m${i}`,
    type: 'chatCompletion',
    probeCredits,
  }));
  const provider = { id: 'acme', baseUrl: 'https://api.example.com/v1', apiKeyEnv: 'KEY', models };
  const known = await hourhand.run(['models', 'import', '-'], JSON.stringify({ providers: [provider] }));
  expect(known).toMatchObject({
    code: 0,
    stderr: '1 providers with 4 models are known\n1 amount was rounded to 8 decimals\n',
  });
  const stored = await hourhand.pool.modelStatus.findMany({ orderBy: { model: 'asc' } });
  expect(stored.map(({ probeCredits }) => probeCredits?.toFixed(8))).toEqual([
    '0.00000002',
    '0.00000010',
    '0.10000000',
    '0.10000000',
  ]);
});

test('text is rounded as PostgreSQL rounds it, digit by digit', async () => {
  await using hourhand = await startHourhand();
  const digits = ['0', '1', '4', '5', '9', '49', '50', '51', '99', '499999999999999999999', '500000000000000000001'];
  const texts = ['0', '1', '999999999999'].flatMap((whole) =>
    ['0000000', '9999999', '1234567'].flatMap((seven) =>
      ['0', '9'].flatMap((eighth) => digits.map((more) => `${whole}.${seven}${eighth}${more}`)),
    ),
  );
  const rows = await hourhand.pool.$queryRaw<{ text: string; rounded: string; differs: boolean }[]>`
    select text, trim_scale(round(text::numeric, 8))::text as rounded,
           round(text::numeric, 8) <> text::numeric as differs
      from unnest(${texts}::text[]) as text where round(text::numeric, 8) < 1e12`;
  expect(rows.length).toBeGreaterThan(190);
  const read = rows.map(({ text }) => {
    const decimal = readDecimal(text, CREDITS);
    return { text, rounded: decimal && spellDecimal(decimal, CREDITS), differs: decimal?.rounded };
  });
  expect(read).toEqual(rows);
  // What PostgreSQL would refuse.
  const others = texts.filter((text) => !rows.some((row) => row.text === text));
  expect(others.length).toBeGreaterThan(0);
  expect(others.map((text) => readDecimal(text, CREDITS))).toEqual(others.map(() => undefined));
});
