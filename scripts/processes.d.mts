/** @see processes.mjs */
export function startOf(pid: number): string | undefined;
export function commandLine(pid: number): string;
