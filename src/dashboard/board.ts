// What does an operator see of the queues?

import { createBullBoard } from '@bull-board/api';
import { BullMQAdapter } from '@bull-board/api/bullMQAdapter';
import type { AppViewRoute, HTTPStatus, UIConfig } from '@bull-board/api/typings/app';
import { ExpressAdapter } from '@bull-board/express';
import type { Express } from 'express';
import type { Queues } from '../queues/redis.ts';

const DESCRIPTIONS: Record<keyof Queues, string> = {
  ticks: 'When to look for owed hours. A missed or doubled tick changes nothing; a removed one comes back.',
  hours: 'One job for each owed hour. Failed: the hour is partial, the reason names the users; a retry is a new run.',
  users: 'The children of an hour: one user, or a range of buckets. The retry that succeeds last closes the hour.',
  marks: 'Users of one hour who are to be rolled up again.',
  lateTicks: 'When to look for calls that came late: each leaves a mark, and its user is rolled up again.',
  staleTicks: 'When to look for calls that hang.',
  stale: 'Fails calls that were processing for too long; each job says which and in which hours.',
  modelTicks: 'When to look at the models.',
  checks: 'One look at the models: those that real calls speak for are judged by them, the others are probed.',
  probes: 'The children of a check: one question to one model, within the budget.',
  auditTicks: 'When to recount a share of the closed hours.',
  audits: 'Recounts closed hours from the calls; one that differs is said, and rolled up again.',
  retainTicks: 'When to look for calls and statistics that are no longer kept.',
  retentions:
    'Seals old hours that are right, and deletes their calls; each job says which hours it passed over, and why.',
  announcements: 'Transitions on their way to the webhook. A retry sends it again, under the same id.',
};

/** Hours are named in UTC; instants beside them in the browser's zone would not be comparable. */
const INSTANT: Intl.DateTimeFormatOptions = {
  month: 'short',
  day: 'numeric',
  hour: '2-digit',
  minute: '2-digit',
  second: '2-digit',
  hourCycle: 'h23',
  timeZone: 'UTC',
  timeZoneName: 'short',
};

export interface Answer {
  readonly status: number;
  readonly body: { readonly error: string; readonly message: string };
}

/**
 * Bull Board over every queue, to be mounted at `path`. It asks nobody who they are and would change anything: guard
 * it. `readOnly` leaves its buttons out. What it throws is put into words by `answerTo`, because its own answer shows stacks where NODE_ENV is development.
 */
export function board(
  queues: Queues,
  {
    path,
    sample,
    readOnly,
    answerTo,
  }: { path: string; sample: boolean; readOnly: boolean; answerTo: (error: unknown) => Answer },
): Express {
  const serverAdapter = new LocalAdapter().setBasePath(path);
  const names = Object.keys(DESCRIPTIONS) as (keyof Queues)[]; // Object.keys forgets what the record's type knows
  createBullBoard({
    queues: names.map(
      (name) => new BullMQAdapter(queues[name], { description: DESCRIPTIONS[name], readOnlyMode: readOnly }),
    ),
    serverAdapter,
    options: { uiConfig: { ...uiConfig, ...(sample ? sampleConfig : {}) } },
  });
  serverAdapter.setErrorHandler((error) => {
    const { status, body } = answerTo(error);
    // Its type lists the board's own statuses; Express takes any, such as 413 of a body that is too large.
    return { status: status as HTTPStatus, body };
  });
  const app: Express = serverAdapter.getRouter();
  return app.disable('x-powered-by');
}

const uiConfig: UIConfig = {
  boardTitle: 'hourhand',
  hideDocsLink: true,
  dateFormats: { short: INSTANT, common: INSTANT, full: { year: 'numeric', ...INSTANT } },
};

const sampleConfig: UIConfig = {
  boardTitle: 'hourhand: sample data',
  environment: { label: 'sample data', color: '#8a5a00', textColor: '#ffffff' },
};

const FONTS = /<link\b[^>]*fonts\.googleapis\.com[^>]*>/g;

/** The board's page without its fonts from Google: nothing that we serve asks another machine for anything. */
class LocalAdapter extends ExpressAdapter {
  override setEntryRoute({ route, handler }: AppViewRoute): this {
    this.app.get(route, (_req, res, next) => {
      const { name, params } = handler({ basePath: this.basePath, uiConfig: this.uiConfig });
      res.render(name, params, (error, html) => (error ? next(error) : res.send(html.replace(FONTS, ''))));
    });
    return this;
  }
}
