// Shows the item under the pointer or chosen by the arrow keys, and the other items of its codes on every map.
"use strict";
const rows = document.querySelectorAll("#map-items tbody tr");
const heads = [...document.querySelectorAll("#map-items thead th")].map(head => head.textContent);
const card = document.getElementById("map-card");
const maps = [...document.querySelectorAll("svg.map")];
const points = maps.map(map => {
  const circles = [];
  for (const point of map.querySelectorAll("circle")) circles[point.dataset.row] = point;
  return circles;
});
const places = points[0].map(point => [point.cx.baseVal.value, point.cy.baseVal.value]);
const REACH = 40; // in units of the drawing
let shown = null;

function mark(row, on) {
  points.forEach((circles, index) => {
    const point = circles[row], group = point.parentNode;
    maps[index].classList.toggle("picked", on);
    point.classList.toggle("here", on);
    group.classList.toggle("same", on);
    group.append(point); // the last element is drawn on top
    maps[index].append(group);
  });
}

function hide() {
  if (shown !== null) mark(shown, false);
  shown = null;
  card.hidden = true;
}

function show(row, index) {
  if (row !== shown) {
    hide();
    mark(shown = row, true);
    // the table's cells are escaped already; they are cloned, never parsed again
    card.replaceChildren(...[...rows[row].cells].map((cell, column) => {
      const part = document.createElement("div");
      part.className = cell.className;
      part.dataset.head = heads[column];
      part.append(...cell.cloneNode(true).childNodes);
      return part;
    }));
    card.hidden = false;
  }
  const at = points[index][row].getBoundingClientRect();
  const left = at.right + 12 + card.offsetWidth < innerWidth ? at.right + 12 : at.left - 12 - card.offsetWidth;
  card.style.left = `${Math.max(4, left)}px`;
  card.style.top = `${Math.max(4, Math.min(at.top, innerHeight - card.offsetHeight - 4))}px`;
}

function nearest(map, event) {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
  const distances = places.map(([x, y]) => Math.hypot(x - at.x, y - at.y));
  const least = Math.min(...distances);
  return least < REACH ? distances.indexOf(least) : null;
}

maps.forEach((map, index) => {
  map.setAttribute("tabindex", "0");
  map.setAttribute("role", "application");
  const point = event => {
    const row = nearest(map, event);
    row === null ? hide() : show(row, index);
  };
  map.addEventListener("pointermove", point);
  map.addEventListener("pointerdown", point);
  map.addEventListener("pointerleave", event => {
    if (event.pointerType === "mouse") hide(); // touch sends pointerleave as soon as the finger is lifted
  });
  map.addEventListener("blur", hide);
  map.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    show(shown === null ? 0 : (shown + step + rows.length) % rows.length, index);
  });
});
document.body.classList.add("scripted");
