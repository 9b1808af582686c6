/** @see private-postgres.mjs */
export function startPostgres(options: {
  home: string;
  password: string;
  passwordIsNew: boolean;
  database: string;
  throwAway: boolean;
  port?: number;
  environment?: Record<string, string>;
}): Promise<{ pid: number; port: number }>;
export function stopPostgres(home: string): Promise<void>;
