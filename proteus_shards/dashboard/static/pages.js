// Which page a query string asks for, and links to pages. A name travels as a value of the query string, where it may hold anything.

import { h } from "./dom.js";

const ORDER = ["view", "queue", "job_id", "state"];

/** Return the address of a page. */
export function href(page) {
  const pairs = new URLSearchParams();
  const names = [...ORDER, ...Object.keys(page).filter((name) => !ORDER.includes(name))];
  for (const name of names) {
    const value = page[name];
    if (value !== undefined && value !== null && !(name === "view" && value === "overview")) pairs.set(name, value);
  }
  const text = pairs.toString();
  return text ? "/?" + text : "/";
}

/** A link to a page. */
export const link = (page, ...children) => h("a", { href: href(page) }, ...children);
link.href = href;

/** Return the page that this window shows. */
export function here() {
  const page = Object.fromEntries(new URLSearchParams(location.search));
  return { view: "overview", ...page };
}

/** Go to a page: `main` listens. */
export function go(page, { replace = false } = {}) {
  window.dispatchEvent(new CustomEvent("proteus-go", { detail: { href: href(page), replace } }));
}

/** Note what the address should say, without going anywhere. */
export const note = (page) => history.replaceState(null, "", href(page));
