import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { expect, it } from 'vitest';
import { bareCheckout } from './support/checkout.ts';

it('a bare checkout holds what is tracked, and nothing that a set-up makes', () => {
  const dir = mkdtempSync(path.join(tmpdir(), 'hourhand-'));
  try {
    bareCheckout(dir);
    expect(existsSync(path.join(dir, 'package-lock.json'))).toBe(true);
    for (const made of ['node_modules', 'dist', '.local', 'src/generated', '.git']) {
      expect(existsSync(path.join(dir, made)), made).toBe(false);
    }
  } finally {
    rmSync(dir, { recursive: true });
  }
});
