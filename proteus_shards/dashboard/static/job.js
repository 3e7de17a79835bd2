// One job: what it carries, where it stands and why, what became of its runs. And the search for an id in all queues.

import { ask, get, may, Refused } from "./api.js";
import { deleteJob, promoteJob, redrive, resumeQueue } from "./actions.js";
import { h, nameNode, setText } from "./dom.js";
import { count, instant, relative, seconds } from "./format.js";
import { jsonBox, rawMembers } from "./json.js";
import { live } from "./live.js";
import { link } from "./pages.js";
import { jobLinkColumn } from "./queue.js";
import { column, nodeColumn, repeat, Table } from "./table.js";

export const STATES = {
  ready: ["accent", "ready"],
  scheduled: ["", "scheduled"],
  backing_off: ["warn", "backing off"],
  blocked: ["warn", "blocked"],
  in_flight: ["good", "in flight"],
  dead: ["bad", "dead"],
};

const REASONS = {
  timeout: "Its runner went silent, and no retries were left.",
  failed: "Its runner said that it failed, and no retries were left.",
  expired: "It waited for longer than its time to live.",
};

function why(job, admin, after) {
  const due = job.due_at ? `${instant(job.due_at)} (${relative(job.due_at)})` : "";
  const says = {
    scheduled: () => ["It is scheduled for ", due || instant(job.run_at), "."],
    backing_off: () => ["It waits after a failure", due && ", until " + due, "."],
    paused: () => ["Its queue is paused. ", admin && h("button", { type: "button", class: "small", onclick: () => resumeQueue(job.queue).then((done) => done && after()) }, "Resume…")],
    max_in_flight: () => ["As many jobs of its queue are in flight as its settings allow (max_in_flight)."],
    rate: () => ["The rate of its queue is used up", due && ", until " + due, "."],
    key: () => ["Another job of its key is in the way", job.blocked_by !== null && [": ", link({ view: "job", queue: job.queue, job_id: job.blocked_by }, nameNode(job.blocked_by))], "."],
    no_runner: () => ["No runner waits for a job of this queue."],
    behind: () => ["Other jobs of its queue come first."],
  };
  if (job.state_name === "dead") return [[REASONS[job.reason] ?? `Reason: ${job.reason}.`]];
  return job.waits_for.map((reason) => says[reason]?.() ?? [reason]);
}

function history(job) {
  const items = [h("li", { class: "begin" }, h("b", null, "Enqueued "), moment(job.created_at), job.schedule && [" by the schedule ", nameNode(job.schedule)])];
  for (const attempt of job.history) {
    const ran = attempt.started_at ? (Date.parse(attempt.ended_at) - Date.parse(attempt.started_at)) / 1000 : null;
    items.push(
      h(
        "li",
        null,
        h("b", null, `Attempt ${attempt.attempt} ${attempt.outcome === "timeout" ? "timed out" : attempt.outcome} `),
        moment(attempt.ended_at),
        ran !== null && h("span", { class: "muted" }, ` after ${seconds(ran)}`),
        attempt.error && h("pre", { tabindex: 0 }, attempt.error),
      ),
    );
  }
  if (job.state_name === "in_flight") items.push(h("li", { class: "run" }, h("b", null, `Attempt ${job.attempt} runs. `), "Heard of ", moment(job.updated_at), job.timeout_in !== undefined && `, times out in ${seconds(Math.max(0, job.timeout_in))}`));
  if (job.state_name === "dead") items.push(h("li", { class: "dead" }, h("b", null, "Died "), moment(job.updated_at)));
  const missing = job.attempt - job.history.length - (job.state_name === "in_flight" ? 1 : 0);
  return [h("ol", { class: "history" }, items), missing > 0 && job.history.length > 0 && h("p", { class: "muted" }, `${count(missing)} attempts are not kept.`)];
}

const moment = (text) => h("time", { datetime: text, title: instant(text) }, relative(text));

function factsOf(job) {
  const facts = [
    ["Attempts", `${count(job.attempt)} of ${job.max_retries < 0 ? "any number" : count(job.max_retries + 1)}`],
    ["Timeout", seconds(job.timeout)],
    ["Kept in the store", job.persist_data ? "yes" : "no"],
    ["Enqueued", instant(job.created_at)],
    ["Changed", instant(job.updated_at)],
  ];
  if (job.key !== undefined) facts.push(["Key", nameNode(job.key)]);
  if (job.priority !== undefined) facts.push(["Priority", String(job.priority)]);
  if (job.run_at !== undefined) facts.push(["Run at", instant(job.run_at)]);
  if (job.expires_at !== undefined) facts.push(["Expires", `${instant(job.expires_at)} (${relative(job.expires_at)})`]);
  if (job.backoff !== undefined) facts.push(["Backoff", `${seconds(job.backoff.seconds)} × ${job.backoff.factor}`]);
  if (job.run_id !== undefined) facts.push(["Run", h("span", { class: "mono" }, job.run_id)]);
  if (job.traceparent !== undefined) facts.push(["Trace", h("span", { class: "mono" }, job.traceparent)]);
  return h("dl", { class: "facts" }, facts.map(([label, value]) => h("div", null, h("dt", null, label), h("dd", null, value))));
}

export function jobView(page) {
  const queue = page.queue ?? "";
  const id = page.job_id ?? "";
  const admin = may("admin");
  const badge = h("span", { class: "badge" });
  const buttons = h("div", { class: "actions" });
  const body = h("div", { class: "page" });
  let before = "";
  let bodies = null;
  let drawn = null;

  function draw(text) {
    const job = JSON.parse(text);
    const [kind, word] = STATES[job.state_name] ?? ["", job.state_name];
    badge.className = "badge " + kind;
    setText(badge, word);
    const act = (make) => () => make().then((done) => done && reload.now());
    const waits = ["scheduled", "backing_off"].includes(job.state_name);
    if (drawn?.state_name !== job.state_name) {
      buttons.replaceChildren(
        ...[
          waits && h("button", { type: "button", onclick: act(() => promoteJob(queue, id)) }, "Run now…"),
          job.state_name === "dead" && h("button", { type: "button", onclick: act(() => redrive(queue, [id])) }, "Redrive…"),
          h("button", { type: "button", class: "danger", onclick: act(() => deleteJob(queue, id, job.state_name)) }, "Delete…"),
        ].filter((each) => admin && each),
      );
    }
    const raw = rawMembers(text);
    const kept = JSON.stringify([raw.get("payload"), raw.get("state")]);
    if (kept !== before) {
      before = kept;
      bodies = h("div", { class: "halves" }, jsonBox("Payload", raw.get("payload") ?? "null"), raw.has("state") ? jsonBox("State", raw.get("state")) : h("section", { class: "card" }, h("h2", null, "State"), h("p", { class: "empty" }, "No runner has saved a state.")));
    }
    const reasons = why(job, admin, () => reload.now());
    drawn = job;
    body.replaceChildren(
      ...[
        reasons.length > 0 &&
          h("section", { class: "card why" + (job.state_name === "dead" ? " bad" : ""), "aria-labelledby": "why-title" }, h("h2", { id: "why-title" }, job.state_name === "dead" ? "Why it died" : "Why it is not running"), h("ul", null, reasons.map((reason) => h("li", null, reason)))),
        h("section", { class: "card", "aria-label": "The job" }, factsOf(job)),
        bodies,
        h("section", { class: "card", "aria-labelledby": "history-title" }, h("h2", { id: "history-title" }, "What became of it"), history(job)),
      ].filter(Boolean),
    );
  }

  const reload = repeat(
    async (signal, wanted) => {
      if (!wanted && body.contains(document.activeElement)) return; // someone reads or uses what would be replaced
      try {
        draw(await ask("GET", "/job", { queue, job_id: id }, undefined, { signal }));
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        const gone = error.status === 404;
        badge.className = "badge";
        setText(badge, gone ? (drawn ? "gone" : "not found") : "");
        buttons.replaceChildren();
        const says = gone ? (drawn ? "It was completed or deleted since. Below is how it was." : "No job with this id is in the queue: it was completed or deleted, or has never been there.") : error.message;
        if (body.firstChild?.className !== "empty card" || body.firstChild.textContent !== says) {
          body.querySelector(".empty.card")?.remove();
          body.querySelector(".why")?.remove();
          body.prepend(h("p", { class: "empty card", role: "status" }, says));
        }
      }
    },
    1500,
    () => live.state === "paused",
  );

  return {
    element: h(
      "div",
      { class: "page" },
      h("p", { class: "crumbs" }, link({ view: "queues" }, "Queues"), " / ", link({ view: "queue", queue }, nameNode(queue)), " / "),
      h("div", { class: "head" }, h("div", { class: "title" }, h("h1", null, nameNode(id, { title: null })), badge), buttons),
      body,
    ),
    title: id,
    close: () => reload.stop(),
  };
}

export function findView(page) {
  const id = page.job_id ?? "";
  const says = h("p", { class: "empty card", role: "status" }, "Looking…");
  const state = () => {
    const node = h("span", { class: "badge" });
    return {
      node,
      update(row) {
        const [kind, word] = STATES[row.state_name] ?? ["", row.state_name];
        node.className = "badge " + kind;
        setText(node, word);
      },
    };
  };
  const queue = () => {
    const name = nameNode("");
    return { node: name, update: (row) => setText(name, row.queue) };
  };
  const table = new Table({
    label: "Jobs with this id",
    columns: [jobLinkColumn(), nodeColumn("Queue", queue, { width: "minmax(120px, 2fr)" }), nodeColumn("State", state), column("Attempts", (row) => count(row.attempt), { kind: "number" }), column("Enqueued", (row) => relative(row.created_at), { kind: "number" })],
    keyOf: (row) => row.queue + " " + row.created_at + " " + row.state_name,
  });
  table.element.hidden = true;
  const input = document.getElementById("find-id");
  if (input.value !== id) input.value = id;
  get("/find", { job_id: id }).then(
    ({ jobs, shards_away: away }) => {
      table.setRows(jobs);
      table.element.hidden = jobs.length === 0;
      setText(says, (jobs.length ? "" : "No queue holds a job with this id. Jobs that were completed are not kept. ") + (away ? `Not all shards could be asked: ${away.join(", ")} away.` : ""));
      says.hidden = says.textContent === "";
      table.draw();
    },
    (error) => setText(says, error.message),
  );
  return { element: h("div", { class: "page" }, h("h1", null, "Jobs with the id ", nameNode(id, { title: null })), table.element, says), title: "Find " + id, close: () => table.close() };
}
