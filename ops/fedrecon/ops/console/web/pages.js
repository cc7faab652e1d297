/** The other pages: tasks, a round in words, services, audit, sign-in. */

import { ask, change, keepProof, Refused, roundLink, taskPath } from "./asking.js";
import { badge, el, part, renew, table, warnings, withCode } from "./elements.js";
import { progress, taskPage } from "./task_page.js";
import { capital, count, moment, noteClock, now, numberOf, percent, PHASES, qualityOf, seconds, several, shapeInWords, short, span } from "./words.js";

const EVERY_MILLISECONDS = 4000;

export { taskPage };

/** All tasks, with what is seen first of each. */
export async function tasksPage(visit) {
  const place = el("div", { id: "tasks" });
  let shown = false;
  const again = async () => {
    const { tasks } = await ask("/api/tasks", visit.signal);
    visit.away("");
    if (tasks.length > 0) {
      noteClock(tasks[0].now);
    }
    renew(place, tasks.length === 0 ? nothingYet() : tasks.map(taskCard));
    if (!shown) {
      visit.show("Tasks", [el("h1", { tabindex: -1 }, "Tasks"), place]);
      shown = true;
    }
  };
  await again();
  visit.repeat(again, EVERY_MILLISECONDS);
}

function nothingYet() {
  return el(
    "section",
    { class: "part" },
    el("h2", {}, "There is no task yet"),
    el("p", {}, "A task trains one plan with the devices of one population. To begin:"),
    el(
      "ol",
      { class: "begin" },
      el("li", {}, "Compile a plan from a model: ", el("code", {}, "fedrecon plan compile --model matrix-factorization --items items.csv --key publisher.pem --out plan")),
      el("li", {}, "Register a task that trains it: ", el("code", {}, "fedrecon task create films --plan plan --set rounds.report_goal=20")),
      el("li", {}, "Let devices take part; simulated ones do at first: ", el("code", {}, "fedrecon fleet --data ratings.csv --population films")),
    ),
    el("p", { class: "quiet" }, "This page shows the task as soon as it is there."),
  );
}

function taskCard(task) {
  const { round } = task;
  const isLive = round && !["committed", "abandoned"].includes(round.phase);
  const fact = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
  return el(
    "article",
    { class: "part card" },
    el("div", { class: "head" }, el("h2", {}, el("a", { href: `/tasks/${encodeURIComponent(task.name)}` }, task.name)), badge(task.state)),
    warnings(task.warnings),
    el(
      "dl",
      { class: "facts" },
      fact("round", round ? el("span", {}, `${numberOf(round)} `, badge(round.phase)) : "none yet"),
      fact("last commit", task.last_commit ? `${span(now() - task.last_commit)} ago` : "none yet"),
      fact("attempts committed", task.share_committed === null ? "none yet" : `${percent(task.share_committed, 1)} (${count(task.committed)} rounds)`),
      fact("epsilon", task.privacy.guaranteed ? `${task.privacy.epsilon.toPrecision(3)}${task.privacy.budget ? ` of ${task.privacy.budget}` : ""}` : "no guarantee"),
    ),
    isLive && round.phase !== "selecting" ? progress(round.reported, round.goal, `${count(round.reported)} of ${count(round.goal)} reports`) : null,
    isLive && round.phase === "selecting" ? progress(round.waiting, task.minimum_cohort, `${count(round.waiting)} of ${count(task.minimum_cohort)} devices wait`) : null,
  );
}

/** The journal of a round in words. */
export async function roundPage(visit, name, number) {
  const [told, task] = await Promise.all([ask(taskPath(name, `/rounds/${number}`), visit.signal), ask(taskPath(name), visit.signal)]);
  const last = told.attempts.at(-1);
  const outcome = {
    committed: `It was committed${last.attempt > 1 ? `, in attempt ${last.attempt}` : ""}: ${several(last.counted, "report")} made the checkpoint ${short(last.checkpoint)}.`,
    abandoned: `It was abandoned: ${last.reason}. All its reports are void, and it is tried again.`,
  };
  const summary = outcome[last.phase] ?? `It is under way: ${PHASES[last.phase]}.`;
  const before = number > 1 ? el("a", { href: roundLink(name, number - 1), rel: "prev" }, `Round ${number - 1}`) : "";
  const after = task.round?.round > number ? el("a", { href: roundLink(name, number + 1), rel: "next" }, `Round ${number + 1}`) : "";
  const rows = told.attempts.map((each) => [
    ["number", String(each.attempt)],
    el("span", {}, badge(each.phase), each.reason ? el("span", { class: "quiet" }, ` ${each.reason}`) : ""),
    ["number", count(each.waiting)],
    ["number", `${count(each.assigned)}/${count(each.cohort)}`],
    ["number", `${count(each.reported)}/${count(each.goal)}`],
    ["number", count(each.voided)],
    ["number", each.ended ? seconds(each.ended - each.opened) : ""],
    ["number", qualityOf(each.quality)],
  ]);
  const ends = Object.entries(sumOf(told.attempts, "outcomes")).map(([outcome_, sessions]) => [outcome_.toLowerCase().replaceAll("_", " "), ["number", count(sessions)]]);
  const shapes = Object.entries(sumOf(told.attempts, "shapes")).map(([shape, sessions]) => [el("code", {}, shape), shapeInWords(shape), ["number", count(sessions)]]);
  const sentences = told.story.map((sentence) => {
    const [, at, text] = /^(\S+ \S+ UTC): (.*)$/s.exec(sentence) ?? [null, "", sentence];
    const kind = /^Abandoned/.test(text) ? "abandoned" : /^(Committed|Evaluated)/.test(text) ? "committed" : "";
    return el("li", { class: kind }, el("time", {}, at.slice(11, 23) || at), el("span", {}, text));
  });
  visit.show(`Round ${number} of ${name}`, [
    el("p", { class: "back" }, el("a", { href: `/tasks/${encodeURIComponent(name)}` }, `Task ${name}`)),
    el("div", { class: "head" }, el("h1", { tabindex: -1 }, `Round ${number}: ${last.kind}`), badge(last.phase)),
    el("p", { class: `summary ${last.phase}` }, summary),
    part("What happened", {}, el("p", { class: "quiet" }, `On ${moment(told.attempts[0].opened).slice(0, 10)}, in UTC; told from the journal alone.`), el("ol", { class: "story" }, sentences)),
    part("Attempts", {}, table("Attempts", ["#attempt", "phase", "#waited", "#assigned", "#reported", "#void", "#took", "#quality"], rows)),
    el(
      "div",
      { class: "pair" },
      part("How sessions ended", {}, ends.length ? table("Sessions by outcome", ["outcome", "#sessions"], ends) : el("p", { class: "quiet" }, "None is known.")),
      part("Sessions by shape", {}, shapes.length ? table("Sessions by shape", ["shape", "what it means", "#sessions"], shapes) : el("p", { class: "quiet" }, "None is known.")),
    ),
    el("nav", { class: "back", "aria-label": "Rounds" }, before, after),
  ]);
}

function sumOf(attempts, field) {
  const sums = {};
  for (const attempt of attempts) {
    for (const [name, number] of Object.entries(attempt[field])) {
      sums[name] = (sums[name] ?? 0) + number;
    }
  }
  return sums;
}

/** Aggregators, and which coordinator leads which task. */
export async function servicesPage(visit) {
  const place = el("div", { id: "services" });
  let shown = false;
  const again = async () => {
    const [told, { tasks }] = await Promise.all([ask("/api/services", visit.signal), ask("/api/tasks", visit.signal)]);
    visit.away("");
    const state = (each) => (each.answers ? (each.drained ? "drained" : "running") : "away");
    const words = { drained: "gets no new groups", running: "takes groups", away: "does not answer" };
    const rows = told.aggregators.map((each) => [el("code", {}, each.target), el("span", {}, badge(state(each)), ` ${words[state(each)]}`), ["number", each.answers ? count(each.groups) : ""]]);
    const leaders = tasks.map((each) => [el("a", { href: `/tasks/${encodeURIComponent(each.name)}` }, each.name), el("code", {}, each.leader || "not known")]);
    renew(
      place,
      warnings(told.warnings),
      part("Aggregators", {}, table("Aggregators", ["aggregator", "state", "#groups at work"], rows), el("p", { class: "quiet" }, withCode("`fedrecon aggregators drain TARGET` empties one before it is stopped."))),
      part("Coordinators", {}, leaders.length ? table("Coordinators by task", ["task", "led by"], leaders) : el("p", { class: "quiet" }, "No task has to be led yet.")),
    );
    if (!shown) {
      visit.show("Services", [el("h1", { tabindex: -1 }, "Services"), place]);
      shown = true;
    }
  };
  await again();
  visit.repeat(again, EVERY_MILLISECONDS);
}

/** Who changed what. */
export async function auditPage(visit) {
  const { entries } = await ask("/api/audit?limit=300", visit.signal);
  const rows = entries.map((each) => [["whole", moment(each.at)], each.operator, each.action.replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase(), each.task ? el("a", { href: `/tasks/${encodeURIComponent(each.task)}` }, each.task) : "", each.reason]);
  const content = rows.length ? table("Changes by operators, newest first", ["when", "who", "what", "task", "why"], rows) : el("p", { class: "quiet" }, "Nobody has changed anything yet.");
  visit.show("Audit", [el("h1", { tabindex: -1 }, "Audit"), el("section", { class: "part" }, content)]);
}

/** Signs in by the code of a link, or asks for a token. */
export async function signInPage(visit) {
  const token = el("input", { id: "token", type: "password", autocomplete: "current-password", spellcheck: "false", required: true });
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  const enter = async (shown) => {
    try {
      const me = await change("/api/sign-in", shown);
      keepProof(me.proof);
      visit.entered(me);
    } catch (error) {
      if (!(error instanceof Refused)) {
        throw error;
      }
      problem.textContent = `${error.message} ${error.advice}`;
      problem.hidden = false;
    }
  };
  const form = el(
    "form",
    { class: "part enter" },
    el("h1", { tabindex: -1 }, "Sign in"),
    el("label", { for: "token" }, "Your operator's token"),
    token,
    problem,
    el("p", {}, el("button", { type: "submit", class: "main" }, "Sign in")),
    el("p", { class: "quiet" }, withCode("`fedrecon operators new NAME` makes a token. On the machine of a local stack, `fedrecon console --link` prints a link that signs in.")),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    enter({ token: token.value });
  });
  visit.show("Sign in", [form]);
  const code = location.hash.slice(1);
  if (code !== "") {
    history.replaceState(null, "", location.pathname); // a code is good once: it need not stay in the history
    await enter({ code });
  }
}

/** What is shown in place of a page that cannot be. */
export function problemPage(visit, error) {
  const title = error.status === 404 ? "There is no such page" : "This page cannot be shown";
  const told = error instanceof Refused ? `${error.message} ${error.advice ?? ""}` : String(error);
  visit.show(title, [el("section", { class: "part" }, el("h1", { tabindex: -1 }, title), el("p", { class: "problem" }, capital(told)), el("p", {}, el("a", { href: "/" }, "All tasks")))]);
}

