// What the service sees in a picture, and the items nearest to it.
import * as api from "./api.js";
import { deal } from "./cards.js";
import { counted, el, roving, worker } from "./dom.js";
import { mark } from "./moves.js";
import { codesOf, tiles } from "./tiles.js";

const K = 12, LONGEST = 1024; // pixels of the longer side that are sent
const view = document.getElementById("picture");
const [drop, preview, file, read, cards, said] = [".drop", ".drop img", "#file", ".read", ".cards", ".said"].map(name => view.querySelector(name));
const form = document.getElementById("post"), [id, title] = form.querySelectorAll("input");
const looking = worker(view, view.querySelector(".answer")), posting = worker(view, form);
let sent; // the picture as it was asked about, in base64

roving(cards, ".open");
drop.addEventListener("click", () => file.click());
file.addEventListener("change", () => take(file.files[0]));
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  drop.addEventListener(name, event => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragenter" || name === "dragover");
  });
}
drop.addEventListener("drop", ({ dataTransfer }) => take(dataTransfer.files[0]));
addEventListener("paste", ({ clipboardData }) => !view.hidden && take([...clipboardData.files].find(({ type }) => type.startsWith("image/"))));

/** Shows the view as it was left. */
export function show() {}

function take(chosen) {
  if (!chosen) return;
  looking(async signal => {
    clear();
    const small = await reduced(chosen);
    URL.revokeObjectURL(preview.src);
    preview.src = URL.createObjectURL(small);
    preview.hidden = false;
    drop.classList.add("full");
    sent = await base64(small);
    const got = await api.similar({ picture: sent, k: K }, signal);
    if (signal.aborted) return;
    const codes = codesOf(got.seen?.sid ?? "");
    read.replaceChildren(
      ...(got.seen?.caption ? [el("h2", {}, "Caption"), el("p", { class: "caption" }, got.seen.caption)] : []),
      ...(codes.length ? [el("h2", {}, "Semantic ID"), el("a", { class: "to-tree", href: `#/catalogue?prefix=${codes.join(",")}` }, tiles(codes), el("span", {}, "in the catalogue"))] : []));
    near(got);
    id.value = (chosen.name ?? "").replace(/\.[^.]*$/, "");
    title.value = "";
    form.hidden = false;
  });
}

form.addEventListener("submit", event => {
  event.preventDefault();
  posting(async signal => {
    const item = await api.post({ item_id: id.value, title: title.value.trim() || null, picture: sent }, signal);
    form.hidden = true;
    near(await api.similar({ picture: sent, k: K }, signal));
    said.textContent = `${item.item_id} is in the catalogue. ${said.textContent}`;
    const card = [...cards.children].find(one => one.dataset.id === item.item_id);
    if (!card) return;
    mark(card, "New");
    card.querySelector(".open").focus();
  });
});

function near({ items }) {
  deal(cards, items);
  said.textContent = `${counted(items.length, "item")}, nearest first.`;
}

function clear() {
  form.hidden = true;
  form.querySelector(".problem").replaceChildren();
  read.replaceChildren();
  cards.replaceChildren();
  said.textContent = "";
}

/** The picture as a JPEG that is no larger than needed; its metadata stay here. */
async function reduced(chosen) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(chosen);
  } catch {
    throw new Error("This file is no picture that the browser can read.");
  }
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const canvas = el("canvas", { width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)) });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff"; // behind what is transparent
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise(resolve => canvas.toBlob(resolve, "image/jpeg", 0.9));
}

function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.split(",")[1]);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
