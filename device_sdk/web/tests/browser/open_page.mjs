/**
 * Opens an address in headless Chromium, waits for the page's `window.found`, and prints it with every request that the
 * page made, as JSON: `node open_page.mjs CHROMIUM ADDRESS`.
 */

import { watched } from "./watched.mjs";

const [executablePath, address] = process.argv.slice(2);
const seen = await watched(executablePath, {}, async (page) => {
  await page.goto(address);
  await page.waitForFunction(() => globalThis.found !== undefined, undefined, { timeout: 120_000 });
  return { found: await page.evaluate(() => globalThis.found) };
});
process.stdout.write(`${JSON.stringify(seen)}\n`);
