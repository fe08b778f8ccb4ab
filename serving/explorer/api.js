// The routes of the service. Addresses are relative, so that the page works under any prefix.
import { header, hint } from "./key.js";

/** What the service, or the way to it, says is wrong: its status, if any, and the id of the request in its log. */
export class Problem extends Error {
  constructor(message, { status, request } = {}) {
    super(message);
    Object.assign(this, { status, request });
  }
}

/** Asks a route. `quiet`: a refusal is told by whoever asks, so that no key is asked for here. */
async function ask(path, { method = "GET", body, signal, quiet = false } = {}) {
  const headers = { ...header(), ...(body && { "Content-Type": "application/json" }) };
  let response;
  try {
    response = await fetch(path, { method, signal, headers, body: body && JSON.stringify(body) });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem("The service does not answer.");
  }
  if (response.ok) return response;
  const status = response.status, answer = await response.json().catch(() => null);
  const { message, request_id: request } = answer?.error ?? {};
  throw new Problem((message ?? `The service answered with status ${status}.`) + (quiet ? "" : hint(status)), { status, request });
}

async function call(path, options) {
  const answer = await (await ask(path, options)).json().catch(() => null);
  if (!answer) throw new Problem("The answer of the service has not come whole.");
  return answer;
}

const asking = path => (body, signal) => call(path, { method: "POST", body, signal });

export const recommend = asking("v1/recommend");
export const similar = asking("v1/similar");
export const search = asking("v1/search");
export const post = asking("v1/items");
export const tree = (prefix, signal) => call(`v1/tree?${new URLSearchParams(prefix.map(code => ["prefix", code]))}`, { signal });
export const runs = () => call("v1/runs", { quiet: true });
export const quality = signal => call("v1/quality", { signal });
export const event = body => call("v1/events", { method: "POST", body, quiet: true });
export const erase = user => call(`v1/users/${encodeURIComponent(user)}`, { method: "DELETE", quiet: true });

/** What the service counts, in the format of Prometheus. */
export async function metrics() {
  return (await ask("metrics", { quiet: true })).text();
}

/** Whether the key may erase users: it is the one that may read what the service counts. */
export async function mayErase() {
  try {
    await metrics();
    return true;
  } catch {
    return false;
  }
}

/** The address of an item's picture; an image sends no key, so that with one the picture is fetched here. */
export async function pictureOf(id) {
  const path = `v1/items/${encodeURIComponent(id)}/picture`;
  if (!("Authorization" in header())) return path;
  const response = await fetch(path, { headers: header() });
  if (!response.ok) throw new Problem("There is no picture.");
  return URL.createObjectURL(await response.blob());
}

let known;

/** The attributes of the catalogue, fetched once. */
export function attributes() {
  return (known ??= call("v1/attributes"));
}

const items = new Map();

/** Keeps an item out of all answers, or lets it in again; returns it. */
export function hide(id, hidden) {
  const changed = call(`v1/items/${encodeURIComponent(id)}`, { method: "PATCH", body: { hidden } });
  return changed.then(() => items.set(id, changed) && changed);
}

/** An item, fetched once. */
export function item(id) {
  if (!items.has(id)) {
    const asked = call(`v1/items/${encodeURIComponent(id)}`);
    asked.catch(() => items.delete(id));
    items.set(id, asked);
  }
  return items.get(id);
}
