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
      el("p", { class: "id" }, item.item_id, item.hidden ? el("span", { class: "chip" }, "hidden") : null),
      codes.length ? el("a", { class: "to-tree", href: `#/catalogue?prefix=${codes.join(",")}`, onclick: () => dialog.close() }, tiles(codes), el("span", {}, "in the catalogue")) : null,
      item.caption ? el("p", { class: "caption" }, item.caption) : null,
      item.description ? el("p", {}, item.description) : null,
      item.interests?.length ? el("p", { class: "by" }, item.interests.map(interest => el("span", { class: "chip" }, interest))) : null,
      attributes.length ? el("dl", {}, attributes.map(([key, values]) => el("div", {}, el("dt", {}, key), el("dd", {}, [values].flat().join(", "))))) : null,
      el("div", { class: "actions" }, verdicts(item.item_id, name, ["like", "dislike"]), hiding(item)),
      el("p", { class: "problem", role: "status" })),
    alike(item.item_id),
  ];
}

/** A button that keeps the item out of all answers, or lets it in again. */
function hiding({ item_id: id, hidden }) {
  return el("button", {
    type: "button", class: "hide", title: hidden ? "Answers may hold it again" : "No answer holds it until it is shown again",
    onclick: async ({ currentTarget: button }) => {
      button.disabled = true;
      try {
        await api.hide(id, !hidden);
        await open(id, dialog.dataset.answer);
        dialog.querySelector(".hide").focus();
      } catch (error) {
        dialog.querySelector(".about .problem").replaceChildren(...told(error));
        button.disabled = false;
      }
    },
  }, hidden ? "Show again" : "Hide");
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
