// All queues, as they are now: filtered by the server, sorted here.

import { enqueueDialog } from "./actions.js";
import { get, may, Refused } from "./api.js";
import { fillName, h, nameNode, setText } from "./dom.js";
import { bytes, count, plural, seconds } from "./format.js";
import { live } from "./live.js";
import { link, note } from "./pages.js";
import { column, nodeColumn, ordered, repeat, Table } from "./table.js";

const PAGE = 1000;
const QUEUES_MAX = 20_000;
const TYPING_MS = 200;

function nameColumn() {
  const name = nameNode("");
  const anchor = h("a", { href: "/" }, name);
  const paused = h("span", { class: "badge warn", hidden: true }, "paused");
  return {
    node: h("span", null, anchor, " ", paused),
    update(row) {
      fillName(name, row.queue);
      name.title = row.queue;
      anchor.href = link.href({ view: "queue", queue: row.queue });
      paused.hidden = !row.paused;
    },
  };
}

const number = (label, name, options = {}) => column(label, (row) => count(row[name]), { kind: "number", sort: (row) => row[name], dim: (row) => !row[name], ...options });

const COLUMNS = [
  nodeColumn("Queue", nameColumn, { sort: (row) => row.queue, width: "minmax(180px, 3.2fr)" }),
  number("Waiting", "ready"),
  column("Oldest", (row) => (row.ready ? seconds(row.oldest_ready_seconds) : "–"), { kind: "number", sort: (row) => (row.ready ? row.oldest_ready_seconds : -1), dim: (row) => !row.ready }),
  number("In flight", "in_flight"),
  number("Scheduled", "scheduled"),
  number("Blocked", "blocked", { minor: true }),
  number("Dead", "dead"),
  number("Runners", "pollers", { minor: true }),
  column("Bytes", (row) => bytes(row.bytes), { kind: "number", minor: true, sort: (row) => row.bytes, dim: (row) => !row.bytes }),
];

const ONLY = {
  all: ["All", () => true],
  busy: ["With jobs", (row) => row.ready + row.in_flight + row.scheduled + row.blocked + row.dead > 0],
  dead: ["With dead letters", (row) => row.dead > 0],
  paused: ["Paused", (row) => row.paused],
};

/** Ask for a list page by page. `limit` is lowered where the server allows fewer. */
export async function pages(path, query, name, most, signal) {
  const found = [];
  let after;
  let limit = PAGE;
  do {
    let page;
    try {
      page = await get(path, { ...query, limit, after }, { signal });
    } catch (error) {
      if (!(error instanceof Refused) || error.problem?.field !== "limit" || limit === undefined) throw error;
      limit = undefined;
      continue;
    }
    found.push(...page[name]);
    after = page.next ?? undefined;
  } while (after !== undefined && found.length < most);
  return { found, more: after !== undefined };
}

export function queuesView(page) {
  let rows = [];
  let more = false;
  let only = Object.hasOwn(ONLY, page.only ?? "") ? page.only : "all";
  const summary = h("span", { class: "muted", role: "status" }, "Loading…");
  const filter = h("input", { type: "search", "aria-label": "Filter queues by a part of their name", placeholder: "Filter by name", value: page.contains ?? "", maxlength: 1024, spellcheck: "false", autocomplete: "off" });
  const select = h("select", { "aria-label": "Which queues" }, Object.entries(ONLY).map(([value, [label]]) => h("option", { value }, label)));
  select.value = only;
  const table = new Table({
    label: "Queues",
    columns: COLUMNS,
    keyOf: (row) => row.queue,
    sorted: { label: COLUMNS.some((each) => each.label === page.sort) ? page.sort : "Queue", down: page.down === "1" },
    onSort: () => {
      remember();
      draw();
    },
  });
  const empty = h("p", { class: "empty card", hidden: true });
  let typing = 0;

  function remember() {
    note({ view: "queues", contains: filter.value || null, only: only === "all" ? null : only, sort: table.sorted.label === "Queue" ? null : table.sorted.label, down: table.sorted.down ? "1" : null });
  }

  function draw() {
    const shown = ordered(rows.filter(ONLY[only][1]), COLUMNS, table.sorted, (row) => row.queue);
    table.setRows(shown);
    setText(summary, shown.length === rows.length && !more ? plural(rows.length, "queue") : `${count(shown.length)} of ${count(rows.length)}${more ? "+" : ""} queues`);
    empty.hidden = shown.length > 0;
    table.element.hidden = shown.length === 0;
    setText(empty, rows.length ? "No queue is like that." : filter.value ? "No queue has this in its name." : "There are no queues yet. A queue is there as soon as a job is enqueued into it.");
  }

  const loading = repeat(
    async (signal) => {
      try {
        const asked = filter.value;
        const loaded = await pages("/queues", { contains: asked || undefined }, "queues", QUEUES_MAX, signal);
        if (asked !== filter.value) return;
        rows = loaded.found;
        more = loaded.more;
        draw();
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        setText(summary, error.message);
      }
    },
    2000,
    () => live.state === "paused",
  );

  filter.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      remember();
      loading.now();
    }, TYPING_MS);
  });
  select.addEventListener("change", () => {
    only = select.value;
    remember();
    draw();
  });

  return {
    element: h(
      "div",
      { class: "page" },
      h("div", { class: "head" }, h("h1", null, "Queues"), may("produce") && h("button", { type: "button", onclick: () => enqueueDialog("").then(() => loading.now()) }, "Enqueue a test job…")),
      h("div", { class: "bar-tools" }, filter, select, summary),
      table.element,
      empty,
    ),
    title: "Queues",
    close() {
      clearTimeout(typing);
      loading.stop();
      table.close();
    },
  };
}
