/** @see ports.mjs */
export function freePort(wanted?: number): Promise<number>;
