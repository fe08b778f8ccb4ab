// What users do, as events to the service. Each has an id of its own: one that is sent again is kept once.
import * as api from "./api.js";

const READS = "This key may only read, so that no like is kept.";
const newest = new Map(); // by user and item: the last event of both
const watchers = [];
let sending = Promise.resolve(), allowed = true;

/** Calls `watcher` with an event whenever it is "sending", "kept", "failed" or "refused", and with an erased user. */
export const watch = watcher => watchers.push(watcher);

/** Whether the service has not said that this key may only read. */
export const mayWrite = () => allowed;

const keyOf = (user, item) => JSON.stringify([user, item]);
const alive = () => [...newest.values()];

/** The last event of a user about an item, if there is one. */
export const lastOf = (user, item) => newest.get(keyOf(user, item));

/** The items of a user's events of a type, oldest first, unless the service did not take them. */
export const ofUser = (user, type) => alive().filter(one => one.user_id === user && one.type === type && one.state !== "failed").map(one => one.item_id);

/** Events that have not reached the service, as far as this page knows. */
export const failed = () => alive().filter(one => one.state === "failed");

/** Sends an event; where it is the last one of both already, only if that has failed, and then under its id. */
export function say(user, item, type, answer) {
  const last = lastOf(user, item);
  if (last?.type === type) return last.state === "failed" ? send(last) : undefined;
  const event = { user_id: user, item_id: item, type, event_id: drawn(), ...(answer && { recommendation_id: answer }) };
  newest.delete(keyOf(user, item)); // what comes in again goes to the end
  newest.set(keyOf(user, item), event);
  return send(event);
}

/** Sends all again that have failed. */
export const again = () => failed().forEach(send);

/** Erases a user, after all that was said before. Rejects with the problem. */
export function erase(user) {
  const done = sending.then(() => api.erase(user)).then(() => {
    for (const one of alive()) if (one.user_id === user) forget(one);
    tell({ user_id: user, state: "erased" });
  });
  sending = done.catch(() => {});
  return done;
}

/** One after the other, so that the service hears a like before the dislike that takes it back. */
function send(event) {
  become(event, "sending");
  sending = sending.then(async () => {
    const { state: _, problem: __, ...body } = event;
    try {
      await api.event(body);
      become(event, "kept");
    } catch (error) {
      const lost = !error.status || error.status === 429 || error.status >= 500;
      if (error.status === 403) allowed = false;
      if (!lost) forget(event);
      become(event, lost ? "failed" : "refused", error.status === 403 ? READS : error.message);
    }
  });
}

function become(event, state, problem = "") {
  Object.assign(event, { state, problem });
  tell(event);
}

function tell(event) {
  for (const watcher of watchers) watcher(event);
}

function forget(event) {
  if (lastOf(event.user_id, event.item_id) === event) newest.delete(keyOf(event.user_id, event.item_id));
}

/** An id that nothing else has; `randomUUID` is not there where the page comes without TLS. */
const drawn = () => [...crypto.getRandomValues(new Uint8Array(16))].map(byte => byte.toString(16).padStart(2, "0")).join("");
