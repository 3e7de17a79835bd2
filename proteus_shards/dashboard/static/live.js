// The stream of what is going on, and the past that this page keeps of it.
// Read with fetch and not with EventSource, which could send no token.

import { ownHeaders } from "./api.js";
import { setServerTime } from "./format.js";

const POINTS_MAX = 4000; // an hour, and some
const RETRY_MS = [500, 1000, 2000, 5000, 10000];
const HIDDEN_MS = 60_000; // a page that nobody sees asks for nothing

export const live = {
  state: "connecting", // "live", "paused", "lost" or "refused"
  why: "",
  series: {}, // name → place in a point
  points: [],
  frame: null,
};

const listeners = new Set();
let abort = null;
let retries = 0;
let timer = 0;
let hiddenTimer = 0;

/** Call back at each change; returns what ends that. */
export function listen(callback) {
  listeners.add(callback);
  return () => listeners.delete(callback);
}

function tell(what) {
  for (const callback of [...listeners]) callback(what);
}

function setState(state, why = "") {
  if (live.state === state && live.why === why) return;
  live.state = state;
  live.why = why;
  tell("state");
}

export function start() {
  stop();
  setState("connecting");
  run();
}

export function pause() {
  stop();
  setState("paused");
}

function stop() {
  clearTimeout(timer);
  abort?.abort();
  abort = null;
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(hiddenTimer);
  if (document.hidden) hiddenTimer = setTimeout(() => live.state !== "paused" && stop(), HIDDEN_MS);
  else if (abort === null && live.state !== "paused") start();
});

async function run() {
  const mine = (abort = new AbortController());
  let why = "the stream has ended";
  try {
    const response = await fetch(document.body.dataset.events, { headers: ownHeaders(), cache: "no-store", signal: mine.signal });
    if (response.status === 401 || response.status === 403) {
      setState("refused", String(response.status));
      return;
    }
    if (response.ok) await read(response.body.getReader());
    else why = "the server answered " + response.status;
  } catch {
    why = "the server cannot be reached";
  }
  if (mine.signal.aborted) return;
  abort = null;
  setState("lost", why);
  timer = setTimeout(run, RETRY_MS[Math.min(retries++, RETRY_MS.length - 1)]);
}

async function read(reader) {
  const decoder = new TextDecoder();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    buffer += decoder.decode(value, { stream: true });
    let end;
    while ((end = buffer.indexOf("\n\n")) >= 0) {
      take(buffer.slice(0, end));
      buffer = buffer.slice(end + 2);
    }
  }
}

function take(event) {
  const found = /^event: (\w+)\ndata: (.*)$/s.exec(event);
  if (found === null) return; // a comment: the stream lives
  const data = JSON.parse(found[2]);
  if (found[1] === "past") {
    live.series = Object.fromEntries(data.series.map((name, place) => [name, place + 1]));
    merge(data.points);
    tell("past");
  } else if (found[1] === "frame") {
    retries = 0;
    live.frame = data;
    if (data.point) {
      setServerTime(data.point[0]);
      merge([data.point]);
    }
    setState("live");
    tell("frame");
  }
}

function merge(points) {
  const last = live.points.at(-1)?.[0] ?? -Infinity;
  for (const point of points) if (point[0] > last) live.points.push(point);
  if (live.points.length > POINTS_MAX) live.points.splice(0, live.points.length - POINTS_MAX);
}
