/** The known answers, in node: the same checks as in a browser. */

import { readFile } from "node:fs/promises";

import { expect, test } from "vitest";

import { checks, TOLERANCE } from "./checks.js";

const folder = new URL("../../../protos/vectors/", import.meta.url);

const read = async (name: string) => new Uint8Array(await readFile(new URL(name, folder)));

for (const [name, check] of Object.entries(checks)) {
  test(name, async () => {
    expect(await check(read)).toBeLessThanOrEqual(TOLERANCE);
  });
}
