// JSON as it is, to the byte: numbers too long for JavaScript, keys that come twice, text that is escaped. So nothing is parsed into values here, only
// told apart: strings, numbers, words. No recursion either: how deep a payload is nested is up to who sent it.

import { h } from "./dom.js";

const SHOWN_MAX = 100_000; // characters of one value that are laid out
const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null|[{}[\],:]/g;

/** The raw text of each member of a JSON object, by name. The text must be JSON. */
export function rawMembers(text) {
  const members = new Map();
  let depth = 0;
  let name = null;
  let begin = -1;
  let wantsName = true;
  const end = (at) => {
    if (name !== null && begin >= 0) members.set(name, text.slice(begin, at).trim());
    name = null;
    begin = -1;
    wantsName = true;
  };
  for (const found of text.matchAll(TOKEN)) {
    const token = found[0];
    if (token === "{" || token === "[") depth += 1;
    else if (token === "}" || token === "]") {
      depth -= 1;
      if (depth === 0) end(found.index);
    } else if (depth === 1) {
      if (token === ",") end(found.index);
      else if (token === ":") begin = found.index + 1;
      else if (wantsName) {
        name = JSON.parse(token);
        wantsName = false;
      }
    }
  }
  return members;
}

const KINDS = { '"': "t", t: "w", f: "w", n: "w" };

/** JSON text, indented and coloured, as nodes. What is beyond `SHOWN_MAX` characters is cut off, and it says so. */
export function jsonNodes(text) {
  const cut = text.length > SHOWN_MAX;
  const parts = [];
  let depth = 0;
  let run = "";
  const newline = () => "\n" + "  ".repeat(Math.min(depth, 40));
  const tokens = (cut ? text.slice(0, SHOWN_MAX) : text).match(TOKEN) ?? [];
  for (let place = 0; place < tokens.length; place += 1) {
    const token = tokens[place];
    if (token === "{" || token === "[") {
      const closing = tokens[place + 1];
      if (closing === "}" || closing === "]") {
        run += token + closing;
        place += 1;
      } else {
        depth += 1;
        run += token + newline();
      }
    } else if (token === "}" || token === "]") {
      depth -= 1;
      run += newline() + token;
    } else if (token === ",") run += "," + newline();
    else if (token === ":") run += ": ";
    else {
      if (run) parts.push(run);
      run = "";
      parts.push(h("span", { class: tokens[place + 1] === ":" ? "k" : (KINDS[token[0]] ?? "n") }, token));
    }
  }
  if (run) parts.push(run);
  if (cut) parts.push(`\n… ${(text.length - SHOWN_MAX).toLocaleString("en")} characters more: use Copy`);
  return parts;
}

/** A value with a button to copy it. */
export function jsonBox(title, text) {
  const copy = h("button", { type: "button", class: "small", "aria-label": "Copy " + title.toLowerCase() }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Not allowed here";
    }
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  return h("section", { class: "card" }, h("div", { class: "head" }, h("h2", null, title), copy), h("pre", { class: "json", tabindex: 0, role: "region", "aria-label": title }, jsonNodes(text)));
}
