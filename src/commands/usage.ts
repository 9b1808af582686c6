// Is what was typed a command? If not, what was meant, and what is lacking?

import { type Argument, type Command, InvalidArgumentError, type Option } from 'commander';
import { closestMatch } from 'leven';

/** What was typed is wrong, and nothing was begun. No other error but a wrong environment ends a command with 2. */
export class UsageError extends Error {}

/** Read what was typed: what the reader throws is wrong usage. Nothing that asks a server belongs in here. */
export function typed<Value>(read: () => Value): Value {
  try {
    return read();
  } catch (cause) {
    throw new UsageError(cause instanceof Error ? cause.message : String(cause), { cause });
  }
}

/**
 * The words as commander takes them: `help x` is `x --help`, and nothing at all, behind an idle command, asks for help.
 * A command or an option that there is none of is told here, for commander passes over a wrong word before `--help` and
 * miscounts one after a command that also stands alone, and asks first for what is missing, one thing at a time.
 *
 * @param idle the commands that do nothing by themselves
 * @throws {CommanderError} after a line about what is wrong
 */
export function asked(command: Command, words: string[], idle: readonly Command[]): string[] {
  const [word, ...rest] = words;
  if (command.commands.length > 0 && word === 'help') return asked(command, [...rest, '--help'], idle);
  const named = command.commands.find((one) => one.name() === word);
  if (named) return [named.name(), ...asked(named, rest, idle)];
  if (command.commands.length > 0 && word !== undefined && !word.startsWith('-')) {
    const names = [...command.commands.map((one) => one.name()), 'help'];
    command.error(`error: unknown command '${word}'${nearest(word, names)}`);
  }
  if (word === undefined && idle.includes(command)) return ['--help'];

  const { operands, unknown } = command.parseOptions(words);
  if (unknown.some((one) => ['-h', '--help', '-V', '--version'].includes(one))) return words;
  // Behind an option: what stands there is not run here, and only looked at.
  if (word?.startsWith('-') && operands.length > 0 && command.commands.length > 0)
    asked(command, [...operands, ...unknown], idle);
  checkOptions(
    command,
    unknown.filter((one) => /^-./.test(one)),
  );
  checkNothingLacks(command, operands.length + unknown.filter((one) => !/^-./.test(one)).length);
  return words;
}

function checkOptions(command: Command, unknown: string[]): void {
  const options = [...command.options, ...(command.parent?.options ?? [])].filter(({ hidden }) => !hidden);
  const wrong = unknown
    .map((one) => one.replace(/=.*/s, ''))
    .find((one) => !options.some(({ short, long }) => one === short || one === long));
  if (wrong === undefined) return;
  const names = [...options.map(({ long, flags }) => long ?? flags), '--help'];
  command.error(`error: unknown option '${wrong}'${nearest(wrong, names)}`);
}

function checkNothingLacks(command: Command, given: number): void {
  const lacking = [
    ...command.registeredArguments
      .slice(given)
      .filter(({ required }) => required)
      .map(argumentTerm),
    ...command.options
      .filter((option) => option.mandatory && command.getOptionValue(option.attributeName()) === undefined)
      .map(({ flags }) => flags),
  ];
  if (lacking.length === 0) return;
  const name = command.parent?.parent ? `${command.parent.name()} ${command.name()}` : command.name();
  command.error(`error: expected ${lacking.join(' and ')}, got nothing: hourhand help ${name} says more`);
}

/** One of the choices, which help names and the tab key completes; a wrong one is told with what is near. */
export function oneOf<Given extends Option | Argument>(given: Given, choices: readonly string[]): Given {
  given.choices(choices).argParser((text) => {
    if (choices.includes(text)) return text;
    throw new InvalidArgumentError(`expected ${choices.join(', ')}, got "${text}"${nearest(text, choices, '')}`);
  });
  return given;
}

/** The one that was meant, if one is near. */
function nearest(found: string, known: readonly string[], otherwise = `: expected ${known.join(', ')}`): string {
  const maxDistance = Math.min(3, Math.ceil(found.replace(/^-+/, '').length * 0.4));
  const near = known.find((one) => one.startsWith(found)) ?? closestMatch(found, known, { maxDistance });
  return near && found !== '' ? ` (Did you mean ${near}?)` : otherwise;
}

/** How help writes an argument. */
export function argumentTerm(argument: Argument): string {
  const name = argument.variadic ? `${argument.name()}...` : argument.name();
  return argument.required ? `<${name}>` : `[${name}]`;
}
