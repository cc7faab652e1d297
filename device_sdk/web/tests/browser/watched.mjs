/** Headless Chromium without a network of its own, and pages of which everything is noted. */

import { chromium } from "playwright-core";

/**
 * Uses a page, and gives what `use` gives, with every request and complaint of the page until then.
 *
 * @param executablePath of Chromium.
 * @param options of the page, as Playwright has them.
 * @param use is given the page, and the list of its requests so far.
 */
export async function watched(executablePath, options, use) {
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
    const page = await browser.newPage(options);
    const requests = [];
    const complaints = [];
    page.on("request", (request) =>
      requests.push({ method: request.method(), url: request.url(), body: request.postData() }),
    );
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
    return { ...(await use(page, requests)), requests, complaints };
  } finally {
    await browser.close();
  }
}
