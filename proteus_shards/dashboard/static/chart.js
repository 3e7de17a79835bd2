// Plots over time, drawn as SVG. A line breaks where nothing is known, and is thinned to what its pixels can show.
// All plots of a page share one cursor: the moment under the pointer, or the one that the arrow keys chose.

import { announce, h, s, setAttribute, setText } from "./dom.js";
import { clock } from "./format.js";
import { live } from "./live.js";

const GAP_MS = 16_000; // without a point for so long, nothing is known of the time between
const LEFT = 46;
const RIGHT = 10;
const TOP = 8;
const BOTTOM = 20;
const PIXELS_A_POINT = 1.5;

const charts = new Set();
let cursorMs = null;

function setCursor(ms) {
  cursorMs = ms;
  for (const chart of charts) chart.drawCursor();
}

/** The points of the last `spanMs`, and one before. */
export function recent(points, spanMs) {
  const from = (points.at(-1)?.[0] ?? 0) - spanMs;
  let low = 0;
  let high = points.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < from) low = middle + 1;
    else high = middle;
  }
  return points.slice(Math.max(0, low - 1));
}

/** Lines of [x, y] for one series: thinned by the mean, or by the most where `peak` is set. */
function lines(points, place, x, y, peak) {
  const found = [];
  let line = null;
  let lastMs = -Infinity;
  let column = null;
  const flush = () => {
    if (column !== null) line.push([column.x, y(peak ? column.most : column.sum / column.count)]);
    column = null;
  };
  for (const point of points) {
    const value = point[place];
    if (value === null || value === undefined || point[0] - lastMs > GAP_MS) {
      if (line !== null) flush();
      line = null;
    }
    if (value === null || value === undefined) continue;
    if (line === null) found.push((line = []));
    lastMs = point[0];
    const at = x(point[0]);
    if (column !== null && at - column.x < PIXELS_A_POINT) {
      column.sum += value;
      column.count += 1;
      column.most = Math.max(column.most, value);
    } else {
      flush();
      column = { x: at, sum: value, count: 1, most: value };
    }
  }
  if (line !== null) flush();
  return found;
}

const written = (line) => line.map(([x, y], place) => (place ? "L" : "M") + x.toFixed(1) + " " + y.toFixed(1)).join("");

/** Ticks from 0 to at least `most`, in steps that read well. */
function linearTicks(most, wanted = 4) {
  const raw = (most || 1) / wanted;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * size).find((each) => each >= raw * 0.999);
  const ticks = [];
  for (let tick = 0; tick < most + step * 0.999; tick += step) ticks.push(Number(tick.toPrecision(12)));
  return ticks;
}

export class Chart {
  /** `series`: [{name, label, kind, peak}], `format` writes a value, `logarithmic` is for what spans many sizes, `whole` for counts. */
  constructor({ title, series, format, logarithmic = false, height = 190, least = 0 }) {
    Object.assign(this, { title, series, format, logarithmic, height, least });
    this.spanMs = 600_000;
    this.grid = s("g", { class: "grid" });
    this.plot = s("g");
    this.cursor = s("line", { class: "cursor", y1: TOP, y2: height - BOTTOM, visibility: "hidden" });
    this.svg = s("svg", { class: "plot", height, role: "img", tabindex: 0, "aria-label": title }, this.grid, this.plot, this.cursor);
    this.values = series.map((each) => h("b", null, "–"));
    this.when = h("span", { class: "when" });
    const legend = h("ul", { class: "legend" }, series.map((each, place) => h("li", { class: "series " + each.kind }, h("span", { class: "key", "aria-hidden": "true" }), each.label + " ", this.values[place])));
    this.element = h("figure", { class: "chart card" }, h("figcaption", null, h("h3", null, title), this.when, legend), this.svg);
    this.width = 0;
    this.observer = new ResizeObserver(([entry]) => {
      this.width = Math.floor(entry.contentRect.width);
      this.draw();
    });
    this.observer.observe(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerdown", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => setCursor(null));
    this.svg.addEventListener("blur", () => setCursor(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    charts.add(this);
  }

  close() {
    charts.delete(this);
    this.observer.disconnect();
  }

  draw() {
    const points = recent(live.points, this.spanMs);
    const { width, height } = this;
    if (!width) return;
    setAttribute(this.svg, "viewBox", `0 0 ${width} ${height}`);
    const end = points.at(-1)?.[0] ?? Date.now();
    const begin = end - this.spanMs;
    this.x = (ms) => LEFT + ((ms - begin) / this.spanMs) * (width - LEFT - RIGHT);
    this.ms = (x) => begin + ((x - LEFT) / (width - LEFT - RIGHT)) * this.spanMs;
    const places = this.series.map((each) => live.series[each.name]);
    let most = this.least;
    let low = Infinity;
    for (const point of points) {
      for (const place of places) {
        const value = point[place];
        if (value === null || value === undefined) continue;
        if (value > most) most = value;
        if (value > 0 && value < low) low = value;
      }
    }
    const ticks = this.scale(most, low);
    this.grid.replaceChildren(
      ...ticks.map((tick) => s("g", null, s("line", { x1: LEFT, x2: width - RIGHT, y1: this.y(tick), y2: this.y(tick) }), s("text", { x: LEFT - 6, y: this.y(tick) + 3.5, "text-anchor": "end" }, this.format(tick)))),
      ...this.times(begin, end).map((ms) => s("text", { x: this.x(ms), y: height - 5, "text-anchor": "middle" }, clock(ms).slice(0, this.spanMs > 300_000 ? 5 : 8))),
    );
    this.plot.replaceChildren(
      ...this.series.flatMap((each, place) =>
        lines(points, places[place], this.x, this.y, each.peak).flatMap((line) => {
          const path = s("path", { class: "line " + each.kind, d: line.length > 1 ? written(line) : written(line) + "h0.1" });
          if (!each.area) return [path];
          const floor = height - BOTTOM;
          return [s("path", { class: "area " + each.kind, d: `${written(line)}V${floor}H${line[0][0].toFixed(1)}Z` }), path];
        }),
      ),
    );
    this.points = points;
    this.drawCursor();
    const now = points.at(-1);
    setAttribute(this.svg, "aria-label", this.title + ": " + (now ? this.series.map((each, place) => each.label + " " + this.format(now[places[place]])).join(", ") : "nothing yet") + ". Arrow keys move through time.");
  }

  /** Choose `y`, and return the ticks. */
  scale(most, low) {
    const bottom = this.height - BOTTOM;
    const span = bottom - TOP;
    if (this.logarithmic) {
      const top = Math.ceil(Math.log10(Math.max(most, 1e-3)) - 1e-9);
      const base = Math.min(top - 2, Math.floor(Math.log10(Math.min(low, most || 1e-3))));
      this.y = (value) => bottom - (Math.max(0, Math.log10(Math.max(value, 1e-12)) - base) / (top - base)) * span;
      const step = Math.ceil((top - base) / 5);
      return Array.from({ length: Math.floor((top - base) / step) + 1 }, (_, place) => 10 ** (base + place * step));
    }
    const ticks = linearTicks(most || 1);
    this.y = (value) => bottom - (value / ticks.at(-1)) * span;
    return ticks;
  }

  times(begin, end) {
    const wanted = Math.max(2, Math.floor((this.width - LEFT) / (this.spanMs > 300_000 ? 70 : 90)));
    const step = [10, 15, 30, 60, 120, 300, 600, 900, 1800].map((each) => each * 1000).find((each) => this.spanMs / each <= wanted) ?? 3_600_000;
    const found = [];
    for (let ms = Math.ceil(begin / step) * step; ms <= end; ms += step) if (this.x(ms) > LEFT + 16 && this.x(ms) < this.width - 22) found.push(ms);
    return found;
  }

  drawCursor() {
    const points = this.points ?? [];
    let point = points.at(-1);
    if (cursorMs !== null && points.length) {
      point = points.reduce((best, each) => (Math.abs(each[0] - cursorMs) < Math.abs(best[0] - cursorMs) ? each : best));
      const x = this.x(point[0]).toFixed(1);
      setAttribute(this.cursor, "x1", x);
      setAttribute(this.cursor, "x2", x);
    }
    setAttribute(this.cursor, "visibility", cursorMs !== null && points.length ? "visible" : "hidden");
    setText(this.when, cursorMs !== null && point ? clock(point[0]) : "");
    this.series.forEach((each, place) => setText(this.values[place], point ? this.format(point[live.series[each.name]]) : "–"));
    this.shown = point;
  }

  point(event) {
    if (!this.ms) return;
    setCursor(this.ms(event.clientX - this.svg.getBoundingClientRect().left));
  }

  key(event) {
    const points = this.points ?? [];
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") setCursor(null);
    if (step === undefined || !points.length) return;
    event.preventDefault();
    const at = cursorMs === null ? points.length - 1 : points.indexOf(this.shown);
    const next = points[Math.max(0, Math.min(points.length - 1, at + step * (event.shiftKey ? 10 : 1)))];
    setCursor(next[0]);
    announce(clock(next[0]) + ": " + this.series.map((each) => each.label + " " + this.format(next[live.series[each.name]])).join(", "));
  }
}

/** A small line without axes: the last minutes of one series. */
export class Spark {
  constructor(name, kind) {
    Object.assign(this, { name, kind });
    this.line = s("path", { class: "line " + kind });
    this.area = s("path", { class: "area " + kind });
    this.svg = s("svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" }, this.area, this.line);
  }

  draw(spanMs) {
    const points = recent(live.points, spanMs);
    const place = live.series[this.name];
    const end = points.at(-1)?.[0] ?? 0;
    let most = 0;
    for (const point of points) most = Math.max(most, point[place] ?? 0);
    const found = lines(points, place, (ms) => 100 - ((end - ms) / spanMs) * 100, (value) => 22.5 - (most ? value / most : 0) * 20, true);
    setAttribute(this.line, "d", found.map(written).join(""));
    setAttribute(this.area, "d", found.map((line) => `${written(line)}V24H${line[0][0].toFixed(1)}Z`).join(""));
  }
}
