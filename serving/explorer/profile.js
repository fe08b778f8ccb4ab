// Who asks: a user by id, or somebody invented by what they like. It stands in the address, so that it can be shared.

export const profile = { user: "", likes: [], less: [], only: [], is: [] };
const watchers = [];

/** Calls `watcher` after every change. */
export const watch = watcher => watchers.push(watcher);

/** Changes the profile, its address, and whoever watches. */
export function change(fields) {
  Object.assign(profile, fields);
  if (location.hash.startsWith("#/recommend")) history.replaceState(null, "", address());
  for (const watcher of watchers) watcher();
}

/** Adds an item to what somebody new likes, or takes it away again. */
export function like(id) {
  const likes = profile.likes.includes(id) ? profile.likes.filter(other => other !== id) : [...profile.likes, id];
  change({ user: "", likes, less: profile.less.filter(other => other !== id) });
}

/** Adds an item to those that the answer should not be like, or takes it away again. */
export function less(id) {
  const without = profile.less.filter(other => other !== id);
  change({ less: without.length < profile.less.length ? without : [...without, id] });
}

/** The address of the profile. */
export function address() {
  const params = new URLSearchParams(profile.user && { user: profile.user });
  for (const name of ["likes", "less", "only", "is"]) for (const id of profile[name]) params.append(name, id);
  return `#/recommend${params.size ? `?${params}` : ""}`;
}

/** Takes the profile from the parameters of an address. */
export function follow(params) {
  const [likes, less, only, is] = ["likes", "less", "only", "is"].map(name => params.getAll(name));
  change({ user: params.get("user") ?? "", likes, less, only, is });
}
