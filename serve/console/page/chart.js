// Curves of the last minutes, drawn as SVG.

import { svg } from "./dom.js";

const WIDTH = 240;
const HEIGHT = 40;

/** Draw a curve through values, the newest at the right; null is a gap. It decorates the figure that stands beside it. */
export function sparkline(values, length, kind = "") {
  const most = Math.max(...values.filter((value) => value !== null), 0) || 1;
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
