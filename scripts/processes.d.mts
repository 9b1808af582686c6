/** @see processes.mjs */
export function startOf(pid: number): string | undefined;
export function commandLine(pid: number): string;
export function run(
  command: readonly string[],
  options?: { env?: NodeJS.ProcessEnv },
): Promise<{ code: number; output: string }>;
