// The releases of each tier, and what may be done to them: activate, roll back, canary.

import { get, post } from "./api.js";
import { confirm, percentField } from "./confirm.js";
import { byId, h, muted, pill, show, table } from "./dom.js";
import { count, share, time } from "./format.js";

const EVERY_MS = 15_000;
// What can be made live.
const COMMITTED = ["ready", "superseded", "withdrawn"];
const KINDS = { live: "good", dropping: "warn" };

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
  } catch (problem) {
    shown = "";
    show(byId("releases-body"), h("p", { class: "notice bad" }, `The catalogues cannot be read: ${problem.message}.`));
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
    ["Created", (one) => time(one.created_at), "number extra"],
    ["Superseded", (one) => time(one.superseded_at), "number extra spare"],
  ];
  if (tier.changeable) columns.push(["Change", (one) => changes(tier, one), "actions"]);
  return h("div", { class: "tier" }, head, canaryOf(tier),
    table(`Releases of ${tier.tier}`, columns, [...tier.releases].reverse()));
}

function states(tier, one) {
  const found = [pill(one.state, KINDS[one.state])];
  if (tier.canary?.release === one.release) found.push(" ", pill(`canary, ${tier.canary.percent} %`, "warn"));
  return found;
}

function changes(tier, one) {
  if (!COMMITTED.includes(one.state)) return null;
  const buttons = [h("button", { type: "button", "aria-label": `Activate ${one.release}…`,
    onclick: () => activate(tier, one.release) }, "Activate…")];
  if (tier.canary === null) { // a service that knows no canaries says nothing of them
    buttons.push(" ", h("button", { type: "button", "aria-label": `Canary of ${one.release}…`,
      onclick: () => startCanary(tier, one.release) }, "Canary…"));
  }
  return buttons;
}

function canaryOf(tier) {
  if (!tier.canary) return null;
  const { release, percent } = tier.canary;
  return h("div", { class: "notice warn row" },
    h("span", { class: "grow" }, "Canary: ", h("span", { class: "code" }, release), ` answers ${percent} % of the users.`),
    tier.changeable ? [
      h("button", { type: "button", onclick: () => endCanary(tier, "promote") }, "Promote…"),
      h("button", { type: "button", onclick: () => endCanary(tier, "abort") }, "Abort…")] : null);
}

function activate(tier, release) {
  confirm({
    title: `Activate ${release}?`,
    text: tier.live
      ? `It takes the place of ${tier.live} in ${tier.store}. All who serve this store switch within seconds; no data moves, `
        + "and a rollback undoes it."
      : `Nothing is live in ${tier.store} yet. All who serve this store begin to serve it within seconds.`,
    action: "Activate",
    fill: difference(tier, release),
    act: async () => changed(await post(`v1/releases/${encodeURIComponent(release)}/activate`)),
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

function startCanary(tier, release) {
  const field = percentField();
  confirm({
    title: `Answer some users out of ${release}?`,
    text: `The others stay with ${tier.live}. A user stays on one side as long as the canary lasts.`,
    action: "Start the canary",
    fill: (body, closed) => {
      const place = h("div");
      show(body, field, place);
      difference(tier, release)(place, closed);
    },
    act: async () => changed(await post(`v1/releases/${encodeURIComponent(release)}/canary?percent=`
      + encodeURIComponent(field.querySelector("input").value))),
  });
}

function endCanary(tier, how) {
  const { release, percent } = tier.canary;
  confirm({
    title: how === "promote" ? `Promote the canary ${release}?` : `Abort the canary ${release}?`,
    text: how === "promote" ? `All users are answered out of it, in the place of ${tier.live}.`
      : `Its ${percent} % of the users are answered out of ${tier.live} again.`,
    action: how === "promote" ? "Promote" : "Abort",
    fill: how === "promote" ? difference(tier, release) : null,
    act: async () => changed(await post(`v1/releases/canary/${how}?if_canary=${encodeURIComponent(release)}`)),
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
