import { Writable } from 'node:stream';
import { expect, test } from 'vitest';
import { createLogger } from '../src/logger.ts';

/** A stream that keeps what is written to it, and may be a terminal. */
function stream(isTTY: boolean) {
  const written: string[] = [];
  const sink = new Writable({
    write(chunk, _encoding, done) {
      written.push(String(chunk));
      done();
    },
  });
  return { written, sink: Object.assign(sink, { isTTY }) };
}

test('a line is JSON: the time in ISO-8601, the fields, and a constant message', () => {
  const { written, sink } = stream(false);
  createLogger('info', sink).info({ hour: '2026-08-20T13', users: 412 }, 'hour closed');
  expect(written.length).toBe(1);
  expect(JSON.parse(written[0] ?? '')).toEqual({
    level: 30,
    time: expect.stringMatching(/^\d{4}-\d\d-\d\dT[\d:.]+Z$/),
    pid: process.pid,
    hour: '2026-08-20T13',
    users: 412,
    msg: 'hour closed',
  });
});

test('on a terminal it is to be read', () => {
  const { written, sink } = stream(true);
  createLogger('info', sink).info({ hour: '2026-08-20T13' }, 'hour closed');
  const line = written.join('');
  expect(line).toContain('hour closed');
  expect(line).toContain('2026-08-20T13');
  expect(line).not.toContain('{"level"');
});

test('what is below the level is not said', () => {
  const { written, sink } = stream(false);
  const log = createLogger('warn', sink);
  log.info('no');
  log.warn('yes');
  expect(written.map((line) => JSON.parse(line).msg)).toEqual(['yes']);
});
