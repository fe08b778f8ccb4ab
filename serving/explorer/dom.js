// Elements, lists with one tab stop, and what views say. Texts become text nodes: nothing is ever parsed as HTML.

/** Makes an element. `props`: handlers as onNAME, custom properties under `vars`, anything else as an attribute. */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, number] of Object.entries(value)) made.style.setProperty(key, number);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter(child => child !== null && child !== undefined && child !== ""));
  return made;
}

/** "1 item", "2,041 items". */
export const counted = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

/**
 * Gives a list one tab stop: arrows move between the elements that `selector` finds, Home and End go to the ends.
 * Buttons marked `data-also` in the same <li> can be reached by Tab from the one that is current.
 */
export function roving(list, selector, { sideways = true } = {}) {
  const all = () => [...list.querySelectorAll(selector)];
  const own = target => target.closest(selector) ?? target.closest("li")?.querySelector(selector);
  const settle = chosen => {
    for (const one of all()) {
      one.tabIndex = one === chosen ? 0 : -1;
      for (const button of one.closest("li").querySelectorAll("[data-also]")) button.tabIndex = one.tabIndex;
    }
  };
  list.addEventListener("focusin", ({ target }) => own(target) && settle(own(target)));
  list.addEventListener("keydown", event => {
    const from = own(event.target), items = all(), at = items.indexOf(from);
    const step = {
      ArrowRight: () => sideways && items[at + 1],
      ArrowLeft: () => sideways && items[at - 1],
      ArrowDown: () => beside(items, from, 1),
      ArrowUp: () => beside(items, from, -1),
      Home: () => items[0],
      End: () => items.at(-1),
    }[event.key];
    if (!step || at < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    const to = step();
    if (!to) return;
    event.preventDefault();
    to.focus();
  });
  new MutationObserver(() => {
    const items = all();
    if (items.length && !items.some(item => item.tabIndex === 0)) settle(items[0]);
  }).observe(list, { childList: true });
}

/** The element nearest to `from` in the next row below (`way` 1) or above (-1). */
function beside(items, from, way) {
  const here = from.getBoundingClientRect();
  const away = item => {
    const there = item.getBoundingClientRect();
    const down = way > 0 ? there.top - here.bottom : here.top - there.bottom;
    return down < -1 ? Infinity : down * 1000 + Math.abs(there.left - here.left);
  };
  const best = items.reduce((near, item) => (away(item) < away(near) ? item : near), from);
  return best === from ? undefined : best;
}

/** Puts new children into a list; a focus that was in it stays at its place, or goes to `otherwise`. */
export function redraw(list, children, selector, otherwise) {
  const at = [...list.children].findIndex(child => child.contains(document.activeElement));
  list.replaceChildren(...children);
  if (at < 0) return;
  (list.children[Math.min(at, children.length - 1)]?.querySelector(selector) ?? otherwise)?.focus();
}

/** Does the newest work of a view: what came before is aborted, what fails is said in its line for problems. */
export function worker(view, where = view) {
  let running = new AbortController();
  const problem = where.querySelector(".problem");
  return async work => {
    running.abort();
    const mine = (running = new AbortController());
    view.setAttribute("aria-busy", "true");
    try {
      await work(mine.signal);
      if (!mine.signal.aborted) problem.replaceChildren();
    } catch (error) {
      if (!mine.signal.aborted) problem.replaceChildren(...told(error));
    }
    if (running === mine) view.removeAttribute("aria-busy");
  };
}

/** What to say of an error: its sentence, and the id under which the service has logged it. */
export function told(error) {
  return [error.message, error.request ? el("small", {}, ` request ${error.request}`) : ""];
}

/** Calls `work` once nothing has come for a while. */
export function settled(work, wait = 250) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, wait);
  };
}
