// hourhand: the command line. A command reads what it needs when it is typed: a wrong word need not wait for a database client.

import { hostname, userInfo } from 'node:os';
import { Argument, Command, CommanderError, Help, InvalidArgumentError, Option } from 'commander';
import { say } from './commands/say.ts';
import { argumentTerm, asked, oneOf, typed, UsageError } from './commands/usage.ts';
import { type Config, ConfigError, migrations, readConfig, roundedSettings, version } from './config.ts';
import type { Connections } from './connections.ts';
import { ROLES } from './dashboard/credentials.ts';
import type { Wants } from './queues/redis.ts';
import { SCHEDULER_IDS } from './queues/schedulers.ts';
import type { Action } from './store/actions.ts';
import type { Db, Pool } from './store/db.ts';
import { type Hour, isHour } from './time/hour.ts';
import { checkKept, parseKept } from './time/kept.ts';
import { parseInstant, type Range, spell, wholeHours } from './time/range.ts';

/** Wrong usage, or a wrong environment: nothing was begun. */
const USAGE = 2;
const FAILED = 1;

/** What a server that is silent by now is waited for at the end. */
const CLOSE_MS = 2_000;
/** The options of a range: their words, and how they are read. */
const FROM = [
  '--from <T>',
  'start: ISO-8601 (UTC where it names no zone) or Unix seconds',
  (text: string) => read((text) => parseInstant(text, 'down'), text),
] as const;
const TO = [
  '--to <T>',
  'end, not included',
  (text: string) => read((text) => parseInstant(text, 'up'), text),
] as const;

const program = new Command('hourhand')
  .description("Every hour of an AI gateway's model calls, accounted for once.")
  .version(version, '-V, --version', 'its version')
  .helpOption('-h, --help', 'this help')
  .addHelpCommand(
    new Command('help')
      .argument('[command...]')
      .description('what a command does, its options, and examples')
      .helpGroup('Look:'),
  )
  .exitOverride()
  .configureOutput({
    outputError: (text, write) => write(text.replace(/^error: /, 'hourhand: ').replace(/\n(?=.)/g, ' ')),
  })
  .configureHelp({
    subcommandTerm: (command) => [command.name(), ...command.registeredArguments.map(argumentTerm)].join(' '),
    // That something is not done where nobody asks for it goes without saying.
    optionDescription: (option) => Help.prototype.optionDescription(option).replace(' (default: false)', ''),
  })
  .addHelpText(
    'afterAll',
    `
Exit codes: 0 done; 1 failed; 2 wrong usage or environment, and nothing begun.
Environment: DATABASE_URL and REDIS_URL; without them the private servers of
this checkout (npm start). What else there is: docs/configuration.md.`,
  );

program.commandsGroup('Run it:');

program
  .command('up')
  .description('migrations, schedulers, one worker and the dashboard; stays until Ctrl-C')
  .addHelpText('after', more({ reads: 'what worker and dashboard read' }))
  .addOption(new Option('--sample <file>', 'load these calls into the private database, if it holds none').hideHelp())
  .action(({ sample }) => run(async (config) => (await import('./app.ts')).runUp(config, sample)));

program
  .command('worker')
  .description('one worker process; start as many as you like')
  .addHelpText('after', more({ reads: 'what docs/configuration.md has of workers' }))
  .action(() => run(async (config) => (await import('./app.ts')).runWorker(config)));

program
  .command('dashboard')
  .description('the web server alone')
  .addHelpText('after', more({ reads: 'HOST, PORT, PUBLIC_URL, DASHBOARD_…, PROXY_…' }))
  .action(() => run(async (config) => (await import('./app.ts')).runDashboard(config)));

program.commandsGroup('Look:');

program
  .command('status')
  .description('is everything in order? Then watermark, owed hours, schedulers and queues')
  .addHelpText('after', more({ reads: '…_CRON_TIME and LATE_DATA_SECONDS' }))
  .option('--json', 'for machines', false)
  .action((options) =>
    run((config) =>
      withConnections(config, {}, async (c) => (await import('./commands/status.ts')).status(c, options)),
    ),
  );

withRange(program.command('stats').description('the stored statistics'))
  .addHelpText(
    'after',
    more({
      examples: [
        'hourhand stats --from 2026-08-01 --to 2026-09-01 --format csv > august.csv',
        'hourhand stats --from 1787230800 --to 1787234400 --by type',
      ],
      reads: 'ACTIVE_USER_WINDOW_DAYS, with --zeros',
    }),
  )
  .addOption(
    oneOf(new Option('--by <what>', 'one line for each user and hour, or for each type as well'), [
      'user',
      'type',
    ]).default('user'),
  )
  .addOption(oneOf(new Option('--format <format>', 'how it is written'), ['csv', 'json', 'table']).default('table'))
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
)
  .addHelpText(
    'after',
    more({
      examples: ['hourhand verify --from 2026-08-01 --to 2026-09-01'],
      one: 'a figure differs, an hour is open, or calls came late',
    }),
  )
  .action(({ from, to }) => {
    const range = rangeOf(from, to);
    return run((config) =>
      withConnections(config, { patient: true }, async (c) =>
        (await import('./commands/verify.ts')).verify(c, range),
      ),
    );
  });

withRange(
  program.command('changes').description('what changed in hours that had closed before, by how much, and why'),
)
  .addHelpText('after', more({ examples: ['hourhand changes --from 2026-08-01 --to 2026-09-01'] }))
  .addOption(oneOf(new Option('--format <format>', 'how it is written'), ['json', 'table']).default('table'))
  .action(({ from, to, format }) => {
    const range = rangeOf(from, to);
    return run((config) =>
      withConnections(config, { patient: true }, async (c) =>
        (await import('./commands/changes.ts')).changes(c, range, format),
      ),
    );
  });

const models = program
  .command('models')
  .description('which models are known, and which of them answer')
  .helpCommand(false)
  .addHelpText(
    'after',
    more({
      examples: ['hourhand models status', 'hourhand models check openai/gpt-4o-mini --probe'],
      reads: 'MODEL_ALLOW_HTTP, and where providers have keys',
    }),
  );
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

program.commandsGroup('Ask and repair:');

program
  .command('backfill')
  .description('ask for the hours of [from, to), widened to whole hours; or for those that are in no figure')
  .addHelpText(
    'after',
    more({
      examples: [
        'hourhand backfill --from 2026-08-20T13 --to 2026-08-20T14 --wait',
        'hourhand backfill --from 2026-08-01 --to 2026-09-01 --only missing --dry-run',
        'hourhand backfill --from 2026-08-20T13 --to 2026-08-20T14 --user z1abc',
        'hourhand backfill --uncovered --wait',
      ],
      one: 'an hour fails (--wait), or none has ended yet',
    }),
  )
  .option(...FROM)
  .option(...TO)
  .option('--uncovered', 'exactly the hours that hold calls and are in no figure; without --from and --to', false)
  .option('--user <did>', 'this user alone')
  .addOption(oneOf(new Option('--only <which>', 'which hours'), ['missing', 'partial', 'all']).default('all'))
  .option('--dry-run', 'say what would be asked for, and change nothing', false)
  .option('--wait', 'until they are rolled up; exit 1 if any could not be', false)
  .action(({ from, to, uncovered, user, only, dryRun, wait }, command: Command) => {
    const onlySome = command.getOptionValueSource('only') === 'cli';
    const asked = { dryRun, wait, requestedBy: osUser(), requestedFrom: commandLine() };
    if (uncovered) {
      const others = { '--from': from, '--to': to, '--user': user, '--only': onlySome || undefined };
      const [other] = Object.entries(others).find(([, value]) => value !== undefined) ?? [];
      if (other) command.error(`error: expected --uncovered or ${other}, got both`);
      return run((config) =>
        withConnections(config, { changes: !dryRun && { what: 'backfill', subject: 'uncovered hours' } }, async (c) =>
          (await import('./commands/backfill.ts')).backfillUncoveredHours(c, asked),
        ),
      );
    }
    const lacking = [from === undefined && FROM[0], to === undefined && TO[0]].filter(Boolean);
    if (lacking.length > 0) {
      command.error(`error: expected ${lacking.join(' and ')}, got nothing: hourhand help backfill says more`);
    }
    if (user !== undefined && onlySome) command.error('error: expected --user or --only, got both');
    if (user === '') command.error('error: --user: expected a user, got ""');
    const options = { user, only, ...asked };
    const range = rangeOf(from, to);
    const changes = !dryRun && { what: 'backfill', subject: spell(range), detail: { user, only } };
    return run((config) =>
      withConnections(config, { changes }, async (c) =>
        (await import('./commands/backfill.ts')).backfill(c, range, options),
      ),
    );
  });

withRange(
  program
    .command('audit')
    .description('recount the closed hours of [from, to) from the calls now, and repair those that differ'),
)
  .addHelpText(
    'after',
    more({
      examples: ['hourhand audit --from 2026-08-20 --to 2026-08-21'],
      one: 'an hour differs, or none has ended yet',
    }),
  )
  .action(({ from, to }) => {
    const range = rangeOf(from, to);
    const changes = { what: 'audit', subject: spell(range) };
    return run((config) =>
      withConnections(config, { changes, patient: true }, async (c) =>
        (await import('./commands/audit.ts')).audit(c, range, { requestedBy: osUser() }),
      ),
    );
  });

const backfills = program
  .command('backfills')
  .description('the newest backfills: who asked for what, and how far it is')
  .addHelpText('after', more({ examples: ['hourhand backfills show 7'] }))
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

const schedule = program
  .command('schedule')
  .description('see to the schedulers, and print them with their last and next runs')
  .addHelpText(
    'after',
    more({ examples: ['hourhand schedule pause model.call.stats'], reads: '…_CRON_TIME and LATE_DATA_SECONDS' }),
  )
  .action(() =>
    run((config) =>
      withConnections(config, { wants: 'change' }, async (c) => (await import('./commands/schedule.ts')).schedule(c)),
    ),
  );
schedule
  .command('pause')
  .description('keep a scheduler from firing, whatever any deploy says, until it is resumed')
  .addArgument(oneOf(new Argument('<id>', 'which scheduler'), SCHEDULER_IDS))
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
  .addArgument(oneOf(new Argument('<id>', 'which scheduler'), SCHEDULER_IDS))
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
  .addArgument(oneOf(new Argument('<id>', 'which scheduler'), SCHEDULER_IDS))
  .action((id: string) =>
    run((config) =>
      withConnections(config, { changes: { what: 'run scheduler now', subject: id } }, async (c) =>
        (await import('./commands/schedule.ts')).tickNow(c, id),
      ),
    ),
  );

program
  .command('stale')
  .description('fail the calls that have been processing for longer than their time-out')
  .addHelpText('after', more({ reads: 'STALE_MODEL_CALL_TIMEOUT…' }))
  .option('--dry-run', 'show them, and change nothing', false)
  .action(({ dryRun }) => {
    const options = { dryRun, requestedBy: osUser() };
    return run((config) =>
      withConnections(config, { changes: !dryRun && { what: 'stale' } }, async (c) =>
        (await import('./commands/stale.ts')).stale(c, options),
      ),
    );
  });

const late = program
  .command('late')
  .description('what came late for sealed hours: their figures stay as they are')
  .helpCommand(false)
  .addHelpText('after', more({ examples: ['hourhand late list', 'hourhand late accept 2026-08-20T13'] }));
late
  .command('list')
  .description('the hours for which something came late that nobody has accepted')
  .option('--json', 'for machines', false)
  .action((options) =>
    run((config) =>
      withConnections(config, {}, async (c) => (await import('./commands/late.ts')).listLate(c, options)),
    ),
  );
late
  .command('accept')
  .description('it stays unapplied, and is no warning any more; what comes later is one again')
  .addHelpText('after', more({ one: 'an hour is not sealed' }))
  .argument('<hours...>', 'such as 2026-08-20T13', hoursSoFar)
  .action((hours: Hour[]) => {
    const changes = { what: 'accept late', subject: hours.join(', ') };
    return run((config) =>
      withConnections(config, { changes }, async (c) =>
        (await import('./commands/late.ts')).acceptLateHours(c, hours, { by: osUser() }),
      ),
    );
  });

program.commandsGroup('Set up and keep:');

program
  .command('migrate')
  .description('apply the migrations that are missing')
  .action(() =>
    run(async (config) => {
      const [{ checkPostgres, directUrl }, { migrate }] = await Promise.all([
        import('./connections.ts'),
        import('./store/migrate.ts'),
      ]);
      await checkPostgres(config, { writes: true, direct: true });
      const applied = await migrate(directUrl(config), migrations, (name) => say(`applied ${name}`));
      // Only now is there an account to write into.
      if (applied.length > 0)
        await withAccount(config, { what: 'migrate', subject: applied.join(', ') }, async () => 0);
      say(applied.length === 0 ? 'nothing to apply' : `${applied.length} applied`);
      return 0;
    }),
  );

program
  .command('claim-redis')
  .description('take the prefix in Redis from another database, and remove all keys under it')
  .addHelpText('after', more({ reads: 'REDIS_PREFIX', one: 'processes of its owner are there' }))
  .option('--force', 'also while they are there', false)
  .action((options) =>
    run((config) => {
      const changes = { what: 'claim Redis', subject: config.REDIS_PREFIX, detail: options };
      return withConnections(config, { changes, claims: true }, async (c) =>
        (await import('./commands/claim-redis.ts')).claimRedis(c, options),
      );
    }),
  );

const identity = program
  .command('identity')
  .description('who this database is, to the prefix in Redis')
  .helpCommand(false);
identity
  .command('new')
  .description('make a copy of a database another one than the database that it was copied from')
  .action(() =>
    run((config) =>
      withAccount(config, { what: 'identity new' }, async (pool) =>
        (await import('./commands/identity.ts')).newIdentity(pool),
      ),
    ),
  );

program
  .command('credentials')
  .description('print a line for DASHBOARD_CREDENTIALS: the password comes from standard input, unseen')
  .addHelpText('after', more({ examples: ['hourhand credentials ada --role operator >> credentials.txt'] }))
  .argument('<name>', 'who signs in, or the machine that asks')
  .addOption(oneOf(new Option('--role <role>', 'what they may'), ROLES).makeOptionMandatory())
  .option('--token', 'make an API token instead, and show it once', false)
  .action(async (name: string, options) => {
    process.exitCode = await (await import('./commands/credentials.ts')).credentials(name, options);
  });

program
  .command('import')
  .description('load calls from a CSV file, plain or gzip, or from standard input (-)')
  .addHelpText(
    'after',
    more({
      examples: ['hourhand import calls.csv.gz', 'zcat calls.csv.gz | hourhand import - --skip-bad'],
      one: 'a line is bad',
    }),
  )
  .argument('<file>', 'FILE.csv, FILE.csv.gz or -')
  .option('--skip-bad', 'name bad lines and import the rest', false)
  .action((file: string, { skipBad }) =>
    run((config) =>
      withAccount(config, { what: 'import', subject: file }, async () =>
        (await import('./commands/import.ts')).importFile(config, file, { skipBad }),
      ),
    ),
  );

program
  .command('partition')
  .description('keep the calls in a partition for each day, week or month, made ahead by the workers')
  .addHelpText('after', more({ examples: ['hourhand partition --by day --dry-run'] }))
  .addOption(
    oneOf(new Option('--by <period>', 'what a partition holds'), ['day', 'week', 'month']).makeOptionMandatory(),
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
  .command('retain')
  .description('seal old hours that are right, and delete their calls, and statistics without calls')
  .addHelpText('after', more({ examples: ['hourhand retain --calls 90d --stats 2y --dry-run'] }))
  .option('--calls <age>', 'keep calls for so long: 72h, 90d, 12w, 2y', (text) => read(parseKept, text))
  .option('--stats <age>', 'keep statistics for so long', (text) => read(parseKept, text))
  .option('--dry-run', 'say what would be done, and change nothing', false)
  .action(({ calls, stats, dryRun }, command: Command) => {
    if (calls === undefined && stats === undefined) command.error('error: expected --calls or --stats, got neither');
    typed(() => checkKept({ calls, stats }));
    const changes = !dryRun && { what: 'retain', detail: { keptHours: { calls, stats } } };
    const options = { kept: { calls, stats }, dryRun, requestedBy: osUser() };
    return run((config) =>
      withConnections(config, { changes }, async (c) =>
        (await import('./commands/retain.ts')).retainCommand(c, options),
      ),
    );
  });

program
  .command('completion')
  .description('print a script that has the tab key complete commands, options, choices and files')
  .addHelpText(
    'after',
    more({
      examples: [
        'source <(hourhand completion bash)   # in ~/.bashrc, or zsh in ~/.zshrc',
        'hourhand completion fish | source     # in ~/.config/fish/config.fish',
      ],
    }),
  )
  .addArgument(oneOf(new Argument('<shell>', 'of which shell'), ['bash', 'zsh', 'fish']))
  .action(async (shell: string) => (await import('./commands/completion.ts')).completionScript(shell));

// Whoever reads a report has seen enough (head, a closed pager): no word about it.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') say(`hourhand: standard output: ${error.message}`);
  process.exit(FAILED);
});
// Nor may a full disk under standard error make another end of a command than it has.
process.stderr.on('error', () => {});

// A container's first process is spared the signals that nobody has asked for: a command that does not take them would stay.
if (process.pid === 1) {
  for (const [signal, code] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const) {
    process.once(signal, () => process.listenerCount(signal) === 0 && process.exit(code));
  }
}

try {
  const words = process.argv.slice(2);
  // What the scripts of `hourhand completion` ask, at each press of the tab key.
  if (words[0] === 'complete') (await import('./commands/completion.ts')).complete(program, words.slice(2));
  else await program.parseAsync(asked(program, words, [program, models, late, identity]), { from: 'user' });
} catch (error) {
  process.exitCode = await exitCodeOf(error);
}
// What a library may have left open (a socket to a server that does not answer) must not keep a command.
setTimeout(() => process.exit(), 500).unref();

/** What help says below a command's options; `one`: where it ends with exit code 1 though it did what it does. */
function more({ examples = [], one, reads }: { examples?: string[]; one?: string; reads?: string }): string {
  return [
    ...examples.map((example, i) => `${i === 0 ? '\nSuch as:\n' : ''}  ${example}`),
    ...(one ? [`\nEnds with 1 as well where ${one}.`] : []),
    ...(reads ? [`\nReads from the environment: ${reads}.`] : []),
  ].join('\n');
}

function withRange(command: Command): Command {
  return command.requiredOption(...FROM).requiredOption(...TO);
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

/** Each of several arguments comes with those before it. */
function hoursSoFar(text: string, before: Hour[] | undefined): Hour[] {
  if (isHour(text)) return [...new Set([...(before ?? []), text])];
  throw new InvalidArgumentError(`expected hours such as 2026-08-20T13, got "${text}"`);
}

function backfillId(text: string): number {
  if (/^[1-9]\d{0,14}$/.test(text)) return Number(text);
  throw new InvalidArgumentError(`expected the number of a backfill, such as 7, got "${text}"`);
}

/** Widened to whole hours, aloud. */
function rangeOf(from: Date, to: Date): Range {
  const range = typed(() => wholeHours(from, to));
  if (range.start < from || range.end > to) say(`widened to whole hours: ${spell(range)}`);
  return range;
}

/** Read the environment, do the work, and turn its result into the exit code. */
async function run(work: (config: Config) => Promise<number>): Promise<void> {
  const config = readConfig();
  for (const line of roundedSettings()) say(line);
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
    claims,
  }: { patient?: boolean; changes?: Change | false; wants?: Wants; claims?: boolean },
  work: (connections: Connections) => Promise<number>,
): Promise<number> {
  // What a server says that cannot be reached is in the error that ends the command.
  const [{ createLogger }, { openConnections, watchForSilence, within }] = await Promise.all([
    import('./logger.ts'),
    import('./connections.ts'),
  ]);
  const log = createLogger('error', process.stderr);
  const connections = await openConnections(config, log, {
    patient,
    wants,
    claims,
    onWarning: (text) => say(`hourhand: warning: ${text}`),
  });
  const watch = watchForSilence(connections.pool);
  const worked = () => Promise.race([work(connections), watch.silent]);
  try {
    return changes ? await accounted(connections.pool, changes, worked) : await worked();
  } finally {
    watch.stop();
    await within(CLOSE_MS, 'PostgreSQL', connections.close()).catch(() => {});
  }
}

type Change = Pick<Action, 'what' | 'subject' | 'detail'>;

/** For what needs no Redis. */
async function withAccount(config: Config, change: Change, work: (pool: Pool) => Promise<number>): Promise<number> {
  const [{ checkPostgres, checkSchema, watchForSilence, within }, { connect }] = await Promise.all([
    import('./connections.ts'),
    import('./store/db.ts'),
  ]);
  await checkPostgres(config, { writes: true });
  const prepared = config.DATABASE_PREPARED;
  const pool = connect(config.DATABASE_URL, { connections: 1, onError: () => {}, prepared });
  const watch = watchForSilence(pool);
  try {
    await checkSchema(pool);
    return await accounted(pool, change, () => Promise.race([work(pool), watch.silent]));
  } finally {
    watch.stop();
    await within(CLOSE_MS, 'PostgreSQL', pool.$disconnect()).catch(() => {});
  }
}

/** Write down who is about to change what; without that line nothing is changed. Then what came of it. */
async function accounted(db: Db, change: Change, work: () => Promise<number>): Promise<number> {
  const [{ recordAction, settleAction }, { within }] = await Promise.all([
    import('./store/actions.ts'),
    import('./connections.ts'),
  ]);
  const seq = await recordAction(db, { ...change, who: osUser(), from: commandLine() });
  let outcome = 'failed';
  try {
    const code = await work();
    outcome = `exit ${code}`;
    return code;
  } finally {
    // What was done is done: the line stays without its outcome, where the server has gone meanwhile.
    await within(CLOSE_MS, 'PostgreSQL', settleAction(db, seq, outcome)).catch(() => {});
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
  if (error instanceof ConfigError || error instanceof UsageError) {
    say(`hourhand: ${error.message}`);
    return USAGE;
  }
  const { reasonOf } = await import('./store/db.ts');
  say(`hourhand: ${reasonOf(error)}`);
  return FAILED;
}
