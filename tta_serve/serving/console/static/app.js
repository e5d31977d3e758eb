// The page: which view is shown, and what stands above all of them.

import { hasKey, manage } from "/console/api.js";
import { el, fill, say } from "/console/dom.js";
import { ExperimentsView } from "/console/experiments.js";
import { KeysDialog } from "/console/keys.js";
import { LibraryView } from "/console/library.js";
import { TrafficView } from "/console/traffic.js";
import { TryView } from "/console/try.js";

const VIEWS = {
  try: ["Try a prompt", new TryView()],
  library: ["Library", new LibraryView()],
  experiments: ["Experiments", new ExperimentsView()],
  traffic: ["Traffic", new TrafficView()],
};
const FIRST = "try";

const main = document.getElementById("main");
let shown = null;

function nameOfView() {
  const name = location.hash.slice(1);
  return Object.hasOwn(VIEWS, name) ? name : FIRST;
}

function showView() {
  if (location.hash === "#main") return; // the link that skips the navigation
  const name = nameOfView();
  const [title, view] = VIEWS[name];
  shown?.hide();
  shown = view;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.hash === `#${name}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${title} – Console of tta-serve`;
  say("");
  fill(main, el("h1", {}, title), view.element);
  view.show();
}

/** Say above all views that the kill switch is on. */
function tellKill({ detail: kill }) {
  const words = kill ? `The kill switch is on: ${kill.to} answers every request.` : "";
  const banner = document.getElementById("banner");
  if (banner.textContent !== words) banner.textContent = words;
}

async function readKill() {
  if (!hasKey("management")) return;
  const config = await manage("/admin/config");
  if (!config.store) return;
  const { kill } = await manage("/admin/kill");
  tellKill({ detail: kill });
}

new KeysDialog(document.getElementById("keys-button"));
document.addEventListener("kill", tellKill);
document.addEventListener("keys", () => {
  shown.hide();
  shown.show();
  readKill().catch((error) => (document.getElementById("banner").textContent = error.message));
});
addEventListener("hashchange", () => {
  showView();
  main.focus();
});
showView();
