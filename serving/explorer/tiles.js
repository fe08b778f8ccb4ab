// Semantic IDs as tiles: a colour for each level, and the same shade for the same code.
import { el } from "./dom.js";

const GOLDEN = 0.61803398875; // spreads neighbouring codes over all shades

/** The codes of a spelled ID: "<a_3><b_7>" gives [3, 7]. */
export const codesOf = sid => [...sid.matchAll(/_(\d+)>/g)].map(match => Number(match[1]));

/** One code as a tile. */
export function tile(level, code) {
  const shade = (code * GOLDEN) % 1;
  const letter = String.fromCharCode(97 + level);
  return el("span", { class: "tile", "data-level": level % 6, vars: { "--shade": shade.toFixed(3) } }, el("i", {}, letter), `${code}`);
}

/** A whole ID; the first `shared` tiles are set off. */
export function tiles(codes, { shared = 0 } = {}) {
  const spelled = codes.map((code, level) => `${String.fromCharCode(97 + level)} ${code}`).join(", ");
  const made = codes.map((code, level) => tile(level, code));
  for (const one of made.slice(0, shared)) one.classList.add("shared");
  return el("span", { class: "sid", role: "img", "aria-label": `Semantic ID ${spelled}` }, made);
}
