/**
 * Opens an address in headless Chromium, waits for the page's `window.found`, and prints it with every request that the
 * page made, as JSON: `node open_page.mjs CHROMIUM ADDRESS`.
 */

import { chromium } from "playwright-core";

const [executablePath, address] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  // As root, without a network: no sandbox, and nothing that looks for servers of its own.
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
try {
  const page = await browser.newPage();
  const requests = [];
  const complaints = [];
  page.on("request", (request) =>
    requests.push({ method: request.method(), url: request.url(), body: request.postData() }),
  );
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  await page.goto(address);
  await page.waitForFunction(() => globalThis.found !== undefined, undefined, { timeout: 120_000 });
  const found = await page.evaluate(() => globalThis.found);
  process.stdout.write(`${JSON.stringify({ found, requests, complaints })}\n`);
} finally {
  await browser.close();
}
