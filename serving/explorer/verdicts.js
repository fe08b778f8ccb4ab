// Buttons that say something of an item: of a user by an event, of somebody new in the address alone.
import { el } from "./dom.js";
import * as events from "./events.js";
import { less, like, profile, watch } from "./profile.js";

const KINDS = {
  like: { act: like, list: "likes", verb: "Like", done: "Liked" },
  dislike: { verb: "Dislike", done: "Disliked" },
  less: { act: less, list: "less", verb: "Less like", done: "Less like this" },
};

watch(dressAll);
events.watch(dressAll);

/** The buttons of some kinds for an item; which of them are there goes by who asks. */
export const verdicts = (id, name, kinds) => kinds.map(kind => dress(el("button", {
  type: "button", class: kind, tabindex: -1, "data-also": true, "data-says": kind, "data-of": id, "data-name": name, onclick: press,
})));

function press({ currentTarget: button, detail: clicks }) {
  if (clicks > 1) return; // of a double click the second, which may find another item where the first was
  const { says: kind, of: id } = button.dataset;
  if (profile.user && kind !== "less") events.say(profile.user, id, kind, button.closest("[data-answer]")?.dataset.answer);
  else KINDS[kind].act(id);
}

function dressAll() {
  for (const button of document.querySelectorAll("[data-says]")) dress(button);
}

/** Shows what a button would say, or that it has been said. */
function dress(button) {
  const { says: kind, of: id, name } = button.dataset, { verb, done } = KINDS[kind];
  const event = profile.user && kind !== "less" ? events.lastOf(profile.user, id) : null;
  const failed = event?.type === kind && event.state === "failed";
  const pressed = profile.user && kind !== "less" ? event?.type === kind && !failed : Boolean(profile[KINDS[kind].list]?.includes(id));
  const gone = profile.user ? events.mayWrite() === (kind === "less") : kind === "dislike";
  if (gone && button === document.activeElement) (button.closest("li")?.querySelector(".open") ?? button.closest("dialog")?.querySelector(".close"))?.focus();
  button.hidden = gone;
  button.title = profile.user && kind !== "less" ? `as an event of ${profile.user}` : "";
  button.setAttribute("aria-pressed", String(Boolean(pressed)));
  button.setAttribute("aria-label", `${failed ? "Try again: " : ""}${verb} ${name}`);
  const words = failed ? "Try again" : pressed || kind === "less" ? done : verb;
  button.replaceChildren(...(kind === "like" ? [el("span", { class: "heart", "aria-hidden": "true" }, pressed ? "♥" : "♡")] : []), words);
  return button;
}
