/** @see debian.mjs */
export function librariesIn(dir: string): string;
export function unpackPackages(dir: string, choices: readonly (readonly string[])[]): Promise<void>;
