// What a person may do to queues and jobs. Each asks once more before it does what cannot be undone, and tells what it did.

import { change } from "./api.js";
import { dialog, field } from "./dialogs.js";
import { h, nameNode, toast } from "./dom.js";
import { plural } from "./format.js";
import { readSettings, settingsFields } from "./settings.js";

const input = (props) => h("input", { autocomplete: "off", spellcheck: "false", ...props });

/** The empty text is nothing, and all else a number. */
const numberOf = (text) => (text.trim() === "" ? null : Number(text));

export async function pauseQueue(queue) {
  const done = await dialog({
    title: ["Pause ", nameNode(queue), "?"],
    text: "Its jobs wait until it is resumed. Those in flight go on, and new ones are accepted.",
    action: "Pause",
    send: () => change("POST", "/pause", { queue }).then(() => true),
  });
  if (done) toast("Paused.");
  return done;
}

export async function resumeQueue(queue) {
  const done = await dialog({
    title: ["Resume ", nameNode(queue), "?"],
    text: "Its jobs are delivered again.",
    action: "Resume",
    send: () => change("POST", "/resume", { queue }).then(() => true),
  });
  if (done) toast("Resumed.");
  return done;
}

export async function purgeQueue(queue, state) {
  const select = h(
    "select",
    { name: "state" },
    [
      ["", "All that wait (ready, blocked, scheduled)"],
      ["ready", "Ready"],
      ["blocked", "Blocked"],
      ["scheduled", "Scheduled"],
      ["backing_off", "Backing off"],
      ["in_flight", "In flight: their runs are over"],
      ["dead", "Dead letters"],
      ["all", "Everything in the queue"],
    ].map(([value, label]) => h("option", { value }, label)),
  );
  select.value = state ?? "";
  const key = input({ name: "key", maxlength: 1024 });
  const done = await dialog({
    title: ["Purge ", nameNode(queue), "?"],
    text: "The jobs are removed for good. This cannot be undone.",
    fields: [field("Which jobs", select), field("Only of this key", key, "Empty: whatever their key")],
    action: "Purge",
    danger: true,
    send: () => change("POST", "/purge", { queue, state: select.value || undefined, key: key.value || undefined }),
  });
  if (done) toast(plural(done.jobs, "job") + " removed.");
  return done;
}

/** Give dead letters a new life: those with these ids, or with `ids` null all that the dialog is told. */
export async function redrive(queue, ids = null) {
  const to = input({ name: "to", maxlength: 1024, placeholder: "The same queue" });
  const key = input({ name: "key", maxlength: 1024 });
  const reason = input({ name: "reason", maxlength: 256, placeholder: "timeout, failed, expired …" });
  const done = await dialog({
    title: ids ? ["Redrive ", nameNode(ids[0]), "?"] : ["Redrive the dead letters of ", nameNode(queue), "?"],
    text: "They go back in their original order, with all their retries. One whose id is in the queue again stays dead.",
    fields: [field("Into", to), ids === null && field("Only of this key", key), ids === null && field("Only dead for this reason", reason)],
    action: "Redrive",
    send: () => {
      const body = ids === null ? { key: key.value || undefined, reason: reason.value || undefined } : { ids };
      return change("POST", "/redrive", { queue, to: to.value || undefined }, body);
    },
  });
  if (done) toast(plural(done.jobs, "job") + " redriven.", done.jobs || ids === null ? "good" : "bad");
  return done;
}

export async function deleteJob(queue, id, state) {
  const done = await dialog({
    title: ["Delete ", nameNode(id), "?"],
    text: state === "in_flight" ? "It is in flight: its runner will be told that it has lost the job. This cannot be undone." : "It is removed for good. This cannot be undone.",
    action: "Delete",
    danger: true,
    send: () => change("DELETE", "/job", { queue, job_id: id }).then(() => true),
  });
  if (done) toast("Deleted.");
  return done;
}

export async function promoteJob(queue, id) {
  const done = await dialog({
    title: ["Run ", nameNode(id), " now?"],
    text: "It no longer waits for its time.",
    action: "Run now",
    send: () => change("PATCH", "/job", { queue, job_id: id }, { run_at: null }).then(() => true),
  });
  if (done) toast("Promoted.");
  return done;
}

export async function enqueueDialog(queue) {
  const name = input({ name: "queue", value: queue, required: true, maxlength: 1024 });
  const id = input({ name: "id", value: "test-" + crypto.getRandomValues(new Uint32Array(2)).join("-"), required: true, maxlength: 1024 });
  const payload = h("textarea", { name: "payload", spellcheck: "false" });
  payload.value = '{"hello": "world"}';
  const timeout = input({ name: "timeout", type: "number", min: 0, step: 1, value: "30" });
  const retries = input({ name: "max_retries", type: "number", step: 1, value: "0" });
  const delay = input({ name: "delay", type: "number", min: 0, step: "any", placeholder: "At once" });
  const key = input({ name: "key", maxlength: 1024, placeholder: "None" });
  const priority = input({ name: "priority", type: "number", step: 1, placeholder: "0" });
  const persist = input({ name: "persist_data", type: "checkbox" });
  const done = await dialog({
    title: "Enqueue a test job",
    fields: [
      h("div", { class: "pair" }, field("Queue", name), field("Id", id)),
      field("Payload, any JSON", payload),
      h("div", { class: "pair" }, field("Timeout, seconds", timeout), field("Retries", retries), field("Start in, seconds", delay)),
      h("div", { class: "pair" }, field("Key", key), field("Priority", priority)),
      check("Keep it in the store (persist_data)", persist),
    ],
    action: "Enqueue",
    send: async () => {
      const job = { id: id.value, queue: name.value, timeout: numberOf(timeout.value) ?? undefined, max_retries: numberOf(retries.value) ?? undefined };
      if (delay.value) job.run_at = new Date(Date.now() + numberOf(delay.value) * 1000).toISOString();
      if (key.value) job.key = key.value;
      if (priority.value) job.priority = numberOf(priority.value);
      if (persist.checked) job.persist_data = true;
      const text = payload.value.trim();
      if (text) JSON.parse(text); // says what is wrong with it; what is sent is the text itself
      await change("POST", "/enqueue", {}, JSON.stringify(job).slice(0, -1) + (text ? ',"payload":' + text : "") + "}");
      return { queue: name.value, id: id.value };
    },
  });
  if (done) toast("Enqueued.");
  return done;
}

/** A checkbox with its label behind it. */
export function check(label, control) {
  const node = field(label, control);
  node.classList.add("check");
  node.prepend(control);
  return node;
}

export async function editSettings(queue, settings) {
  const fields = settingsFields(settings);
  const done = await dialog({
    title: ["Settings of ", nameNode(queue)],
    text: "An empty field is the default.",
    fields,
    action: "Save",
    send: (form) => change("PATCH", "/queue", { queue }, readSettings(form)),
  });
  if (done) toast("Saved.");
  return done;
}
