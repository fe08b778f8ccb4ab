// One item, in a dialog: all that is known of it, and what is like it.
import * as api from "./api.js";
import { nameOf, picture, thumb } from "./cards.js";
import { el, roving, told } from "./dom.js";
import { codesOf, tiles } from "./tiles.js";
import { verdicts } from "./verdicts.js";

const dialog = document.getElementById("item");
dialog.addEventListener("click", event => event.target === dialog && dialog.close()); // beside it
document.addEventListener("click", ({ target }) => {
  const pressed = target.closest("[data-open]");
  if (pressed) open(pressed.dataset.open, pressed.closest("[data-answer]")?.dataset.answer ?? "");
});

/** Shows an item; `answer` is the id of the answer that it was found in. */
async function open(id, answer) {
  let body;
  try {
    body = described(await api.item(id));
  } catch (error) {
    body = [el("p", { class: "problem", id: "item-title" }, told(error))];
  }
  dialog.replaceChildren(el("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close() }, "×"), ...body);
  dialog.dataset.answer = answer;
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function described(item) {
  const name = nameOf(item), codes = codesOf(item.sid ?? "");
  const attributes = Object.entries(item.attributes ?? {});
  return [
    el("div", { class: "portrait" }, picture(item.item_id, name)),
    el("div", { class: "about" },
      el("h2", { id: "item-title" }, name),
      el("p", { class: "id" }, item.item_id),
      codes.length ? el("a", { class: "to-tree", href: `#/catalogue?prefix=${codes.join(",")}`, onclick: () => dialog.close() }, tiles(codes), el("span", {}, "in the catalogue")) : null,
      item.caption ? el("p", { class: "caption" }, item.caption) : null,
      item.description ? el("p", {}, item.description) : null,
      item.interests?.length ? el("p", { class: "by" }, item.interests.map(interest => el("span", { class: "chip" }, interest))) : null,
      attributes.length ? el("dl", {}, attributes.map(([key, values]) => el("div", {}, el("dt", {}, key), el("dd", {}, [values].flat().join(", "))))) : null,
      el("div", { class: "actions" }, verdicts(item.item_id, name, ["like", "dislike"]))),
    alike(item.item_id),
  ];
}

function alike(id) {
  const list = el("ul", { class: "mosaic", "aria-label": "Similar items" });
  const part = el("div", { class: "alike" }, el("h3", {}, "Similar"), list);
  roving(list, ".thumb");
  api.similar({ items: [id], k: 8 })
    .then(({ items, recommendation_id: answer }) => {
      list.dataset.answer = answer;
      list.replaceChildren(...items.map(item => thumb(item.item_id)));
    })
    .catch(error => list.replaceWith(el("p", { class: "problem" }, told(error))));
  return part;
}
