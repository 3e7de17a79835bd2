// Elements from plain values. Text only ever becomes text: there is no way to markup in here.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "value") element.value = value;
    else if (name === "checked" || name === "disabled" || name === "hidden") element[name] = Boolean(value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element: attributes (`onclick` and the like are listeners), then children. */
export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);

/** An SVG element. */
export const s = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

/** Set the text of a node, if it is another one. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Set or remove an attribute, if it is another one. */
export function setAttribute(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, String(value));
}

export const byId = (id) => document.getElementById(id);

// Characters that change the direction of text, or cannot be seen, are shown by their number: a name must not look like another.
const UNSEEN = /[\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb]/g;

/** A name that somebody made up, as a node that keeps to itself. Long ones are cut by the style sheet, not here. */
export function nameNode(text, props) {
  const node = h("bdi", { class: "name", title: text.length > 24 ? text : null, ...props });
  fillName(node, text);
  return node;
}

export function fillName(node, text) {
  if (node.dataset.name === text) return;
  node.dataset.name = text;
  const parts = [];
  let at = 0;
  for (const found of text.matchAll(UNSEEN)) {
    parts.push(text.slice(at, found.index));
    parts.push(h("span", { class: "unseen" }, "U+" + found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0")));
    at = found.index + found[0].length;
  }
  parts.push(text.slice(at));
  node.replaceChildren(...parts.filter((part) => part !== ""));
}

let saying;

/** Tell those who listen instead of looking. */
export function announce(text) {
  clearTimeout(saying);
  saying = setTimeout(() => setText(byId("announce"), text), 50);
}

/** Tell what was done, or why it was not. */
export function toast(text, kind = "good") {
  const node = h("div", { class: "toast " + kind }, h("span", null, text), h("button", { type: "button", class: "icon", "aria-label": "Dismiss", onclick: () => node.remove() }, "×"));
  byId("toasts").append(node);
  setTimeout(() => node.remove(), kind === "good" ? 5000 : 12000);
}
