// Recurring jobs: when they come next, and what became of them.

import { change, get, may, Refused } from "./api.js";
import { check } from "./actions.js";
import { dialog, field } from "./dialogs.js";
import { h, nameNode, setText, toast } from "./dom.js";
import { count, instant, relative, seconds } from "./format.js";
import { live } from "./live.js";
import { link } from "./pages.js";
import { pages } from "./queues.js";
import { repeat } from "./table.js";

const SCHEDULES_MAX = 5000;
const NOT_OF_THE_DEFINITION = new Set(["queue", "name", "next_at", "last_at", "fired", "missed_runs", "shards_away", "created_at", "updated_at"]);

/** What `PUT /schedule` takes, out of what `GET /schedules` shows. */
function definitionOf(row) {
  if (row.definition) return row.definition;
  return Object.fromEntries(Object.entries(row).filter(([name]) => !NOT_OF_THE_DEFINITION.has(name)));
}

const ruleInWords = (definition) => (definition.cron ? definition.cron + (definition.timezone ? " " + definition.timezone : "") : "every " + seconds(definition.every));

async function edit(row) {
  const definition = row ? definitionOf(row) : {};
  const input = (props) => h("input", { autocomplete: "off", spellcheck: "false", maxlength: 1024, ...props });
  const queue = input({ value: row?.queue ?? "", required: true, disabled: row });
  const name = input({ value: row?.name ?? "", required: true, disabled: row });
  const cron = input({ value: definition.cron ?? "", placeholder: "*/5 * * * *" });
  const zone = input({ value: definition.timezone ?? "", placeholder: "UTC" });
  const every = input({ type: "number", min: 0, step: "any", value: definition.every ?? "" });
  const select = (options, value) => {
    const node = h("select", null, options.map(([key, label]) => h("option", { value: key }, label)));
    if (value) node.value = value;
    return node;
  };
  const missed = select([["", "Default"], ["skip", "are skipped"], ["once", "come once"], ["all", "all come"]], definition.missed);
  const overlap = select([["", "Default"], ["allow", "comes as well"], ["skip", "is skipped"]], definition.overlap);
  const job = h("textarea", { spellcheck: "false" });
  job.value = JSON.stringify(definition.job ?? { timeout: 30, payload: null }, null, 2);
  const paused = h("input", { type: "checkbox", checked: definition.paused });
  const done = await dialog({
    title: row ? ["Change ", nameNode(row.name)] : "A new schedule",
    text: "Either a cron line or a number of seconds.",
    fields: [
      h("div", { class: "pair" }, field("Queue", queue), field("Name", name)),
      h("div", { class: "pair" }, field("Cron", cron), field("Time zone", zone), field("or every, seconds", every)),
      h("div", { class: "pair" }, field("Missed ones", missed), field("While the one before runs, the next", overlap)),
      field("Job", job, "As for enqueue, without id and queue"),
      check("Paused", paused),
    ],
    action: "Save",
    send: async () => {
      const body = { ...definition, job: JSON.parse(job.value) };
      for (const [key, value] of Object.entries({ cron: cron.value.trim(), timezone: zone.value.trim(), every: every.value && Number(every.value), missed: missed.value, overlap: overlap.value, paused: paused.checked })) {
        if (value) body[key] = value;
        else delete body[key];
      }
      await change("PUT", "/schedule", { queue: queue.value, name: name.value }, body);
      return true;
    },
  });
  if (done) toast("Saved.");
  return done;
}

async function setPaused(row, paused) {
  const done = await dialog({
    title: [paused ? "Pause " : "Resume ", nameNode(row.name), "?"],
    text: paused ? "It makes no jobs until it is resumed." : "It makes jobs again.",
    action: paused ? "Pause" : "Resume",
    send: () => change("PUT", "/schedule", { queue: row.queue, name: row.name }, { ...definitionOf(row), paused }).then(() => true),
  });
  if (done) toast(paused ? "Paused." : "Resumed.");
  return done;
}

async function remove(row) {
  const done = await dialog({
    title: ["Delete the schedule ", nameNode(row.name), "?"],
    text: "Jobs that it has made stay.",
    action: "Delete",
    danger: true,
    send: () => change("DELETE", "/schedule", { queue: row.queue, name: row.name }).then(() => true),
  });
  if (done) toast("Deleted.");
  return done;
}

export function schedulesView() {
  const admin = may("admin");
  const body = h("tbody");
  const says = h("p", { class: "empty", role: "status" }, "Loading…");
  const act = (make) => () => make().then((done) => done && reload.now());
  let before = "";

  function line(row) {
    const definition = definitionOf(row);
    return h(
      "tr",
      null,
      h("th", { scope: "row" }, nameNode(row.name), " ", definition.paused && h("span", { class: "badge warn" }, "paused")),
      h("td", null, link({ view: "queue", queue: row.queue }, nameNode(row.queue))),
      h("td", null, h("span", { class: "mono" }, ruleInWords(definition))),
      h("td", { title: instant(row.next_at) }, definition.paused ? "–" : relative(row.next_at)),
      h("td", { title: instant(row.last_at) }, relative(row.last_at)),
      h("td", { class: "number" }, count(row.fired)),
      h("td", { class: "number" }, count(row.missed_runs ?? (typeof row.missed === "number" ? row.missed : 0))),
      admin && h("td", null, h("span", { class: "row-actions" }, [["Change", () => edit(row)], [definition.paused ? "Resume" : "Pause", () => setPaused(row, !definition.paused)], ["Delete", () => remove(row)]].map(([label, make]) => h("button", { type: "button", class: "small", "aria-label": `${label} ${row.name}`, onclick: act(make) }, label)))),
    );
  }

  const reload = repeat(
    async (signal, wanted) => {
      if (!wanted && body.contains(document.activeElement)) return; // someone is about to use what would be replaced
      try {
        const { found } = await pages("/schedules", {}, "schedules", SCHEDULES_MAX, signal);
        const text = JSON.stringify(found) + Math.floor(Date.now() / 5000);
        if (text !== before) body.replaceChildren(...found.map(line));
        before = text;
        setText(says, found.length ? "" : "There are no schedules. One makes a job again and again: every so many seconds, or as a cron line says.");
        says.hidden = found.length > 0;
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        setText(says, error.message);
        says.hidden = false;
      }
    },
    2000,
    () => live.state === "paused",
  );

  const labels = ["Schedule", "Queue", "When", "Next", "Last", "Made", "Missed", ...(admin ? [""] : [])];
  return {
    element: h(
      "div",
      { class: "page" },
      h("div", { class: "head" }, h("h1", null, "Schedules"), admin && h("button", { type: "button", onclick: act(() => edit(null)) }, "New schedule…")),
      h("section", { class: "card", "aria-label": "Schedules" }, h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Schedules, scrolls sideways" }, h("table", { class: "plain" }, h("thead", null, h("tr", null, labels.map((label) => (label ? h("th", { scope: "col", class: label === "Made" || label === "Missed" ? "number" : null }, label) : h("td"))))), body)), says),
    ),
    title: "Schedules",
    close: () => reload.stop(),
  };
}
