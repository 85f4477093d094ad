// The releases of each tier, and what may be done to them: activate, roll back, canary.

import { byId, button, code, h, muted, notice, path, pill, request, show, table, time } from "./page.js";

const EVERY_MS = 15_000;
// What can be made live.
const COMMITTED = ["ready", "superseded", "withdrawn"];
const KINDS = { live: "good", dropping: "warn" };

// Of the log.
const SHOWN_CHANGES = 10;
const LOG = [
  ["Time", (one) => time(one.at), "number"],
  ["Live", (one) => [one.live ?? "none", one.canary ? `, canary ${one.canary} of ${one.percent} %` : ""], "code"],
  ["By", (one) => one.by],
  ["Reason", (one) => one.reason ?? ""],
];

const isExperiment = (tier) => tier.experiment?.ended_at === null;
const refusedBy = (one) => (["ready", "withdrawn"].includes(one?.state) ? one.refused_by.join(", ") : "");
/** The ends of a question and of a button for a release that gates or services may have refused, and the parameter of the request. */
const despite = (by) => (by ? [`, refused by ${by}`, " all the same", { force: "true" }] : ["", "", {}]);

let canChange = false;
// What the last change could not do after it took place.
let warnings = [];

/** Show the releases, now and regularly; *service* is what the service says of itself. */
export function start(service) {
  canChange = service.changes;
  setInterval(refresh, EVERY_MS);
  return refresh();
}

/** Read the catalogues anew. */
export async function refresh() {
  try {
    const { tiers } = await request("v1/releases");
    const rights = canChange ? "The store of --admin-store is none of these tiers, or cannot be read now: nothing is changed here."
      : "Releases are shown and not changed here: this service was started without --admin-store.";
    show(byId("releases-body"), tiers.some((tier) => tier.changeable) ? null : muted(rights),
      warnings.map((text) => notice("warn", `After the last change: ${text}.`)), tiers.map(tierOf));
  } catch (problem) {
    show(byId("releases-body"), notice("bad", `The catalogues cannot be read: ${problem.message}.`));
  }
}

function tierOf(tier) {
  const head = h("div", { class: "row head" },
    h("h3", {}, tier.tier, h("span", { class: "muted code" }, ` ${tier.store}`)),
    tier.changeable && tier.previous ? button("Roll back…", () => rollBack(tier)) : null);
  if (tier.error) return h("div", { class: "tier" }, head, notice("bad", tier.error));
  const columns = [
    ["Release", (one) => one.release, "code"],
    ["State", (one) => states(tier, one)],
    ["Created", (one) => time(one.created_at), "number extra"],
    ["Superseded", (one) => time(one.superseded_at), "number extra"],
  ];
  if (tier.changeable) columns.push(["Change", (one) => changes(tier, one), "actions"]);
  return h("div", { class: "tier" }, head, canaryOf(tier), tier.releases.length
    ? table(`Releases of ${tier.tier}`, columns, [...tier.releases].reverse()) : muted("There is no release in this store yet."),
    tier.log.length ? table(`Log of ${tier.tier}`, LOG, tier.log.slice(0, SHOWN_CHANGES)) : null);
}

function states(tier, one) {
  const by = refusedBy(one);
  const found = [by ? pill(`refused by ${by}`, "bad") : pill(one.state, KINDS[one.state])];
  if (tier.canary?.release === one.release)
    found.push(" ", pill(`${isExperiment(tier) ? "arm B" : "canary"}, ${tier.canary.percent} %`, "warn"));
  return found;
}

function changes(tier, one) {
  if (!COMMITTED.includes(one.state)) return null;
  return [button("Activate…", () => activate(tier, one), `Activate ${one.release}…`), tier.canary || !tier.live ? null
    : [" ", button("Canary…", () => startCanary(tier, one), `Canary of ${one.release}…`)]];
}

function canaryOf(tier) {
  if (!tier.canary) return null;
  return h("div", { class: "notice warn row" },
    h("span", { class: "grow" }, isExperiment(tier) ? ["Arm B until ", time(tier.experiment.ends_at)] : "Canary", ": ",
      code(tier.canary.release), ` for ${tier.canary.percent} % of the users.`),
    tier.changeable ? [button("Promote…", () => endCanary(tier, "promote")), button("Abort…", () => endCanary(tier, "abort"))]
      : null);
}

/** Ask before a change and for its reason, and send both; *query* may be a function that is called then. */
function change(route, query, { title, text, action, body = [] }) {
  const reason = h("input", { id: "reason", maxlength: "300" });
  const fields = [...body, h("div", { class: "field" }, h("label", { for: "reason" }, "Reason"), reason)];
  confirm({ title, text, action, body: fields, act: async () => {
    const wanted = typeof query === "function" ? query() : query;
    const answer = await request(path(`v1/releases/${route}`, { ...wanted, reason: reason.value }), "POST");
    warnings = answer.warnings ?? [];
    await refresh();
  } });
}

function activate(tier, { release, ...one }) {
  const [refused, anyway, force] = despite(refusedBy(one));
  change(`${encodeURIComponent(release)}/activate`, force, {
    title: `Activate ${release}${refused}?`,
    text: tier.live ? `It takes the place of ${tier.live} in ${tier.store}. All services of this store switch within seconds; `
      + "no data moves, and a rollback undoes it." : `Nothing is live in ${tier.store} yet.`,
    action: `Activate${anyway}`,
  });
}

function rollBack(tier) {
  change("rollback", { if_live: tier.live }, {
    title: `Roll back to ${tier.previous}?`,
    text: `${tier.live} is withdrawn, and ${tier.previous}, which was live before it, becomes live again in ${tier.store}. `
      + "No data moves.",
    action: "Roll back",
  });
}

function startCanary(tier, { release, ...one }) {
  const [refused, anyway, force] = despite(refusedBy(one));
  const field = h("input", { id: "percent", type: "number", min: "0.1", max: "99", step: "any", value: "5", required: "" });
  change(`${encodeURIComponent(release)}/canary`, () => ({ ...force, percent: field.value }), {
    title: `Answer some users out of ${release}${refused}?`,
    text: `The others stay with ${tier.live}. A user stays on one side as long as the canary lasts.`,
    action: `Start the canary${anyway}`,
    body: [h("div", { class: "field" }, h("label", { for: "percent" }, "Percent of the users"), field)],
  });
}

function endCanary(tier, how) {
  const { release, percent } = tier.canary;
  const isPromoted = how === "promote";
  const by = isPromoted ? refusedBy(tier.releases.find((one) => one.release === release)) : "";
  const [refused, anyway, force] = despite(by);
  change(`canary/${how}`, { ...force, if_canary: release }, {
    title: isPromoted ? `Promote the canary ${release}${refused}?` : `Abort the canary ${release}?`,
    text: isPromoted ? `All users are answered out of it, in the place of ${tier.live}.`
      : `Its ${percent} % of the users are answered out of ${tier.live} again.`,
    action: isPromoted ? `Promote${anyway}` : "Abort",
  });
}

let confirmed;

/** Show what is about to change; *act* does it when it is confirmed, and throws what went wrong. */
export function confirm({ title, text, action, body = null, act }) {
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-ok").textContent = action;
  byId("confirm-ok").disabled = false;
  byId("confirm-error").hidden = true;
  byId("confirm-body").replaceChildren(...[body].flat().filter((each) => each !== null));
  confirmed = act;
  byId("confirm").showModal();
  byId("confirm-cancel").focus(); // what changes nothing comes first
}

byId("confirm-cancel").addEventListener("click", () => byId("confirm").close());
byId("confirm-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  byId("confirm-ok").disabled = true;
  byId("confirm-error").hidden = true;
  try {
    await confirmed();
    byId("confirm").close();
  } catch (problem) {
    byId("confirm-error").textContent = problem.message;
    byId("confirm-error").hidden = false;
    byId("confirm-ok").disabled = false;
  }
});
