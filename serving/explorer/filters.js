// What items must have: values of attributes, out of those that the catalogue has.
import * as api from "./api.js";
import { el } from "./dom.js";

/** A value of an attribute as it stands in the address. */
const pair = (name, value) => `${name}=${value}`;

/** Fills a place with the attributes of the catalogue. Returns a function that marks the values that are chosen. */
export function filters(place, toggle) {
  let chosen = [];
  const mark = (now = chosen) => {
    chosen = now;
    for (const part of place.querySelectorAll("details")) {
      for (const box of part.querySelectorAll("input")) box.checked = chosen.includes(box.value);
      const number = part.querySelectorAll(":checked").length;
      part.querySelector("summary b").textContent = number || "";
      if (number) part.open = true;
    }
  };
  api.attributes().then(({ attributes }) => {
    for (const [name, values] of Object.entries(attributes)) {
      const boxes = Object.entries(values).map(([value, items]) => el("label", { class: "chip" },
        el("input", { type: "checkbox", value: pair(name, value), onchange: ({ target }) => toggle(target.value) }), value, el("small", {}, items.toLocaleString("en"))));
      place.append(el("details", {}, el("summary", {}, name, el("b")), el("div", { class: "chips" }, boxes)));
    }
    place.hidden = !Object.keys(attributes).length;
    mark();
  }).catch(() => {});
  return mark;
}

/** The filter of a request for pairs: one value of each attribute that they name. */
export function where(pairs) {
  const values = new Map();
  for (const one of pairs) {
    const [name, value] = [one.slice(0, one.indexOf("=")), one.slice(one.indexOf("=") + 1)];
    values.set(name, [...(values.get(name) ?? []), value]);
  }
  return values.size ? { where: { all: [...values].map(([attribute, among]) => ({ attribute, in: among })) } } : {};
}

/** The list with one more, or with one less where it is there. */
export const toggled = (list, one) => (list.includes(one) ? list.filter(other => other !== one) : [...list, one]);
