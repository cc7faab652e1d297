/** Numbers, spans of time and states as people read them. */

const UNITS = [
  ["d", 86_400],
  ["h", 3_600],
  ["min", 60],
  ["s", 1],
];

let skew = 0;

/** Notes what the service's clock says, so that ages do not depend on the one of this machine. */
export function noteClock(now) {
  skew = now - Date.now();
}

/** Unix milliseconds by the service's clock. */
export const now = () => Date.now() + skew;

/** A span of time in its two largest units: `2 h 1 min`. */
export function span(milliseconds) {
  let left = Math.max(0, Math.floor(milliseconds / 1000));
  const parts = [];
  for (const [unit, seconds] of UNITS) {
    const count = Math.floor(left / seconds);
    left -= count * seconds;
    if (count > 0 || (unit === "s" && parts.length === 0)) {
      parts.push(`${count} ${unit}`);
    }
  }
  return parts.slice(0, 2).join(" ");
}

/** A short span with a digit after the point where it matters: `8.4 s`. */
export function seconds(milliseconds) {
  return milliseconds < 60_000 ? `${(Math.max(0, milliseconds) / 1000).toFixed(1)} s` : span(milliseconds);
}

export const count = (number) => number.toLocaleString("en-US");
export const percent = (share, digits = 0) => (share === null ? "–" : `${(100 * share).toFixed(digits)} %`);
export const short = (digest) => digest.slice(0, 12);
export const several = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** A moment as the journal writes it. */
export function moment(milliseconds) {
  return `${new Date(milliseconds).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

/** `12`, or `12.2` for a second attempt. */
export const numberOf = (attempt) => (attempt.attempt > 1 ? `${attempt.round}.${attempt.attempt}` : `${attempt.round}`);

/** A quality as text: four digits, as far as they mean something. */
export const qualityOf = (quality) => (quality === null ? "" : `${quality.value.toFixed(4)}`);

export function bytes(size) {
  const steps = ["B", "kB", "MB", "GB"];
  let at = 0;
  let left = size;
  while (left >= 1000 && at < steps.length - 1) {
    left /= 1000;
    at += 1;
  }
  return `${at === 0 ? left : left.toFixed(1)} ${steps[at]}`;
}

/** What the characters of a session's shape mean, in their order. */
export const STEPS = { "-": "checked in", v: "plan fetched", "[": "training began", "]": "training done", "+": "upload began", "^": "acknowledged", "!": "failed", "#": "came too late" };

export function shapeInWords(shape) {
  const last = shape.at(-1);
  if (shape === "other") {
    return "not a course that sessions have";
  }
  if (last === "!" || last === "#") {
    return `${STEPS[last]} after: ${STEPS[shape.at(-2)] ?? "nothing"}`;
  }
  return last === "^" ? "reported" : `went no further than: ${STEPS[last] ?? "nothing"}`;
}

/** What a phase means for somebody who sees it for the first time. */
export const PHASES = {
  selecting: "gathering devices",
  reporting: "waiting for reports",
  aggregating: "making the checkpoint",
  committed: "the checkpoint is live",
  abandoned: "given up, tried again",
};
