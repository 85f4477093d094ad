// The latest lines of the log, the newest at the bottom.

import { byId, h, show } from "./dom.js";
import { clock } from "./format.js";

const LINES = 500;
const LEVELS = ["debug", "info", "warning", "error", "critical"];
const KINDS = { warning: "warn", error: "bad", critical: "bad" };

const place = byId("log-lines");
let lines = [];

export function start() {
  byId("log-level").addEventListener("change", draw);
}

/** Forget all lines: a new connection sends them again. */
export function clear() {
  lines = [];
  draw();
}

export function take(more) {
  lines = [...lines, ...more].slice(-LINES);
  draw();
}

function draw() {
  const least = LEVELS.indexOf(byId("log-level").value);
  const wanted = lines.filter((line) => LEVELS.indexOf(line.level) >= least);
  const atEnd = place.scrollTop + place.clientHeight >= place.scrollHeight - 8;
  show(place, wanted.length ? wanted.map((line) => h("p", { class: KINDS[line.level] ?? "" },
    h("time", {}, clock(line.at)), " ", h("span", { class: "level" }, line.level), " ",
    h("span", { class: "muted" }, `${line.process} ${line.logger}`), " ", line.message,
    line.error ? h("span", { class: "muted" }, ` (${line.error})`) : null))
    : h("p", { class: "muted" }, lines.length ? "No line of this kind." : "Nothing was logged yet."));
  if (atEnd) place.scrollTop = place.scrollHeight;
}
