// One queue: how it is, and its jobs by state.

import { get, may, Refused } from "./api.js";
import { deleteJob, editSettings, enqueueDialog, pauseQueue, promoteJob, purgeQueue, redrive, resumeQueue } from "./actions.js";
import { fillName, h, nameNode, setAttribute, setText } from "./dom.js";
import { bytes, count, instant, relative, seconds } from "./format.js";
import { live } from "./live.js";
import { link } from "./pages.js";
import { settingsInWords } from "./settings.js";
import { column, nodeColumn, repeat, Table } from "./table.js";

const PAGE = 200;
const FRESH_MAX = 1000; // rows that are kept up to date; behind them a list stands still

const TABS = [
  ["ready", "Ready", "ready"],
  ["in_flight", "In flight", "in_flight"],
  ["scheduled", "Scheduled", "scheduled"],
  ["backing_off", "Backing off", null],
  ["blocked", "Blocked", "blocked"],
  ["dead", "Dead", "dead"],
];

const NOTHING = {
  ready: "No job is ready.",
  in_flight: "No job is in flight.",
  scheduled: "No job waits for its time.",
  backing_off: "No job waits after a failure.",
  blocked: "No job waits for another one of its key.",
  dead: "No dead letters.",
};

export function jobLinkColumn(options = {}) {
  return nodeColumn(
    "Job",
    () => {
      const name = nameNode("");
      const anchor = h("a", { href: "/" }, name);
      return {
        node: anchor,
        update(row) {
          fillName(name, row.id);
          name.title = row.id;
          anchor.href = link.href({ view: "job", queue: row.queue, job_id: row.id });
        },
      };
    },
    { width: "minmax(160px, 2.4fr)", ...options },
  );
}

const keyColumn = () =>
  nodeColumn(
    "Key",
    () => {
      const name = nameNode("");
      return { node: h("span", null, h("span", { class: "cell-label", "aria-hidden": "true" }, "Key"), name), update: (row) => fillName(name, row.key ?? "–") };
    },
    { minor: true, width: "minmax(80px, 1fr)" },
  );

const attempts = column("Attempts", (row) => count(row.attempt), { kind: "number", dim: (row) => !row.attempt, width: "minmax(70px, .6fr)" });
const since = column("Since", (row) => relative(row.created_at), { kind: "number" });
const lastError = (row) => row.history.at(-1)?.error ?? "";

const COLUMNS = {
  ready: [jobLinkColumn(), keyColumn(), column("Priority", (row) => count(row.priority ?? 0), { kind: "number", minor: true, dim: (row) => !row.priority }), attempts, since],
  in_flight: [
    jobLinkColumn(),
    keyColumn(),
    attempts,
    column("Heard of", (row) => relative(row.updated_at), { kind: "number" }),
    column("Times out", (row) => (row.timeout_in === undefined ? "–" : "in " + seconds(Math.max(0, row.timeout_in))), { kind: "number" }),
    column("State", (row) => (row.state === undefined ? "–" : JSON.stringify(row.state)), { width: "minmax(100px, 1.6fr)", dim: (row) => row.state === undefined }),
    column("Run", (row) => row.run_id ?? "–", { minor: true, width: "minmax(90px, 1fr)" }),
  ],
  scheduled: [jobLinkColumn(), keyColumn(), column("Due", (row) => relative(row.due_at ?? row.run_at), { kind: "number" }), column("At", (row) => instant(row.due_at ?? row.run_at), { kind: "number", minor: true, width: "minmax(140px, 1.2fr)" })],
  backing_off: [jobLinkColumn(), keyColumn(), attempts, column("Again", (row) => relative(row.due_at), { kind: "number" }), column("Error", lastError, { width: "minmax(120px, 2fr)" })],
  blocked: [jobLinkColumn(), keyColumn(), column("Blocked by", (row) => row.blocked_by ?? "–", { width: "minmax(120px, 1.4fr)" }), since],
  dead: [jobLinkColumn(), keyColumn(), column("Reason", (row) => row.reason ?? "–"), attempts, column("Died", (row) => relative(row.updated_at), { kind: "number" }), column("Last error", lastError, { minor: true, width: "minmax(120px, 2fr)" })],
};

/** The actions at the end of a row. */
function rowActions(state, after) {
  return nodeColumn(
    "",
    () => {
      let row = null;
      const button = (label, text, act) => h("button", { type: "button", class: "small", "aria-label": label, title: label, onclick: () => act(row).then((done) => done && after()) }, text);
      const buttons = [];
      if (state === "dead") buttons.push(button("Redrive this job", "Redrive", (each) => redrive(each.queue, [each.id])));
      if (state === "scheduled" || state === "backing_off") buttons.push(button("Run this job now", "Run now", (each) => promoteJob(each.queue, each.id)));
      buttons.push(button("Delete this job", "Delete", (each) => deleteJob(each.queue, each.id, state)));
      return { node: h("span", { class: "row-actions" }, buttons), update: (each) => (row = each) };
    },
    { kind: "number", width: "minmax(150px, max-content)" },
  );
}

export function queueView(page) {
  const queue = page.queue ?? "";
  const state = Object.hasOwn(COLUMNS, page.state ?? "") ? page.state : "ready";
  const admin = may("admin");
  const badge = h("span", { class: "badge warn", hidden: true }, "paused");
  const numbers = TABS.map(() => h("b", null, ""));
  const facts = h("dl", { class: "facts" });
  const wrong = h("p", { class: "card empty", role: "status", hidden: true });
  const summary = h("span", { class: "muted", role: "status" });
  const empty = h("p", { class: "empty card", hidden: true }, NOTHING[state]);
  const act = (make) => () => make().then((done) => done && reload.now());
  const toggle = h("button", { type: "button", onclick: act(() => (shown?.paused ? resumeQueue(queue) : pauseQueue(queue))) }, "Pause…");
  let shown = null;
  let rows = [];
  let next = null;
  let loadingMore = false;

  const columns = admin ? [...COLUMNS[state], rowActions(state, () => reload.now())] : COLUMNS[state];
  const table = new Table({ label: "Jobs", columns, keyOf: (row) => row.id + " " + row.created_at, onEnd: () => more() });

  function drawQueue() {
    badge.hidden = !shown.paused;
    setText(toggle, shown.paused ? "Resume…" : "Pause…");
    TABS.forEach(([, , name], place) => name && setText(numbers[place], count(shown[name])));
    const words = [
      ["Oldest waiting", shown.ready ? seconds(shown.oldest_ready_seconds) : "–"],
      ["Runners waiting for a job", count(shown.pollers)],
      ["Payloads and states", bytes(shown.bytes)],
      ...settingsInWords(shown.settings ?? {}),
    ];
    if (facts.dataset.words === JSON.stringify(words)) return;
    facts.dataset.words = JSON.stringify(words);
    facts.replaceChildren(...words.map(([label, value]) => h("div", null, h("dt", null, label), h("dd", null, value))));
  }

  function drawJobs() {
    table.setRows(rows);
    table.element.hidden = rows.length === 0;
    empty.hidden = rows.length > 0;
    setText(summary, next ? `The first ${count(rows.length)} are shown; scroll on for more.` : "");
  }

  async function more() {
    if (next === null || loadingMore || rows.length === 0) return;
    loadingMore = true;
    try {
      const found = await get("/jobs", { queue, state, limit: PAGE, after: next, bodies: state === "in_flight" });
      const known = new Set(rows.map((row) => row.id));
      rows = [...rows, ...found.jobs.filter((row) => !known.has(row.id))];
      next = found.next ?? null;
      drawJobs();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      setText(summary, error.message);
    } finally {
      loadingMore = false;
    }
  }

  const reload = repeat(
    async (signal) => {
      try {
        shown = await get("/queue", { queue }, { signal });
        drawQueue();
        if (rows.length <= FRESH_MAX && !loadingMore) {
          const found = await get("/jobs", { queue, state, limit: Math.max(PAGE, Math.min(FRESH_MAX, rows.length)), bodies: state === "in_flight" }, { signal });
          rows = found.jobs;
          next = found.next ?? null;
          drawJobs();
        }
        wrong.hidden = true;
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        setText(wrong, error.message);
        wrong.hidden = false;
      }
    },
    1500,
    () => live.state === "paused",
  );

  return {
    element: h(
      "div",
      { class: "page" },
      h("p", { class: "crumbs" }, link({ view: "queues" }, "Queues"), " / "),
      h(
        "div",
        { class: "head" },
        h("div", { class: "title" }, h("h1", null, nameNode(queue, { title: null })), badge),
        h(
          "div",
          { class: "actions" },
          may("produce") && h("button", { type: "button", onclick: act(() => enqueueDialog(queue)) }, "Enqueue a test job…"),
          admin && [
            toggle,
            h("button", { type: "button", onclick: act(() => editSettings(queue, shown?.settings ?? {})) }, "Settings…"),
            state === "dead" && h("button", { type: "button", onclick: act(() => redrive(queue)) }, "Redrive…"),
            h("button", { type: "button", class: "danger", onclick: act(() => purgeQueue(queue, state)) }, "Purge…"),
          ],
        ),
      ),
      h("section", { class: "card", "aria-label": "The queue" }, facts),
      wrong,
      h("nav", { class: "tabs", "aria-label": "Jobs by state" }, TABS.map(([name, label], place) => setCurrent(link({ view: "queue", queue, state: name === "ready" ? null : name }, label, numbers[place]), name === state))),
      table.element,
      empty,
      h("p", null, summary),
    ),
    title: queue,
    close() {
      reload.stop();
      table.close();
    },
  };
}

function setCurrent(anchor, current) {
  setAttribute(anchor, "aria-current", current ? "page" : null);
  return anchor;
}
