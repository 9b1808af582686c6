// Which pages are there, what may be done on them, and what do they ask for?

import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Queue } from 'bullmq';
import express, { type ErrorRequestHandler, type Request, type Response, Router } from 'express';
import type { VNode } from 'preact';
import { renderToString } from 'preact-render-to-string';
import type { Connections } from '../../connections.ts';
import {
  backfillHours,
  backfillUncovered,
  backfillUser,
  cancelBackfill,
  pauseBackfill,
  resumeBackfill,
  retryBackfill,
} from '../../producers/backfills.ts';
import { pauseScheduler, resumeScheduler, runNow, ticksOf, UnknownScheduler } from '../../producers/schedules.ts';
import { recentActions } from '../../store/actions.ts';
import { backfillOf, finishBackfills, listBackfills, WrongStateError } from '../../store/backfills.ts';
import { barsOf, type TopLine, topModels, topUsers } from '../../store/charts.ts';
import { recordOf, shardLines } from '../../store/coverage.ts';
import { reasonOf } from '../../store/db.ts';
import { startOfRunningHour } from '../../store/ledger.ts';
import { runsOf } from '../../store/runs.ts';
import { type Only, surveyBackfill } from '../../store/survey.ts';
import { endOf, HOUR_MS, type Hour, isHour, startOf } from '../../time/hour.ts';
import { hoursIn, parseInstant, type Range, spell, wholeHours } from '../../time/range.ts';
import { csrfToken, operatorOf, whoAsks } from '../access.ts';
import { addressOf, record } from '../account.ts';
import type { Answer } from '../board.ts';
import { remembering } from '../remembered.ts';
import { statusOf } from '../status.ts';
import { ACTIONS, ActionsPage, ActionsPart } from './actions.tsx';
import { BackfillPage, BackfillPart, BackfillsPart, type BackfillView, SurveyPage, type Wish } from './backfills.tsx';
import { ChartsPart, stepOf } from './charts.tsx';
import { Coverage, calendarOf } from './coverage.tsx';
import { Document, type Viewer } from './document.tsx';
import { childOf, HourPage, HourPart, type HourView } from './hour.tsx';
import { answerPart } from './live.tsx';
import { Machinery, Now } from './now.tsx';

const DAY_MS = 24 * HOUR_MS;
/** What the page begins with. */
const DAYS = 30;
const MOST_DAYS = 1_100;
const TOP = 10;
const BACKFILLS = 10;

/** What somebody asked for that cannot be: 400, in words. */
class BadRequest extends Error {
  readonly status: number = 400;
}
class NotFound extends BadRequest {
  override readonly status = 404;
}

/**
 * `/` and the pages below it, and what may be done on them; `/parts/…` are the parts that look again by themselves. To be mounted behind
 * what knows who asks, lets only operators write, and keeps forged writes out.
 *
 * @param sample the calls are the sample that `npm start` loaded, and the pages say so
 */
export function pages(connections: Connections, { sample }: { sample: boolean }): Router {
  const { pool } = connections;
  const top = remembering<TopLine[]>(reasonOf);
  const status = shared(1_000, () => statusOf(connections));
  const router = Router();
  const viewerOf = (req: Request, res: Response): Viewer => ({
    operator: operatorOf(res),
    csrf: csrfToken(req, res),
    sample,
  });
  const chartsOf = async (range: Range) => {
    const step = stepOf(range);
    const key = `${range.start.getTime()} ${range.end.getTime()}`;
    const [bars, users, models] = await Promise.all([
      barsOf(pool, range, step),
      top(`users ${key}`, () => topUsers(pool, range, TOP)),
      top(`models ${key}`, () => topModels(pool, range, TOP)),
    ]);
    return { range, step, bars, users, models };
  };

  const newestBackfills = async () => {
    await finishBackfills(pool);
    return listBackfills(pool, BACKFILLS);
  };

  const newestActions = () => recentActions(pool, { limit: 10 });

  router.get('/', async (req, res) => {
    const viewer = viewerOf(req, res);
    const running = await startOfRunningHour(pool);
    const [range, problem] = rangeOrProblem(req, running);
    const [now, calendar, charts, backfills, actions] = await Promise.all([
      status(),
      calendarOf(pool, range),
      chartsOf(range),
      newestBackfills(),
      newestActions(),
    ]);
    show(
      res,
      <Document title="hourhand" viewer={viewer}>
        <h1 class="unseen">hourhand</h1>
        {problem && (
          <p class="error" role="alert">
            {problem}
          </p>
        )}
        <Now status={now} viewer={viewer} />
        <Coverage calendar={calendar} />
        <BackfillsPart backfills={backfills} viewer={viewer} />
        <ChartsPart charts={charts} />
        <Machinery status={now} viewer={viewer} />
        <ActionsPart actions={actions} />
      </Document>,
    );
  });
  router.get('/parts/now', async (req, res) => {
    const now = await status();
    answerPart(req, res, now, <Now status={now} viewer={viewerOf(req, res)} />);
  });
  router.get('/parts/machinery', async (req, res) => {
    const now = await status();
    answerPart(req, res, now, <Machinery status={now} viewer={viewerOf(req, res)} />);
  });
  router.get('/parts/coverage', async (req, res) => {
    const calendar = await calendarOf(pool, rangeOf(req));
    answerPart(req, res, calendar, <Coverage calendar={calendar} />);
  });
  router.get('/parts/charts', async (req, res) => {
    const charts = await chartsOf(rangeOf(req));
    answerPart(req, res, charts, <ChartsPart charts={charts} />);
  });

  const viewOf = async (hour: Hour): Promise<HourView> => {
    const start = { start: startOf(hour) };
    const [record, runs, shards, now] = await Promise.all([
      recordOf(pool, start),
      runsOf(pool, hour, 20),
      shardLines(pool, start, 200),
      startOfRunningHour(pool),
    ]);
    const children = shards.map((shard) => childOf({ hour, record, runs }, shard));
    const { hours, users } = connections.queues;
    const jobs = (
      await Promise.all([
        jobsKept(
          hours,
          runs.map(({ job }) => job),
        ),
        jobsKept(users, children),
      ])
    ).flat();
    return { hour, record, runs, shards, jobs, ended: endOf(hour) <= now };
  };
  router.get('/hours/:hour', async (req, res) => {
    const view = await viewOf(hourOf(req));
    show(res, <HourPage view={view} viewer={viewerOf(req, res)} />);
  });
  router.get('/parts/hours/:hour', async (req, res) => {
    const view = await viewOf(hourOf(req));
    answerPart(req, res, view, <HourPart view={view} viewer={viewerOf(req, res)} />);
  });
  router.post('/hours/:hour/run', async (req, res) => {
    const hour = hourOf(req);
    const range = await endedPart(connections, { start: startOf(hour), end: endOf(hour) });
    await record(connections, req, res, { what: 'run again', subject: hour });
    const { hours } = await backfillHours(connections, range, asked(req, res, 'all'));
    done(
      req,
      res,
      `/hours/${hour}`,
      hours.length > 0 ? `Hour ${hour} is asked for.` : `Hour ${hour} is sealed, and stays as it is.`,
    );
  });

  router.get('/backfills/new', async (req, res) => {
    const viewer = viewerOf(req, res);
    const wish = wishOf(req.query);
    if (!wish.from && !wish.to) return show(res, <SurveyPage wish={wish} viewer={viewer} />);
    try {
      const range = await endedPart(connections, wholeHours(...instantsOf(wish)));
      const survey = await surveyBackfill(pool, range, { only: onlyOf(wish), user: wish.user || undefined });
      show(res, <SurveyPage wish={wish} viewer={viewer} range={range} survey={survey} />);
    } catch (error) {
      if (!(error instanceof RangeError || error instanceof BadRequest)) throw error;
      res.status(400);
      show(res, <SurveyPage wish={wish} viewer={viewer} problem={error.message} />);
    }
  });
  router.post('/backfills', async (req, res) => {
    const wish = wishOf(Object(req.body));
    const range = await endedPart(connections, wholeHours(...instantsOf(wish)));
    const only = onlyOf(wish);
    await record(connections, req, res, { what: 'backfill', subject: spell(range), detail: wish });
    const { backfill } = wish.user
      ? await backfillUser(connections, wish.user, range, asked(req, res, only))
      : await backfillHours(connections, range, asked(req, res, only));
    done(req, res, `/backfills/${backfill}`, `Backfill ${backfill} has begun.`);
  });
  router.post('/uncovered/cover', async (req, res) => {
    await record(connections, req, res, { what: 'backfill', subject: 'uncovered hours' });
    const { requestedBy, requestedFrom } = asked(req, res, 'all');
    const request = await backfillUncovered(connections, { requestedBy, requestedFrom });
    if (request) done(req, res, `/backfills/${request.backfill}`, `Backfill ${request.backfill} has begun.`);
    else done(req, res, '/', 'No hour is uncovered any more.');
  });
  router.get('/parts/backfills', async (req, res) => {
    const backfills = await newestBackfills();
    answerPart(req, res, backfills, <BackfillsPart backfills={backfills} viewer={viewerOf(req, res)} />);
  });
  const backfillAt = async (req: Request): Promise<BackfillView> => {
    await finishBackfills(pool);
    const view = await backfillOf(pool, idOf(req));
    if (!view) throw new NotFound(`There is no backfill ${req.params.id}.`);
    return view;
  };
  router.get('/backfills/:id', async (req, res) => {
    show(res, <BackfillPage view={await backfillAt(req)} viewer={viewerOf(req, res)} />);
  });
  router.get('/parts/backfills/:id', async (req, res) => {
    const view = await backfillAt(req);
    answerPart(req, res, view, <BackfillPart view={view} viewer={viewerOf(req, res)} />);
  });
  for (const [verb, act] of Object.entries({
    pause: pauseBackfill,
    resume: resumeBackfill,
    cancel: cancelBackfill,
    retry: retryBackfill,
  })) {
    router.post(`/backfills/:id/${verb}`, async (req, res) => {
      const { id } = await backfillAt(req);
      await record(connections, req, res, { what: `${verb} backfill`, subject: String(id) });
      await act(connections, id, operatorOf(res).name);
      const { state } = await backfillAt(req);
      done(req, res, `/backfills/${id}`, `Backfill ${id} is ${state}.`);
    });
  }

  const schedulers = { pause: pauseScheduler, resume: resumeScheduler, run: runNow };
  for (const [verb, act] of Object.entries(schedulers)) {
    router.post(`/schedulers/:id/${verb}`, async (req, res) => {
      const id = String(req.params.id);
      ticksOf(connections.queues, id); // known, or nothing is done
      await record(connections, req, res, {
        what: verb === 'run' ? 'run scheduler now' : `${verb} scheduler`,
        subject: id,
      });
      await act(connections, id, operatorOf(res).name);
      const words = { pause: 'is paused', resume: 'fires again', run: 'has a tick on its way' }[verb];
      done(req, res, '/#machinery', `Scheduler ${id} ${words}.`);
    });
  }

  router.get('/actions', async (req, res) => {
    const before = textOf(req.query, 'before');
    if (!/^\d{0,15}$/.test(before)) throw new BadRequest(`before: expected a whole number, got "${before}"`);
    const actions = await recentActions(pool, { limit: ACTIONS, before: before ? Number(before) : undefined });
    show(res, <ActionsPage actions={actions} viewer={viewerOf(req, res)} />);
  });
  router.get('/parts/actions', async (req, res) => {
    const actions = await newestActions();
    answerPart(req, res, actions, <ActionsPart actions={actions} />);
  });
  return router.use(inWords);
}

/** What was asked for cannot be: the one who asks is told, by a status of theirs. */
const inWords: ErrorRequestHandler = (error, _req, _res, next) => {
  const status =
    error instanceof WrongStateError
      ? 409
      : error instanceof UnknownScheduler
        ? 404
        : error instanceof RangeError
          ? 400
          : 0;
  next(status ? Object.assign(error, { status }) : error);
};

/** What the pages load, open to everybody: they say nothing of anything. */
export function assets(home: string): Router {
  const router = Router();
  const options = { immutable: false, maxAge: '1h', index: false };
  router.get('/assets/htmx.js', (_req, res) => res.sendFile(htmx, options));
  const files = express.static(path.join(home, 'assets'), { ...options, fallthrough: false, redirect: false });
  router.use('/assets', files, noSuchFile);
  return router;
}

/** In words of our own: those of the file system say where it stands. */
const noSuchFile: ErrorRequestHandler = ({ status = 500 }, _req, res, next) => {
  if (res.headersSent) return next();
  res.status(status).json({ error: 'Not found', message: 'There is no such file.' });
};

/** What went wrong, as a page, where somebody who is known looks at one; false where a script asks, or nobody is known. */
export function showProblem(req: Request, res: Response, { status, body }: Answer, sample: boolean): boolean {
  const operator = whoAsks(res);
  const looks = !req.get('hx-request') && /\btext\/html\b/i.test(req.headers.accept ?? '');
  if (!operator || !looks || /^\/(queues|api|parts|assets)\//.test(req.path)) return false;
  res.status(status);
  show(
    res,
    <Document title={body.error} viewer={{ operator, csrf: csrfToken(req, res), sample }}>
      <h1>{body.error}</h1>
      <p class="error">{body.message}</p>
    </Document>,
  );
  return true;
}

const htmx = fileURLToPath(import.meta.resolve('htmx.org/dist/htmx.min.js'));

function show(res: Response, page: VNode): void {
  res.type('html').send(`<!doctype html>${renderToString(page)}`);
}

/** What was asked for is done: a script is told so, a browser is sent on. */
function done(req: Request, res: Response, to: string, message: string): void {
  if (req.accepts(['html', 'json']) === 'json') res.json({ message, to });
  else res.redirect(303, to);
}

/** However many look at the same page, it is asked once in so many milliseconds. */
function shared<T>(ms: number, ask: () => Promise<T>): () => Promise<T> {
  let last: { at: number; answer: Promise<T> } | undefined;
  return () => {
    if (!last || Date.now() - last.at > ms) last = { at: Date.now(), answer: ask() };
    return last.answer;
  };
}

/** Of these jobs, those that the queue still has; none where Redis does not say so at once. */
async function jobsKept(queue: Queue, jobs: readonly (string | null | undefined)[]): Promise<string[]> {
  const ids = jobs.filter((job) => typeof job === 'string');
  const asked = Promise.all(ids.map(async (id) => (await queue.getJobState(id)) !== 'unknown'));
  const kept = await Promise.race([asked.catch(() => []), sleep(1_000, [], { ref: false })]);
  return ids.filter((_, i) => kept[i]);
}

function asked(req: Request, res: Response, only: Only) {
  const { name } = operatorOf(res);
  return { only, reason: 'backfill', requestedBy: name, requestedFrom: `page, ${addressOf(req)}` } as const;
}

/** The running hour is never rolled up: what names it is cut short. */
async function endedPart({ pool }: Connections, { start, end }: Range): Promise<Range> {
  const running = await startOfRunningHour(pool);
  if (start >= running)
    throw new BadRequest(
      `expected hours that have ended, before ${running.toISOString()}, got ${spell({ start, end })}`,
    );
  if (hoursIn({ start, end }) > MOST_DAYS * 24)
    throw new BadRequest(`expected at most ${MOST_DAYS} days, got ${spell({ start, end })}`);
  return { start, end: end < running ? end : running };
}

const MOST_TEXT = 500;

/** A text of a query or a form, nothing where it is not said. What is said twice, or cut short, would be another wish. */
function textOf(from: object, name: string): string {
  const value: unknown = Object(from)[name] ?? '';
  if (typeof value === 'string' && value.length <= MOST_TEXT && !value.includes('\0')) return value.trim();
  throw new BadRequest(`${name}: expected at most ${MOST_TEXT} characters, once and none of them NUL, got another`);
}

function wishOf(from: object): Wish {
  const [from_, to, user, only] = ['from', 'to', 'user', 'only'].map((name) => textOf(from, name));
  return { from: from_ ?? '', to: to ?? '', user: user ?? '', only: only || 'all' };
}

const instantsOf = ({ from, to }: Wish) => [parseInstant(from, 'down'), parseInstant(to, 'up')] as const;

function onlyOf({ only, user }: Wish): Only {
  if (user && only !== 'all')
    throw new BadRequest(`expected one user alone, or only some of the hours, got ${user} and ${only}`);
  if (only === 'all' || only === 'missing' || only === 'partial') return only;
  throw new BadRequest(`only: expected all, missing or partial, got "${only}"`);
}

function hourOf(req: Request): Hour {
  const hour = String(req.params.hour);
  if (isHour(hour)) return hour;
  throw new NotFound(`expected a UTC hour such as 2026-08-20T13, got "${hour.slice(0, 100)}"`);
}

function idOf(req: Request): number {
  const id = String(req.params.id);
  if (/^\d{1,15}$/.test(id)) return Number(id);
  throw new NotFound(`expected a backfill's number, got "${id.slice(0, 100)}"`);
}

/** The range that a page is asked to show: `from` and `to` (a date alone is shown to its end), or the `last` so many days. */
function rangeOf(req: Request, running = new Date()): Range {
  const [from, to, last] = ['from', 'to', 'last'].map((name) => textOf(req.query, name));
  if (!from && !to) {
    const days = last ? Number(last) : DAYS;
    if (!Number.isInteger(days) || days < 1 || days > MOST_DAYS)
      throw new BadRequest(`last: expected 1 to ${MOST_DAYS} days, got "${last}"`);
    const end = new Date(Math.floor(running.getTime() / DAY_MS) * DAY_MS + DAY_MS);
    return { start: new Date(end.getTime() - days * DAY_MS), end };
  }
  const end = parseInstant(to ?? '', 'up');
  const range = wholeHours(parseInstant(from ?? '', 'down'), isDate(to) ? new Date(end.getTime() + DAY_MS) : end);
  if (hoursIn(range) > MOST_DAYS * 24)
    throw new BadRequest(`expected at most ${MOST_DAYS} days, got ${spell(range)}`);
  return range;
}

const isDate = (text = '') => /^\d{4}-\d\d-\d\d$/.test(text);

/** A range that cannot be read is told, and the usual one shown. */
function rangeOrProblem(req: Request, running: Date): [Range, string?] {
  try {
    return [rangeOf(req, running)];
  } catch (error) {
    if (!(error instanceof RangeError || error instanceof BadRequest)) throw error;
    return [rangeOf({ ...req, query: {} } as Request, running), error.message];
  }
}
