// The try-it box: a list as the service would answer it, where it came from, and what is like an item of it.

import { get } from "./api.js";
import { byId, h, muted, pill, show, table } from "./dom.js";
import { DASH, time } from "./format.js";

const SENTENCES = {
  unknown: "No list of this id is known: the popular list stands in.",
  error: "The list could not be read in time: the popular list stands in.",
};

let latest = 0;

/** Answer the form. */
export function start() {
  byId("try-form").addEventListener("submit", (event) => {
    event.preventDefault();
    look(byId("try-kind").value, byId("try-id").value);
  });
}

async function look(kind, id) {
  const place = byId("try-result");
  const number = ++latest;
  show(place, muted("Reading…"));
  try {
    const found = await get(`console/${kind}?id=${encodeURIComponent(id)}&n=10`);
    if (number === latest) show(place, result(kind, id, found));
  } catch (problem) {
    if (number === latest) show(place, h("p", { class: "notice bad" }, `${problem.message}.`));
  }
}

function result(kind, id, found) {
  const list = h("div", { class: "answer" },
    h("h3", {}, kind === "user" ? "The list of " : "Similar to ", h("span", { class: "code" }, id)),
    h("p", { class: "facts-line" },
      pill(found.source, found.status === "ok" ? "good" : "warn"), " out of ",
      h("span", { class: "code" }, found.release), `, tier ${found.tier}, read in ${found.took_ms} ms`),
    SENTENCES[found.status] ? h("p", { class: "notice warn" }, SENTENCES[found.status]) : null,
    found.items.length ? items(found.items) : muted("The list is empty: all of its items are denied."));
  return kind === "user" ? [list, history(found)] : list;
}

function items(found) {
  const columns = [
    ["#", (item) => String(found.indexOf(item) + 1), "number"],
    ["Item", (item) => (item.title ? [item.title, h("span", { class: "muted code block" }, item.id)]
      : h("span", { class: "code" }, item.id))],
    ["Score", (item) => (item.score === undefined ? DASH : item.score.toFixed(4)), "number"],
    ["", (item) => h("button", { type: "button", class: "quiet", "aria-label": `Similar to ${item.title ?? item.id}`,
      onclick: () => similar(item.id) }, "Similar"), "actions"],
  ];
  return table("Items of the list", columns, found);
}

function history({ history: known, items: listed }) {
  if (!known) {
    return muted("What the user chose before is not shown beside it: this service takes no events (see --events).");
  }
  const extent = known.complete ? "" : " Only the newest were looked through, for 1 s.";
  if (!known.events.length) return muted(`No event of this user is in the folder of events, apart from what was shown.${extent}`);
  const titles = new Map(listed.map((item) => [item.id, item.title]));
  return h("div", { class: "answer" }, h("h3", {}, "What the user did before"),
    table("Latest events of the user", [
      ["When", (event) => time(event.at)],
      ["What", (event) => event.type],
      ["Items", (event) => event.items.map((id) => titles.get(id) ?? id).join(", ")],
    ], known.events),
    muted(`The latest events in the folder of events of this machine.${extent}`));
}

function similar(id) {
  byId("try-kind").value = "item";
  byId("try-id").value = id;
  look("item", id);
}
