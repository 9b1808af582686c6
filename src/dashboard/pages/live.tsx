// How does a part of the page stay true without being loaded again?

import { createHash } from 'node:crypto';
import type { Request, Response } from 'express';
import type { ComponentChildren, VNode } from 'preact';
import { renderToString } from 'preact-render-to-string';

/** Seconds from one look to the next. */
export const EVERY = { busy: 3, calm: 10, slow: 60 } as const;

/**
 * A part that asks for itself every so many seconds, telling what it shows: where that is still so, the answer is empty. What changes is
 * changed in its place: focus, selection and what was opened stay.
 *
 * @param path of the part, perhaps with a query
 * @param shows what it was made from
 */
export function Live({
  id,
  path,
  seconds,
  label,
  shows,
  children,
}: {
  id: string;
  path: string;
  seconds: number;
  label: string;
  shows: unknown;
  children: ComponentChildren;
}): VNode {
  const again = `${path}${path.includes('?') ? '&' : '?'}seen=${markOf(shows)}`;
  return (
    <section
      id={id}
      aria-labelledby={`${id}-title`}
      hx-get={again}
      hx-trigger={`every ${seconds}s`}
      hx-swap="outerMorph"
    >
      <h2 id={`${id}-title`}>{label}</h2>
      {children}
    </section>
  );
}

function markOf(shown: unknown): string {
  const text = JSON.stringify(shown, (_, value) => (typeof value === 'bigint' ? String(value) : value));
  return createHash('sha256').update(text).digest('base64url').slice(0, 12);
}

/** Answer a part that asks for itself: with nothing, where what it shows is still so. */
export function answerPart(req: Request, res: Response, shows: unknown, part: VNode): void {
  if (req.query.seen === markOf(shows)) res.status(204).end();
  else res.type('html').send(renderToString(part));
}
