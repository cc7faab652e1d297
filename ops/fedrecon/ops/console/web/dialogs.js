/** Asking back before something is changed. */

import { Refused } from "./asking.js";
import { el, say, withCode } from "./elements.js";

/**
 * Opens a dialog; what it does happens when the button is pressed, and a refusal is told inside.
 *
 * @param about title, what (what happens, in words), verb (the button), typed (text that must be typed first, or ""),
 * asksWhy, danger, act (gets the reason and what was typed) and said (what is announced afterwards).
 */
export function confirmed(about) {
  const reason = el("input", { id: "dialog-reason", autocomplete: "off", maxlength: 500 });
  const typed = el("input", { id: "dialog-typed", autocomplete: "off", spellcheck: "false" });
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  const act = el("button", { type: "submit", class: about.danger ? "danger" : "main" }, about.verb);
  const check = () => {
    act.disabled = about.typed !== "" && typed.value.trim() !== about.typed;
  };
  typed.addEventListener("input", check);
  check();
  const form = el(
    "form",
    { method: "dialog" },
    el("h2", { id: "dialog-title" }, about.title),
    el("p", {}, withCode(about.what)),
    about.asksWhy && el("label", { for: "dialog-reason" }, "Why? The audit log will say it."),
    about.asksWhy && reason,
    about.typed !== "" && el("label", { for: "dialog-typed" }, "This cannot be undone. Type ", el("code", {}, about.typed), " to confirm."),
    about.typed !== "" && typed,
    problem,
    el("p", { class: "buttons" }, el("button", { type: "button", onclick: () => dialog.close() }, "Go back"), act),
  );
  const dialog = el("dialog", { "aria-labelledby": "dialog-title" }, form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    act.disabled = true;
    try {
      await about.act(reason.value.trim(), typed.value.trim());
      dialog.close();
      say(about.said);
    } catch (error) {
      problem.textContent = error instanceof Refused ? `${error.message} ${error.advice}` : String(error);
      problem.hidden = false;
      check();
    }
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
