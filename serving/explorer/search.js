// Items by words.
import * as api from "./api.js";
import { deal } from "./cards.js";
import { counted, roving, settled, worker } from "./dom.js";

const K = 24;
const view = document.getElementById("search");
const text = view.querySelector("#text"), cards = view.querySelector(".cards"), said = view.querySelector(".said");
const searching = worker(view);
let shown = null;

roving(cards, ".open");
view.querySelector("form").addEventListener("submit", event => {
  event.preventDefault();
  go();
});
text.addEventListener("input", settled(go));

/** Shows the view for the words in the address. */
export function show(params) {
  const wanted = params.get("text") ?? text.value;
  if (wanted.trim() !== text.value.trim()) text.value = wanted;
  go();
  if (!cards.children.length) text.focus();
}

function go() {
  const wanted = text.value.trim();
  if (wanted === shown || view.hidden) return;
  shown = wanted;
  history.replaceState(null, "", `#/search${wanted && `?${new URLSearchParams({ text: wanted })}`}`);
  searching(async signal => {
    try {
      const items = wanted ? (await api.search(wanted, K, signal)).items : [];
      if (signal.aborted) return;
      deal(cards, items);
      said.textContent = wanted && (items.length ? `${counted(items.length, "item")}, best first.` : "No item has these words.");
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
