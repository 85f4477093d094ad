// Keys, settings and limits: what was given at the start, and what is known of clients.

import { get } from "./api.js";
import { byId, h, muted, show, table } from "./dom.js";
import { DASH, ago, count, duration, time } from "./format.js";

const KEYS_EVERY_MS = 30_000;

/** Show what runs here, and the keys; *service* is what the service says of itself. */
export function start(service) {
  byId("where").textContent = `${service.host} · ${service.version}`;
  document.title = `hotplate console: ${service.host}`;
  const facts = [
    ["Version", service.version],
    ["Python", service.python],
    ["System", service.system],
    ["Host", service.host],
    ["Started", `${time(service.started_at)}, ${duration(Date.now() / 1000 - service.started_at)} ago`],
    ["Answers on", service.url],
  ];
  show(byId("details"),
    h("div", { class: "columns three" },
      group("Deployment", facts), folded("Settings", service.settings), folded("Limits of each worker", service.limits)));
  if (!service.has_keys) {
    show(byId("keys"), muted("This service was started without a file of keys."));
    return Promise.resolve();
  }
  setInterval(showKeys, KEYS_EVERY_MS);
  return showKeys();
}

async function showKeys() {
  try {
    const { clients, since } = await get("console/keys");
    show(byId("keys"), clients.length ? table("Clients and their keys", [
      ["Client", (client) => client.name],
      ["Scopes", (client) => client.scopes.join(", ")],
      ["Rate", (client) => (client.rate === null ? "any" : `${count(client.rate)}/s`), "number"],
      ["Keys made", (client) => [client.primary_created_at, client.secondary_created_at].filter(Boolean)
        .map((made) => time(made).slice(0, 10)).join(", ") || DASH, "number"],
      ["Last used", (client) => ago(client.last_used_at), "number"],
    ], clients) : muted("The file names no client."),
    muted(`Uses are known since ${time(since)}, when this service started, and of this machine alone.`));
  } catch (problem) {
    show(byId("keys"), h("p", { class: "notice warn" }, `${problem.message}.`));
  }
}

function group(title, facts) {
  return h("div", {}, h("h3", {}, title),
    h("dl", { class: "facts" }, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

/** Settings are read seldom, and are many. */
function folded(title, settings) {
  const facts = Object.entries(settings).map(([name, value]) => [inWords(name), shown(value)]);
  return h("details", {}, h("summary", {}, `${title} (${facts.length})`),
    h("dl", { class: "facts" }, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
}

/** A setting's name as words, with its unit: `budget_s` is "budget, in seconds". */
function inWords(name) {
  const words = name.replace(/_s$/, ", in seconds").replace(/_bytes$/, ", in bytes").replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
}

function shown(value) {
  if (value === null || value === "None" || (Array.isArray(value) && !value.length)) return "none";
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value === "boolean") return value ? "yes" : "no";
  return typeof value === "number" ? count(value) : String(value);
}
