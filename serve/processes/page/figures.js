// The live figures: tiles with their curves, and the tables of tiers, routes, releases, sources and workers.

import { get } from "./api.js";
import { bar, liveCurve } from "./chart.js";
import { byId, h, KINDS, liveTable, pill, show } from "./dom.js";
import { DASH, count, duration, latency, rate, share, time } from "./format.js";

const SOURCES = [
  ["personal", "a user's own list"],
  ["similar", "similar items"],
  ["popular", "the popular list, as requested"],
  ["unknown", "the popular list, as there is no own one"],
  ["unreadable", "the popular list, as no store could be read"],
];

// Points of the last minutes and of the last hour, and which of the two is shown.
let histories = { short: { seconds: 300, every_s: 1, points: [] }, long: { seconds: 3600, every_s: 10, points: [] } };
let chosen = "short";

// The hour of all pods, if there is one, and whose curves are shown; when it is read again.
const HOUR_EVERY_MS = 10_000;
let hour = { says: "", points: null };
let hourDue = 0;

const perSecond = (value) => `${rate(value)} /s`;
const TILES = [["Requests", "rate", perSecond], ["Latency, p99", "p99", latency], ["Failed, 5xx", "failed", perSecond],
  ["Own lists"], ["Workers"]].map(([title, name, format]) => {
  const curve = name ? liveCurve(format) : null;
  const tile = { name, curve, value: h("p", { class: "value" }, DASH), sub: h("p", { class: "sub" }, " "),
    chart: h("div", {}, curve?.element) };
  tile.element = h("div", { class: "tile" }, h("h3", {}, title), tile.value, tile.sub, tile.chart);
  return tile;
});

const showTiers = liveTable(byId("tiers"), "Tiers, in the order in which they are read", [
  ["Tier", (tier) => tier.tier],
  ["Store", (tier) => health(tier)],
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

const showServed = liveTable(byId("served"), "Clicks and popular lists by release", [
  ["Release", (one) => one.release, "code"],
  ["First seen", (one) => time(one.since), "number"],
  ["Lists", (one) => count(one.hit + one.miss + one.error), "number"],
  ["Popular list instead", (one) => share(one.miss + one.error, one.hit + one.miss + one.error), "number"],
  ["Lists shown", (one) => count(one.shown), "number"],
  ["Clicks per list", (one) => share(one.clicks, one.shown, 2), "number"],
], "No release was served yet.");

const showSides = liveTable(byId("canary-sides"), "The live release and the canary, side by side", [
  ["", (one) => one.name],
  ["Live", (one) => one.live, "number"],
  ["Canary", (one) => one.canary, "number"],
], "");

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
  chosen = byId("span").value; // a browser may keep it when the page is loaded again
  byId("span").addEventListener("change", (event) => {
    chosen = event.target.value;
    hourDue = 0;
    showCurves();
    readHour();
  });
}

/** Take what was before the page was opened. */
export function takeHistory(history) {
  histories = history;
}

function take(name, point) {
  const { seconds, every_s: everyS, points } = histories[name];
  if (point) histories[name].points = [...points, point].slice(-seconds / everyS);
}

/** Read the hour of all pods, if the hour is shown and it is time. */
async function readHour() {
  if (chosen !== "long" || Date.now() < hourDue) return;
  hourDue = Date.now() + HOUR_EVERY_MS;
  hour = await get("console/hour").catch(({ message }) => ({ says: `This pod only: ${message}.`, points: null }));
  showCurves();
}

function showCurves() {
  const isHour = chosen === "long";
  const { seconds, every_s: everyS, points } = isHour && hour.points ? hour : histories[chosen];
  const says = isHour ? hour.says : "This pod only.";
  if (byId("whose").textContent !== says) byId("whose").textContent = says; // announced where it changes only
  for (const { name, curve } of TILES.filter((tile) => tile.curve)) {
    const failing = name === "failed" && points.some((point) => point.failed);
    curve.update(points.map((point) => point[name]), seconds / everyS, everyS, failing ? "failing" : "");
  }
}

/** Show the figures of this second. */
export function takeFigures(figures) {
  take("short", figures.point);
  take("long", figures.long_point);
  const status = byId("status");
  if (status.textContent !== figures.status) {
    status.textContent = figures.status;
    status.className = `pill ${KINDS[figures.status] ?? ""}`;
  }
  showNotices(noticesOf(figures));
  showTiles(figures);
  showCurves();
  readHour();
  showCanary(figures);
  showTiers(figures.tiers);
  showRoutes(figures.routes);
  showReleases(figures.releases);
  showServed(figures.served.releases);
  const { kept, since } = figures.served;
  byId("served-extent").textContent = `The last ${kept} releases since ${time(since)}, when this process started, of this `
    + "pod only. Clicks that come after their release was replaced do not count; of several tiers, all count for the first.";
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
  const all = SOURCES.reduce((sum, [name]) => sum + sources[name], 0);
  const instead = sources.unknown + sources.unreadable;
  const lost = Object.values(shed).reduce((sum, value) => sum + value, 0);
  set(requests, [rate(total.rate), " /s"], `over the last ${Math.round(seconds)} s`);
  set(late, latency(total.p99), `p50 ${latency(total.p50)} · p90 ${latency(total.p90)}`);
  set(failed, [rate(total.failed), " /s"], `${rate(total.refused)} /s refused, 4xx · ${rate(lost)} /s shed`);
  failed.element.classList.toggle("failing", total.failed > 0);
  set(own, all > 0 ? share(all - instead, all) : DASH, `${rate(instead)} /s got the popular list instead`);
  show(own.chart, bar(SOURCES.map(([name]) => [name, sources[name]])));
  const of = (...wanted) => workers.filter((worker) => wanted.includes(worker.status)).length;
  const answering = of("ready", "degraded");
  const open = workers.reduce((sum, worker) => sum + (worker.connections ?? 0), 0);
  const lag = Math.max(0, ...workers.map((worker) => worker.lag_ms ?? 0));
  set(running, `${answering} of ${workers.length}`, `${of("degraded") ? `answer, ${of("degraded")} of them degraded` : "answer"}`
    + ` · ${count(open)} connections · event loops late by ${lag.toFixed(1)} ms at most`);
  running.element.classList.toggle("failing", answering < workers.length);
}

function set(tile, value, sub) {
  show(tile.value, value);
  tile.sub.textContent = sub;
}

/** What a tier's circuit breaker means for who reads this. */
function health(tier) {
  if (!tier.open) return tier.releases.length ? pill("healthy", "good") : pill("not read");
  return pill(tier.open === tier.workers ? "failing, not read" : `failing in ${tier.open} of ${tier.workers}`, "bad");
}

/** The canary and the live release of a tier, side by side; hidden while there is no canary. */
function showCanary({ tiers }) {
  const found = tiers.find((tier) => tier.canary);
  byId("canary").hidden = !found;
  if (!found) return;
  const { canary, clicks, tier, users } = found;
  const live = found.releases.find((name) => name !== canary) ?? "nothing"; // a flip may name two
  const of = (side) => ({ ...users[side], rate: users[side].hit + users[side].miss + users[side].error });
  const all = of("live").rate + of("canary").rate;
  const line = (name, text) => ({ name, live: text(of("live"), "live"), canary: text(of("canary"), "canary") });
  showSides([
    line("Users' lists/s", (one) => `${rate(one.rate)} (${share(one.rate, all, 0)})`),
    line("Popular list instead", (one) => share(one.miss + one.error, one.rate)),
    line("Could not be read", (one) => share(one.error, one.rate)),
    ...(clicks.live_shown + clicks.canary_shown ? [
      line("Lists shown since the canary started", (_, side) => count(clicks[`${side}_shown`])),
      line("Clicks per list shown", (_, side) => share(clicks[side], clicks[`${side}_shown`], 2)),
      line("95 % interval", (_, side) => interval(clicks[`${side}_interval`])),
    ] : []),
  ]);
  byId("canary-verdict").textContent = `In ${tier}: ${live} is live, ${canary} is the canary.`;
}

const interval = (bounds) => (bounds ? bounds.map((bound) => share(bound, 1, 2)).join(" to ") : DASH);

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
