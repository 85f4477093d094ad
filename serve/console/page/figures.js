// The live figures: tiles with their curves, and the tables of tiers, routes, releases, sources and workers.

import { bar, sparkline } from "./chart.js";
import { byId, h, KINDS, liveTable, pill, show } from "./dom.js";
import { DASH, count, duration, latency, rate, share } from "./format.js";

const LENGTH = 300;
const SOURCES = [
  ["personal", "a user's own list"],
  ["similar", "similar items"],
  ["popular", "the popular list, as requested"],
  ["unknown", "the popular list, as there is no own one"],
  ["unreadable", "the popular list, as no store could be read"],
];

let points = [];

const TILES = ["Requests", "Latency, p99", "Failed, 5xx", "Own lists", "Workers"].map((title) => {
  const tile = { value: h("p", { class: "value" }, DASH), sub: h("p", { class: "sub" }, " "), chart: h("div") };
  tile.element = h("div", { class: "tile" }, h("h3", {}, title), tile.value, tile.sub, tile.chart);
  return tile;
});

const showTiers = liveTable(byId("tiers"), "Tiers, in the order in which they are read", [
  ["Tier", (tier) => tier.tier],
  ["Circuit", (tier) => circuit(tier)],
  ["Release", (tier) => tier.releases.join(", ") || DASH, "code"],
  ["Reads/s", (tier) => rate(tier.rate), "number"],
  ["p99", (tier) => latency(tier.p99), "number"],
  ["Failed/s", (tier) => rate(tier.failed), "number"],
  ["Cached", (tier) => (tier.cached_share === null ? DASH : share(tier.cached_share, 1)), "number"],
  ["Catalogue", (tier) => duration(tier.catalogue_age_s), "number"],
], "No worker reports a tier.");

const showRoutes = liveTable(byId("routes"), "Requests by route", [
  ["Route", (route) => `${route.method} ${route.route}`, "code"],
  ["/s", (route) => rate(route.rate), "number"],
  ["p50", (route) => latency(route.p50), "number"],
  ["p90", (route) => latency(route.p90), "number"],
  ["p99", (route) => latency(route.p99), "number"],
  ["4xx/s", (route) => rate(route.refused), "number"],
  ["5xx/s", (route) => rate(route.failed), "number"],
], "No requests in the last seconds; probes are not counted here.");

const showReleases = liveTable(byId("by-release"), "Lookups by release", [
  ["Release", (one) => one.release, "code"],
  ["Lists/s", (one) => rate(one.rate), "number"],
  ["Found", (one) => share(one.hit, one.rate), "number"],
  ["Unreadable/s", (one) => rate(one.error), "number"],
  ["Age", (one) => duration(one.age_s), "number"],
], "No worker serves a release.");

const showWorkers = liveTable(byId("workers"), "Workers", [
  ["Worker", (worker) => String(worker.worker)],
  ["State", (worker) => pill(worker.status, KINDS[worker.status])],
  ["Process", (worker) => String(worker.pid ?? DASH), "number"],
  ["Release", (worker) => releasesOf(worker), "code"],
  ["Connections", (worker) => (worker.connections === undefined ? DASH : count(worker.connections)), "number"],
  ["Loop late by", (worker) => (worker.lag_ms === undefined ? DASH : `${worker.lag_ms.toFixed(1)} ms`), "number"],
  ["Up", (worker) => (worker.started_at ? duration(Date.now() / 1000 - worker.started_at) : DASH), "number"],
], "No worker has reported yet.");

const sourceBar = h("div");
const sourceTable = h("div");
const showSources = liveTable(sourceTable, "Where lists come from", [
  ["Lists", (one) => [h("span", { class: `swatch ${one.name}`, "aria-hidden": "true" }), one.text]],
  ["/s", (one) => rate(one.value), "number"],
  ["Share", (one) => share(one.value, one.all), "number"],
], "");

export function start() {
  show(byId("tiles"), TILES.map((tile) => tile.element));
}

/** Take what was before the page was opened. */
export function takeHistory(history) {
  points = history.points.slice(-LENGTH);
}

/** Show the figures of this second. */
export function takeFigures(figures) {
  if (figures.point) points = [...points, figures.point].slice(-LENGTH);
  const status = byId("status");
  if (status.textContent !== figures.status) {
    status.textContent = figures.status;
    status.className = `pill ${KINDS[figures.status] ?? ""}`;
  }
  showNotices(noticesOf(figures));
  showTiles(figures);
  showTiers(figures.tiers);
  showRoutes(figures.routes);
  showReleases(figures.releases);
  showWorkers(figures.workers);
  const all = SOURCES.reduce((sum, [name]) => sum + figures.sources[name], 0);
  if (!byId("sources").contains(sourceTable)) show(byId("sources"), sourceBar, sourceTable);
  show(sourceBar, bar(SOURCES.map(([name]) => [name, figures.sources[name]])));
  showSources(SOURCES.map(([name, text]) => ({ name, text, value: figures.sources[name], all })));
}

/** Say that the figures are old. */
export function disconnected(sentence) {
  const status = byId("status");
  status.textContent = "no connection";
  status.className = "pill bad";
  showNotices([["bad", sentence]]);
}

function showTiles({ total, sources, shed, workers, window_s: seconds }) {
  const [requests, late, failed, own, running] = TILES;
  const curve = (name) => points.map((point) => point[name]);
  const all = SOURCES.reduce((sum, [name]) => sum + sources[name], 0);
  const instead = sources.unknown + sources.unreadable;
  const lost = Object.values(shed).reduce((sum, value) => sum + value, 0);
  set(requests, [rate(total.rate), " /s"], `over the last ${Math.round(seconds)} s`, sparkline(curve("rate"), LENGTH));
  set(late, latency(total.p99), `p50 ${latency(total.p50)} · p90 ${latency(total.p90)}`,
    sparkline(curve("p99"), LENGTH));
  set(failed, [rate(total.failed), " /s"], `${rate(total.refused)} /s refused, 4xx · ${rate(lost)} /s shed`,
    sparkline(curve("failed"), LENGTH, points.some((point) => point.failed) ? "failing" : ""));
  failed.element.classList.toggle("failing", total.failed > 0);
  set(own, all > 0 ? share(all - instead, all) : DASH, `${rate(instead)} /s got the popular list instead`,
    bar(SOURCES.map(([name]) => [name, sources[name]])));
  const of = (...wanted) => workers.filter((worker) => wanted.includes(worker.status)).length;
  const answering = of("ready", "degraded");
  const open = workers.reduce((sum, worker) => sum + (worker.connections ?? 0), 0);
  const lag = Math.max(0, ...workers.map((worker) => worker.lag_ms ?? 0));
  set(running, `${answering} of ${workers.length}`, `${of("degraded") ? `answer, ${of("degraded")} of them degraded` : "answer"}`
    + ` · ${count(open)} connections · event loops late by ${lag.toFixed(1)} ms at most`, null);
  running.element.classList.toggle("failing", answering < workers.length);
}

function set(tile, value, sub, chart) {
  show(tile.value, value);
  tile.sub.textContent = sub;
  show(tile.chart, chart);
}

function circuit(tier) {
  if (!tier.open) return tier.releases.length ? pill("closed", "good") : pill("not read");
  return pill(tier.open === tier.workers ? "open" : `open in ${tier.open} of ${tier.workers}`, "bad");
}

function releasesOf(worker) {
  if (!worker.releases?.length) return DASH;
  const names = [...new Set(worker.releases.map((each) => each.release ?? "none"))];
  return names.length === 1 ? names[0] : worker.releases.map((each) => `${each.tier}: ${each.release ?? "none"}`).join(", ");
}

function noticesOf({ status, tiers, workers }) {
  const found = [];
  if (status === "not ready") found.push(["bad", "No worker can answer yet; what is wrong stands below."]);
  for (const tier of tiers) {
    for (const detail of tier.details) found.push([tier.releases.length ? "warn" : "bad", `${tier.tier}: ${detail}`]);
    for (const warning of tier.warnings) found.push(["warn", `${tier.tier}: ${warning}`]);
  }
  for (const worker of workers) {
    if (worker.status === "silent") found.push(["bad", `worker ${worker.worker} reports nothing: it is stuck, or starts.`]);
    for (const warning of worker.warnings ?? []) found.push(["warn", warning]);
  }
  const known = new Set();
  return found.filter(([, text]) => !known.has(text) && known.add(text));
}

let noticed = "";

/** Announced where they change only. */
function showNotices(notices) {
  const now = JSON.stringify(notices);
  if (now === noticed) return;
  noticed = now;
  show(byId("notices"), notices.map(([kind, text]) => h("p", { class: `notice ${kind}` }, text)));
}
