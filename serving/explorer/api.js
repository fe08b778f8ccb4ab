// The routes of the service. Addresses are relative, so that the page works under any prefix.

/** What the service, or the way to it, says is wrong; `request` is the id of the request in its log. */
export class Problem extends Error {
  constructor(message, request) {
    super(message);
    this.request = request;
  }
}

async function call(path, { body, signal } = {}) {
  const post = body && { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  let response;
  try {
    response = await fetch(path, { signal, ...post });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem("The service does not answer.");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  const { message, request_id: request } = answer?.error ?? {};
  throw new Problem(message ?? `The service answered with status ${response.status}.`, request);
}

export const recommend = (body, signal) => call("v1/recommend", { body, signal });
export const similar = (body, signal) => call("v1/similar", { body, signal });
export const search = (text, k, signal) => call(`v1/search?${new URLSearchParams({ text, k })}`, { signal });
export const tree = (prefix, signal) => call(`v1/tree?${new URLSearchParams(prefix.map(code => ["prefix", code]))}`, { signal });
export const quality = signal => call("v1/quality", { signal });
export const pictureOf = id => `v1/items/${encodeURIComponent(id)}/picture`;

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
