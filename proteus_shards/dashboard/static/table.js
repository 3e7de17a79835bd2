// Long tables: thousands of rows, of which only those near the window are there. A row keeps its node, and so its focus, for as long as it is near.

import { h, setAttribute, setText } from "./dom.js";

const AROUND = 8; // rows kept beyond each end of the window

/** A column of plain text. */
export function column(label, write, { kind = "", minor = false, sort = null, width = "minmax(64px, 1fr)", dim = null } = {}) {
  return {
    label,
    kind,
    minor,
    sort,
    width,
    fill(cell, row) {
      setText(cell, write(row));
      if (dim) cell.classList.toggle("zero", dim(row));
    },
  };
}

/** A column with a node of its own: `make()` returns {node, update(row)}. */
export const nodeColumn = (label, make, options = {}) => ({ ...column(label, () => "", options), make });

export class Table {
  /** `keyOf` tells rows apart; `sorted` is {label, down}, `onSort` is told of another one; `onEnd` when the last rows come near. */
  constructor({ label, columns, keyOf, sorted = null, onSort = null, onEnd = null }) {
    Object.assign(this, { columns, keyOf, sorted, onSort, onEnd });
    this.rows = [];
    this.nodes = new Map();
    this.headers = columns.map((each) => {
      const content = each.sort && onSort ? h("button", { type: "button", onclick: () => this.sort(each) }, each.label) : each.label;
      return h("div", { role: "columnheader", class: [each.kind, each.sort && onSort ? "" : "plain"].join(" ").trim() || null }, content);
    });
    this.body = h("div", { class: "grid-body", role: "rowgroup" });
    this.element = h("div", { class: "grid-table card", role: "table", "aria-label": label }, h("div", { class: "grid-row grid-head", role: "row" }, this.headers), this.body);
    this.element.style.setProperty("--columns", columns.map((each) => each.width).join(" "));
    this.onScroll = () => {
      if (!this.asked) this.asked = requestAnimationFrame(() => this.draw());
    };
    window.addEventListener("scroll", this.onScroll, { passive: true });
    window.addEventListener("resize", this.onScroll);
    this.drawSorted();
  }

  close() {
    window.removeEventListener("scroll", this.onScroll);
    window.removeEventListener("resize", this.onScroll);
    cancelAnimationFrame(this.asked);
  }

  sort(by) {
    const down = this.sorted?.label === by.label ? !this.sorted.down : by.kind === "number";
    this.sorted = { label: by.label, down };
    this.drawSorted();
    this.onSort(this.sorted);
  }

  drawSorted() {
    this.columns.forEach((each, place) => {
      if (each.sort && this.onSort) setAttribute(this.headers[place], "aria-sort", this.sorted?.label !== each.label ? "none" : this.sorted.down ? "descending" : "ascending");
    });
  }

  /** Show these rows, in this order. */
  setRows(rows) {
    this.rows = rows;
    setAttribute(this.element, "aria-rowcount", rows.length + 1);
    this.draw();
  }

  draw() {
    this.asked = 0;
    const height = parseFloat(getComputedStyle(this.body).getPropertyValue("--row")) || 38;
    this.body.style.height = this.rows.length * height + "px";
    const top = this.body.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(-top / height) - AROUND);
    const last = Math.min(this.rows.length, Math.ceil((window.innerHeight - top) / height) + AROUND);
    const wanted = new Set();
    for (let place = first; place < last; place += 1) {
      const row = this.rows[place];
      const key = this.keyOf(row);
      wanted.add(key);
      let node = this.nodes.get(key);
      if (node === undefined) {
        node = this.make();
        this.nodes.set(key, node);
        this.body.append(node.element);
      }
      const y = place * height + "px";
      if (node.y !== y) {
        node.y = y;
        node.element.style.top = y;
        setAttribute(node.element, "aria-rowindex", place + 2);
      }
      node.update(row);
    }
    for (const [key, node] of this.nodes) {
      if (wanted.has(key)) continue;
      node.element.remove();
      this.nodes.delete(key);
    }
    if (last >= this.rows.length - AROUND) this.onEnd?.();
  }

  make() {
    const parts = this.columns.map((each) => {
      const made = each.make?.();
      const value = made ? made.node : h("span");
      const cell = h("div", { role: "cell", class: [each.kind, each.minor ? "minor" : ""].join(" ").trim() || null }, made ? null : h("span", { class: "cell-label", "aria-hidden": "true" }, each.label), value);
      return { cell, update: made ? made.update : (row) => each.fill(value, row) };
    });
    return { element: h("div", { class: "grid-row", role: "row" }, parts.map((part) => part.cell)), update: (row) => parts.forEach((part) => part.update(row)) };
  }
}

/** Compare by a column, then by name. */
export function ordered(rows, columns, sorted, nameOf) {
  const by = columns.find((each) => each.label === sorted?.label)?.sort;
  if (!by) return rows;
  const sign = sorted.down ? -1 : 1;
  const keyed = rows.map((row) => [by(row), nameOf(row), row]);
  keyed.sort(([a, nameA], [b, nameB]) => (a < b ? -sign : a > b ? sign : nameA < nameB ? -1 : nameA > nameB ? 1 : 0));
  return keyed.map(([, , row]) => row);
}

/**
 * Call again and again, while anyone looks: at most every `leastMs`, and with long pauses where it takes long. `work` is told whether somebody waits
 * for it: the first time, and after `now`. Returns what ends that.
 */
export function repeat(work, leastMs, isPaused) {
  let timer = 0;
  let over = false;
  const abort = new AbortController();
  async function once(first) {
    const began = performance.now();
    if (first || !(document.hidden || isPaused())) {
      try {
        await work(abort.signal, first);
      } catch (error) {
        if (error.name !== "AbortError") throw error;
      }
    }
    if (!over) timer = setTimeout(once, Math.max(leastMs, 5 * (performance.now() - began)), false);
  }
  once(true);
  return {
    now() {
      clearTimeout(timer);
      if (!over) once(true);
    },
    stop() {
      over = true;
      clearTimeout(timer);
      abort.abort();
    },
  };
}
