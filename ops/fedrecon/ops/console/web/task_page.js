/** A task, live: what an operator sees first, then rounds, devices, quality, checkpoints, privacy, sessions. */

import { ask, change, Refused, roundLink, taskPath } from "./asking.js";
import { funnel, lines, timeline } from "./charts.js";
import { confirmed } from "./dialogs.js";
import { badge, el, part, renew, say, table, warnings, withCode } from "./elements.js";
import { bytes, capital, count, moment, noteClock, now, numberOf, percent, PHASES, qualityOf, seconds, several, shapeInWords, short, span } from "./words.js";

const FIRST_ATTEMPTS = 30;
const SHOWN_ATTEMPTS = 120;
const LISTED_ATTEMPTS = 15;
const POINTS = 120;
const OVER = ["committed", "abandoned"];
const ROLES = ["viewer", "operator", "admin", "service"];

/** Whether somebody may do what needs a role. */
export const may = (me, role) => ROLES.indexOf(me.role) >= ROLES.indexOf(role);

/** Shows the page of a task until the visit ends. */
export async function taskPage(visit, name) {
  const task = await ask(taskPath(name), visit.signal);
  noteClock(task.now);
  const page = new TaskPage(visit, name, task);
  visit.show(`Task ${name}`, page.parts());
  page.begin();
}

class TaskPage {
  constructor(visit, name, task) {
    this.visit = visit;
    this.name = name;
    this.task = task;
    this.attempts = [];
    this.points = [];
    this.listed = LISTED_ATTEMPTS;
    this.at = {};
  }

  parts() {
    const place = (id, tag = "div") => (this.at[id] = el(tag, { id }));
    const back = el("p", { class: "back" }, el("a", { href: "/" }, "All tasks"));
    return [
      back,
      el("div", { class: "head" }, el("h1", { tabindex: -1 }, this.name), place("state", "span"), place("buttons", "p")),
      place("wrong"),
      place("tiles"),
      part("Timeline of rounds", {}, place("timeline")),
      el(
        "div",
        { class: "pair" },
        part("From check-in to checkpoint", {}, place("funnel")),
        part("Drop-out against over-selection", {}, place("dropout")),
      ),
      part("Quality on unseen users", {}, place("quality")),
      part("Rounds", {}, place("rounds")),
      part("Checkpoints", {}, place("checkpoints")),
      part("What is served", {}, place("served")),
      el(
        "div",
        { class: "pair" },
        part("Sessions by shape", {}, place("shapes")),
        part("Privacy", {}, place("privacy")),
      ),
      part("What was asked for", {}, place("asked")),
    ];
  }

  begin() {
    this.drawTimeline = timeline(this.at.timeline, this.timelineState());
    this.dropout = { lines: [], label: () => this.dropoutLabel(), text: (value) => percent(value), floor: 0, nothing: "No round was committed yet." };
    this.drawDropout = lines(this.at.dropout, this.dropout);
    this.quality = { lines: [], label: () => this.qualityLabel(), text: (value) => String(Number(value.toPrecision(4))), nothing: this.nothingToJudge() };
    this.drawQuality = lines(this.at.quality, this.quality);
    this.renew();
    this.reload();
    const clock = setInterval(() => this.tick(), 1000);
    const source = new EventSource(taskPath(this.name, "/events"));
    source.addEventListener("task", (event) => this.take(JSON.parse(event.data)));
    source.addEventListener("away", (event) => {
      const told = JSON.parse(event.data);
      if (told.reason === "NOT_SIGNED_IN" || told.reason === "UNKNOWN_OPERATOR") {
        location.reload();
      }
      this.visit.away(`${told.message} ${told.advice}`);
    });
    source.addEventListener("error", () => this.visit.away("Not connected: what is shown may be old. It is tried again."));
    this.visit.signal.addEventListener("abort", () => {
      clearInterval(clock);
      source.close();
    });
  }

  timelineState() {
    const page = this;
    return {
      get attempts() {
        return page.attempts.slice().reverse();
      },
      moment: now,
      open: (attempt) => roundLink(this.name, attempt.round),
    };
  }

  /** Takes in what an event tells. */
  take(task) {
    this.visit.away("");
    noteClock(task.now);
    const before = this.task;
    this.task = { ...task, privacy: before.privacy };
    const same = before.round && task.round && before.round.round === task.round.round && before.round.attempt === task.round.attempt;
    if (task.committed > before.committed) {
      say(`Round ${task.committed} was committed.`);
    }
    if (task.abandoned > before.abandoned) {
      say(`An attempt of round ${before.round?.round ?? task.committed + 1} was abandoned.`);
    }
    if (task.round && (!same || before.round.phase !== task.round.phase) && !OVER.includes(task.round.phase)) {
      say(`Round ${numberOf(task.round)}: ${PHASES[task.round.phase]}.`);
    }
    if (before.state !== task.state) {
      say(`The task is ${task.state}. ${task.reason}`);
    }
    if (!same || task.committed !== before.committed || task.live_round !== before.live_round || task.checkpoint !== before.checkpoint) {
      this.reload();
    } else if (this.attempts.length > 0) {
      this.attempts[0] = task.round;
    }
    this.renew();
  }

  /** Asks for what events do not tell; changes that come meanwhile are asked for once more afterwards. */
  async reload() {
    if (this.loading) {
      this.isStale = true;
      return;
    }
    this.loading = true;
    const isFirst = this.attempts.length === 0;
    try {
      const { signal } = this.visit;
      const [rounds, checkpoints, served, task] = await Promise.all([
        ask(taskPath(this.name, `/rounds?limit=${isFirst ? FIRST_ATTEMPTS : SHOWN_ATTEMPTS}`), signal),
        ask(taskPath(this.name, "/checkpoints"), signal),
        ask(taskPath(this.name, "/recommenders"), signal),
        ask(taskPath(this.name), signal),
      ]);
      this.task.privacy = task.privacy;
      this.attempts = rounds.rounds;
      if (this.attempts.length > 0 && this.task.round && numberOf(this.attempts[0]) === numberOf(this.task.round)) {
        this.attempts[0] = this.task.round; // it knows reports that are not in the journal yet
      }
      this.checkpoints = checkpoints.checkpoints;
      this.served = served;
      this.renew();
      this.points = (await ask(taskPath(this.name, `/history?points=${POINTS}`), signal)).points;
      this.renew();
      this.isStale ||= isFirst && this.attempts.length === FIRST_ATTEMPTS; // the page is there; now the rest of it
    } catch (error) {
      if (error instanceof Refused) {
        this.visit.refused(error);
      }
    } finally {
      this.loading = false;
      if (this.isStale && !this.visit.signal.aborted) {
        this.isStale = false;
        setTimeout(() => this.reload(), isFirst ? 0 : 1000);
      }
    }
  }

  tick() {
    this.renewTiles();
    if (this.attempts.length > 0 && !OVER.includes(this.attempts[0].phase)) {
      this.drawTimeline();
    }
  }

  renew() {
    const { task, at } = this;
    renew(at.state, badge(task.state));
    renew(at.buttons, this.buttons());
    renew(at.wrong, warnings(task.warnings));
    if (task.reason && task.warnings.length === 0) {
      renew(at.wrong, el("p", { class: "note" }, `${capital(task.state)}: `, withCode(task.reason)));
    }
    this.renewTiles();
    this.renewFunnel();
    this.renewLines();
    this.renewRounds();
    this.renewCheckpoints();
    this.renewServed();
    this.renewShapes();
    this.renewPrivacy();
    this.renewAsked();
    this.drawTimeline();
  }

  buttons() {
    const { task, visit } = this;
    if (task.state === "completed" || task.state === "cancelled") {
      return null;
    }
    const button = (text, role, kind, act) => {
      const allowed = may(visit.me, role);
      return el("button", { type: "button", class: kind, disabled: !allowed, title: allowed ? null : `Needs the role ${role}; you are ${visit.me.role}.`, onclick: act }, text);
    };
    const runs = task.state === "running";
    return [
      runs ? button("Pause", "operator", "", () => this.pause()) : button("Resume", "operator", "main", () => this.resume()),
      button("Cancel", "admin", "danger", () => this.cancel()),
    ];
  }

  async act(path, body) {
    await change(taskPath(this.name, path), body);
    await this.reload();
  }

  pause() {
    confirmed({
      title: `Pause ${this.name}?`,
      what: "The round under way ends as usual; no new one begins until somebody resumes the task.",
      verb: "Pause the task",
      typed: "",
      asksWhy: true,
      act: (reason) => this.act("/pause", { reason }),
      said: "The task is paused.",
    });
  }

  resume() {
    confirmed({
      title: `Resume ${this.name}?`,
      what: this.task.reason ? `It is paused: ${this.task.reason}. Rounds go on.` : "Rounds go on.",
      verb: "Resume the task",
      typed: "",
      asksWhy: false,
      act: () => this.act("/resume", {}),
      said: "The task runs.",
    });
  }

  cancel() {
    confirmed({
      title: `Cancel ${this.name} for good?`,
      what: "The round under way is abandoned and its reports are void. No round ever follows. Checkpoints stay.",
      verb: "Cancel the task",
      typed: this.name,
      asksWhy: true,
      danger: true,
      act: (reason, typed) => this.act("/cancel", { reason, confirmed: typed }),
      said: "The task is cancelled.",
    });
  }

  rollBack(checkpoint) {
    const what = checkpoint.round === 0 ? "the plan's initial checkpoint" : `the checkpoint of round ${checkpoint.round}`;
    confirmed({
      title: `Roll back to ${checkpoint.round === 0 ? "the beginning" : `round ${checkpoint.round}`}?`,
      what: `Live becomes ${what} (${short(checkpoint.digest)}), with its optimizer state; the next round starts from it. A round under way is given up. Numbers of rounds go on, privacy spent stays spent, and newer checkpoints can be made live again.`,
      verb: "Roll back",
      typed: "",
      asksWhy: true,
      danger: true,
      act: (reason) => this.act("/roll-back", { reason, round: checkpoint.round }),
      said: `Live is the checkpoint of round ${checkpoint.round}.`,
    });
  }

  renewTiles() {
    const { task, at } = this;
    renew(at.tiles, this.roundTile(task), this.commitTile(task), this.shareTile(task), privacyTile(task.privacy));
  }

  roundTile(task) {
    const { round } = task;
    if (!round) {
      return tile("State of the round", "none yet", "The first begins when enough devices check in.");
    }
    const isOver = OVER.includes(round.phase);
    const waits = round.phase === "selecting";
    const share = waits ? [round.waiting, task.minimum_cohort, "devices wait"] : [round.reported, round.goal, "reports"];
    const left = round.phase_ends > now() ? `, at most ${span(round.phase_ends - now())} left` : "";
    let rest = `${PHASES[round.phase]}${left}`;
    if (isOver) {
      rest = task.state === "running" && task.retry > now() ? `${PHASES[round.phase]} in ${span(task.retry - now())}` : `${PHASES[round.phase]}, ${span(now() - round.ended)} ago`;
    }
    return tile(
      "State of the round",
      [badge(round.phase)],
      `Round ${numberOf(round)}${round.kind === "evaluation" ? ", evaluation" : ""}: ${rest}`,
      isOver && task.state === "running" ? null : progress(share[0], share[1], `${count(share[0])} of ${count(share[1])} ${share[2]}`),
    );
  }

  commitTile(task) {
    const usual = this.usualSeconds();
    const told = usual === null ? "since the task was created" : `rounds take ${seconds(usual * 1000)} usually`;
    if (!task.last_commit) {
      return tile("Age of the last commit", "none yet", `${span(now() - task.created)} since the task was created`);
    }
    return tile("Age of the last commit", span(now() - task.last_commit), task.state === "running" ? told : `the task is ${task.state}`);
  }

  usualSeconds() {
    const newest = this.points.filter((each) => each.seconds !== null).slice(-20);
    return newest.length === 0 ? null : newest.reduce((sum, each) => sum + each.seconds, 0) / newest.length;
  }

  shareTile(task) {
    const ended = task.committed + task.abandoned;
    const recent = this.attempts.filter((each) => OVER.includes(each.phase)).slice(0, 24).reverse();
    const dots = el("span", { class: "dots", "aria-hidden": "true" }, recent.map((each) => el("i", { class: each.phase })));
    const told = `${several(task.committed, "round")} committed${task.maximum_rounds ? ` of ${count(task.maximum_rounds)}` : ""}, ${several(task.abandoned, "attempt")} abandoned`;
    return tile("Share of attempts committed", ended ? percent(task.share_committed, task.share_committed < 1 ? 1 : 0) : "none yet", told, dots);
  }

  renewFunnel() {
    const attempt = this.task.round;
    if (!attempt || (attempt.phase === "selecting" && this.attempts.length < 2)) {
      renew(this.at.funnel, el("p", { class: "quiet" }, "No devices were assigned yet."));
      return;
    }
    const shown = attempt.phase === "selecting" ? this.attempts.find((each) => each.phase !== "selecting") ?? attempt : attempt;
    const counted = shown.phase === "committed" ? shown.counted : 0;
    const numbers = [["checked in", shown.waiting], ["assigned", shown.assigned], ["trained", shown.trained], ["uploaded", shown.reported], ["aggregated", counted]];
    const steps = numbers.map(([name, number], place) => ({
      name,
      number,
      marksGoal: name === "uploaded",
      kept: place === 0 || numbers[place - 1][1] === 0 || (name === "aggregated" && !OVER.includes(shown.phase)) ? null : number / numbers[place - 1][1],
    }));
    const scale = Math.max(shown.assigned, shown.cohort, shown.goal);
    const which = `Round ${numberOf(shown)}, ${shown.phase}`;
    const selected = shown.goal ? (shown.assigned / shown.goal).toFixed(2) : "–";
    const told = `${which}: ${several(shown.goal, "report")} wanted, ${shown.assigned} devices assigned (over-selection ${selected}, asked for ${this.task.over_selection.toFixed(2)}), ${shown.dropped} dropped out${shown.voided ? `, ${several(shown.voided, "report")} void` : ""}.`;
    renew(this.at.funnel, funnel(steps, scale, shown.goal), el("p", { class: "quiet" }, told, " The mark is the report goal."));
  }

  renewLines() {
    const lost = this.points.filter((each) => each.dropout !== null);
    this.dropout.lines = [
      { name: "devices that dropped out", kind: "dropout", points: lost.map((each) => ({ x: each.last, y: each.dropout, told: `${rangeOf(each)}: ${percent(each.dropout, 1)} dropped out` })) },
      { name: "what over-selection allows for", kind: "margin", points: lost.map((each) => ({ x: each.last, y: each.over_selection ? 1 - 1 / each.over_selection : 0, told: `over-selection ${each.over_selection.toFixed(2)} allows for ${percent(1 - 1 / each.over_selection, 1)}` })) },
    ];
    this.quality.lines = ["evaluation", "training"].map((kind) => ({
      kind,
      name: kind === "evaluation" ? "users never seen (evaluation rounds)" : "devices that take part, on their own query examples",
      points: this.points.filter((each) => each[kind] !== null).map((each) => ({ x: each.last, y: each[kind].value, told: `${rangeOf(each)}, ${kind}: ${each[kind].name} ${qualityOf(each[kind])}` })),
    }));
    this.drawDropout();
    this.drawQuality();
    const hint = this.task.evaluates_every || this.points.length === 0 ? null : el("p", { class: "quiet" }, "This task has no evaluation rounds, so nothing is known of users never seen. ", el("code", {}, `fedrecon task edit ${this.name} --set evaluation.every_rounds=10 --set evaluation.held_out_share=0.1`), " adds them.");
    this.at.quality.querySelector(".hint")?.remove();
    if (hint) {
      hint.classList.add("hint");
      this.at.quality.append(hint);
    }
  }

  nothingToJudge() {
    return "No round was committed yet.";
  }

  qualityLabel() {
    const told = this.quality.lines.filter((line) => line.points.length).map((line) => `${line.name}: from ${line.points[0].told} to ${line.points.at(-1).told}`);
    return `Quality over rounds. ${told.join(". ")}`;
  }

  dropoutLabel() {
    const [lost] = this.dropout.lines;
    return `Drop-out over rounds, against what over-selection allows for. Last: ${lost.points.at(-1)?.told ?? "nothing yet"}`;
  }

  renewRounds() {
    if (this.attempts.length === 0) {
      renew(this.at.rounds, el("p", { class: "quiet" }, "None yet."));
      return;
    }
    const rows = this.attempts.slice(0, this.listed).map((each) => [
      ["number", el("a", { href: roundLink(this.name, each.round), "aria-label": `Why: round ${numberOf(each)}` }, numberOf(each))],
      el("span", {}, badge(each.phase), each.kind === "evaluation" ? " evaluation" : "", each.reason ? el("span", { class: "quiet" }, ` ${each.reason}`) : ""),
      ["number", `${count(each.assigned)}/${count(each.cohort)}`],
      ["number", `${count(each.reported)}/${count(each.goal)}`],
      ["number", count(each.dropped)],
      ["number", each.ended ? seconds(each.ended - each.opened) : ""],
      ["number", qualityOf(each.quality)],
    ]);
    const more = el("button", { type: "button", onclick: () => this.older() }, "Older rounds");
    const isAll = this.attempts.at(-1).round === 1 && this.listed >= this.attempts.length;
    renew(this.at.rounds, table("Attempts, newest first", ["#round", "phase", "#assigned", "#reported", "#dropped", "#took", "#quality"], rows), isAll ? null : more);
  }

  async older() {
    this.listed += 50;
    const oldest = this.attempts.at(-1);
    if (this.listed > this.attempts.length && oldest.round > 1) {
      const told = await ask(taskPath(this.name, `/rounds?limit=${SHOWN_ATTEMPTS}&before=${oldest.round}`), this.visit.signal);
      this.attempts.push(...told.rounds);
    }
    this.renewRounds();
    say(`${Math.min(this.listed, this.attempts.length)} attempts are listed.`);
  }

  renewCheckpoints() {
    const { checkpoints, task, visit } = this;
    if (!checkpoints) {
      return;
    }
    const canRoll = may(visit.me, "operator") && task.state !== "completed" && task.state !== "cancelled";
    const rows = checkpoints.slice(0, 12).map((each) => [
      ["number", each.round === 0 ? "plan" : el("a", { href: roundLink(this.name, each.round) }, String(each.round))],
      each.live ? badge("live") : "",
      ["whole", moment(each.committed)],
      ["number", bytes(each.bytes)],
      ["whole", el("code", {}, short(each.digest))],
      each.live || !canRoll ? "" : el("button", { type: "button", "aria-label": `Roll back to round ${each.round}`, onclick: () => this.rollBack(each) }, "Roll back"),
    ]);
    renew(this.at.checkpoints, table("Checkpoints, newest first", ["#round", "", "committed", "#size", "digest", ""], rows));
  }

  renewServed() {
    const { served, name } = this;
    if (!served) {
      return;
    }
    if (served.recommenders.length === 0) {
      const told = served.follows_newest ? "Every committed checkpoint is served as it comes." : "Nothing is served yet: no version was promoted.";
      renew(this.at.served, el("p", {}, told));
      return;
    }
    const rows = served.recommenders.slice(0, 10).map((each) => [
      ["number", String(each.version)],
      el("span", {}, badge(each.stage), each.stage === "canary" ? ` ${percent(each.share, 1)} of devices` : ""),
      ["number", each.round === 0 ? "plan" : el("a", { href: roundLink(name, each.round) }, String(each.round))],
      ["whole", moment(each.since)],
      each.operator,
      each.refusal ? `cannot be promoted: ${each.refusal}` : each.reason,
    ]);
    renew(this.at.served, table("Versions, newest first", ["#version", "stage", "#round", "since", "by", "why"], rows));
  }

  renewShapes() {
    const shapes = {};
    for (const attempt of this.attempts) {
      for (const [shape, sessions] of Object.entries(attempt.shapes)) {
        shapes[shape] = (shapes[shape] ?? 0) + sessions;
      }
    }
    const total = Object.values(shapes).reduce((sum, each) => sum + each, 0);
    if (total === 0) {
      renew(this.at.shapes, el("p", { class: "quiet" }, "No session has ended yet."));
      return;
    }
    const rows = Object.entries(shapes)
      .sort(([, one], [, other]) => other - one)
      .map(([shape, sessions]) => [el("code", {}, shape), shapeInWords(shape), ["number", count(sessions)], ["number", percent(sessions / total, 1)]]);
    renew(
      this.at.shapes,
      table("Sessions by shape", ["shape", "what it means", "#sessions", "#share"], rows),
      el("p", { class: "quiet" }, `Of the newest ${several(this.attempts.length, "attempt")} listed. - checked in, v plan fetched, [ training began, ] done, + upload began, ^ acknowledged, ! failed, # too late.`),
    );
  }

  renewPrivacy() {
    const { privacy } = this.task;
    if (privacy) {
      renew(
        this.at.privacy,
        el("p", {}, withCode(privacy.statement)),
        privacy.assumptions.length ? el("details", {}, el("summary", {}, several(privacy.assumptions.length, "assumption")), el("ul", {}, privacy.assumptions.map((each) => el("li", {}, withCode(each))))) : null,
        el("p", { class: "quiet" }, `How reports are summed: ${this.task.sum}.`),
      );
    }
  }

  renewAsked() {
    const { task } = this;
    const rows = [
      ["population", task.population],
      ["a round", `${task.report_goal} reports wanted, at least ${task.minimum_reports}; it begins when ${task.minimum_cohort} devices wait`],
      ["evaluation", task.evaluates_every ? `after every ${task.evaluates_every} training rounds` : "none"],
      ["created", moment(task.created)],
      ["led by", task.leader || "not known"],
      ["live checkpoint", `${short(task.checkpoint)}, of ${task.live_round ? `round ${task.live_round}` : "the plan"}`],
      ["plan", short(task.plan)],
      ["publisher", task.publisher ? short(task.publisher) : "unsigned"],
    ];
    renew(this.at.asked, el("dl", {}, rows.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text)))));
  }
}

const rangeOf = (point) => (point.first === point.last ? `Round ${point.last}` : `Rounds ${point.first}–${point.last}`);

/** One of the numbers that an operator sees first. */
export function tile(title, value, told, extra = null) {
  return el("section", { class: "tile", "aria-label": title }, el("h2", {}, title), el("p", { class: "value" }, value), extra, el("p", { class: "quiet" }, told));
}

export function progress(value, most, told) {
  const bar = el("span", { class: "bar" });
  bar.style.width = `${Math.min(100, (100 * value) / Math.max(most, 1))}%`;
  return el("span", { class: "progress", role: "img", "aria-label": told }, el("span", { class: "track" }, bar), el("span", { class: "beside" }, told));
}

/** What privacy is spent. */
export function privacyTile(privacy) {
  if (!privacy) {
    return tile("Epsilon spent", "–", "not known");
  }
  if (!privacy.guaranteed) {
    return tile("Epsilon spent", "no guarantee", "The task claims no differential privacy; see Privacy below.");
  }
  const spent = privacy.epsilon.toPrecision(3);
  const told = privacy.budget ? `${spent} of ${privacy.budget}` : `${spent}, without a budget`;
  return tile("Epsilon spent", spent, `delta ${privacy.delta.toExponential(0)}`, privacy.budget ? progress(privacy.epsilon, privacy.budget, told) : null);
}
