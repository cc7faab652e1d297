/** The console: which page is shown, who is signed in, and what is said when something is away. */

import { ask, change, keepProof, Refused } from "./asking.js";
import { el } from "./elements.js";
import { auditPage, problemPage, roundPage, servicesPage, signInPage, taskPage, tasksPage } from "./pages.js";

const PAGES = [
  [/^\/$/, tasksPage],
  [/^\/services$/, servicesPage],
  [/^\/audit$/, auditPage],
  [/^\/sign-in$/, signInPage],
  [/^\/tasks\/([^/]+)$/, taskPage],
  [/^\/tasks\/([^/]+)\/rounds\/(\d+)$/, roundPage],
];

const main = document.getElementById("main");
let me = null;
let visiting = new AbortController();

/** Shows the page of the address. */
async function visit(isFirst) {
  visiting.abort();
  const leaving = new AbortController();
  visiting = leaving;
  const { signal } = leaving;
  const path = location.pathname;
  const found = PAGES.map(([pattern, page]) => [pattern.exec(path), page]).find(([match]) => match);
  const context = {
    me,
    signal,
    show: (title, parts) => {
      if (signal.aborted) {
        return;
      }
      document.title = `${title} · fedrecon`;
      main.replaceChildren(...parts);
      if (!isFirst) {
        scrollTo(0, 0);
        main.querySelector("h1")?.focus({ preventScroll: true });
      }
    },
    away,
    refused: (error) => refused(error),
    entered: (introduced) => {
      enter(introduced);
      go(sessionStorage.getItem("wanted") ?? "/");
      sessionStorage.removeItem("wanted");
    },
    /** Does something again and again while somebody looks. */
    repeat: (work, milliseconds) => {
      const timer = setInterval(() => {
        if (!document.hidden) {
          work().catch((error) => error.name !== "AbortError" && refused(error));
        }
      }, milliseconds);
      signal.addEventListener("abort", () => clearInterval(timer));
    },
  };
  for (const link of document.querySelectorAll("header nav a")) {
    const isHere = link.pathname === path || (link.pathname === "/" && path.startsWith("/tasks/"));
    link.toggleAttribute("aria-current", false);
    if (isHere) {
      link.setAttribute("aria-current", "page");
    }
  }
  if (!found) {
    problemPage(context, new Refused({ message: `There is no ${path}.`, advice: "" }, 404));
    return;
  }
  const [match, page] = found;
  if (me === null && page !== signInPage) {
    sessionStorage.setItem("wanted", path);
    go("/sign-in");
    return;
  }
  try {
    const [name, number] = match.slice(1);
    await page(context, name && decodeURIComponent(name), number && Number(number));
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) {
      return;
    }
    if (error.status === 401) {
      refused(error);
    } else {
      problemPage(context, error);
      if (!(error instanceof Refused)) {
        throw error;
      }
    }
  }
}

function refused(error) {
  if (error.status === 401) {
    me = null;
    sessionStorage.setItem("wanted", location.pathname);
    document.querySelector("header nav").hidden = true;
    document.getElementById("who").hidden = true;
    go("/sign-in");
  } else {
    away(`${error.message} ${error.advice ?? ""}`);
  }
}

/** Says that something does not answer; an empty text takes it back. */
function away(text) {
  const place = document.getElementById("away");
  if (place.textContent !== text) {
    place.textContent = text;
  }
  place.hidden = text === "";
}

function go(path) {
  history.pushState(null, "", path);
  away("");
  visit(false);
}

function enter(introduced) {
  me = introduced;
  keepProof(me.proof);
  document.querySelector("header nav").hidden = false;
  const who = document.getElementById("who");
  who.hidden = false;
  const leave = el("button", { type: "button", class: "plain", onclick: signOut }, "Sign out");
  who.replaceChildren(el("span", {}, me.name), el("span", { class: "role" }, me.role === "service" ? "all rights" : me.role), leave);
}

async function signOut() {
  await change("/api/sign-out");
  me = null;
  location.assign("/sign-in");
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  const href = link?.getAttribute("href");
  const isOurs = href?.startsWith("/") && !event.defaultPrevented && event.button === 0;
  if (isOurs && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey) {
    event.preventDefault();
    go(href);
  }
});
addEventListener("popstate", () => visit(false));

if (location.pathname !== "/sign-in" || location.hash === "") {
  try {
    const introduced = await ask("/api/me");
    if (introduced.name !== undefined) {
      enter(introduced);
    }
  } catch (error) {
    if (!(error instanceof Refused)) {
      throw error;
    }
  }
}
await visit(true);
