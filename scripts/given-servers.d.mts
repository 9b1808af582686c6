/** @see given-servers.mjs */
export type ServerKind = 'PostgreSQL' | 'Redis';
export function urlProblem(text: string, protocols: readonly string[]): string | undefined;
export function addressOf(
  server: ServerKind,
  url: string,
): { host?: string; port?: number; path?: string; encrypted?: boolean; shown: string };
export function unreachable(
  server: ServerKind,
  url: string,
  options: { ms: number; mend?: string },
): Promise<string | undefined>;
export function checkGiven(urls: Record<string, string | undefined>, ms?: number): Promise<void>;
