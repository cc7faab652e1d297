/**
 * The playground: rate titles, and see what the model makes of it, computed in the page by the web SDK.
 *
 * Rules: ratings stay in this page's memory. The page asks for files only, each by GET and without a query, and shows
 * every request that it made. The service is asked only by the button that says so.
 */

const SHOWN = 12;
const WANTED = 10;
const LEVELS = 5;

const at = (id) => document.getElementById(id);
const made = (tag, text = "", attributes = {}) => {
  const element = document.createElement(tag);
  element.textContent = text;
  Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
  return element;
};

/** Ratings by key, oldest first. */
const ratings = new Map();
let recommender;
let live;
let best = [];

try {
  await begin();
} catch (error) {
  at("live").textContent = `This page cannot work: ${error.message} ${error.advice ?? ""}`;
  at("live").className = "problem";
}

async function begin() {
  const { tasks } = await (await fetch("/v1/tasks")).json();
  if (tasks.length === 0) {
    throw new Error("no task has a recommender yet. Run rounds, then load the page again.");
  }
  const wanted = decodeURIComponent(location.hash.slice(1));
  const task = tasks.find((each) => each.task === wanted) ?? tasks[0];
  live = await (await fetch(`/v1/tasks/${encodeURIComponent(task.task)}`)).json();
  let sdk;
  try {
    sdk = await import("/playground/fedrecon.js");
  } catch {
    throw new Error("the browser's part is not in this installation. In a checkout, `make web` builds it.");
  }
  sdk.serveRuntimeFrom("/playground/");
  const [file, items] = await Promise.all([live.recommender, live.items].map(bytesOf));
  recommender = await sdk.Recommender.load({ file, items }, { digest: live.recommender.digest });
  at("live").textContent = `Task ${recommender.task}, round ${recommender.round}: ${recommender.items.keys.length} titles.`;
  at("search").addEventListener("input", showTitles);
  at("forget").addEventListener("click", forget);
  at("ask").addEventListener("click", compare);
  showTitles();
  await show();
  new PerformanceObserver(showRequests).observe({ type: "resource", buffered: true });
}

async function bytesOf(file) {
  const response = await fetch(file.path);
  if (!response.ok) {
    throw new Error(`${file.path} answered ${response.status}. Load the page again.`);
  }
  return new Uint8Array(await response.arrayBuffer());
}

/** The fields of an example: what is rated, and by which numbers; null if it is chosen and not rated. */
function fields() {
  const item = live.fields.find((each) => each.vocabulary).name;
  const rating = live.fields.find((each) => !each.vocabulary) ?? null;
  return { item, rating };
}

/** The numbers that a rating may have, from the scale of the field. */
function levels(rating) {
  if (rating === null) {
    return [1];
  }
  const highest = rating.maximum ?? LEVELS;
  const lowest = Math.max(rating.minimum ?? 1, Math.min(1, highest));
  return Array.from({ length: LEVELS }, (_, step) => lowest + ((highest - lowest) * step) / (LEVELS - 1));
}

function titleOf(row) {
  return recommender.items.titles[row] || recommender.items.keys[row];
}

function showTitles() {
  const asked = at("search").value.trim().toLowerCase();
  const { keys } = recommender.items;
  const rows = [];
  if (asked === "") {
    const stride = Math.max(1, Math.floor(keys.length / SHOWN));
    for (let row = 0; row < keys.length && rows.length < SHOWN; row += stride) {
      rows.push(row);
    }
  } else {
    for (let row = 0; row < keys.length && rows.length < SHOWN; row += 1) {
      if (titleOf(row).toLowerCase().includes(asked)) {
        rows.push(row);
      }
    }
  }
  at("titles").replaceChildren(...rows.map(asRatable));
}

function asRatable(row) {
  const key = recommender.items.keys[row];
  const { rating } = fields();
  const group = made("fieldset");
  group.append(made("legend", titleOf(row)));
  for (const level of levels(rating)) {
    const label = made("label", rating === null ? "choose" : `${level}`, { class: "level" });
    const input = made("input", "", { type: rating === null ? "checkbox" : "radio", name: `rate ${key}`, value: level });
    input.checked = ratings.get(key) === level;
    input.addEventListener("change", async () => {
      ratings.delete(key);
      if (input.checked) {
        ratings.set(key, level);
      }
      await show();
    });
    label.prepend(input);
    group.append(label);
  }
  const line = made("li", "", { "data-key": key });
  line.append(group);
  return line;
}

/** The ratings as the model takes them. */
function mine() {
  const { item, rating } = fields();
  const columns = { [item]: [...ratings.keys()] };
  return rating === null ? columns : { ...columns, [rating.name]: [...ratings.values()] };
}

async function show() {
  const began = performance.now();
  best = await recommender.recommend(mine(), WANTED);
  const spent = performance.now() - began;
  const from = ratings.size === 0 ? "without a rating: what everybody is shown" : `from ${ratings.size} rated`;
  at("computed").textContent = `Computed here in ${spent.toFixed(1)} ms, ${from}.`;
  at("best").replaceChildren(...best.map(asRecommended));
  at("compared").textContent = "";
}

function asRecommended(each) {
  const line = made("li", each.title, { "data-key": each.key, "data-score": each.score });
  line.append(made("span", each.score.toFixed(2), { class: "score" }));
  return line;
}

async function forget() {
  ratings.clear();
  showTitles();
  await show();
}

/** Asks the service for the same, and says how far both are apart. */
async function compare() {
  const columns = Object.entries(mine()).map(([field, values]) =>
    typeof values[0] === "string" ? { field, keys: values } : { field, values },
  );
  const body = JSON.stringify({ columns: ratings.size === 0 ? [] : columns, count: WANTED, exclude_seen: true });
  const response = await fetch(`/v1/tasks/${encodeURIComponent(live.task)}/recommend`, { method: "POST", body });
  const told = await response.json();
  if (!response.ok) {
    at("compared").textContent = `The service refused: ${told.message} ${told.advice}`;
    return;
  }
  const scores = new Map(told.recommendations.map((each) => [each.key, each.score]));
  const apart = Math.max(0, ...best.map((each) => Math.abs(each.score - (scores.get(each.key) ?? Infinity))));
  const same = best.every((each, place) => each.key === told.recommendations[place]?.key);
  const list = same ? "The service gives the same list" : "The service gives another list";
  at("compared").textContent = `${list}; scores differ by at most ${apart.toExponential(1)}. Your ratings were sent for it.`;
}

function showRequests() {
  const requests = performance.getEntriesByType("resource");
  const asked = requests.filter((each) => new URL(each.name).pathname.endsWith("/recommend"));
  at("requests").textContent =
    asked.length === 0
      ? `${requests.length} requests so far, all for files. None carried a rating.`
      : `${requests.length} requests so far. ${asked.length} carried your ratings, because you asked for it.`;
  at("log").replaceChildren(
    ...requests.map((each) => made("li", `${new URL(each.name).pathname}: ${each.transferSize} bytes came`)),
  );
}
