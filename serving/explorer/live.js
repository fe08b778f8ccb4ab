// What the service counts about itself, asked anew while it is looked at.
import * as api from "./api.js";
import { el, told } from "./dom.js";
import { buckets, quantile, read, time } from "./prometheus.js";
import * as runs from "./runs.js";

const EVERY = 5000; // milliseconds
const view = document.getElementById("quality"), place = document.getElementById("live");
const [problem, counts, table] = [".problem", ".counts", ".table"].map(name => place.querySelector(name));
let timer, refused = false;

document.addEventListener("visibilitychange", show);

/** Reads the counts, now and every few seconds while the view is shown and the page is in front. */
export async function show() {
  clearTimeout(timer);
  if (view.hidden || document.hidden) return;
  let samples = [];
  try {
    if (!refused) draw((samples = read(await api.metrics())));
    if (!refused) problem.replaceChildren();
  } catch (error) {
    refused = error.status === 401 || error.status === 403;
    problem.replaceChildren(...(refused ? ["What the service counts is shown for a key with the role admin."] : told(error)));
  }
  await runs.show(samples);
  clearTimeout(timer); // of another look at the same time
  timer = setTimeout(show, EVERY);
}

function draw(samples) {
  const sums = (name, by) => samples.filter(one => one.name === name).reduce((all, { labels, value }) => {
    const group = typeof by === "function" ? by(labels) : labels[by];
    return all.set(group, (all.get(group) ?? 0) + value);
  }, new Map());
  const routeOf = ({ route }) => (route.startsWith("/v1/") ? route : "other");
  const requests = sums("tesserec_requests_total", routeOf);
  const errors = sums("tesserec_requests_total", labels => (labels.status >= "500" ? routeOf(labels) : "fine"));
  const times = samples.filter(one => one.name === "tesserec_request_seconds_bucket");
  const total = [...requests.values()].reduce((sum, number) => sum + number, 0);
  const events = [...sums("tesserec_events_total", "type")].sort(([, one], [, other]) => other - one);
  const facts = {
    requests: total,
    "under way": sums("tesserec_requests_under_way", () => "").get("") ?? 0,
    "answers lost": sums("tesserec_impressions_lost_total", () => "").get("") ?? 0,
    ...Object.fromEntries(events.map(([type, number]) => [`${type} events`, number])),
  };
  counts.replaceChildren(...Object.entries(facts).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value.toLocaleString("en")))));
  const most = Math.max(...requests.values());
  const order = ([one, few], [other, many]) => (one === "other") - (other === "other") || many - few;
  const rows = [...requests].sort(order).map(([route, number]) => {
    const under = buckets(times.filter(({ labels }) => routeOf(labels) === route));
    const [median, slow] = [0.5, 0.99].map(share => time(quantile(share, under), under));
    return el("tr", {}, el("th", { scope: "row" }, route === "other" ? "all others" : route.replaceAll(":path}", "}")),
      el("td", { "data-name": "requests" }, el("b", {}, number.toLocaleString("en")), el("span", { class: "bar", vars: { "--part": (number / most).toFixed(4) } })),
      el("td", { "data-name": "failed" }, (errors.get(route) ?? 0).toLocaleString("en")), el("td", { "data-name": "p50" }, median), el("td", { "data-name": "p99" }, slow));
  });
  table.hidden = !rows.length;
  table.replaceChildren(el("table", {},
    el("thead", {}, el("tr", {}, ["Route", "requests", "failed", "p50", "p99"].map(name => el("th", { scope: "col" }, name)))), el("tbody", {}, rows)));
}
