// Which view is shown: the part of the address after "#/", with its parameters.
import * as catalogue from "./catalogue.js";
import "./item.js";
import "./unsent.js";
import * as picture from "./picture.js";
import * as quality from "./quality.js";
import * as recommend from "./recommend.js";
import * as search from "./search.js";

const views = { recommend, catalogue, search, picture, quality };

function route() {
  const [name, params] = location.hash.slice(2).split("?");
  const chosen = Object.hasOwn(views, name) ? name : "recommend";
  for (const view of Object.keys(views)) document.getElementById(view).hidden = view !== chosen;
  for (const link of document.querySelectorAll("header nav a")) {
    if (link.hash === `#/${chosen}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${document.getElementById(`${chosen}-title`).textContent} · tesserec`;
  views[chosen].show(new URLSearchParams(params));
}

document.querySelector(".skip").addEventListener("click", event => {
  event.preventDefault();
  const results = document.querySelector(".view:not([hidden]) :is(.cards, .columns, .table)");
  (results?.querySelector("[tabindex='0']") ?? document.getElementById("main")).focus();
});
addEventListener("hashchange", route);
route();
