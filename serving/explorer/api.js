// The routes of the service. Addresses are relative, so that the page works under any prefix.
import { header, hint } from "./key.js";

/** What the service, or the way to it, says is wrong; `request` is the id of the request in its log. */
export class Problem extends Error {
  constructor(message, request) {
    super(message);
    this.request = request;
  }
}

async function call(path, { body, signal } = {}) {
  const post = body && { method: "POST", body: JSON.stringify(body) };
  const headers = { ...header(), ...(body && { "Content-Type": "application/json" }) };
  let response;
  try {
    response = await fetch(path, { signal, headers, ...post });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem("The service does not answer.");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  const { message, request_id: request } = answer?.error ?? {};
  throw new Problem((message ?? `The service answered with status ${response.status}.`) + hint(response.status), request);
}

export const recommend = (body, signal) => call("v1/recommend", { body, signal });
export const similar = (body, signal) => call("v1/similar", { body, signal });
export const search = (body, signal) => call("v1/search", { body, signal });
export const tree = (prefix, signal) => call(`v1/tree?${new URLSearchParams(prefix.map(code => ["prefix", code]))}`, { signal });
export const quality = signal => call("v1/quality", { signal });

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

/** An item, fetched once. */
export function item(id) {
  if (!items.has(id)) {
    const asked = call(`v1/items/${encodeURIComponent(id)}`);
    asked.catch(() => items.delete(id));
    items.set(id, asked);
  }
  return items.get(id);
}
