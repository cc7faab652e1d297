/**
 * Uses the playground as a person does who has a keyboard only, and prints what it showed and asked for, as JSON:
 * `node use_playground.mjs CHROMIUM ADDRESS SCREENSHOT KEY=LEVEL...`
 */

import { watched } from "./watched.mjs";

const [executablePath, address, screenshot, ...wanted] = process.argv.slice(2);
const desk = { viewport: { width: 1200, height: 800 } };
const seen = await watched(executablePath, desk, async (page, requests) => {
  await page.goto(address);
  await page.waitForSelector("#best li", { timeout: 120_000 });
  for (const [place, each] of wanted.entries()) {
    const [key, level] = each.split("=");
    const title = await page.locator(`#titles li[data-key="${key}"] legend`).textContent();
    await page.getByRole("searchbox").fill(title);
    await page.locator(`#titles li[data-key="${key}"] input[value="${level}"]`).focus();
    await page.keyboard.press("Space");
    await page.waitForFunction((count) => document.querySelector("#computed").textContent.includes(`from ${count} rated`), place + 1);
    await page.getByRole("searchbox").fill("");
  }
  const best = await page
    .locator("#best li")
    .evaluateAll((lines) => lines.map((line) => ({ key: line.dataset.key, score: Number(line.dataset.score) })));
  const before = requests.length;
  await page.waitForFunction(() => document.querySelector("#requests").textContent.includes("None carried a rating"));
  await page.screenshot({ path: screenshot, fullPage: true });
  await page.setViewportSize({ width: 360, height: 740 });
  const isNarrow = await page.evaluate(() => document.documentElement.scrollWidth <= 360);
  await page.emulateMedia({ colorScheme: "dark" });
  await page.screenshot({ path: screenshot.replace(".png", "-phone.png"), fullPage: true });
  await page.getByRole("button", { name: "Send my ratings" }).click();
  await page.waitForFunction(() => document.querySelector("#compared").textContent !== "");
  const compared = await page.locator("#compared").textContent();
  await page.getByRole("button", { name: "Forget my ratings" }).click();
  await page.waitForFunction(() => document.querySelector("#computed").textContent.includes("without a rating"));
  return { best, before, compared, isNarrow };
});
process.stdout.write(`${JSON.stringify(seen)}\n`);
