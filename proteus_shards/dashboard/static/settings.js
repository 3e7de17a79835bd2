// The settings of a queue: how each is asked for in a form, and said in words.

import { field } from "./dialogs.js";
import { h } from "./dom.js";
import { bytes, count, seconds } from "./format.js";

const number = (name, label, hint, props = {}) => ({ name, label, hint, props: { type: "number", min: 0, step: "any", ...props } });
const whole = (name, label, hint, least = 1) => number(name, label, hint, { min: least, step: 1 });
const choice = (name, label, hint, options) => ({ name, label, hint, options });

const GROUPS = [
  [whole("max_in_flight", "Most in flight", "Jobs of this queue that run at once")],
  [whole("rate.jobs", "Rate: jobs", "At most so many deliveries"), number("rate.seconds", "in seconds", "1 where empty"), whole("rate.burst", "at once", "The number of jobs where empty")],
  [whole("timeout", "Timeout, seconds", "Of jobs that name none", 0), whole("max_retries", "Retries", "Of jobs that name none", null), number("ttl", "Time to live, seconds", "A job that waits longer dies")],
  [number("backoff.seconds", "Backoff, seconds", "After a failure"), number("backoff.factor", "times, each time", "", { min: 1 }), number("backoff.seconds_max", "at most", ""), number("backoff.jitter", "less a random share", "0 to 1", { max: 1 })],
  [
    choice("on_retry", "While a job is retried, its key", "", [["hold", "waits (hold)"], ["skip", "goes on (skip)"]]),
    choice("delayed_head", "While a job is scheduled, its key", "", [["pass", "goes on (pass)"], ["hold", "waits (hold)"]]),
  ],
  [whole("jobs_max", "Most jobs", ""), whole("bytes_max", "Most bytes", ""), whole("dead_letters_max", "Most dead letters", "", 0), number("dead_letters_seconds_max", "Dead letters for seconds", "")],
];

export const SETTINGS = GROUPS.flat();

const valueOf = (settings, name) => name.split(".").reduce((value, part) => value?.[part], settings);

/** The fields of a form with these settings in it. */
export function settingsFields(settings) {
  return GROUPS.map((group) =>
    h(
      "div",
      { class: "pair" },
      group.map((each) => {
        const value = valueOf(settings, each.name);
        const control = each.options ? h("select", { name: each.name }, each.options.map(([key, label]) => h("option", { value: key }, label))) : h("input", { name: each.name, autocomplete: "off", placeholder: "Default", ...each.props });
        if (value !== undefined && value !== null) control.value = value;
        return field(each.label, control, each.hint || undefined);
      }),
    ),
  );
}

/** The JSON merge patch that a form says: what is empty goes back to its default. */
export function readSettings(form) {
  const patch = {};
  for (const { name, options } of SETTINGS) {
    const text = form.elements.namedItem(name).value.trim();
    const value = text === "" ? null : options ? text : Number(text);
    const [group, part] = name.split(".");
    if (part === undefined) patch[group] = options && value === options[0][0] ? null : value;
    else (patch[group] ??= {})[part] = value;
  }
  for (const [group, first] of [["rate", "jobs"], ["backoff", "seconds"]]) {
    const others = Object.entries(patch[group]).some(([part, value]) => part !== first && value !== null);
    if (patch[group][first] === null) {
      if (others) throw new Error(group === "rate" ? "A rate needs a number of jobs." : "A backoff needs seconds.");
      patch[group] = null;
    }
  }
  return patch;
}

/** What is set, as pairs of words. `paused` is shown elsewhere. */
export function settingsInWords(settings) {
  const words = [];
  const { rate, backoff } = settings;
  if (settings.max_in_flight) words.push(["Most in flight", count(settings.max_in_flight)]);
  if (rate) words.push(["Rate", `${count(rate.jobs)} in ${seconds(rate.seconds ?? 1)}` + (rate.burst ? `, ${count(rate.burst)} at once` : "")]);
  if (settings.timeout !== undefined) words.push(["Timeout", seconds(settings.timeout)]);
  if (settings.max_retries !== undefined) words.push(["Retries", settings.max_retries < 0 ? "without end" : count(settings.max_retries)]);
  if (backoff) words.push(["Backoff", seconds(backoff.seconds) + (backoff.factor > 1 ? ` × ${backoff.factor}` : "") + (backoff.seconds_max ? `, at most ${seconds(backoff.seconds_max)}` : "")]);
  if (settings.ttl !== undefined) words.push(["Time to live", seconds(settings.ttl)]);
  if (settings.on_retry) words.push(["On retry", settings.on_retry]);
  if (settings.delayed_head) words.push(["Delayed head", settings.delayed_head]);
  if (settings.jobs_max) words.push(["Most jobs", count(settings.jobs_max)]);
  if (settings.bytes_max) words.push(["Most bytes", bytes(settings.bytes_max)]);
  if (settings.dead_letters_max !== undefined) words.push(["Most dead letters", count(settings.dead_letters_max)]);
  if (settings.dead_letters_seconds_max !== undefined) words.push(["Dead letters for", seconds(settings.dead_letters_seconds_max)]);
  return words;
}
