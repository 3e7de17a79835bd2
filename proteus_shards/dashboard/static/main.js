// Begins: the parts of the page that stay, and which view fills the rest.

import { hasToken, loadAccess } from "./api.js";
import { clusterView } from "./cluster.js";
import { byId, announce, h, setAttribute, setText } from "./dom.js";
import { askToken } from "./dialogs.js";
import { plural } from "./format.js";
import { findView, jobView } from "./job.js";
import { listen, live, pause, start } from "./live.js";
import { overview } from "./overview.js";
import { go, here } from "./pages.js";
import { queueView } from "./queue.js";
import { queuesView } from "./queues.js";
import { schedulesView } from "./schedules.js";

const VIEWS = { overview, queues: queuesView, queue: queueView, job: jobView, find: findView, schedules: schedulesView, cluster: clusterView };

let shown = null;

function show({ focus }) {
  const page = here();
  shown?.close?.();
  const make = Object.hasOwn(VIEWS, page.view) ? VIEWS[page.view] : null;
  shown = make ? make(page) : { element: h("div", { class: "page" }, h("h1", null, "Nothing here"), h("p", null, "There is no such page.")), title: "Nothing here" };
  byId("main").replaceChildren(shown.element);
  document.title = shown.title + " · proteus-shards";
  const tab = { queue: "queues", job: "queues", find: "queues" }[page.view] ?? page.view;
  for (const each of document.querySelectorAll(".views a")) setAttribute(each, "aria-current", each.dataset.view === tab ? "page" : null);
  if (page.view !== "find") byId("find-id").value = "";
  if (focus) {
    byId("main").focus({ preventScroll: true });
    window.scrollTo(0, 0);
    announce(shown.title);
  }
}

function visit(href, replace = false) {
  if (replace) history.replaceState(null, "", href);
  else history.pushState(null, "", href);
  show({ focus: true });
}

document.addEventListener("click", (event) => {
  const anchor = event.target.closest?.("a[href]");
  if (anchor === null || anchor === undefined || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const url = new URL(anchor.href);
  if (url.origin !== location.origin || url.pathname !== "/" || anchor.getAttribute("href").startsWith("#")) return;
  event.preventDefault();
  visit(url.pathname + url.search);
});

window.addEventListener("popstate", () => show({ focus: true }));
window.addEventListener("proteus-go", (event) => visit(event.detail.href, event.detail.replace));

byId("find").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = byId("find-id").value;
  if (id) go({ view: "find", job_id: id });
});

// --- live or not ------------------------------------------------------------------------------------------

const WORDS = { live: "Live", connecting: "Connecting", lost: "Reconnecting", paused: "Paused", refused: "No access" };

function drawState() {
  const button = byId("live");
  setAttribute(button, "data-state", live.state);
  setText(byId("live-text"), WORDS[live.state]);
  setAttribute(button, "aria-pressed", String(live.state === "paused"));
}

byId("live").addEventListener("click", () => (live.state === "paused" || live.state === "refused" ? start() : pause()));

let told = "";

function tellTroubles() {
  const troubles = [];
  if (live.state === "lost") troubles.push("Connection lost: " + live.why + ". Trying again.");
  if (live.state === "refused") troubles.push(live.why === "401" ? "This server asks for a token." : "This token may not read.");
  if (live.state !== "lost" && live.frame) {
    const away = live.frame.shards.filter((shard) => shard.state !== "up");
    if (away.length) troubles.push(away.map((shard) => `Shard ${shard.shard}: ${shard.state}`).join(" · ") + ".");
    const cluster = live.frame.cluster;
    const dead = cluster?.hosts.filter((host) => host.host_state === "dead") ?? [];
    const unowned = cluster?.owners.filter((owner) => owner.host === null) ?? [];
    if (dead.length) troubles.push(`Dead: ${dead.map((host) => host.host).join(" · ")}.`);
    if (unowned.length) troubles.push(plural(unowned.length, "shard") + " with nobody.");
    if (cluster?.store_away) troubles.push("The store cannot be asked who has which shard.");
  }
  const text = troubles.join(" ");
  if (text === told) return;
  told = text;
  const banner = byId("banner");
  banner.hidden = !text;
  banner.replaceChildren(text, ...(live.state === "refused" ? [" ", h("button", { type: "button", onclick: () => useToken }, "Enter a token")] : []));
}

listen((what) => {
  if (what === "state") drawState();
  tellTroubles();
  if (what === "frame") byId("cluster-tab").hidden = live.frame.cluster === null;
  if (what === "frame") setText(byId("foot"), `${plural(live.frame.queues, "queue")} · ${live.frame.viewers === 1 ? "you look" : live.frame.viewers + " look"}`);
});

// --- token and theme --------------------------------------------------------------------------------------

function drawToken() {
  setAttribute(byId("token"), "data-on", hasToken() ? "" : null);
}

async function useToken() {
  if (!(await askToken())) return;
  drawToken();
  await loadAccess();
  start();
  show({ focus: false });
}

byId("token").addEventListener("click", useToken);

const THEMES = ["auto", "light", "dark"];

function theme() {
  return document.documentElement.dataset.theme ?? "auto";
}

function drawTheme() {
  const words = { auto: "as the system has it", light: "light", dark: "dark" };
  setAttribute(byId("theme"), "aria-label", "Theme: " + words[theme()]);
  setAttribute(byId("theme"), "title", "Theme: " + words[theme()]);
}

byId("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try {
    localStorage.setItem("proteus-theme", next);
  } catch {
    // then it lasts as long as the page
  }
  drawTheme();
  announce(byId("theme").getAttribute("aria-label"));
});

drawTheme();
drawToken();
drawState();
await loadAccess();
show({ focus: false });
start();
