// The console: signs in where a key is needed, and shows the status, keys and log of the service, and lists of users.

import { DASH, button, byId, clock, code, count, h, isSignedIn, muted, notice, path, pill, request, share, show, signIn,
  table, time } from "./page.js";
import { confirm, refresh, start as startReleases } from "./releases.js";

const EVERY_MS = 2_000;
const LINES = 300;
const KINDS = { ready: "good", degraded: "warn", draining: "warn", starting: "warn", "not ready": "bad", silent: "bad" };
const LEVELS = { warning: "warn", error: "bad", critical: "bad" };

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

/** Ask for a key, and return when one was given. */
function keyGiven(error) {
  const dialog = byId("sign-in");
  byId("sign-in-error").textContent = error;
  byId("sign-in-error").hidden = !error;
  byId("key").value = "";
  byId("status").textContent = "signed out";
  if (!dialog.open) dialog.showModal();
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  return new Promise((resolve) => {
    byId("sign-in-form").addEventListener("submit", (event) => {
      event.preventDefault();
      signIn(byId("key").value.trim());
      byId("key").value = "";
      dialog.close();
      resolve();
    }, { once: true });
  });
}

/** Return what the service says of itself, once the operator has given a key that may see it. */
async function opened() {
  for (;;) {
    try {
      return await request("console/state");
    } catch (problem) {
      if (problem.isUnauthorized) await keyGiven(isSignedIn() ? `${problem.message}.` : "");
      else {
        disconnected(problem.message);
        await pause(EVERY_MS);
      }
    }
  }
}

function disconnected(reason) {
  byId("status").textContent = "no connection";
  byId("status").className = "pill bad";
  show(byId("notices"), notice("bad", `${reason}; what is shown is the last that is known. Trying again.`));
}

let followed = "";

/** Read the state every two seconds; a stopped service comes back, perhaps as another version. */
async function follow() {
  for (let after = 0; ; await pause(EVERY_MS)) {
    try {
      const state = await request(path("console/state", { after }));
      after = state.log.at(-1)?.at ?? after;
      showState(state);
      showLog(state.log);
      const now = JSON.stringify(tiersOf(state.workers).map((tier) => [tier.releases, tier.canary?.release]));
      if (followed && now !== followed) refresh(); // somebody else has changed it, or a flip has ended
      followed = now;
    } catch (problem) {
      if (problem.isUnauthorized) location.reload();
      disconnected(problem.message);
    }
  }
}

/** Return each tier once, with what its workers say of it. */
function tiersOf(workers) {
  const reports = workers.flatMap((worker) => worker.tiers);
  return [...new Set(reports.map((one) => one.tier))].map((tier) => {
    const own = reports.filter((one) => one.tier === tier);
    const all = (values) => [...new Set(values.filter(Boolean))].sort();
    return { tier, workers: own.length, open: own.filter((one) => one.open).length,
      releases: all(own.map((one) => one.release)), details: all(own.map((one) => one.detail)),
      written: all(own.map((one) => one.written_at)).at(0), learnt: all(own.map((one) => one.learnt_until)).at(0),
      rules: all(own.flatMap((one) => one.rules ?? [])),
      warnings: all(own.flatMap((one) => one.warnings)), canary: own.find((one) => one.canary)?.canary };
  });
}

function showState({ status, workers }) {
  const tiers = tiersOf(workers);
  if (byId("status").textContent !== status) byId("status").textContent = status;
  byId("status").className = `pill ${KINDS[status] ?? ""}`;
  const found = tiers.flatMap((tier) => [
    ...tier.details.map((text) => [tier.releases.length ? "warn" : "bad", `${tier.tier}: ${text}`]),
    ...tier.warnings.map((text) => ["warn", `${tier.tier}: ${text}`])]);
  for (const text of new Set(workers.flatMap((worker) => worker.warnings ?? []))) found.push(["warn", text]);
  show(byId("notices"), found.map(([kind, text]) => notice(kind, text)));
  show(byId("workers"), table("Workers", [
    ["Worker", (one) => String(one.worker)],
    ["State", (one) => pill(one.status, KINDS[one.status])],
    ["Process", (one) => String(one.pid ?? DASH), "number"],
    ["Release", (one) => one.release ?? DASH, "code"],
    ["Connections", (one) => (one.pid ? count(one.connections) : DASH), "number"],
    ["Started", (one) => time(one.started_at), "number extra"],
  ], workers), muted(tiers.map((tier) => `${tier.tier}: ${tier.releases.join(", ") || "no release"}`
    + (tier.written ? `, written ${time(tier.written)}` : "")
    + (tier.learnt ? `, newest event ${time(tier.learnt)}` : "")
    + (tier.rules.length ? `, rules: ${tier.rules.join(", ").replaceAll("_", " ")}` : "")
    + (tier.open ? `, failing in ${tier.open} of ${tier.workers} workers` : "")).join(" · "),
  ". Rates, latency and history are in the shipped Grafana dashboards."));
  showCanary(tiers.find((tier) => tier.canary));
}

/** Show what was counted of the canary and of the live release since it started; hidden while there is none. */
function showCanary(tier) {
  byId("canary").hidden = !tier;
  if (!tier) return;
  const { release, live, canary } = tier.canary;
  const line = (name, text) => ({ name, live: text(live), canary: text(canary) });
  const interval = (bounds) => (bounds ? bounds.map((bound) => share(bound, 1, 2)).join(" to ") : DASH);
  show(byId("canary-body"), table("The live release and the canary, side by side", [
    ["", (one) => one.name], ["Live", (one) => one.live, "number"], ["Canary", (one) => one.canary, "number"],
  ], [
    line("Users' lists", (one) => count(one.lookups)),
    line("Popular list instead", (one) => share(one.miss + one.error, one.lookups)),
    line("Could not be read", (one) => share(one.error, one.lookups)),
    line("Lists shown", (one) => count(one.shown)),
    line("Clicks per list shown", (one) => share(one.clicks, one.shown, 2)),
    line("95 % interval", (one) => interval(one.interval)),
  ]), muted(`In ${tier.tier}, since the canary ${release} started. Errors, missing lists and slow reads stop a canary; `
    + "clicks do not."));
}

let lines = [];

function showLog(more) {
  if (!more.length && lines.length) return;
  lines = [...lines, ...more].slice(-LINES);
  const place = byId("log-lines");
  const isAtEnd = place.scrollTop + place.clientHeight >= place.scrollHeight - 8;
  show(place, lines.length ? lines.map((line) => h("p", { class: LEVELS[line.level] ?? "" },
    h("time", {}, clock(line.at)), " ", h("span", { class: "level" }, line.level), " ",
    h("span", { class: "muted" }, `${line.process} ${line.logger}`), " ", line.message,
    line.error ? h("span", { class: "muted" }, ` (${line.error})`) : null)) : muted("Nothing was logged yet."));
  if (isAtEnd) place.scrollTop = place.scrollHeight;
}

// Try it, use it

const SENTENCES = {
  unknown: "No list of this user is known: the popular list stands in.",
  error: "The list could not be read in time: the popular list stands in.",
};

async function tryIt(event) {
  event.preventDefault();
  const place = byId("try-result");
  try {
    const found = await request(path("console/user", { id: byId("try-id").value, list: byId("try-list").value }));
    show(place, h("p", { class: "facts-line" }, pill(found.source, found.status === "ok" ? "good" : "warn"), " out of ",
      code(found.release), found.list ? `, list ${found.list}` : "", `, tier ${found.tier}, read in ${found.took_ms} ms`),
    SENTENCES[found.status] ? notice("warn", SENTENCES[found.status]) : null,
    found.items.length ? table("Items of the list", [
      ["#", (item) => String(found.items.indexOf(item) + 1)],
      ["Item", (item) => [item.title ?? null, h("span", { class: "code block" }, item.id)]],
      ["Score", (item) => (item.score === undefined ? DASH : item.score.toFixed(4)), "number"],
    ], found.items) : muted("The list is empty: all of its items are denied."));
  } catch (problem) {
    show(place, notice("bad", `${problem.message}.`));
  }
}

const quoted = JSON.stringify; // a string in Python and JavaScript, too
const SNIPPETS = {
  curl: (url, key) => `curl${key ? ' --header "X-API-Key: $HOTPLATE_API_KEY"' : ""} '${url.replaceAll("'", "'\\''")}'`,
  Python: (url, key) => `${key ? "import os\n\n" : ""}import httpx

response = httpx.get(
    ${quoted(url)},${key ? '\n    headers={"X-API-Key": os.environ["HOTPLATE_API_KEY"]},' : ""}
    timeout=0.5,
)
response.raise_for_status()
for item in response.json()["items"]:
    print(item["id"], item["score"])`,
  JavaScript: (url, key) => `const response = await fetch(${quoted(url)}, {${
    key ? '\n  headers: { "X-API-Key": process.env.HOTPLATE_API_KEY },' : ""}
  signal: AbortSignal.timeout(500),
});
if (!response.ok) throw new Error((await response.json()).detail);
for (const item of (await response.json()).items) console.log(item.id, item.score);`,
};

/** Show how programs call the service, for the user in "Try it". */
function startUse({ url, reads_take_a_key: takesKey }) {
  const reachable = new URL(url);
  if (["0.0.0.0", "[::]"].includes(reachable.hostname)) reachable.hostname = location.hostname;
  byId("base-url").value = reachable.href.replace(/\/$/, "");
  const draw = () => {
    const base = byId("base-url").value.replace(/\/+$/, "");
    const name = encodeURIComponent(byId("try-list").value.trim());
    const list = `${base}/v1/recommendations/${encodeURIComponent(byId("try-id").value.trim() || "42")}?n=10`
      + (name && `&list=${name}`);
    show(byId("snippet"), h("code", {}, SNIPPETS[byId("language").value](list, takesKey)));
    const link = (to) => h("a", { href: `${base}${to}` }, to);
    show(byId("use-about"), takesKey ? "Requests take a key of the scope read. " : "Requests take no key here. ",
      "All routes: ", link("/docs"), ", ", link("/openapi.json"), ".");
  };
  for (const id of ["base-url", "language", "try-id", "try-list"]) byId(id).addEventListener("input", draw);
  draw();
}

// Keys

async function showKeys() {
  try {
    const { clients } = await request("console/keys");
    byId("keys-form").hidden = clients === null;
    show(byId("keys-body"), clients === null ? muted("This service was started without a file of keys.") : table(
      "Clients and their keys", [
        ["Client", (one) => one.name],
        ["Scopes", (one) => one.scopes.join(", ")],
        ["Keys made", (one) => one.created_at.map((made) => time(made).slice(0, 10)).join(", "), "number"],
        ["Change", (one) => button("Revoke…", () => revoke(one.name), `Revoke ${one.name}…`), "actions"],
      ], clients));
  } catch (problem) {
    show(byId("keys-body"), notice("warn", `${problem.message}.`));
  }
}

async function createKey(event) {
  event.preventDefault();
  try {
    const made = await request(path("console/keys", { name: byId("client").value, scope: byId("scope").value }), "POST");
    show(byId("keys-result"), notice("good", [`The ${made.kind} key of ${made.client}, which cannot be shown again: `,
      code(made.key)]));
    await showKeys();
  } catch (problem) {
    show(byId("keys-result"), notice("bad", `${problem.message}.`));
  }
}

function revoke(name) {
  confirm({
    title: `Revoke all keys of ${name}?`,
    text: "Requests with them are refused within two seconds. hotplate keys revoke can take back one of two keys.",
    action: "Revoke",
    act: async () => {
      await request(path("console/keys/revoke", { name }), "POST");
      show(byId("keys-result"));
      await showKeys();
    },
  });
}

byId("try-form").addEventListener("submit", tryIt);
byId("keys-form").addEventListener("submit", createKey);
const service = await opened();
const lane = service.fast_lane === "compiled" ? "" : ` · fast lane ${service.fast_lane}`;
byId("where").textContent = `${service.host} · ${service.version}${lane}`;
document.title = `hotplate console: ${service.host}`;
startUse(service);
await Promise.all([follow(), startReleases(service), showKeys()]);
