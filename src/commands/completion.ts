// hourhand completion: what may stand next on a command line, for the shell in which somebody presses the tab key.
// It reads the commands alone, and no environment: a key is answered before a database client is loaded.

import path from 'node:path';
import tabs, { ShellCompDirective } from '@bomb.sh/tab';
import tab from '@bomb.sh/tab/commander';
import type { Command } from 'commander';
import { home } from '../config.ts';

/** Print the script for a shell: bash, zsh or fish. It calls this hourhand by its path, so an alias is completed as well. */
export function completionScript(shell: string): void {
  const hourhand = [process.execPath, path.join(home, 'bin', 'hourhand.mjs')].map(quoted).join(' ');
  if (shell === 'bash') process.stdout.write(bash(hourhand));
  else tabs.setup('hourhand', hourhand, shell);
}

/** Print what may follow these words, the last of which is not finished: a line for each, and one that says whether files may too. */
export function complete(program: Command, words: string[]): void {
  const commands = tab(program);
  commands.commands.delete('complete'); // its own, which only scripts type
  commands.commands.get('help')?.argument('command', (say) => {
    for (const { name, description } of program.commands.map((one) => ({
      name: one.name(),
      description: one.description(),
    })))
      say(name, description);
  });
  if (takesFile(program, words)) process.stdout.write(`:${ShellCompDirective.ShellCompDirectiveDefault}\n`);
  else commands.parse(words);
}

/** The library completes no files by itself. */
function takesFile(program: Command, words: string[]): boolean {
  let command = program;
  const before = words.slice(0, -1).filter((word) => !word.startsWith('-'));
  while (true) {
    const next = command.commands.find((one) => one.name() === before[0]);
    if (!next) break;
    command = next;
    before.shift();
  }
  return command.registeredArguments[before.length]?.name() === 'file' && !/^-./.test(words.at(-1) ?? '');
}

const quoted = (word: string) => `'${word.replaceAll("'", String.raw`'\''`)}'`;

/**
 * The library's own script for bash needs a package beside bash, cannot be read twice in one shell, and evaluates what
 * stands on the line. This one runs in the bash of every system; that of macOS (3.2) completes no files by it.
 */
const bash = (hourhand: string) => `# hourhand completion bash
_hourhand() {
  local IFS=$'\\n' value directive= word words=() last
  # Bash cuts a word at each "=" and ":"; we want what was typed.
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD}"; do
    last=$((\${#words[@]} - 1))
    if [ "$last" -ge 0 ] && { [ "$word" = = ] || [[ \${words[last]} == *= ]]; }; then
      words[last]+=$word
    else
      words+=("$word")
    fi
  done
  COMPREPLY=()
  while read -r value; do
    case $value in
      :*) directive=$value ;;
      *) COMPREPLY+=("\${value%%$'\\t'*}") ;;
    esac
  done < <(${hourhand} complete -- "\${words[@]}" 2>/dev/null)
  [ "$directive" = :${ShellCompDirective.ShellCompDirectiveNoFileComp} ] || compopt -o default 2>/dev/null # bash's own, of files
}
complete -F _hourhand hourhand
`;
