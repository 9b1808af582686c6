// What is around every page?

import type { ComponentChildren, VNode } from 'preact';
import type { Operator } from '../access.ts';

/** Whom a page is for, and what it needs of them to change something. */
export interface Viewer {
  readonly operator: Operator;
  /** Stands in every form. */
  readonly csrf: string;
  /** The calls are a sample. */
  readonly sample: boolean;
}

export const mayChange = ({ operator }: Viewer): boolean => operator.role === 'operator';

/** What a reader has opened, and where the Tab key stops, stays as it is where a part is changed. */
const HTMX = JSON.stringify({ morphIgnore: ['data-htmx-powered', 'tabindex', 'open'], history: false });

/** A whole page. Everything it loads comes from here. */
export function Document({
  title,
  viewer,
  children,
}: {
  title: string;
  viewer: Viewer;
  children: ComponentChildren;
}): VNode {
  return (
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="color-scheme" content="light dark" />
        <meta name="htmx-config" content={HTMX} />
        <title>{title === 'hourhand' ? title : `${title} · hourhand`}</title>
        <link rel="icon" href="/assets/icon.svg" type="image/svg+xml" />
        <link rel="stylesheet" href="/assets/page.css" />
        <script src="/assets/htmx.js" defer />
        <script src="/assets/page.js" defer />
      </head>
      <body>
        <a class="skip" href="#main">
          Skip to the content
        </a>
        <header>
          <a class="name" href="/">
            hourhand
          </a>
          {viewer.sample && <strong class="sample">sample data</strong>}
          <nav aria-label="Pages">
            <a href="/">Overview</a>
            <a href="/queues">Queues</a>
            <a href="/actions">Who did what</a>
          </nav>
          <Who viewer={viewer} />
        </header>
        <main id="main" tabindex={-1}>
          {children}
        </main>
        <div class="said">
          <p id="away" role="alert" />
          <p id="said" role="status" aria-live="polite" />
        </div>
        <footer>All times are UTC. Figures are exact: whole numbers and decimals, from the call to the page.</footer>
      </body>
    </html>
  );
}

function Who({ viewer: { operator, csrf } }: { viewer: Viewer }): VNode {
  if (operator.how === 'anonymous') {
    return (
      <p class="who">
        anonymous operator: no credentials are configured, so whoever reaches this machine's own address may do
        everything
      </p>
    );
  }
  return (
    <div class="who">
      {operator.name}, {operator.role}
      {operator.how === 'session' && (
        <form method="post" action="/sign-out">
          <Csrf csrf={csrf} />
          <button type="submit">Sign out</button>
        </form>
      )}
    </div>
  );
}

/** What shows that a form is ours. */
export function Csrf({ csrf }: Pick<Viewer, 'csrf'>): VNode {
  return <input type="hidden" name="_csrf" value={csrf} />;
}

/**
 * A button that changes something, as a form of its own: it works without a script as well.
 *
 * @param confirm asked before, where it cannot be taken back
 */
export function Act({
  viewer,
  action,
  label,
  about,
  confirm,
}: {
  viewer: Viewer;
  action: string;
  label: string;
  /** What it is done to, for those who hear the page. */
  about?: string;
  confirm?: string;
}): VNode | null {
  if (!mayChange(viewer)) return null;
  return (
    <form class="act" method="post" action={action} data-confirm={confirm}>
      <Csrf csrf={viewer.csrf} />
      <button type="submit" aria-label={about ? `${label} ${about}` : undefined}>
        {label}
      </button>
    </form>
  );
}
