// The key that the page sends with each call. It stays in this tab, and goes when the tab is closed.
const NAME = "tesserec-key";
const panel = document.getElementById("key"), field = panel.querySelector("input");

/** The header of a call; none without a key. */
export function header() {
  const key = sessionStorage.getItem(NAME);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** What to do where the service refuses with this status; opens the place for the key. */
export function hint(status) {
  if (status !== 401) return "";
  panel.open = true;
  panel.classList.add("wanted");
  return " Give a key of the service, under “Key”.";
}

panel.classList.toggle("given", "Authorization" in header());
panel.querySelector("form").addEventListener("submit", event => {
  event.preventDefault();
  const key = field.value.trim();
  if (/[^\x21-\x7e]/.test(key)) return field.setCustomValidity("A key has no spaces and no letters beyond ASCII."), field.reportValidity();
  if (key) sessionStorage.setItem(NAME, key);
  else sessionStorage.removeItem(NAME);
  return location.reload(); // whatever is shown is asked for again
});
field.addEventListener("input", () => field.setCustomValidity(""));
panel.addEventListener("toggle", () => panel.open && field.focus());
panel.addEventListener("keydown", event => {
  if (event.key !== "Escape") return;
  panel.open = false;
  panel.querySelector("summary").focus();
});
