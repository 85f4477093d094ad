// The releases of each tier, and what may be done to them: activate, roll back, canary.

import { get, post } from "./api.js";
import { confirm, percentField } from "./confirm.js";
import { byId, h, muted, pill, show, table } from "./dom.js";
import { DASH, count, share, time } from "./format.js";

const EVERY_MS = 15_000;
// What can be made live.
const COMMITTED = ["ready", "superseded", "withdrawn"];
const isComplete = ({ state }) => state === "live" || COMMITTED.includes(state);
const KINDS = { live: "good", dropping: "warn" };

// What manifests say, by tier and release; a promise while it is being read.
const described = new Map();
const refusedBy = (one) => (one.state === "ready" ? one.refused_by?.join(", ") : "") ?? "";
/** The end of a question about a release, of a label and of a path, where gates refused it. */
const despite = (by) => (by ? [`, refused by ${by}`, " all the same", "force=true"] : ["", "", ""]);

let shown = "";
let service = { changes: false, diff_is_charged: false };

/** Show the releases, now and time and again; *about* is what the service says of itself. */
export function start(about) {
  service = about;
  setInterval(refresh, EVERY_MS);
  return refresh();
}

/** Read the catalogues anew, and show them where they have changed. */
export async function refresh() {
  try {
    const { tiers } = await get("v1/releases");
    const now = JSON.stringify(tiers);
    if (now === shown) return;
    shown = now;
    show(byId("releases-body"), rights(tiers), tiers.map(tierOf));
    show(byId("newest-body"), newestOf(tiers));
  } catch (problem) {
    shown = "";
    show(byId("releases-body"), h("p", { class: "notice bad" }, `The catalogues cannot be read: ${problem.message}.`));
    show(byId("newest-body"), muted("It is not known, because the catalogues cannot be read."));
  }
}

function rights(tiers) {
  if (!service.changes) {
    return muted("Releases are shown and not changed here: this service was started without --admin-store.");
  }
  if (!tiers.some((tier) => tier.changeable)) {
    return muted("The store of --admin-store is none of these tiers, or cannot be read now; so nothing is changed here.");
  }
  return null;
}

function tierOf(tier) {
  const head = h("div", { class: "row head" },
    h("h3", {}, tier.tier, h("span", { class: "muted code" }, ` ${tier.store}`)),
    tier.changeable && tier.previous
      ? h("button", { type: "button", onclick: () => rollBack(tier) }, "Roll back…") : null);
  if (tier.error) return h("div", { class: "tier" }, head, h("p", { class: "notice bad" }, tier.error));
  if (!tier.releases.length) return h("div", { class: "tier" }, head, muted("There is no release in this store yet."));
  const columns = [
    ["Release", (one) => one.release, "code"],
    ["State", (one) => states(tier, one)],
    ["Engine", (one) => about(tier, one, ({ engine }) => engine ?? DASH), "extra"],
    ["Rows", (one) => about(tier, one, ({ rows }) => count(rows)), "number extra"],
    ["nDCG", (one) => about(tier, one, quality), "number extra"],
    ["Gates", (one) => about(tier, one, gatesOf), "extra spare"],
    ["Created", (one) => time(one.created_at), "number extra spare"],
    ["Superseded", (one) => time(one.superseded_at), "number extra spare"],
  ];
  if (tier.changeable) columns.push(["Change", (one) => changes(tier, one), "actions"]);
  return h("div", { class: "tier" }, head, canaryOf(tier),
    table(`Releases of ${tier.tier}`, columns, [...tier.releases].reverse()));
}

/** The newest release of the store that is changed here, or read first: its run, its gates, and what is next. */
function newestOf(tiers) {
  const tier = tiers.find((each) => each.changeable) ?? tiers.find((each) => !each.error);
  if (!tier) return muted("It is not known, because no catalogue can be read.");
  const next = h("p", { class: "notice" }, `Next, in ${tier.tier}: ${tier.next}`);
  const [one] = tier.releases.filter(isComplete).sort((a, b) => b.created_at - a.created_at);
  if (!one) return next;
  return [next, h("p", {}, h("span", { class: "code" }, one.release), ` in ${tier.tier} `, states(tier, one)),
    about(tier, one, (found) => runOf(one, found), h("div", {}, muted("Its manifest is not read yet.")))];
}

function runOf(one, { engine, trained_at: trained, rows, gates, forced, ...found }) {
  const facts = [
    ["Made", time(one.created_at)],
    ["Model", [engine ?? DASH, trained ? `, trained ${time(Date.parse(trained) / 1000)}` : ""]],
    ["Rows", count(rows)],
    ["nDCG", quality(found)],
  ];
  return h("div", { class: "answer" },
    h("dl", { class: "facts" }, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    gates.length ? table("What each gate said", [
      ["Gate", (each) => each.gate, "code"],
      ["Measured", (each) => figure(each.measured), "number"],
      ["Limit", (each) => `${each.at_most ? "≤" : "≥"} ${figure(each.bound)}`, "number"],
      ["Verdict", ({ passed }) => (passed ? pill("passed", "good") : forced ? pill("forced", "warn") : pill("failed", "bad"))],
      ["Note", (each) => each.note],
    ], gates) : muted("It was published without gates."));
}

const figure = (value) => (value === null ? DASH : String(Number(value.toPrecision(5))));

/** Fill a place with what *text* makes of a release's manifest, once that is read. */
function about(tier, one, text, place = h("span", {}, DASH)) {
  if (!isComplete(one)) return place;
  const query = `tier=${encodeURIComponent(tier.tier)}&release=${encodeURIComponent(one.release)}`;
  if (!described.has(query)) {
    described.set(query, get(`console/release?${query}`).catch(() => {
      described.delete(query); // read again when the table is
      return null;
    }));
  }
  described.get(query).then((found) => found && place.replaceChildren(text(found)));
  return place;
}

const quality = ({ ndcg, k }) => (ndcg === null ? DASH : h("span", { title: `nDCG@${k} on the test` }, ndcg.toFixed(4)));

function gatesOf({ gates }) {
  const failed = gates.filter((each) => !each.passed).map((each) => each.gate);
  if (!gates.length) return DASH;
  return failed.length ? pill(`failed: ${failed.join(", ")}`, "warn") : pill(`${gates.length} passed`, "good");
}

function states(tier, one) {
  const by = refusedBy(one);
  const found = [by ? pill(`refused by ${by}`, "bad") : pill(one.state, KINDS[one.state])];
  if (tier.canary?.release === one.release) found.push(" ", pill(`canary, ${tier.canary.percent} %`, "warn"));
  return found;
}

function changes(tier, one) {
  if (!COMMITTED.includes(one.state)) return null;
  const buttons = [h("button", { type: "button", "aria-label": `Activate ${one.release}…`,
    onclick: () => activate(tier, one) }, "Activate…")];
  if (tier.canary === null) { // a service that knows no canaries says nothing of them
    buttons.push(" ", h("button", { type: "button", "aria-label": `Canary of ${one.release}…`,
      onclick: () => startCanary(tier, one) }, "Canary…"));
  }
  return buttons;
}

function canaryOf(tier) {
  if (!tier.canary) return null;
  const { release, percent } = tier.canary;
  return h("div", { class: "notice warn row" },
    h("span", { class: "grow" }, "Canary: ", h("span", { class: "code" }, release),
      ` for ${percent} % of the users.`),
    tier.changeable ? [
      h("button", { type: "button", onclick: () => endCanary(tier, "promote") }, "Promote…"),
      h("button", { type: "button", onclick: () => endCanary(tier, "abort") }, "Abort…")] : null);
}

function activate(tier, one) {
  const { release } = one;
  const [refused, anyway, force] = despite(refusedBy(one));
  confirm({
    title: `Activate ${release}${refused}?`,
    text: tier.live
      ? `It takes the place of ${tier.live} in ${tier.store}. All who serve this store switch within seconds; no data moves, `
        + "and a rollback undoes it."
      : `Nothing is live in ${tier.store} yet. All who serve this store begin to serve it within seconds.`,
    action: `Activate${anyway}`,
    fill: difference(tier, release),
    act: async () => changed(await post(`v1/releases/${encodeURIComponent(release)}/activate?${force}`)),
  });
}

function rollBack(tier) {
  confirm({
    title: `Roll back to ${tier.previous}?`,
    text: `${tier.live} is withdrawn, and ${tier.previous}, which was live before it, becomes live again in ${tier.store}. `
      + "No data moves.",
    action: "Roll back",
    fill: difference(tier, tier.previous),
    act: async () => changed(await post(`v1/releases/rollback?if_live=${encodeURIComponent(tier.live)}`)),
  });
}

function startCanary(tier, one) {
  const { release } = one;
  const [refused, anyway, force] = despite(refusedBy(one));
  const field = percentField();
  confirm({
    title: `Answer some users out of ${release}${refused}?`,
    text: `The others stay with ${tier.live}. A user stays on one side as long as the canary lasts.`,
    action: `Start the canary${anyway}`,
    fill: (body, closed) => {
      const place = h("div");
      show(body, field, place);
      difference(tier, release)(place, closed);
    },
    act: async () => changed(await post(`v1/releases/${encodeURIComponent(release)}/canary?${force}&percent=`
      + encodeURIComponent(field.querySelector("input").value))),
  });
}

function endCanary(tier, how) {
  const { release, percent } = tier.canary;
  const isPromoted = how === "promote";
  const by = isPromoted ? refusedBy(tier.releases.find((one) => one.release === release) ?? {}) : "";
  const [refused, anyway, force] = despite(by);
  confirm({
    title: isPromoted ? `Promote the canary ${release}${refused}?` : `Abort the canary ${release}?`,
    text: isPromoted ? `All users are answered out of it, in the place of ${tier.live}.`
      : `Its ${percent} % of the users are answered out of ${tier.live} again.`,
    action: isPromoted ? `Promote${anyway}` : "Abort",
    fill: isPromoted ? difference(tier, release) : null,
    act: async () => changed(await post(`v1/releases/canary/${how}?${force}&if_canary=${encodeURIComponent(release)}`)),
  });
}

const changed = () => refresh();

/** Fill a place with what a release would change for users; where reading costs money, once it is requested. */
function difference(tier, release) {
  return (body, closed) => {
    if (!tier.live || tier.live === release) return;
    const compare = async () => {
      show(body, h("p", { class: "muted" }, "Comparing it with the live release, for 3 s at most… ", h("progress",
        { "aria-label": "Comparing" })));
      try {
        const found = await get(`console/diff?release=${encodeURIComponent(release)}`, { signal: closed });
        show(body, result(found));
      } catch (problem) {
        if (problem.name !== "AbortError") {
          show(body, h("p", { class: "notice warn" }, `What would change is not known: ${problem.message}.`));
        }
      }
    };
    if (!service.diff_is_charged) compare();
    else {
      show(body, muted("To compare the two reads their rows for 3 s at most, which this store charges."),
        h("button", { type: "button", onclick: compare }, "Compare"));
    }
  };
}

function result({ live, release, took_s: seconds, rows, rows_read: read, difference: found }) {
  if (!found) return muted("There is nothing to compare it with.");
  const [now, then] = found.popular_share;
  const facts = [
    ["Users with a list in both", count(found.compared)],
    ["whose first ten items stay as they are", `${count(found.unchanged)} (${share(found.unchanged, found.compared)})`],
    ["Overlap of the first ten items, on average",
      found.overlap_at_10 === null ? "–" : share(found.overlap_at_10, 1)],
    ["Users who lose their list", count(found.only_live)],
    ["Users who get one", count(found.only_release)],
    ...Object.keys(now).map((items) => [`Recommendations that go to the top ${items} items`,
      `${share(now[items], 1)} → ${share(then[items], 1)}`]),
  ];
  const users = found.compared + found.only_live + found.only_release;
  const extent = found.complete
    ? `All ${count(users)} users were compared, in ${seconds} s.`
    : `Compared for ${seconds} s: the first ${count(users)} users in the order of their ids, ${share(read, rows)} of the rows. `
      + "All of them:";
  return [
    h("dl", { class: "facts" }, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    h("p", { class: "muted" }, extent,
      found.complete ? null : h("code", {}, ` hotplate releases diff ${live} ${release}`)),
  ];
}
