// A line at the foot of the page for events that the service has not taken, with a button to send them again.
import { counted, el } from "./dom.js";
import * as events from "./events.js";

const place = document.getElementById("unsent");

events.watch(({ state, problem }) => {
  if (state === "refused") return say(problem);
  const waiting = events.failed();
  if (!waiting.length) return place.replaceChildren();
  return say(`${counted(waiting.length, "event")} not kept yet. ${waiting.at(-1).problem}`,
    el("button", { type: "button", class: "strong", onclick: events.again }, "Try again"));
});

function say(...parts) {
  place.replaceChildren(el("p", {}, parts[0]), ...parts.slice(1),
    el("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => place.replaceChildren() }, "×"));
}
