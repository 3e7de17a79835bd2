// The HTTP API as this page uses it. The token, if there is one, lives in this tab's session and travels in one header.

const KEY = "proteus-token";
const OWN = { "x-requested-by": "proteus-dashboard" }; // no other site's page can send it without asking first

let token = "";
try {
  token = sessionStorage.getItem(KEY) ?? "";
} catch {
  // then it lasts as long as the page
}

export const hasToken = () => token !== "";

/** Use another token from now on; none where it is empty. */
export function setToken(text) {
  token = text.trim();
  try {
    if (token) sessionStorage.setItem(KEY, token);
    else sessionStorage.removeItem(KEY);
  } catch {
    // as above
  }
}

/** The headers of every request of this page. */
export const ownHeaders = () => (token ? { ...OWN, authorization: "Bearer " + token } : { ...OWN });

const scopes = new Set();

/** Whether this page may do what needs a scope: "read", "produce" or "admin", which is all of them. */
export const may = (scope) => scopes.has(scope) || scopes.has("admin");

/** Ask what the token, or the lack of one, allows. The server checks each request anyway: what is not allowed is only not offered. */
export async function loadAccess() {
  scopes.clear();
  try {
    for (const scope of (await get("/dashboard/access")).scopes) scopes.add(scope);
  } catch {
    // nothing is offered, and the stream says what is wrong
  }
}

/** What the server said instead of an answer. `problem` is its problem document, where there is one. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem?.detail ?? (status ? "the server answered " + status : "the server cannot be reached"));
    this.status = status;
    this.problem = problem;
  }
}

/** A path with a query; what is null or undefined is left out, and a list gives its name several times. */
export function target(path, query) {
  const pairs = new URLSearchParams();
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value === null || value === undefined) continue;
    for (const each of Array.isArray(value) ? value : [value]) pairs.append(name, each);
  }
  const text = pairs.toString();
  return text ? path + "?" + text : path;
}

/** Ask, and return the text of the answer. Throws `Refused`. */
export async function ask(method, path, query, body, options) {
  const headers = ownHeaders();
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(target(path, query), {
      method,
      headers,
      body: body === undefined ? undefined : typeof body === "string" ? body : JSON.stringify(body),
      cache: "no-store",
      credentials: "same-origin",
      redirect: "error",
      signal: options?.signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, null);
  }
  const text = await response.text();
  if (!response.ok) {
    let problem = null;
    try {
      problem = JSON.parse(text);
    } catch {
      // not one of ours: a proxy between
    }
    throw new Refused(response.status, problem);
  }
  return text;
}

/** Ask, and return the answer as JSON says it. */
export async function get(path, query, options) {
  return JSON.parse(await ask("GET", path, query, undefined, options));
}

/** Change something, and return what the server said of it, or null. */
export async function change(method, path, query, body) {
  const text = await ask(method, path, query, body);
  return text ? JSON.parse(text) : null;
}
