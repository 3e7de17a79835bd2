// The cluster: its hosts, and who has which shard. Rates are of the shards of the host that shows this page: each host tells of its own.

import { change, may } from "./api.js";
import { dialog, field } from "./dialogs.js";
import { h, nameNode, setAttribute, setText, toast } from "./dom.js";
import { count, plural, rate } from "./format.js";
import { listen, live } from "./live.js";

const STATES = {
  alive: ["good", "alive", "It writes its beat in the store."],
  draining: ["warn", "draining", "It gives its shards away and gets no more."],
  dead: ["bad", "dead", "Its beat has not changed for the length of a lease: its shards go to the others."],
};

async function moveShard(owner, hosts) {
  const select = h("select", null, hosts.filter((host) => host.host_state === "alive" && host.host !== owner.host).map((host) => h("option", { value: host.host }, host.host)), owner.wanted !== null && h("option", { value: "" }, "Any host: no wish any more"));
  const done = await dialog({
    title: `Move shard ${owner.shard}?`,
    text: "Its requests wait a moment while it changes hosts. It stays there while that host lives.",
    fields: [field("To", select)],
    action: "Move",
    send: () => change("POST", "/cluster/move", {}, { shard: owner.shard, host: select.value || null }).then(() => true),
  });
  if (done) toast("Written down. The two hosts carry it out.");
}

async function setDraining(host, draining) {
  const done = await dialog({
    title: [draining ? "Drain " : "Give shards to ", nameNode(host), draining ? "?" : " again?"],
    text: draining ? "It gives its shards to the others, one after the other, and gets no more. Its HTTP goes on." : "It gets its share of the shards back.",
    action: draining ? "Drain" : "Take back",
    danger: draining,
    send: () => change("POST", "/cluster/drain", {}, { host, draining }).then(() => true),
  });
  if (done) toast("Written down. The host carries it out.");
}

async function forgetHost(host) {
  const done = await dialog({
    title: ["Forget ", nameNode(host), "?"],
    text: "It is taken off the list. Should it come back, it joins anew.",
    action: "Forget",
    danger: true,
    send: () => change("POST", "/cluster/forget", {}, { host }).then(() => true),
  });
  if (done) toast("Forgotten.");
}

const button = (text, onclick, danger = false) => h("button", { type: "button", class: danger ? "small danger" : "small", onclick }, text);

function hostRow(admin) {
  const name = nameNode("");
  const own = h("span", { class: "badge accent" }, "this host");
  const badge = h("span", { class: "badge" });
  const share = h("i", { class: "bar waiting" });
  const numbers = h("td", { class: "number" });
  const rates = [h("td", { class: "number" }), h("td", { class: "number" })];
  const version = h("td");
  const actions = h("td", { class: "number" });
  let drawn = "";
  return {
    element: h("tr", null, h("th", { scope: "row" }, name, " ", own), h("td", null, badge), numbers, h("td", { class: "share" }, h("span", { class: "bars", "aria-hidden": "true" }, share)), rates, version, admin && actions),
    update(host, cluster, frame) {
      setText(name, host.host);
      setAttribute(name, "title", host.host);
      own.hidden = host.host !== cluster.seen_from;
      const [kind, word, means] = STATES[host.host_state];
      setText(badge, word);
      setAttribute(badge, "class", "badge " + kind);
      setAttribute(badge, "title", means);
      setText(numbers, count(host.shards_held));
      share.style.width = (host.shards_held / Math.max(1, cluster.owners.length)) * 100 + "%";
      const sum = (of) => (own.hidden ? null : frame.shards.reduce((all, shard) => all + (shard[of] ?? 0), 0));
      setText(rates[0], rate(sum("enqueued")));
      setText(rates[1], rate(sum("completed")));
      setText(version, host.version);
      if (!admin || drawn === host.host_state) return;
      drawn = host.host_state;
      actions.replaceChildren(
        host.host_state === "alive" ? button("Drain…", () => setDraining(host.host, true)) : host.host_state === "draining" ? button("Undo…", () => setDraining(host.host, false)) : button("Forget…", () => forgetHost(host.host), true),
      );
    },
  };
}

function shardRow(admin) {
  const cells = ["", "number", "number", "number", "number", "number"].map((kind) => h("td", { class: kind || null }));
  const name = nameNode("");
  const wanted = h("small", { class: "muted" });
  cells[0].append(name, " ", wanted);
  const number = h("th", { scope: "row" });
  let owner = null;
  let hosts = [];
  const actions = h("td", { class: "number" }, button("Move…", () => moveShard(owner, hosts)));
  return {
    element: h("tr", null, number, cells, admin && actions),
    update(now, cluster, frame) {
      [owner, hosts] = [now, cluster.hosts];
      const vitals = frame.shards.find((shard) => shard.shard === now.shard);
      setText(number, String(now.shard));
      setText(name, now.host ?? "nobody");
      setAttribute(name, "title", now.host);
      setAttribute(name, "class", now.host === null ? "badge bad" : "name");
      setText(wanted, now.wanted === null ? "" : now.wanted === now.host ? "pinned" : "moves to " + now.wanted);
      [count(vitals?.waiting), rate(vitals?.enqueued), rate(vitals?.completed), count(now.turn), count(now.epoch)].forEach((text, place) => setText(cells[place + 1], text));
    },
  };
}

/** A table whose rows follow a list: those that are gone go. */
function following(label, columns, make) {
  const rows = new Map();
  const body = h("tbody");
  const element = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label + ", scrolls sideways" }, h("table", { class: "plain" }, h("thead", null, h("tr", null, columns.filter(Boolean).map(([text, kind]) => h("th", { scope: "col", class: kind }, text)))), body));
  return {
    element,
    draw(items, keyOf, ...more) {
      const left = new Set(rows.keys());
      for (const item of items) {
        const key = keyOf(item);
        left.delete(key);
        if (!rows.has(key)) {
          rows.set(key, make());
          body.append(rows.get(key).element);
        }
        rows.get(key).update(item, ...more);
      }
      for (const key of left) {
        rows.get(key).element.remove();
        rows.delete(key);
      }
    },
  };
}

export function clusterView() {
  const admin = may("admin");
  const action = admin && [h("span", { class: "hidden" }, "Actions"), "number"];
  const hosts = following("Hosts", [["Host"], ["State"], ["Shards", "number"], ["Share"], ["Enqueued/s", "number"], ["Completed/s", "number"], ["Version"], action], () => hostRow(admin));
  const shards = following("Shards", [["Shard"], ["Host"], ["Waiting", "number"], ["Enqueued/s", "number"], ["Completed/s", "number"], ["Turn", "number"], ["Epoch", "number"], action], () => shardRow(admin));
  const summary = h("p", { class: "muted" });
  const none = h("p", { class: "empty card", role: "status" }, "This server is in no cluster.");
  const parts = [
    h("section", { class: "card", "aria-labelledby": "hosts-title" }, h("h2", { id: "hosts-title" }, "Hosts"), hosts.element),
    h("section", { class: "card", "aria-labelledby": "owners-title" }, h("h2", { id: "owners-title" }, "Who has which shard"), shards.element, h("p", { class: "processes" }, "Waiting jobs and rates are known of the shards of this host; each host shows its own.")),
  ];
  function draw() {
    const frame = live.frame;
    if (frame === null) return;
    const cluster = frame.cluster;
    none.hidden = cluster !== null;
    for (const part of parts) part.hidden = cluster === null;
    if (cluster === null) return;
    const unowned = cluster.owners.filter((owner) => owner.host === null).length;
    setText(summary, [plural(cluster.hosts.length, "host"), plural(cluster.owners.length, "shard"), unowned && `${count(unowned)} with nobody`, cluster.store_away && "the store cannot be asked: this may be old"].filter(Boolean).join(" · "));
    hosts.draw(cluster.hosts, (host) => host.host, cluster, frame);
    shards.draw(cluster.owners, (owner) => owner.shard, cluster, frame);
  }
  none.hidden = true;
  const unlisten = listen(draw);
  draw();
  return { element: h("div", { class: "page cluster" }, h("div", { class: "head" }, h("h1", null, "Cluster"), summary), none, parts), title: "Cluster", close: unlisten };
}
