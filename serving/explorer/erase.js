// Erasing a user, after a question. Only a key that may do it sees the button.
import * as api from "./api.js";
import { told } from "./dom.js";
import * as events from "./events.js";
import { profile } from "./profile.js";

const button = document.getElementById("forget"), dialog = document.getElementById("erase");
const problem = dialog.querySelector(".problem"), sure = dialog.querySelector(".bad");
let may;

/** Shows the button where there is a user whom the key may erase. */
export async function offer() {
  button.hidden = true;
  if (profile.user && await (may ??= api.mayErase())) button.hidden = !profile.user;
}

button.addEventListener("click", () => {
  dialog.querySelector("h2").textContent = `Erase ${profile.user}?`;
  problem.replaceChildren();
  dialog.showModal();
});
dialog.addEventListener("click", event => event.target === dialog && dialog.close()); // beside it
sure.addEventListener("click", async () => {
  sure.disabled = true;
  try {
    await events.erase(profile.user);
    dialog.close();
  } catch (error) {
    problem.replaceChildren(...told(error));
  }
  sure.disabled = false;
});
