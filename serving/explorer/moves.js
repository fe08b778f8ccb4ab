// How a list goes from one answer to the next: what left fades, what stayed glides, what came or rose is marked.
import { el } from "./dom.js";

const still = matchMedia("(prefers-reduced-motion: reduce)");
const LEAVE = { duration: 200, easing: "ease-in", fill: "forwards" };
const GLIDE = { duration: 450, easing: "cubic-bezier(.2, .7, .2, 1)", fill: "backwards" };

/** Which ids came and left, and how many of those that stayed each has passed. */
export function compared(before, after) {
  const stayed = before.filter(id => after.includes(id)), now = after.filter(id => before.includes(id));
  return {
    came: after.filter(id => !before.includes(id)),
    left: before.filter(id => !after.includes(id)),
    rose: new Map(now.map((id, at) => [id, stayed.indexOf(id) - at]).filter(([, places]) => places > 0)),
  };
}

/** The moves in words; `since`: after what. */
export function sentence({ came, left, rose }, since) {
  const parts = [[came.length, "came"], [left.length, "left"], [rose.size, "rose"]].filter(([number]) => number);
  const said = parts.map(([number, verb]) => `${number} ${verb}`).join(", ") || "nothing moved";
  return since ? `After the ${since}: ${said}.` : `${said[0].toUpperCase()}${said.slice(1)}.`;
}

/** Puts a new answer in place by `put`; moves only for those who have not asked for less motion. */
export async function glide(list, { came, left, rose }, signal, put) {
  const old = new Map([...list.children].map(card => [card.dataset.id, card]));
  const moving = !still.matches && !document.hidden;
  if (moving) {
    await Promise.all(left.map(id => old.get(id).animate({ opacity: 0, transform: "scale(.94)" }, LEAVE).finished));
    if (signal.aborted) return;
  }
  const places = new Map([...old].map(([id, card]) => [id, card.getBoundingClientRect()]));
  put();
  for (const card of list.children) {
    const { id } = card.dataset, from = places.get(id);
    if (from) card.querySelector(".picture").replaceWith(old.get(id).querySelector(".picture")); // it is loaded
    if (came.includes(id)) mark(card, "New");
    if (rose.has(id)) mark(card, `↑ ${rose.get(id)}`);
    if (!moving) continue;
    const to = card.getBoundingClientRect();
    if (from) card.animate([{ transform: `translate(${from.left - to.left}px, ${from.top - to.top}px)` }, { transform: "none" }], GLIDE);
    else card.animate([{ opacity: 0, transform: "scale(.94)" }, { opacity: 1, transform: "none" }], { ...GLIDE, delay: 150 });
  }
}

/** Puts a word on a card. */
export function mark(card, text) {
  card.querySelector(".open").prepend(el("span", { class: "moves" }, text));
}
