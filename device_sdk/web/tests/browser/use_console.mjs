/**
 * Uses the console as an operator does, and prints what it showed and asked for, as JSON:
 * `node use_console.mjs CHROMIUM SCENE FOLDER LINK`, where screenshots go into the folder.
 */

import { watched } from "./watched.mjs";

const [executablePath, scene, folder, link] = process.argv.slice(2);
const desk = { viewport: { width: 1280, height: 960 } };
const phone = { width: 360, height: 740 };

const shot = (page, name, fullPage = true) => page.screenshot({ path: `${folder}/${name}.png`, fullPage });
const text = (page, place) => page.locator(place).innerText();

/** What the page loaded, in bytes as they travelled, and how long it took until it could be used. */
const costs = (page) =>
  page.evaluate(() => {
    const loaded = [...performance.getEntriesByType("resource"), ...performance.getEntriesByType("navigation")];
    return loaded.reduce((sum, each) => sum + (each.transferSize ?? 0), 0);
  });

/** Whether all that can be pressed has a name, all pictures and regions, too, and there is one main heading. */
const namesOf = (page) =>
  page.evaluate(() => {
    const name = (element) =>
      element.getAttribute("aria-label") ?? document.getElementById(element.getAttribute("aria-labelledby"))?.textContent ?? element.labels?.[0]?.textContent ?? element.textContent;
    const shown = [...document.querySelectorAll("a, button, input, [role=img], [role=region], section, nav, dialog")];
    return {
      nameless: shown.filter((element) => !element.closest("[hidden]") && name(element).trim() === "").map((element) => element.outerHTML.slice(0, 120)),
      headings: document.querySelectorAll("main h1").length,
      landmarks: ["header", "nav", "main"].filter((tag) => document.querySelector(tag)),
    };
  });

/** The least contrast of text with its ground, of all that is written on the page. */
const contrastOf = (page) =>
  page.evaluate(() => {
    const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
    const light = ([red, green, blue]) =>
      [red, green, blue].map((each) => each / 255).map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)).reduce((sum, each, place) => sum + each * [0.2126, 0.7152, 0.0722][place], 0);
    const ground = (element) => {
      for (let each = element; each; each = each.parentElement) {
        const colour = channels(getComputedStyle(each).backgroundColor);
        if (colour.length < 4 || colour[3] > 0.99) {
          return colour;
        }
      }
      return [255, 255, 255];
    };
    let least = { ratio: 21, text: "" };
    for (const element of document.querySelectorAll("main *, header *")) {
      const written = [...element.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
      if (!written || element.closest("[hidden], .unseen, :disabled")) {
        continue;
      }
      const style = getComputedStyle(element);
      const [one, other] = [light(channels(element.namespaceURI.endsWith("svg") ? style.fill : style.color)), light(ground(element))];
      const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
      if (ratio < least.ratio) {
        least = { ratio, text: element.textContent.trim().slice(0, 40) };
      }
    }
    return least;
  });

async function open(page, path) {
  await page.evaluate((wanted) => {
    history.pushState(null, "", wanted);
    dispatchEvent(new PopStateEvent("popstate"));
  }, path);
}

async function enter(page) {
  await page.goto(link);
  await page.waitForSelector("#tasks");
}

const scenes = {
  /** An operator looks at an empty stack. */
  async empty(page) {
    await enter(page);
    return { told: await text(page, "main"), ...(await namesOf(page)) };
  },

  /** A round runs: its page, in light, in the dark, on a phone; whoever reports is seen at once. */
  async live(page, requests) {
    await enter(page);
    await shot(page, "console-tasks");
    const before = Date.now();
    await page.getByRole("link", { name: "films" }).click();
    await page.waitForSelector("#tiles .badge.reporting");
    const usable = Date.now() - before;
    await page.waitForSelector("#quality svg path");
    await page.waitForFunction(() => document.querySelector("#funnel")?.textContent.includes("uploaded"));
    await shot(page, "console", false);
    const seen = { usable, tiles: await text(page, "#tiles"), funnel: await text(page, "#funnel"), bytes: await costs(page), ...(await namesOf(page)) };
    seen.contrastLight = await contrastOf(page);
    await page.emulateMedia({ colorScheme: "dark" });
    seen.contrastDark = await contrastOf(page);
    await shot(page, "console-dark", false);
    await page.setViewportSize(phone);
    await page.waitForTimeout(300);
    seen.isNarrow = await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth);
    await shot(page, "console-phone", false);
    await page.setViewportSize(desk.viewport);
    process.stderr.write("ready\n"); // the test lets the round end now
    await page.waitForFunction(() => /was committed/.test(document.getElementById("said").textContent), undefined, { timeout: 60_000 });
    seen.said = await text(page, "#said");
    await page.waitForFunction(() => document.querySelectorAll("#checkpoints tr").length > 4);
    seen.focus = await alongTheTimeline(page);
    seen.elsewhere = requests.map((each) => new URL(each.url)).filter((url) => url.origin !== new URL(link).origin).length;
    return seen;
  },

  /** An abandoned attempt is found in the timeline by keyboard, and explained. */
  async why(page) {
    await enter(page);
    await open(page, "/tasks/films");
    await page.waitForSelector("a.attempt.abandoned");
    await page.locator("a.attempt.abandoned").last().focus();
    const label = await page.evaluate(() => document.activeElement.getAttribute("aria-label"));
    await page.keyboard.press("Enter");
    await page.waitForSelector(".story");
    await shot(page, "console-why");
    return { label, heading: await text(page, "h1"), story: await text(page, ".story"), focused: await page.evaluate(() => document.activeElement.tagName), ...(await namesOf(page)) };
  },

  /** An operator rolls back, and cancels after typing the name. */
  async change(page) {
    await enter(page);
    await open(page, "/tasks/films");
    const row = page.locator("#checkpoints tr").nth(3);
    const round = await row.locator("td").first().innerText();
    await row.getByRole("button").focus();
    await page.keyboard.press("Enter");
    await page.getByLabel("Why?").fill("worse on new users");
    await shot(page, "console-rollback", false);
    await page.keyboard.press("Enter");
    await page.waitForFunction((wanted) => document.querySelector("#checkpoints .badge.live")?.closest("tr").textContent.startsWith(wanted), round);
    await page.waitForFunction(() => document.getElementById("said").textContent.includes("Live is"));
    const said = await text(page, "#said");
    await page.getByRole("button", { name: "Cancel", exact: true }).click();
    const cancel = page.getByRole("button", { name: "Cancel the task" });
    const isGuarded = await cancel.isDisabled();
    await page.getByLabel("This cannot be undone").fill("films");
    await cancel.click();
    await page.waitForSelector(".head .badge.cancelled");
    const buttons = await page.locator("#buttons button").count();
    await open(page, "/audit");
    await page.waitForSelector("main table");
    await shot(page, "console-audit");
    return { round, said, isGuarded, buttons, audit: await text(page, "main table") };
  },

  /** Ten thousand rounds. */
  async many(page) {
    await enter(page);
    const before = Date.now();
    await open(page, "/tasks/films");
    await page.waitForSelector("#rounds td");
    await page.waitForSelector("a.attempt");
    const usable = Date.now() - before;
    await page.waitForFunction(() => document.querySelector("#quality svg path.evaluation") !== null, undefined, { timeout: 60_000 });
    const drawn = Date.now() - before;
    await page.waitForTimeout(500);
    const bytes = await costs(page);
    await page.getByRole("button", { name: "Older rounds" }).click();
    await page.waitForFunction(() => document.querySelectorAll("#rounds tbody tr").length > 15);
    await shot(page, "console-many");
    return { usable, drawn, bytes, quality: await page.locator("#quality svg").getAttribute("aria-label"), elements: await page.evaluate(() => document.querySelectorAll("*").length) };
  },
};

async function alongTheTimeline(page) {
  await page.locator("a.attempt[tabindex='0']").focus();
  const labels = [];
  for (const key of ["ArrowLeft", "ArrowLeft", "Home", "End"]) {
    await page.keyboard.press(key);
    labels.push(await page.evaluate(() => document.activeElement.getAttribute("aria-label")));
  }
  return labels;
}

const seen = await watched(executablePath, desk, scenes[scene]);
process.stdout.write(`${JSON.stringify({ ...seen, requests: seen.requests.length })}\n`);
