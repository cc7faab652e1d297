/** Elements of the page, made in code: text is always text, never markup. */

const KEPT_SENTENCES = 5;

/** Makes an element: attributes by name (`class`, `href`, ...), listeners as `onclick`, then children. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) {
      element.addEventListener(name.slice(2), value);
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A table that scrolls by itself where it is too wide. Rows are lists of cells; a cell that is a list has a class first. */
export function table(caption, headings, rows) {
  const cell = (content) =>
    Array.isArray(content) ? el("td", { class: content[0] }, content[1]) : el("td", {}, content);
  return el(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el("caption", { class: "unseen" }, caption),
      el("thead", {}, el("tr", {}, headings.map((heading) => el("th", { scope: "col", class: heading.startsWith("#") ? "number" : null }, heading.replace("#", ""))))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell)))),
    ),
  );
}

/** A part of a page with a heading. */
export function part(title, attributes, ...children) {
  const id = `part-${title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
  return el("section", { ...attributes, "aria-labelledby": id, class: `part ${attributes.class ?? ""}` }, el("h2", { id }, title), ...children);
}

/** The state of a task or the phase of a round, as a word in its colour. */
export const badge = (word) => el("span", { class: `badge ${word}` }, word);

/** What has to be looked into. */
export function warnings(found) {
  if (found.length === 0) {
    return null;
  }
  return el(
    "ul",
    { class: "warnings" },
    found.map((each) => el("li", {}, el("strong", {}, each.what), " ", withCode(each.advice))),
  );
}

/** Text in which `commands` stand between backticks. */
export function withCode(text) {
  return el("span", {}, text.split("`").map((piece, place) => (place % 2 ? el("code", {}, piece) : piece)));
}

/** Says something to those who do not see the page change. What came just before is not cut off. */
export function say(text) {
  const said = document.getElementById("said");
  said.append(el("p", {}, text));
  while (said.childElementCount > KEPT_SENTENCES) {
    said.firstElementChild.remove();
  }
}

/** What tells an element from its neighbours to somebody who hears it. */
const saidOf = (element) => `${element.tagName} ${element.getAttribute("aria-label") ?? element.textContent}`;

/** Replaces the children of an element, unless they are the same; who reads or types there stays where they are. */
export function renew(element, ...children) {
  const fresh = children.flat().filter((child) => child !== null && child !== undefined);
  const before = [...element.childNodes];
  if (before.length !== fresh.length || fresh.some((child, place) => !sameNode(child, before[place]))) {
    const focused = element.contains(document.activeElement) ? saidOf(document.activeElement) : null;
    element.replaceChildren(...fresh);
    if (focused !== null) {
      [...element.querySelectorAll("a, button, [tabindex]")].find((each) => saidOf(each) === focused)?.focus({ preventScroll: true });
    }
  }
}

function sameNode(fresh, before) {
  return typeof fresh === "string" ? before.textContent === fresh : fresh.isEqualNode(before);
}
