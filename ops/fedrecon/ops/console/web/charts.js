/**
 * Charts as SVG, drawn by hand: as wide as their place, with a line of words below that tells what is pointed at.
 *
 * Rules: a chart says what it shows to those who do not see it; what can be opened is one stop of the tab key, and arrow
 * keys go along it; colour never stands alone (abandoned attempts are hatched, lines are named where they end).
 */

import { el, svg } from "./elements.js";
import { numberOf, percent, seconds, span } from "./words.js";

const MARGIN = { left: 44, right: 12, top: 12, bottom: 26 };
const OVERFLOW = 1.6;
const SEGMENTS = ["selecting", "reporting", "aggregating"];

/** Draws into a place whenever its width changes; gives a function that draws again. */
export function drawn(place, draw) {
  let width = 0;
  const again = () => width > 0 && draw(Math.floor(width));
  new ResizeObserver(([entry]) => {
    if (Math.abs(entry.contentRect.width - width) > 1) {
      width = entry.contentRect.width;
      again();
    }
  }).observe(place);
  return again;
}

/** Round numbers for an axis: about so many steps between two values. */
export function ticks(low, high, wanted) {
  const raw = (high - low) / Math.max(wanted, 1) || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((each) => each * power).find((each) => each >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) {
    found.push(Math.abs(at) < step * 1e-6 ? 0 : at);
  }
  return found;
}

function frame(width, height, label) {
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label });
  picture.append(
    svg(
      "defs",
      {},
      svg(
        "pattern",
        { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        svg("rect", { width: 6, height: 6, class: "hatch-ground" }),
        svg("rect", { width: 2.5, height: 6, class: "hatch-line" }),
      ),
    ),
  );
  return picture;
}

function axis(picture, width, height, marks, y, text) {
  for (const mark of marks) {
    picture.append(
      svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(mark), y2: y(mark), class: "grid" }),
      svg("text", { x: MARGIN.left - 6, y: y(mark) + 4, class: "mark", "text-anchor": "end" }, text(mark)),
    );
  }
}

/** How long an attempt was in each phase, in milliseconds; what is under way lasts until now. */
export function phasesOf(attempt, moment) {
  const end = attempt.ended || moment;
  const assigned = attempt.assigned_at || end;
  const closed = attempt.reporting_ended || end;
  return {
    selecting: Math.max(assigned - attempt.opened, 0),
    reporting: attempt.assigned_at ? Math.max(closed - assigned, 0) : 0,
    aggregating: attempt.reporting_ended ? Math.max(end - closed, 0) : 0,
  };
}

const tickText = (milliseconds) => (milliseconds < 60_000 ? `${Number((milliseconds / 1000).toPrecision(3))} s` : span(milliseconds).replace(/ \d+ s$/, ""));

/**
 * The timeline: a bar for each attempt, as high as it took, in pieces for its phases.
 *
 * @param place where it is drawn.
 * @param state `attempts` (oldest first), `moment` and `open(attempt)`; it may change, and is then drawn again.
 */
export function timeline(place, state) {
  const words = el("p", { class: "readout", "aria-hidden": "true" });
  const canvas = el("div", { class: "chart" });
  place.append(canvas, legend([...SEGMENTS.map((name) => [name, name]), ["abandoned", "abandoned"], ["evaluation", "evaluation round"]]), words);
  let current = 0;
  return drawn(canvas, (width) => {
    const height = 190;
    const most = Math.max(12, Math.floor((width - MARGIN.left - MARGIN.right) / 9));
    const attempts = state.attempts.slice(-most);
    const spans = attempts.map((each) => phasesOf(each, state.moment()));
    const totals = spans.map((each) => each.selecting + each.reporting + each.aggregating);
    const sorted = [...totals].sort((one, other) => one - other);
    const usual = sorted[Math.floor(0.85 * (sorted.length - 1))] ?? 1000;
    const top = Math.max(Math.min(sorted.at(-1) ?? 1000, usual * OVERFLOW), 100);
    const y = (value) => height - MARGIN.bottom - (Math.min(value, top) / top) * (height - MARGIN.top - MARGIN.bottom);
    const room = (width - MARGIN.left - MARGIN.right) / Math.max(attempts.length, 20);
    const committed = attempts.filter((each) => each.phase === "committed").length;
    const picture = frame(width, height, `The newest ${attempts.length} attempts: ${committed} committed. Arrow keys go along them, Enter explains one.`);
    axis(picture, width, height, ticks(0, top / 1000, 4).map((each) => each * 1000), y, tickText);
    current = Math.min(Math.max(current, 0), attempts.length - 1) || attempts.length - 1;
    attempts.forEach((attempt, index) => {
      const x = MARGIN.left + index * room;
      const told = `Round ${numberOf(attempt)}, ${attempt.kind}: ${attempt.phase}${attempt.reason ? `, ${attempt.reason}` : ""}; ${seconds(totals[index])}, ${attempt.reported} of ${attempt.goal} reports`;
      const link = svg("a", { href: state.open(attempt), tabindex: index === current ? 0 : -1, "aria-label": told, class: `attempt ${attempt.phase}` });
      link.append(svg("rect", { x, y: MARGIN.top, width: room, height: height - MARGIN.top - MARGIN.bottom, class: "touch" }));
      let below = 0;
      for (const segment of SEGMENTS) {
        const length = spans[index][segment];
        const from = y(below + length);
        const size = y(below) - from;
        if (size > 0.2) {
          link.append(svg("rect", { x: x + room * 0.12, y: from, width: room * 0.76, height: Math.max(size, 1), class: attempt.phase === "abandoned" ? "hatched" : segment }));
        }
        below += length;
      }
      if (totals[index] > top) {
        link.append(svg("path", { d: `M${x + room * 0.12} ${MARGIN.top + 7} l${room * 0.38} -5 l${room * 0.38} 5`, class: "beyond" }));
      }
      if (attempt.kind === "evaluation") {
        link.append(svg("circle", { cx: x + room / 2, cy: height - MARGIN.bottom + 5, r: Math.min(3, room * 0.3), class: "evaluation" }));
      }
      link.addEventListener("mouseenter", () => (words.textContent = told));
      link.addEventListener("focus", () => (words.textContent = told));
      picture.append(link);
    });
    const widest = Math.max(...attempts.map((each) => numberOf(each).length), 1);
    const gap = Math.max(1, Math.ceil((widest * 7 + 12) / room));
    attempts.forEach((attempt, index) => {
      if ((attempts.length - 1 - index) % gap === 0) {
        picture.append(svg("text", { x: MARGIN.left + (index + 0.5) * room, y: height - 7, class: "mark", "text-anchor": "middle" }, numberOf(attempt)));
      }
    });
    picture.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -attempts.length, End: attempts.length };
      if (event.key in steps) {
        event.preventDefault();
        const links = picture.querySelectorAll("a.attempt");
        links[current].setAttribute("tabindex", -1);
        current = Math.min(Math.max(current + steps[event.key], 0), links.length - 1);
        links[current].setAttribute("tabindex", 0);
        links[current].focus();
      }
    });
    const hadFocus = canvas.contains(document.activeElement);
    canvas.replaceChildren(picture);
    if (hadFocus) {
      picture.querySelectorAll("a.attempt")[current]?.focus();
    }
  });
}

/** What colours mean. */
export function legend(entries) {
  return el("ul", { class: "legend" }, entries.map(([kind, text]) => el("li", {}, el("span", { class: `swatch ${kind}` }), text)));
}

/**
 * Lines over rounds.
 *
 * @param place where it is drawn.
 * @param state `label` (for those who do not see it), `lines` (each `name`, `kind`, `points` of `{x, y, told}`), `text`
 * for the axis, and `floor` if the axis begins there; it may change, and is then drawn again.
 */
export function lines(place, state) {
  const words = el("p", { class: "readout", "aria-hidden": "true" });
  const canvas = el("div", { class: "chart" });
  const below = el("div", {});
  place.append(canvas, below, words);
  return drawn(canvas, (width) => {
    const height = 190;
    const points = state.lines.flatMap((line) => line.points);
    if (points.length === 0) {
      canvas.replaceChildren(el("p", { class: "quiet" }, state.nothing));
      below.replaceChildren();
      return;
    }
    const values = points.map((each) => each.y);
    let low = state.floor ?? Math.min(...values);
    let high = Math.max(...values, low + 1e-9);
    const slack = (high - low) * 0.08 || Math.abs(high) * 0.05 || 0.1;
    [low, high] = [state.floor ?? low - slack, high + slack];
    const first = Math.min(...points.map((each) => each.x));
    const last = Math.max(...points.map((each) => each.x), first + 1);
    const x = (value) => MARGIN.left + ((value - first) / (last - first)) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => height - MARGIN.bottom - ((value - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
    const picture = frame(width, height, state.label());
    picture.setAttribute("role", "img");
    axis(picture, width, height, ticks(low, high, 4), y, state.text);
    for (const mark of ticks(first, last, Math.max(2, width / 110)).filter(Number.isInteger)) {
      picture.append(svg("text", { x: x(mark), y: height - 7, class: "mark", "text-anchor": "middle" }, String(mark)));
    }
    for (const line of state.lines) {
      const path = line.points.map((each, place) => `${place ? "L" : "M"}${x(each.x).toFixed(1)} ${y(each.y).toFixed(1)}`).join("");
      picture.append(svg("path", { d: path, class: `line ${line.kind}` }));
      const shown = line.points.length <= 60 ? line.points : line.points.slice(-1);
      picture.append(...shown.map((each) => svg("circle", { cx: x(each.x), cy: y(each.y), r: line.points.length <= 60 ? 2.6 : 3.4, class: `dot ${line.kind}` })));
    }
    const cursor = svg("line", { y1: MARGIN.top, y2: height - MARGIN.bottom, class: "cursor", visibility: "hidden" });
    picture.append(cursor);
    picture.addEventListener("pointermove", (event) => {
      const at = first + ((event.offsetX - MARGIN.left) / (width - MARGIN.left - MARGIN.right)) * (last - first);
      const nearest = state.lines.filter((line) => line.points.length).map((line) => line.points.reduce((best, each) => (Math.abs(each.x - at) < Math.abs(best.x - at) ? each : best)));
      const where = x(nearest[0].x);
      cursor.setAttribute("x1", where);
      cursor.setAttribute("x2", where);
      cursor.setAttribute("visibility", "visible");
      words.textContent = nearest.map((each) => each.told).join("; ");
    });
    picture.addEventListener("pointerleave", () => cursor.setAttribute("visibility", "hidden"));
    canvas.replaceChildren(picture);
    below.replaceChildren(legend(state.lines.filter((line) => line.points.length).map((line) => [line.kind, line.name])));
  });
}

/**
 * Steps that become fewer: bars of one scale, and what each step has kept of the one before.
 *
 * @param steps each `name`, `number`, and `kept` of the step before (null where that says nothing).
 * @param scale what fills the whole width.
 * @param goal a number that is marked, or 0.
 */
export function funnel(steps, scale, goal) {
  return el(
    "ol",
    { class: "funnel" },
    steps.map((step) => {
      const bar = el("span", { class: "bar" });
      bar.style.width = `${Math.min(100, (100 * step.number) / Math.max(scale, 1))}%`;
      const track = el("span", { class: "track", "aria-hidden": "true" }, bar);
      if (step.marksGoal && goal > 0) {
        const mark = el("span", { class: "goal" });
        mark.style.left = `${Math.min(100, (100 * goal) / Math.max(scale, 1))}%`;
        track.append(mark);
      }
      return el("li", {}, el("span", { class: "step" }, step.name), track, el("span", { class: "number" }, step.number.toLocaleString("en-US")), el("span", { class: "kept" }, step.kept === null ? "" : percent(step.kept)));
    }),
  );
}
