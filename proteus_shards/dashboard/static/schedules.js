// Recurring jobs: when they come next, and what became of them.

import { ask, change, may, Refused } from "./api.js";
import { check } from "./actions.js";
import { dialog, field } from "./dialogs.js";
import { h, nameNode, setText, toast } from "./dom.js";
import { count, instant, relative, seconds } from "./format.js";
import { rawMembers } from "./json.js";
import { live } from "./live.js";
import { link } from "./pages.js";
import { pages } from "./queues.js";
import { repeat } from "./table.js";

const SCHEDULES_MAX = 5000;
const DEFINITION = ["cron", "timezone", "every", "job", "missed", "overlap"];

/** The raw text of each part of a schedule's definition: what goes back is what came, to the byte. */
async function definitionOf(row) {
  const members = rawMembers(await ask("GET", "/schedule", { queue: row.queue, name: row.name }));
  return new Map(DEFINITION.filter((part) => members.has(part) && members.get(part) !== "null").map((part) => [part, members.get(part)]));
}

const put = (queue, name, definition) => ask("PUT", "/schedule", { queue, name }, "{" + [...definition].map(([part, raw]) => JSON.stringify(part) + ":" + raw).join(",") + "}");

const ruleInWords = (row) => (row.cron ? row.cron + (row.timezone ? " " + row.timezone : "") : "every " + seconds(row.every));

async function edit(row) {
  let raw = new Map();
  try {
    if (row) raw = await definitionOf(row);
  } catch (error) {
    toast(error.message, "bad");
    return null;
  }
  const definition = row ?? {};
  const input = (props) => h("input", { autocomplete: "off", spellcheck: "false", maxlength: 1024, ...props });
  const queue = input({ value: row?.queue ?? "", required: true, disabled: row });
  const name = input({ value: row?.name ?? "", required: true, disabled: row });
  const cron = input({ value: definition.cron ?? "", placeholder: "*/5 * * * *" });
  const zone = input({ value: definition.timezone ?? "", placeholder: "UTC" });
  const every = input({ type: "number", min: 1, step: 1, value: definition.every ?? "" });
  const select = (options, value) => {
    const node = h("select", null, options.map(([key, label]) => h("option", { value: key }, label)));
    if (value) node.value = value;
    return node;
  };
  const missed = select([["", "Default"], ["skip", "are skipped"], ["once", "come once"], ["all", "all come"]], definition.missed);
  const overlap = select([["", "Default"], ["allow", "comes as well"], ["skip", "is skipped"]], definition.overlap);
  const job = h("textarea", { spellcheck: "false" });
  job.value = raw.get("job") ?? '{"timeout": 30, "payload": null}';
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
      JSON.parse(job.value); // says what is wrong with it; what is sent is the text itself
      const parts = { cron: cron.value.trim(), timezone: cron.value.trim() && zone.value.trim(), every: every.value && Number(every.value), missed: missed.value, overlap: overlap.value, paused: paused.checked };
      const given = Object.entries(parts).filter(([, value]) => value).map(([part, value]) => [part, JSON.stringify(value)]);
      await put(queue.value, name.value, [...given, ["job", job.value]]);
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
    send: async () => {
      await put(row.queue, row.name, [...(await definitionOf(row)), ["paused", String(paused)]]);
      return true;
    },
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
    return h(
      "tr",
      null,
      h("th", { scope: "row" }, nameNode(row.name), " ", row.paused && h("span", { class: "badge warn" }, "paused")),
      h("td", null, link({ view: "queue", queue: row.queue }, nameNode(row.queue))),
      h("td", null, h("span", { class: "mono" }, ruleInWords(row))),
      h("td", { title: instant(row.next_at) }, row.paused ? "–" : relative(row.next_at)),
      h("td", { title: instant(row.last_at) }, relative(row.last_at)),
      h("td", { class: "number" }, count(row.fired)),
      h("td", { class: "number" }, count(row.missed_times ?? 0)),
      admin && h("td", null, h("span", { class: "row-actions" }, [["Change", () => edit(row)], [row.paused ? "Resume" : "Pause", () => setPaused(row, !row.paused)], ["Delete", () => remove(row)]].map(([label, make]) => h("button", { type: "button", class: "small", "aria-label": `${label} ${row.name}`, onclick: act(make) }, label)))),
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
