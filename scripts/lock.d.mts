/** @see lock.mjs */
export function lock(file: string): Promise<() => void>;
