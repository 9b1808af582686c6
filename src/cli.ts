// hourhand: the command line. A command reads what it needs when it is typed: a wrong word need not wait for a database client.

import { hostname, userInfo } from 'node:os';
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { say } from './commands/say.ts';
import { type Config, ConfigError, migrations, readConfig, version } from './config.ts';
import type { Connections } from './connections.ts';
import { ROLES } from './dashboard/credentials.ts';
import type { Wants } from './queues/redis.ts';
import type { Action } from './store/actions.ts';
import type { Db } from './store/db.ts';
import { checkKept, parseKept } from './time/kept.ts';
import { parseInstant, type Range, spell, wholeHours } from './time/range.ts';

/** Wrong usage, or a wrong environment: nothing was begun. */
const USAGE = 2;
const FAILED = 1;

const program = new Command('hourhand')
  .description("Every hour of an AI gateway's model calls, accounted for once.")
  .version(version, '--version')
  .exitOverride()
  .configureOutput({
    outputError: (text, write) => write(text.replace(/^error: /, 'hourhand: ').replace(/\n(?=.)/g, ' ')),
  })
  .showSuggestionAfterError();

program
  .command('up')
  .description('migrations, schedulers, one worker and the dashboard; stays until Ctrl-C')
  .addOption(new Option('--sample <file>', 'load these calls into the private database, if it holds none').hideHelp())
  .action(({ sample }) => run(async (config) => (await import('./app.ts')).runUp(config, sample)));

program
  .command('worker')
  .description('one worker process; start as many as you like')
  .action(() => run(async (config) => (await import('./app.ts')).runWorker(config)));

program
  .command('dashboard')
  .description('the web server alone')
  .action(() => run(async (config) => (await import('./app.ts')).runDashboard(config)));

const schedule = program
  .command('schedule')
  .description('see to the schedulers, and print them with their last and next runs')
  .action(() =>
    run((config) =>
      withConnections(config, { wants: 'change' }, async (c) => (await import('./commands/schedule.ts')).schedule(c)),
    ),
  );
schedule
  .command('pause')
  .description('keep a scheduler from firing, whatever any deploy says, until it is resumed')
  .argument('<id>', 'such as model.call.stats')
  .action((id: string) =>
    run((config) =>
      withConnections(config, { changes: { what: 'pause scheduler', subject: id } }, async (c) =>
        (await import('./commands/schedule.ts')).pause(c, id, osUser()),
      ),
    ),
  );
schedule
  .command('resume')
  .description('have a paused scheduler fire again')
  .argument('<id>')
  .action((id: string) =>
    run((config) =>
      withConnections(config, { changes: { what: 'resume scheduler', subject: id } }, async (c) =>
        (await import('./commands/schedule.ts')).resume(c, id, osUser()),
      ),
    ),
  );
schedule
  .command('run')
  .description('one tick now, also of a scheduler that is paused or off')
  .argument('<id>')
  .action((id: string) =>
    run((config) =>
      withConnections(config, { changes: { what: 'run scheduler now', subject: id } }, async (c) =>
        (await import('./commands/schedule.ts')).tickNow(c, id),
      ),
    ),
  );

program
  .command('migrate')
  .description('apply the migrations that are missing')
  .action(() =>
    run(async (config) => {
      const [{ checkPostgres }, { migrate }] = await Promise.all([
        import('./connections.ts'),
        import('./store/migrate.ts'),
      ]);
      await checkPostgres(config, { writes: true });
      const applied = await migrate(config.DATABASE_URL, migrations, (name) => say(`applied ${name}`));
      // Only now is there an account to write into.
      if (applied.length > 0)
        await withAccount(config, { what: 'migrate', subject: applied.join(', ') }, async () => 0);
      say(applied.length === 0 ? 'nothing to apply' : `${applied.length} applied`);
      return 0;
    }),
  );

program
  .command('partition')
  .description('keep the calls in a partition for each day, week or month, made ahead by the workers')
  .addOption(
    new Option('--by <period>', 'what a partition holds').choices(['day', 'week', 'month']).makeOptionMandatory(),
  )
  .option('--ahead <n>', 'partitions to be there after the present one', partitionsAhead, 7)
  .option('--dry-run', 'say what would be done, and change nothing', false)
  .action(({ by, ahead, dryRun }) =>
    run((config) =>
      withConnections(config, { changes: !dryRun && { what: 'partition', subject: `by ${by}` } }, async (c) =>
        (await import('./commands/partition.ts')).partition(c, { plan: { by, ahead }, dryRun }),
      ),
    ),
  );

program
  .command('import')
  .description('load calls from a CSV file, plain or gzip, or from standard input (-)')
  .argument('<file>', 'FILE.csv, FILE.csv.gz or -')
  .option('--skip-bad', 'name bad lines and import the rest', false)
  .action((file: string, { skipBad }) =>
    run((config) =>
      withAccount(config, { what: 'import', subject: file }, async () =>
        (await import('./commands/import.ts')).importFile(config, file, { skipBad }),
      ),
    ),
  );

withRange(program.command('backfill').description('ask for the hours of [from, to), widened to whole hours'))
  .option('--user <did>', 'this user alone')
  .addOption(new Option('--only <which>', 'which hours').choices(['missing', 'partial', 'all']).default('all'))
  .option('--dry-run', 'say what would be asked for, and change nothing', false)
  .option('--wait', 'until they are rolled up; exit 1 if any could not be', false)
  .action(({ from, to, user, only, dryRun, wait }, command: Command) => {
    if (user !== undefined && command.getOptionValueSource('only') === 'cli') {
      command.error('error: expected --user or --only, got both');
    }
    if (user === '') command.error('error: --user: expected a user, got ""');
    const options = { user, only, dryRun, wait, requestedBy: osUser(), requestedFrom: commandLine() };
    const range = rangeOf(from, to);
    const changes = !dryRun && { what: 'backfill', subject: spell(range), detail: { user, only } };
    return run((config) =>
      withConnections(config, { changes }, async (c) =>
        (await import('./commands/backfill.ts')).backfill(c, range, options),
      ),
    );
  });

const backfills = program
  .command('backfills')
  .description('the newest backfills: who asked for what, and how far it is')
  .option('--json', 'for machines', false)
  .action((options) =>
    run((config) =>
      withConnections(config, {}, async (c) => (await import('./commands/backfills.ts')).backfills(c, options)),
    ),
  );
backfills
  .command('show')
  .description('one of them, with its failed hours')
  .argument('<id>', 'its number', backfillId)
  .action((id: number, _, command: Command) =>
    run((config) =>
      withConnections(config, {}, async (c) =>
        (await import('./commands/backfills.ts')).showBackfill(c, id, command.optsWithGlobals()),
      ),
    ),
  );
for (const [change, description] of [
  ['pause', 'until it is resumed, its hours that are not done are not rolled up'],
  ['resume', 'go on'],
  ['cancel', 'its hours that are not done become again what they were'],
  ['retry', 'ask for its failed hours again'],
] as const) {
  backfills
    .command(change)
    .description(description)
    .argument('<id>', 'its number', backfillId)
    .action((id: number) => {
      const changes = { what: `${change} backfill`, subject: String(id) };
      return run((config) =>
        withConnections(config, { changes }, async (c) =>
          (await import('./commands/backfills.ts')).changeBackfill(c, change, { id, by: osUser() }),
        ),
      );
    });
}

withRange(program.command('stats').description('the stored statistics'))
  .addOption(
    new Option('--by <what>', 'one line for each user and hour, or for each type as well')
      .choices(['user', 'type'])
      .default('user'),
  )
  .addOption(new Option('--format <format>', 'how it is written').choices(['csv', 'json', 'table']).default('table'))
  .option('--zeros', 'also users without a call in the hour who were active in the days before', false)
  .action(({ from, to, ...options }) => {
    const range = rangeOf(from, to);
    return run((config) =>
      withConnections(config, { patient: true }, async (c) =>
        (await import('./commands/stats.ts')).stats(c, range, options),
      ),
    );
  });

withRange(
  program.command('verify').description('recount from the calls and list every difference; exit 1 if there is any'),
).action(({ from, to }) => {
  const range = rangeOf(from, to);
  return run((config) =>
    withConnections(config, { patient: true }, async (c) => (await import('./commands/verify.ts')).verify(c, range)),
  );
});

withRange(
  program.command('changes').description('what changed in hours that had closed before, by how much, and why'),
)
  .addOption(new Option('--format <format>', 'how it is written').choices(['json', 'table']).default('table'))
  .action(({ from, to, format }) => {
    const range = rangeOf(from, to);
    return run((config) =>
      withConnections(config, { patient: true }, async (c) =>
        (await import('./commands/changes.ts')).changes(c, range, format),
      ),
    );
  });

const models = program.command('models').description('which models are known, and which of them answer');
models
  .command('import')
  .description(
    'know the providers and models of a file: {"providers": [{"id", "baseUrl", "apiKeyEnv", "models": […]}]}',
  )
  .argument('<file>', 'FILE.json, or -')
  .action((file: string) =>
    run((config) =>
      withConnections(config, { changes: { what: 'models import', subject: file } }, async (c) =>
        (await import('./commands/models.ts')).importModels(c, file),
      ),
    ),
  );
models
  .command('discover')
  .description("know the models that a provider's own list names")
  .argument('<provider>', 'its id')
  .action((id: string) =>
    run((config) =>
      withConnections(config, { changes: { what: 'models discover', subject: id } }, async (c) =>
        (await import('./commands/models.ts')).discover(c, id),
      ),
    ),
  );
models
  .command('forget')
  .description('forget a provider with its models, or one of them')
  .argument('<name>', 'PROVIDER or PROVIDER/MODEL')
  .action((name: string) =>
    run((config) =>
      withConnections(config, { changes: { what: 'models forget', subject: name } }, async (c) =>
        (await import('./commands/models.ts')).forget(c, name),
      ),
    ),
  );
models
  .command('status')
  .description('what is known of each model: status, why, latency, since when, uptime')
  .option('--json', 'for machines', false)
  .action((options) =>
    run((config) =>
      withConnections(config, {}, async (c) => (await import('./commands/models.ts')).modelsStatus(c, options)),
    ),
  );
models
  .command('check')
  .description('look at some models now, or at all')
  .argument('[models...]', 'MODEL or PROVIDER/MODEL')
  .option('--probe', 'probe them whatever their real calls say', false)
  .action((names: string[], { probe }) =>
    run((config) =>
      withConnections(
        config,
        { changes: { what: 'check models', subject: names.join(', ') || 'all', detail: { probe } } },
        async (c) =>
          (await import('./commands/models.ts')).checkNow(c, {
            models: names,
            probe,
            requestedBy: osUser(),
          }),
      ),
    ),
  );

program
  .command('stale')
  .description('fail the calls that have been processing for longer than their time-out')
  .option('--dry-run', 'show them, and change nothing', false)
  .action(({ dryRun }) => {
    const options = { dryRun, requestedBy: osUser() };
    return run((config) =>
      withConnections(config, { changes: !dryRun && { what: 'stale' } }, async (c) =>
        (await import('./commands/stale.ts')).stale(c, options),
      ),
    );
  });

program
  .command('retain')
  .description('seal old hours that are right, and delete their calls, and statistics without calls')
  .option('--calls <age>', 'keep calls for so long: 72h, 90d, 12w, 2y', (text) => read(parseKept, text))
  .option('--stats <age>', 'keep statistics for so long', (text) => read(parseKept, text))
  .option('--dry-run', 'say what would be done, and change nothing', false)
  .action(({ calls, stats, dryRun }, command: Command) => {
    if (calls === undefined && stats === undefined) command.error('error: expected --calls or --stats, got neither');
    checkKept({ calls, stats });
    const changes = !dryRun && { what: 'retain', detail: { keptHours: { calls, stats } } };
    const options = { kept: { calls, stats }, dryRun, requestedBy: osUser() };
    return run((config) =>
      withConnections(config, { changes }, async (c) =>
        (await import('./commands/retain.ts')).retainCommand(c, options),
      ),
    );
  });

program
  .command('credentials')
  .description('print a line for DASHBOARD_CREDENTIALS: the password comes from standard input, unseen')
  .argument('<name>', 'who signs in, or the machine that asks')
  .addOption(new Option('--role <role>', 'what they may').choices(ROLES).makeOptionMandatory())
  .option('--token', 'make an API token instead, and show it once', false)
  .action(async (name: string, options) => {
    process.exitCode = await (await import('./commands/credentials.ts')).credentials(name, options);
  });

program
  .command('status')
  .description('watermark, owed hours, schedulers and queues')
  .option('--json', 'for machines', false)
  .action((options) =>
    run((config) =>
      withConnections(config, {}, async (c) => (await import('./commands/status.ts')).status(c, options)),
    ),
  );

// Whoever reads a report has seen enough (head, a closed pager): no word about it.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(FAILED);
  throw error;
});

try {
  await program.parseAsync();
} catch (error) {
  process.exitCode = await exitCodeOf(error);
}
// What a library may have left open (a socket to a server that does not answer) must not keep a command.
setTimeout(() => process.exit(), 500).unref();

function withRange(command: Command): Command {
  return command
    .requiredOption('--from <T>', 'start: ISO-8601 (UTC where it names no zone) or Unix seconds', (text) =>
      read((text) => parseInstant(text, 'down'), text),
    )
    .requiredOption('--to <T>', 'end, not included', (text) => read((text) => parseInstant(text, 'up'), text));
}

/** What commander says is the option, and what the function throws. */
function read<Value>(parse: (text: string) => Value, text: string): Value {
  try {
    return parse(text);
  } catch (error) {
    throw new InvalidArgumentError(error instanceof Error ? error.message : String(error));
  }
}

function partitionsAhead(text: string): number {
  const count = Number(text);
  if (/^\d{1,3}$/.test(text) && count >= 1 && count <= 366) return count;
  throw new InvalidArgumentError(`expected a whole number from 1 to 366, got "${text}"`);
}

function backfillId(text: string): number {
  if (/^[1-9]\d{0,14}$/.test(text)) return Number(text);
  throw new InvalidArgumentError(`expected the number of a backfill, such as 7, got "${text}"`);
}

/** Widened to whole hours, aloud. */
function rangeOf(from: Date, to: Date): Range {
  const range = wholeHours(from, to);
  if (range.start < from || range.end > to) say(`widened to whole hours: ${spell(range)}`);
  return range;
}

/** Read the environment, do the work, and turn its result into the exit code. */
async function run(work: (config: Config) => Promise<number>): Promise<void> {
  const config = readConfig();
  try {
    process.exitCode = await work(config);
  } catch (error) {
    throw (await import('./connections.ts')).inWords(error, config);
  }
}

/** @param changes what the command changes, where it does: that leaves a line in the account */
async function withConnections(
  config: Config,
  {
    changes = false,
    wants = changes ? 'change' : 'look',
    patient,
  }: { patient?: boolean; changes?: Change | false; wants?: Wants },
  work: (connections: Connections) => Promise<number>,
): Promise<number> {
  // What a server says that cannot be reached is in the error that ends the command.
  const [{ createLogger }, { openConnections }] = await Promise.all([
    import('./logger.ts'),
    import('./connections.ts'),
  ]);
  const log = createLogger('error', process.stderr);
  const connections = await openConnections(config, log, { patient, wants });
  try {
    return changes ? await accounted(connections.pool, changes, () => work(connections)) : await work(connections);
  } finally {
    await connections.close();
  }
}

type Change = Pick<Action, 'what' | 'subject' | 'detail'>;

/** For what needs no Redis. */
async function withAccount(config: Config, change: Change, work: () => Promise<number>): Promise<number> {
  const [{ checkPostgres, checkSchema }, { connect }] = await Promise.all([
    import('./connections.ts'),
    import('./store/db.ts'),
  ]);
  await checkPostgres(config, { writes: true });
  const pool = connect(config.DATABASE_URL, { connections: 1, onError: () => {} });
  try {
    await checkSchema(pool);
    return await accounted(pool, change, work);
  } finally {
    await pool.$disconnect();
  }
}

/** Write down who is about to change what; without that line nothing is changed. Then what came of it. */
async function accounted(db: Db, change: Change, work: () => Promise<number>): Promise<number> {
  const { recordAction, settleAction } = await import('./store/actions.ts');
  const seq = await recordAction(db, { ...change, who: osUser(), from: commandLine() });
  let outcome = 'failed';
  try {
    const code = await work();
    outcome = `exit ${code}`;
    return code;
  } finally {
    // What was done is done: the line stays without its outcome, where the server has gone meanwhile.
    await settleAction(db, seq, outcome).catch(() => {});
  }
}

/** In a container the user may have no name. */
function commandLine(): string {
  return `command line on ${hostname()}`;
}

function osUser(): string {
  try {
    return userInfo().username;
  } catch {
    return `user ${process.getuid?.() ?? 'unknown'}`;
  }
}

/** One line that says what is wrong; commander has said its own already. */
async function exitCodeOf(error: unknown): Promise<number> {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : USAGE;
  if (error instanceof ConfigError || error instanceof RangeError) {
    say(`hourhand: ${error.message}`);
    return USAGE;
  }
  const { reasonOf } = await import('./store/db.ts');
  say(`hourhand: ${reasonOf(error)}`);
  return FAILED;
}
