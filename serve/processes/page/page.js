// What each part of the page needs: requests of this listener, elements out of data, numbers and times as text.

let key = null;

/** What was answered instead of what was requested. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
    this.isUnauthorized = status === 401 || status === 403;
  }
}

export const signIn = (given) => { key = given; };
export const isSignedIn = () => key !== null;

/** Send a request with the operator's key, if there is one, and return the answer's JSON. */
export async function request(path, method = "GET") {
  let response;
  try {
    response = await fetch(path, { method, cache: "no-store", credentials: "omit",
      headers: key === null ? {} : { "X-API-Key": key } });
  } catch {
    throw new Problem(0, "the service does not answer; it may have stopped, or the network is away");
  }
  const fields = await response.json().catch(() => ({}));
  if (!response.ok) throw new Problem(response.status, fields.detail ?? `the service answered ${response.status}`);
  return fields;
}

export const path = (route, query) => `${route}?${new URLSearchParams(query)}`;

const present = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined
  && child !== false);

/** Make an element with attributes and children. Text stays text, so no data of a store or a log becomes markup. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (attribute.startsWith("on")) element.addEventListener(attribute.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(attribute, value);
  }
  element.append(...present(children));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Replace all children of an element, unless they are equal: what is selected or focused in them stays. */
export function show(element, ...children) {
  const made = h("div", {}, children);
  const now = [...element.childNodes];
  const isSame = now.length === made.childNodes.length
    && now.every((node, place) => node.isEqualNode(made.childNodes[place]));
  if (!isSame) element.replaceChildren(...made.childNodes);
}

export const muted = (...children) => h("p", { class: "muted" }, children);
export const notice = (kind, text) => h("p", { class: `notice ${kind}` }, text);
export const code = (text) => h("span", { class: "code" }, text);
export const button = (text, onclick, label = text) => h("button", { type: "button", "aria-label": label, onclick }, text);

/** A word in a colour that goes with it; the word says it all. */
export const pill = (word, kind = "") => h("span", { class: `pill ${kind}` }, word);

/** Make a table. A column has a title, a function from a row to its value, and a class ("number" aligns right). */
export function table(caption, columns, rows) {
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption },
    h("table", {},
      h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, columns.map(([title, , kind]) => h("th", { scope: "col", class: kind }, title)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, columns.map(([, value, kind], place) => h(place ? "td" : "th",
        { class: kind, scope: place ? null : "row" }, value(row))))))));
}

export const DASH = "–";
export const count = (value) => value.toLocaleString("en");
export const share = (part, all, digits = 1) => (all > 0 ? `${((100 * part) / all).toFixed(digits)} %` : DASH);

/** A Unix time as the date and time in UTC. */
export const time = (seconds) => (seconds ? `${new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ")}Z`
  : DASH);

/** A Unix time as the time of the day in UTC. */
export const clock = (seconds) => new Date(seconds * 1000).toISOString().slice(11, 23);
