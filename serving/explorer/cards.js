// Items as pictures and as cards.
import * as api from "./api.js";
import { el, redraw } from "./dom.js";
import { verdicts } from "./verdicts.js";
import { codesOf, tiles } from "./tiles.js";

/** What to call an item. */
export const nameOf = item => item.title || item.item_id;

const initial = name => ([...name].find(letter => /[\p{L}\p{N}]/u.test(letter)) ?? "?").toUpperCase();

/** The picture of an item; where there is none, a tile with its initial. */
export function picture(id, name = id) {
  const hue = [...id].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 7);
  const image = el("img", { alt: "", loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => image.remove());
  image.addEventListener("load", () => URL.revokeObjectURL(image.src)); // where it was fetched with a key
  api.pictureOf(id).then(address => {
    image.src = address;
  }).catch(() => image.remove());
  return el("span", { class: "picture", "aria-hidden": "true", vars: { "--hue": hue } }, initial(name), image);
}

/** A picture to press: opens the item, or does what `onclick` does; `label` says of a name what that is. */
export function thumb(id, { onclick, label = name => name } = {}) {
  const small = picture(id);
  const also = { title: label(id), "aria-label": label(id), "data-open": onclick ? null : id, onclick };
  const button = el("button", { type: "button", class: "thumb", tabindex: -1, ...also }, small);
  api.item(id).then(item => {
    const said = label(nameOf(item));
    button.setAttribute("aria-label", said);
    button.title = said;
    small.firstChild.data = initial(nameOf(item));
  }).catch(() => {});
  return el("li", {}, button);
}

/**
 * An item with all that an answer says of it.
 *
 * top: the highest score of the answer, which bars are relative to.
 * answer: the id of the answer, which a like names.
 * kinds: what can be said of it.
 */
export function card(item, { top, answer, kinds = ["like"] } = {}) {
  const name = nameOf(item), codes = codesOf(item.sid ?? ""), why = item.why;
  const shared = codesOf(why?.shared_sid ?? "").length;
  return el("li", { class: "card", "data-id": item.item_id, "data-answer": answer },
    el("button", { type: "button", class: "open", tabindex: -1, "data-open": item.item_id },
      picture(item.item_id, name), el("span", { class: "name" }, name)),
    el("div", { class: "facts" },
      codes.length ? tiles(codes, { shared }) : null,
      score(item, top),
      item.caption ? el("p", { class: "caption" }, marked(item.caption, why?.words ?? [])) : null,
      item.recommenders?.length ? el("p", { class: "by" }, item.recommenders.map(by => el("span", { class: "chip" }, by))) : null),
    why?.nearest ? reason(why) : null,
    el("div", { class: "actions" }, verdicts(item.item_id, name, kinds)));
}

/** Cards of an answer; `keep`: after those that are there. */
export function deal(list, items, { keep = false, ...options } = {}) {
  const top = keep ? Number(list.dataset.top) : Math.max(...items.map(item => item.score ?? 0), 0);
  list.dataset.top = top;
  const made = items.map(item => card(item, { top, ...options }));
  if (!keep) return redraw(list, made, ".open");
  list.append(...made);
  made[0]?.querySelector(".open").focus();
}

/** The score that the order is by, as a bar, and the ranker's probability beside it. */
function score({ probability, score: value }, top) {
  if (typeof value !== "number") return null;
  const share = top > 0 ? value / top : 0;
  const likely = typeof probability === "number" ? probability.toFixed(2) : null;
  const said = `Score, which the order is by: ${value.toFixed(2)}${likely ? `; probability of a positive: ${likely}` : ""}`;
  return el("p", { class: "score", title: said, role: "img", "aria-label": said },
    el("span", { class: "bar", vars: { "--part": Math.min(Math.max(share, 0), 1).toFixed(4) } }), el("b", {}, value.toFixed(2)),
    likely ? el("span", { class: "soft" }, `p ${likely}`) : null);
}

/** A text in which some words are marked. */
function marked(text, words) {
  const wanted = new Set(words.map(word => word.toLowerCase()));
  return text.split(/([\p{L}\p{N}]+)/u).map(part => (wanted.has(part.toLowerCase()) ? el("mark", {}, part) : part));
}

/** Why an item is there: the nearest item of the history, and what both share. */
function reason({ nearest, similarity, shared_sid: sid, words, interests }) {
  const name = el("span", { class: "name" }, nearest);
  const small = picture(nearest);
  api.item(nearest).then(item => {
    name.textContent = nameOf(item);
  }).catch(() => {});
  const shared = codesOf(sid ?? "");
  const both = [...new Set([...(interests ?? []), ...(words ?? [])])];
  return el("div", { class: "why" }, small,
    el("p", {}, el("span", { class: "soft" }, "near "), name, typeof similarity === "number" ? el("span", { class: "soft" }, ` ${similarity.toFixed(2)}`) : null),
    shared.length || both.length
      ? el("p", { class: "both" }, el("span", { class: "soft" }, "both "), shared.length ? tiles(shared) : null, both.slice(0, 6).join(" · "))
      : null);
}
