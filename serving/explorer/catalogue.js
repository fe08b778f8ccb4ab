// The catalogue as a tree of semantic IDs: a column for each level of the path.
import * as api from "./api.js";
import { picture, thumb } from "./cards.js";
import { counted, el, roving, worker } from "./dom.js";
import { tile } from "./tiles.js";

const view = document.getElementById("catalogue");
const [path, columns, said, examples] = [".path", ".columns", ".under .said", ".mosaic"].map(name => view.querySelector(name));
const loading = worker(view);
const known = new Map(); // children by prefix
const letter = level => String.fromCharCode(97 + level);

roving(examples, ".thumb");
columns.addEventListener("keydown", event => {
  const column = event.target.closest(".column");
  if (!column || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
  event.preventDefault();
  if (event.key === "ArrowLeft") enter(column.previousElementSibling);
  else if (event.target.getAttribute("aria-current")) enter(column.nextElementSibling);
  else event.target.click();
});

/** Shows the columns along the path in the address. */
export function show(params) {
  const codes = (params.get("prefix") ?? "").split(",").filter(Boolean).map(Number);
  return loading(async signal => {
    const levels = [];
    for (let level = 0; level <= codes.length; level++) {
      const prefix = codes.slice(0, level), key = prefix.join(",");
      if (!known.has(key)) known.set(key, (await api.tree(prefix, signal)).codes);
      levels.push({ prefix, key, children: known.get(key), chosen: codes[level] });
    }
    if (signal.aborted) return;
    while (codes.length && !levels[codes.length - 1].children.length) codes.pop(); // deeper than the tree, as suffixes are
    draw(levels.filter(({ children }) => children.length));
    trail(codes);
    under(codes, levels);
  });
}

function draw(levels) {
  const had = columns.contains(document.activeElement);
  levels.forEach(({ prefix, key, children, chosen }, level) => {
    if (columns.children[level]?.dataset.prefix !== key) {
      while (columns.children.length > level) columns.lastElementChild.remove();
      columns.append(column(prefix, key, children));
    }
    for (const row of columns.children[level].querySelectorAll(".code")) {
      if (Number(row.dataset.code) === chosen) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
  });
  while (columns.children.length > levels.length) columns.lastElementChild.remove();
  columns.scrollLeft = columns.scrollWidth;
  if (had) enter(columns.lastElementChild);
}

function enter(column) {
  (column?.querySelector("[aria-current]") ?? column?.querySelector(".code"))?.focus();
}

function column(prefix, key, children) {
  const level = prefix.length, most = Math.max(...children.map(({ items }) => items));
  const list = el("ul", { "aria-label": `Level ${letter(level)}, ${counted(children.length, "code")}` });
  roving(list, ".code", { sideways: false });
  list.append(...children.map(({ code, items, examples: ids }) => el("li", {},
    el("button", { type: "button", class: "code", tabindex: -1, "data-code": code, "aria-label": `${letter(level)} ${code}, ${counted(items, "item")}`, onclick: () => go([...prefix, code]) },
      tile(level, code),
      el("span", { class: "few" }, ids.slice(0, 3).map(id => picture(id))),
      el("span", { class: "bar", vars: { "--part": (items / most).toFixed(4) } }),
      el("b", {}, items.toLocaleString("en"))))));
  return el("div", { class: "column", "data-prefix": key }, el("h2", {}, `Level ${letter(level)}`), list);
}

const go = codes => {
  location.hash = `#/catalogue${codes.length ? `?prefix=${codes.join(",")}` : ""}`;
};

function trail(codes) {
  const steps = codes.map((code, level) => el("a", { href: `#/catalogue?prefix=${codes.slice(0, level + 1)}`, "aria-label": `${letter(level)} ${code}` }, tile(level, code)));
  path.replaceChildren(el("a", { href: "#/catalogue" }, "All items"), ...steps);
}

/** The examples of what is chosen, or of the whole catalogue. */
function under(codes, levels) {
  const chosen = codes.length ? levels[codes.length - 1].children.find(({ code }) => code === codes.at(-1)) : null;
  const all = levels[0].children;
  const ids = chosen ? chosen.examples : all.flatMap(child => child.examples.slice(0, 1));
  const items = chosen ? chosen.items : codes.length ? 0 : all.reduce((sum, child) => sum + child.items, 0);
  said.textContent = codes.length && !chosen ? "No item has this ID." : `${counted(items, "item")}${ids.length < items ? `, of which ${ids.length} here` : ""}`;
  examples.replaceChildren(...ids.map(id => thumb(id)));
}
