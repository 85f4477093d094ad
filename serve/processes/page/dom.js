// Elements out of data: text is always text, so that nothing a store or a log holds becomes markup.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element with attributes and children: nodes, texts, or nothing. */
export function h(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same of SVG. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...present(children));
  return element;
}

const present = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined
  && child !== false);

export const byId = (id) => document.getElementById(id);

/** Put nodes in the place of all that an element has. */
export function show(element, ...children) {
  element.replaceChildren(...present(children));
}

export const muted = (text) => h("p", { class: "muted" }, text);

/** Make a table. A column has a title, a value of a row, and a class ("number" aligns right). */
export function table(caption, columns, rows = []) {
  const made = h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption },
    h("table", {},
      h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, columns.map(([title, , kind]) => h("th", { scope: "col", class: kind }, title)))),
      h("tbody")));
  update(made, columns, rows);
  return made;
}

/** Bring a table up to date; cells that are as they were stay, with what is selected in them. */
export function update(made, columns, rows) {
  const body = made.querySelector("tbody");
  rows.forEach((row, place) => {
    const cells = columns.map(([, value, kind], column) => h(column === 0 ? "th" : "td",
      { class: kind, scope: column === 0 ? "row" : null }, value(row)));
    const before = body.rows[place];
    if (!before) body.append(h("tr", {}, cells));
    else cells.forEach((cell, column) => before.cells[column].isEqualNode(cell) || before.cells[column].replaceWith(cell));
  });
  while (body.rows.length > rows.length) body.lastElementChild.remove();
}

/** A table that is brought up to date inside an element; *empty* stands there while it has no rows. */
export function liveTable(element, caption, columns, empty) {
  const made = table(caption, columns);
  const nothing = muted(empty);
  return (rows) => {
    const wanted = rows.length ? made : nothing;
    if (element.firstElementChild !== wanted) show(element, wanted);
    if (rows.length) update(made, columns, rows);
  };
}

/** A word in a colour that goes with it; the word says it all. */
export const pill = (word, kind = "") => h("span", { class: `pill ${kind}` }, word);

/** The colours of what a worker or the service says of itself. */
export const KINDS = { ready: "good", degraded: "warn", draining: "warn", starting: "warn", "not ready": "bad",
  silent: "bad" };
