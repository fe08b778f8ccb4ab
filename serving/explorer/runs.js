// The runs that are served, side by side: who gets which, and how often users act on the answers of each.
import * as api from "./api.js";
import { counted, el, told } from "./dom.js";
import { buckets, quantile, time } from "./prometheus.js";

const place = document.getElementById("runs");
const [problem, said, pair] = [".problem", ".said", ".pair"].map(name => place.querySelector(name));
const percent = share => `${(100 * share).toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 })} %`;
const points = share => `${share < 0 ? "−" : "+"}${(100 * Math.abs(share)).toFixed(1)}`;

/** Asks for the runs and shows them, each with what the process that answers has counted of it: samples of Prometheus. */
export async function show(samples) {
  try {
    const { runs, since, replicas, warning } = await api.runs();
    const began = new Date(1000 * since).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
    said.replaceChildren(`Since ${began}. ${replicas.serving} of ${counted(replicas.alive, "replica")} ${replicas.serving === 1 ? "serves" : "serve"} this.`);
    problem.replaceChildren(warning ?? "");
    const reach = Math.max(...runs.map(run => run.rate?.high ?? 0));
    pair.replaceChildren(...runs.map((run, at) => article(run, at, runs.length, reach, samples)));
  } catch (error) {
    problem.replaceChildren(...told(error));
  }
}

function article(run, at, count, reach, samples) {
  const own = samples.filter(({ labels }) => labels.run === run.run);
  const rate = run.shadow ? el("p", { class: "hint" }, "Nobody sees its answers, so nobody acts on them.") : clicks(run, reach);
  const facts = {
    answers: run.shadow ? null : run.answers.toLocaleString("en"),
    "acted on": run.shadow ? null : run.acted.toLocaleString("en"),
    users: run.shadow ? null : run.users.toLocaleString("en"),
    items: run.items.toLocaleString("en"),
    ...times(own),
    ...alike(own, run),
  };
  const shown = Object.entries(facts).filter(([, value]) => value !== null);
  return el("article", { "data-run": run.run, "aria-label": run.run },
    el("h3", {}, run.run), el("p", { class: "chip" }, who(run, at, count)), rate,
    el("dl", { class: "counts" }, shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    run.difference && beside(run.difference));
}

function who(run, at, count) {
  if (run.shadow) return "in the shadow of the first";
  return count === 1 || run.share === 1 ? "everybody" : `${percent(run.share)} of the users${at ? "" : ", and visitors"}`;
}

/** Click-through with its interval. */
function clicks({ rate }, reach) {
  if (!rate) return el("p", { class: "hint" }, "No user has had an answer yet.");
  const vars = Object.fromEntries([["--part", rate.value], ["--low", rate.low], ["--high", rate.high]].map(([name, share]) => [name, (reach > 0 ? share / reach : 0).toFixed(4)]));
  return el("div", { class: "rate" },
    el("p", {}, el("b", {}, percent(rate.value)), " of the answers were acted on"),
    el("span", { class: "interval", vars }, el("i")),
    el("small", {}, `${percent(rate.low)} – ${percent(rate.high)}, with 95 % confidence`));
}

/** How far the second run is from the first. */
function beside({ value, low, high }) {
  const verdict = low > 0 ? "more than the first run" : high < 0 ? "less than the first run" : "no difference shown so far";
  return el("p", { class: "difference" }, el("b", {}, `${points(value)} points`), ` (${points(low)} to ${points(high)}): ${verdict}`);
}

/** How long recommendations of a run take, where the key may read what the process counts. */
function times(samples) {
  const under = buckets(samples.filter(one => one.name === "tesserec_request_seconds_bucket" && one.labels.route === "/v1/recommend"));
  if (!under.at(-1)?.[1]) return {};
  return { p50: time(quantile(0.5, under), under), p99: time(quantile(0.99, under), under) };
}

/** Of a run in the shadow: how many of the items that were shown it would have shown, too. */
function alike(samples, { shadow }) {
  const of = name => samples.find(one => one.name === name)?.value ?? 0;
  const shown = of("tesserec_shadow_items_total");
  return shadow && shown ? { "same items": percent(of("tesserec_shadow_same_items_total") / shown), compared: shown.toLocaleString("en") } : {};
}
