// The overview: rates and latencies as they change, the shards, the deepest queues.

import { Chart, Spark } from "./chart.js";
import { fillName, h, nameNode, setAttribute, setText } from "./dom.js";
import { bytes, cores, count, rate, seconds } from "./format.js";
import { listen, live } from "./live.js";
import { link } from "./pages.js";

const TILES = [
  { name: "enqueued", label: "Enqueued", unit: "/s", format: rate, kind: "enqueued" },
  { name: "started", label: "Started", unit: "/s", format: rate, kind: "started" },
  { name: "completed", label: "Completed", unit: "/s", format: rate, kind: "completed" },
  { name: "waiting", label: "Waiting", unit: "", format: count, kind: "waiting" },
  { name: "in_flight", label: "In flight", unit: "", format: count, kind: "started" },
  { name: "oldest", label: "Oldest waiting", unit: "", format: seconds, kind: "retried" },
  { name: "retried", label: "Retries", unit: "/s", format: rate, kind: "retried" },
  { name: "died", label: "Died", unit: "/s", format: rate, kind: "died" },
  { name: "dead", label: "Dead letters", unit: "", format: count, kind: "died" },
  { name: "scheduled", label: "Scheduled", unit: "", format: count, kind: "scheduled" },
  { name: "commit_p99", label: "Commit, p99", unit: "", format: seconds, kind: "commit" },
  { name: "requests", label: "Requests", unit: "/s", format: rate, kind: "muted" },
];

const SPANS = [
  ["2 min", 120_000],
  ["10 min", 600_000],
  ["1 h", 3_600_000],
];

const SHARD_COLUMNS = [
  ["Shard", (shard) => String(shard.shard)],
  ["State", null],
  ["Enqueued/s", (shard) => rate(shard.enqueued), "number"],
  ["Completed/s", (shard) => rate(shard.completed), "number"],
  ["Waiting", (shard) => count(shard.waiting), "number"],
  ["In flight", (shard) => count(shard.in_flight), "number"],
  ["Dead", (shard) => count(shard.dead), "number"],
  ["Oldest", (shard) => (shard.waiting ? seconds(shard.oldest) : "–"), "number"],
  ["Commit p99", (shard) => seconds(shard.commit_p99), "number"],
  ["Store", null],
  ["Epoch", (shard) => (shard.epoch === null ? "–" : String(shard.epoch)), "number"],
  ["Restarts", (shard) => count(shard.restarts), "number"],
  ["CPU", (shard) => cores(shard.cpu), "number"],
  ["Memory", (shard) => bytes(shard.rss), "number"],
  ["Lag", (shard) => seconds(shard.lag), "number"],
];

const STATE_WORDS = {
  up: ["good", "up", "serves its queues"],
  away: ["bad", "away", "does not answer; its queues answer 429 until it is back"],
  "store away": ["bad", "store away", "cannot write its store; jobs with persist_data are refused until it is back"],
  "crash loop": ["bad", "crash loop", "ends again and again, soon after each start; the log says why"],
};

export function overview() {
  const tiles = TILES.map((tile) => {
    const value = h("b", null, "–");
    const spark = new Spark(tile.name, tile.kind);
    return { ...tile, value, spark, element: h("div", { class: "tile" }, h("span", { class: "label" }, tile.label), h("span", { class: "value" }, value, tile.unit && h("small", null, tile.unit)), spark.svg) };
  });
  const charts = [
    new Chart({
      title: "Throughput, jobs a second",
      format: rate,
      least: 1,
      series: [
        { name: "enqueued", label: "enqueued", kind: "enqueued" },
        { name: "started", label: "started", kind: "started" },
        { name: "completed", label: "completed", kind: "completed", area: true },
      ],
    }),
    new Chart({
      title: "Latency",
      format: seconds,
      logarithmic: true,
      series: [
        { name: "start_p50", label: "start p50", kind: "started" },
        { name: "start_p99", label: "start p99", kind: "waiting", peak: true },
        { name: "run_p50", label: "run p50", kind: "completed" },
        { name: "commit_p99", label: "commit p99", kind: "commit", peak: true },
      ],
    }),
    new Chart({
      title: "Jobs",
      format: count,
      least: 4,
      series: [
        { name: "waiting", label: "waiting", kind: "waiting", area: true },
        { name: "in_flight", label: "in flight", kind: "started" },
        { name: "scheduled", label: "scheduled", kind: "scheduled" },
      ],
    }),
    new Chart({
      title: "Trouble, a second",
      format: rate,
      least: 1,
      series: [
        { name: "retried", label: "retries", kind: "retried", peak: true },
        { name: "died", label: "died", kind: "died", peak: true },
        { name: "problems", label: "requests refused", kind: "muted", peak: true },
      ],
    }),
  ];
  const spans = h(
    "div",
    { class: "segments", role: "group", "aria-label": "Time shown" },
    SPANS.map(([label, span]) =>
      h("button", { type: "button", "aria-pressed": String(span === 600_000), onclick: () => ((chosen = true), choose(span), draw()) }, label),
    ),
  );
  const rows = new Map();
  const body = h("tbody");
  const queues = h("ol", { class: "deepest" });
  const queueRows = [];
  const processes = h("p", { class: "processes" });
  let spanMs = 600_000;
  let chosen = false;

  function choose(span) {
    spanMs = span;
    [...spans.children].forEach((each, place) => each.setAttribute("aria-pressed", String(SPANS[place][1] === span)));
  }

  /** A server that has just begun has no ten minutes to show. */
  function fit() {
    const known = live.points.length ? live.points.at(-1)[0] - live.points[0][0] : 0;
    const span = known < 150_000 ? 120_000 : 600_000;
    if (!chosen && span !== spanMs) choose(span);
  }

  function draw() {
    fit();
    const now = live.points.at(-1);
    for (const tile of tiles) {
      if (now) setText(tile.value, tile.format(latest(tile.name)));
      tile.spark.draw(spanMs);
    }
    for (const chart of charts) {
      chart.spanMs = spanMs;
      chart.draw();
    }
    const frame = live.frame;
    if (frame === null) return;
    setText(whose, frame.cluster ? "of the host " + frame.cluster.seen_from : "");
    for (const shard of frame.shards) {
      if (!rows.has(shard.shard)) {
        rows.set(shard.shard, shardRow());
        body.append(rows.get(shard.shard).element);
      }
      rows.get(shard.shard).update(shard);
    }
    for (const [shard, row] of rows) {
      if (frame.shards.some((each) => each.shard === shard)) continue; // else it has moved to another host
      row.element.remove();
      rows.delete(shard);
    }
    drawQueues(frame);
    setText(processes, frame.processes.filter((each) => each.rss).map((each) => `${each.process}: ${cores(each.cpu)} CPU, ${bytes(each.rss)}, lag ${seconds(each.lag)}` + (each.restarts ? `, restarted ${each.restarts}×` : "")).join("   ·   "));
  }

  function drawQueues(frame) {
    const shown = frame.deepest.filter(([, scheduled, ready, inFlight, dead]) => scheduled + ready + inFlight + dead > 0).slice(0, 10);
    const most = Math.max(1, ...shown.map(([, scheduled, ready, inFlight]) => scheduled + ready + inFlight));
    while (queueRows.length > shown.length) queueRows.pop().element.remove();
    while (queueRows.length < shown.length) {
      queueRows.push(queueRow());
      queues.append(queueRows.at(-1).element);
    }
    shown.forEach((queue, place) => queueRows[place].update(queue, most));
    empty.hidden = shown.length > 0;
  }

  const whose = h("span", { class: "muted whose" });
  const empty = h("p", { class: "empty", hidden: true }, "No jobs are here. Enqueue one: ", h("code", null, `curl ${location.origin}/enqueue -d '{"id": "1", "queue": "mail", "timeout": 30}'`));
  const element = h(
    "div",
    { class: "page overview" },
    h("div", { class: "head" }, h("h1", null, "Overview"), whose, spans),
    h("section", { class: "tiles", "aria-label": "Numbers" }, tiles.map((tile) => tile.element)),
    h("section", { class: "charts", "aria-label": "Plots" }, charts.map((chart) => chart.element)),
    h(
      "section",
      { class: "card", "aria-labelledby": "shards-title" },
      h("h2", { id: "shards-title" }, "Shards"),
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Shards, scrolls sideways" }, h("table", { class: "plain" }, h("thead", null, h("tr", null, SHARD_COLUMNS.map(([label, , kind]) => h("th", { scope: "col", class: kind }, label)))), body)),
      processes,
    ),
    h("section", { class: "card", "aria-labelledby": "deepest-title" }, h("div", { class: "head" }, h("h2", { id: "deepest-title" }, "Deepest queues"), link({ view: "queues" }, "All queues")), queues, empty),
  );
  const unlisten = listen(draw);
  draw();
  return {
    element,
    title: "Overview",
    close() {
      unlisten();
      for (const chart of charts) chart.close();
    },
  };
}

/** The newest value of a series; of a latency the newest within half a minute, since not every second has one. */
function latest(name) {
  const place = live.series[name];
  const end = live.points.at(-1)[0];
  for (let at = live.points.length - 1; at >= 0 && end - live.points[at][0] < 30_000; at -= 1) {
    const value = live.points[at][place];
    if (value !== null && value !== undefined) return value;
  }
  return null;
}

function shardRow() {
  const cells = SHARD_COLUMNS.map(([label, , kind]) => h(label === "Shard" ? "th" : "td", { class: kind, scope: label === "Shard" ? "row" : null }));
  const badge = h("span", { class: "badge" });
  cells[1].append(badge);
  const store = h("span");
  const durability = h("small", { class: "muted" });
  cells[9].append(store, " ", durability);
  return {
    element: h("tr", null, cells),
    update(shard) {
      SHARD_COLUMNS.forEach(([, write], place) => write && setText(cells[place], write(shard)));
      const [kind, word, means] = STATE_WORDS[shard.state];
      setText(badge, word);
      setAttribute(badge, "class", "badge " + kind);
      setAttribute(badge, "title", means);
      setText(store, shard.store || "–");
      setText(durability, shard.durability === shard.store ? "" : shard.durability);
      setAttribute(cells[9], "title", [shard.terms, shard.damaged ? `${shard.damaged} damaged rows are kept aside` : ""].filter(Boolean).join("\n"));
      setAttribute(cells[11], "class", shard.crashes ? "number bad" : "number");
    },
  };
}

function queueRow() {
  const anchor = link({ view: "queue", queue: "" }, "");
  const name = nameNode("");
  anchor.replaceChildren(name);
  const paused = h("span", { class: "badge warn", hidden: true }, "paused");
  const numbers = h("span", { class: "numbers" });
  const bars = ["waiting", "started", "scheduled"].map((kind) => h("i", { class: "bar " + kind }));
  return {
    element: h("li", null, h("span", { class: "who" }, anchor, paused), numbers, h("span", { class: "bars", "aria-hidden": "true" }, bars)),
    update([queue, scheduled, ready, inFlight, dead, waitedUs, blocked, isPaused], most) {
      paused.hidden = !isPaused;
      fillName(name, queue);
      name.title = queue;
      anchor.href = link.href({ view: "queue", queue });
      const parts = [ready && `${count(ready)} waiting`, blocked && `${count(blocked)} of them blocked`, inFlight && `${count(inFlight)} in flight`, scheduled && `${count(scheduled)} scheduled`, dead && `${count(dead)} dead`, ready && waitedUs && `oldest ${seconds(waitedUs / 1e6)}`];
      setText(numbers, parts.filter(Boolean).join(" · "));
      [ready, inFlight, scheduled].forEach((jobs, place) => (bars[place].style.width = (jobs / most) * 100 + "%"));
    },
  };
}
