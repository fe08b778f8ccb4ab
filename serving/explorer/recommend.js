// Recommendations for a user, or for somebody invented by what they like.
import * as api from "./api.js";
import { deal, nameOf, picture, thumb } from "./cards.js";
import { counted, el, redraw, roving, settled, worker } from "./dom.js";
import * as erasing from "./erase.js";
import * as events from "./events.js";
import { filters as attributes, toggled, where } from "./filters.js";
import { compared, glide, sentence } from "./moves.js";
import { address, change, follow, less, like, profile, watch } from "./profile.js";

const K = 12, MOST = 100, PICKS = 6;
const view = document.getElementById("recommend");
const find = selector => view.querySelector(selector);
const [user, pick, picks, cards, more] = ["#user", "#pick", "#picks", ".cards", ".more"].map(find);
const answering = worker(find(".answer")), picking = worker(picks, find("#invent"));
const named = new Set(); // recommenders that some answer has named
const because = new Set(); // of a known user's history, what the reasons have named
const mark = attributes(find(".where"), one => change({ is: toggled(profile.is, one) }));
let cursor = null, shown = null, asker = null;

roving(cards, ".open");
roving(picks, "button");
for (const strip of view.querySelectorAll(".strip")) roving(strip, ".thumb");

find("#known").addEventListener("submit", event => {
  event.preventDefault();
  change({ user: user.value.trim(), likes: [], less: [] });
});
find("#invent").addEventListener("submit", event => event.preventDefault());
pick.addEventListener("input", settled(offer));
pick.addEventListener("keydown", event => {
  if (event.key !== "ArrowDown" || !picks.children.length) return;
  event.preventDefault();
  picks.querySelector("button").focus();
});
more.addEventListener("click", () => answer(cursor));
watch(() => !view.hidden && refresh());
events.watch(({ user_id: id, type, state }) => {
  if (id !== profile.user) return;
  if (state === "kept" || state === "erased") shown = null;
  if (state === "erased") because.clear();
  if (view.hidden) return;
  if (shown === null) refresh({ since: type ?? "erasure" });
  else strips();
});

/** Shows the view for the profile in the address, or for the one that was there. */
export function show(params) {
  if (params.size) return follow(params);
  history.replaceState(null, "", address());
  refresh();
}

/** Asks anew where the question is another; `since`: what the user has said meanwhile of an item. */
function refresh({ since } = {}) {
  const wanted = address();
  if (wanted === shown) return;
  if (user.value.trim() !== profile.user) user.value = profile.user;
  if (asker !== who()) because.clear();
  mark(profile.is);
  strips();
  erasing.offer();
  shown = wanted;
  answer(null, since);
}

/** Who asks for what: while it is the same, a list moves instead of being another. */
const who = () => JSON.stringify([profile.user, profile.only, profile.is]);

/** Asks for the first page, or for the one after `from`. */
function answer(from = null, since = null) {
  return answering(async signal => {
    try {
      const same = asker === who() && from === null && cards.children.length > 0;
      const got = await api.recommend(query(from, same ? cards.children.length : K), signal);
      const moves = same && compared([...cards.children].map(card => card.dataset.id), got.items.map(item => item.item_id));
      const put = () => deal(cards, got.items, { kinds: ["like", "dislike", "less"], keep: from !== null, answer: got.recommendation_id });
      if (same) await glide(cards, moves, signal, put);
      else put();
      if (signal.aborted) return;
      asker = who();
      for (const item of got.items) {
        for (const name of item.recommenders ?? []) named.add(name);
        if (item.why?.nearest) because.add(item.why.nearest);
      }
      cursor = got.cursor ?? null;
      more.hidden = !cursor;
      say(got);
      find(".moved").textContent = same ? sentence(moves, since) : "";
      strips();
      filters();
    } catch (error) {
      if (!signal.aborted) shown = null; // the same question may be put again
      if (!signal.aborted && from === null) clear();
      throw error;
    }
  });
}

function query(from, k) {
  const { user: id, likes, less: negative, only, is } = profile;
  return {
    ...(id ? { user_id: id } : { history: likes }),
    k: Math.min(Math.max(k, K), MOST),
    explain: true,
    ...(negative.length && { negative, exclude: negative }),
    ...(only.length && { recommenders: only }),
    ...where(is),
    ...(from && { cursor: from }),
  };
}

function say({ source, unknown, recommendation_id: id, run }) {
  const number = counted(cards.children.length, "item");
  const why = source === "history" ? "from what they liked" : profile.user ? "that are popular: nothing is known of this user" : "that are popular";
  find(".said").textContent = `${number} ${why}.${unknown?.length ? ` The catalogue does not have ${unknown.join(", ")}.` : ""}`;
  find(".traced").textContent = [run && `run ${run}`, id && `answer ${id}`].filter(Boolean).join(" · ");
}

function clear() {
  cards.replaceChildren();
  more.hidden = true;
  for (const line of [".said", ".moved", ".traced"]) find(line).textContent = "";
}

function strips() {
  const { user: id } = profile;
  const disliked = id ? events.ofUser(id, "dislike") : profile.less;
  const ids = id ? [...new Set([...because, ...events.ofUser(id, "like")])].filter(one => !disliked.includes(one)) : profile.likes;
  find("#history").hidden = profile.user && !ids.length;
  find("#history h2").textContent = profile.user ? "What the answer goes by" : "Liked, oldest first";
  find("#history .hint").textContent = ids.length || profile.user ? "" : "Nobody yet: these are the popular items. Like some.";
  const taken = name => `Like ${name} no more`;
  const back = name => `No longer less like ${name}`;
  strip(find("#history ul"), ids, one => (id ? thumb(one) : thumb(one, { label: taken, onclick: () => like(one) })));
  strip(find("#less ul"), [...new Set([...disliked, ...profile.less])], one => (profile.less.includes(one) ? thumb(one, { label: back, onclick: () => less(one) }) : thumb(one)));
  find("#less").hidden = !find("#less ul").children.length;
}

/** Fills a strip with a picture for each id; what is there stays, and what is new shows that it is. */
function strip(list, ids, made) {
  const there = new Map([...list.children].map(one => [one.dataset.id, one])), mine = list.dataset.user === profile.user;
  list.dataset.user = profile.user;
  redraw(list, ids.map(id => {
    if (mine && there.has(id)) return there.get(id);
    const one = made(id);
    one.dataset.id = id;
    one.classList.toggle("fresh", mine && there.size > 0);
    return one;
  }), ".thumb", pick);
}

function filters() {
  const toggle = name => change({ only: toggled(profile.only, name) });
  for (const name of profile.only) named.add(name);
  find("#only").hidden = named.size < 2;
  const boxes = [...named].sort().map(name => el("label", { class: "chip" }, el("input", { type: "checkbox", value: name, onchange: () => toggle(name) }), name));
  const held = document.activeElement?.closest("#only") && document.activeElement.value;
  find("#only .chips").replaceChildren(...boxes);
  for (const box of view.querySelectorAll("#only input")) {
    box.checked = profile.only.includes(box.value);
    if (box.value === held) box.focus();
  }
}

/** Offers items to like for the words in the field. */
function offer() {
  const text = pick.value.trim();
  return picking(async signal => {
    const items = text ? (await api.search({ text, k: PICKS }, signal)).items : [];
    if (signal.aborted) return;
    redraw(picks, items.map(choice), "button", pick);
    if (text && !items.length) picks.append(el("li", { class: "hint" }, "No item has these words."));
  });
}

function choice(item) {
  const name = nameOf(item);
  return el("li", {}, el("button", { type: "button", tabindex: -1, "aria-label": `Like ${name}`, onclick: () => like(item.item_id) },
    picture(item.item_id, name), el("span", { class: "name" }, name), el("span", { class: "heart", "aria-hidden": "true" }, "♡")));
}
