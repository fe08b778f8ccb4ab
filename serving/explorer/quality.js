// What the run has measured of its recommenders: means with their intervals.
import * as api from "./api.js";
import { el, worker } from "./dom.js";
import * as live from "./live.js";

const INTERVAL = "_interval";
const view = document.getElementById("quality");
const counts = view.querySelector(".counts"), table = view.querySelector(".table");
const loading = worker(view);
let measured = null, by = null;

/** Shows the table, fetched once, and what the service counts. */
export function show() {
  live.show();
  if (measured) return undefined;
  return loading(async signal => {
    measured = await api.quality(signal);
    const facts = { run: measured.run, ...measured.counts };
    counts.replaceChildren(...Object.entries(facts).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, typeof value === "number" ? value.toLocaleString("en") : `${value}`))));
    draw();
  });
}

/** Metrics that are numbers, those with an interval first. */
function columns() {
  const rows = Object.values(measured.metrics);
  const names = [...new Set(rows.flatMap(Object.keys))].filter(name => !name.endsWith(INTERVAL) && rows.some(row => typeof row[name] === "number"));
  const plain = name => !rows.some(row => row[name + INTERVAL]);
  return names.sort((one, other) => plain(one) - plain(other));
}

function draw() {
  const names = columns();
  if (!names.length) return table.replaceChildren(el("p", { class: "hint" }, "This run has measured no recommender: its stage evaluate has not run."));
  by = names.includes(by) ? by : names[0];
  const rows = Object.entries(measured.metrics).sort(([, one], [, other]) => (other[by] ?? -Infinity) - (one[by] ?? -Infinity));
  const reach = Object.fromEntries(names.map(name => [name, Math.max(...rows.map(([, row]) => row[name + INTERVAL]?.[1] ?? row[name] ?? 0))]));
  const head = names.map(name => el("th", { scope: "col", "aria-sort": name === by ? "descending" : null },
    el("button", { type: "button", "data-name": name, onclick: () => sort(name) }, name)));
  return table.replaceChildren(el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Recommender"), head)),
    el("tbody", {}, rows.map(([name, row]) => el("tr", {}, el("th", { scope: "row" }, name), names.map(metric => cell(metric, row, reach[metric])))))));
}

function sort(name) {
  by = name;
  draw();
  table.querySelector(`button[data-name="${CSS.escape(name)}"]`).focus();
}

function cell(name, row, most) {
  const value = row[name], interval = row[name + INTERVAL];
  if (typeof value !== "number") return el("td", { "data-name": name, class: "none" }, "–");
  const part = number => (most > 0 ? Math.max(number, 0) / most : 0).toFixed(4);
  const bar = interval && el("span", { class: "interval", vars: { "--part": part(value), "--low": part(interval[0]), "--high": part(interval[1]) } }, el("i"));
  const said = interval ? `${value.toFixed(4)}, interval ${interval[0].toFixed(4)} to ${interval[1].toFixed(4)}` : null;
  return el("td", { "data-name": name, title: said }, el("b", {}, value.toFixed(4)), bar, interval && el("small", {}, `${interval[0].toFixed(4)} – ${interval[1].toFixed(4)}`));
}
