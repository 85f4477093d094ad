// Curves over time, drawn as SVG, with a scale, the time, and the value under the pointer.

import { h, show, svg } from "./dom.js";
import { duration } from "./format.js";

const WIDTH = 240;
const HEIGHT = 40;

/** Make a curve that is brought up to date by `update(values, length, everyS, kind)`; *format* writes a value. */
export function liveCurve(format) {
  const place = h("div");
  const scale = h("span", {}, "");
  const start = h("span", {}, "");
  const under = h("span", { class: "under" }, "");
  const element = h("div", { class: "chart", "aria-hidden": "true" },
    h("div", { class: "ends" }, scale, under), place, h("div", { class: "ends" }, start, h("span", {}, "now")));
  let values = [];
  let length = 1;
  let everyS = 1;
  let pointed = null;
  const point = () => {
    const at = pointed === null ? -1 : Math.floor(pointed * length) - (length - values.length);
    const value = values[at];
    under.textContent = value === undefined ? "" : value === null ? "no data"
      : `${format(value)}, ${duration((values.length - 1 - at) * everyS)} ago`;
  };
  element.addEventListener("pointermove", (event) => {
    const box = place.getBoundingClientRect();
    pointed = Math.min(0.9999, Math.max(0, (event.clientX - box.left) / box.width));
    point();
  });
  element.addEventListener("pointerleave", () => { pointed = null; point(); });
  const update = (nextValues, nextLength, nextEveryS, kind = "") => {
    [values, length, everyS] = [nextValues, nextLength, nextEveryS];
    const most = Math.max(...values.filter((value) => value !== null), 0);
    scale.textContent = most > 0 ? `${format(most)} at most` : "";
    start.textContent = `${duration(length * everyS)} ago`;
    show(place, curve(values, length, most || 1, kind));
    point();
  };
  return { element, update };
}

/** Draw a curve through values, the newest at the right; null is a gap. */
function curve(values, length, most, kind) {
  const at = (place) => (WIDTH * (length - values.length + place + 0.5)) / length;
  const runs = [];
  let run = [];
  values.forEach((value, place) => {
    if (value === null) {
      if (run.length) runs.push(run);
      run = [];
    } else {
      run.push([at(place).toFixed(1), (HEIGHT - 2 - ((HEIGHT - 6) * value) / most).toFixed(1)]);
    }
  });
  if (run.length) runs.push(run);
  return svg("svg", { class: `spark ${kind}`, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none",
    "aria-hidden": "true", focusable: "false" },
  svg("line", { x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1, class: "base" }),
  runs.map((points) => [
    svg("path", { class: "area", d: `M${points[0][0]} ${HEIGHT - 1}L${points.map((p) => p.join(" ")).join("L")}`
      + `L${points.at(-1)[0]} ${HEIGHT - 1}Z` }),
    svg("polyline", { class: "curve", points: points.map((p) => p.join(",")).join(" ") }),
  ]));
}

/** Draw parts of a whole as one bar; the table beside it has the figures. */
export function bar(parts) {
  const all = parts.reduce((sum, [, value]) => sum + value, 0);
  let start = 0;
  return svg("svg", { class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true",
    focusable: "false" },
  svg("rect", { class: "empty", x: 0, y: 0, width: 100, height: 6 }),
  parts.map(([kind, value]) => {
    const width = all > 0 ? (100 * value) / all : 0;
    const part = svg("rect", { class: kind, x: start, y: 0, width, height: 6 });
    start += width;
    return part;
  }));
}
