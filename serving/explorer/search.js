// Items by words.
import * as api from "./api.js";
import { deal } from "./cards.js";
import { filters, toggled, where } from "./filters.js";
import { counted, roving, settled, worker } from "./dom.js";

const K = 24;
const view = document.getElementById("search");
const text = view.querySelector("#text"), cards = view.querySelector(".cards"), said = view.querySelector(".said");
const searching = worker(view);
const mark = filters(view.querySelector(".where"), one => {
  is = toggled(is, one);
  mark(is);
  go();
});
let shown = null, is = [];

roving(cards, ".open");
view.querySelector("form").addEventListener("submit", event => {
  event.preventDefault();
  go();
});
text.addEventListener("input", settled(go));

/** Shows the view for the words in the address. */
export function show(params) {
  const wanted = params.get("text") ?? text.value;
  if (params.size) is = params.getAll("is");
  mark(is);
  if (wanted.trim() !== text.value.trim()) text.value = wanted;
  go();
  if (!cards.children.length) text.focus();
}

function go() {
  const wanted = text.value.trim();
  const params = new URLSearchParams(wanted && { text: wanted });
  for (const one of is) params.append("is", one);
  const address = `#/search${params.size ? `?${params}` : ""}`;
  if (address === shown || view.hidden) return;
  shown = address;
  history.replaceState(null, "", address);
  searching(async signal => {
    try {
      const { items, recommendation_id: answer } = wanted ? await api.search({ text: wanted, k: K, ...where(is) }, signal) : { items: [] };
      if (signal.aborted) return;
      deal(cards, items, { answer });
      said.textContent = wanted && (items.length ? `${counted(items.length, "item")}, best first.` : is.length ? "No item has these words and attributes." : "No item has these words.");
    } catch (error) {
      if (!signal.aborted) {
        shown = null;
        cards.replaceChildren();
        said.textContent = "";
      }
      throw error;
    }
  });
}
