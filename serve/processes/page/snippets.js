// The service's address and key as programs use them: curl, Python, JavaScript, C#.

import { byId, h, show } from "./dom.js";

const WILDCARDS = ["0.0.0.0", "::"];
// In all four languages a string of JSON is a string, but for what a shell and C# read in another way.
const quoted = (text) => JSON.stringify(text);
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const LANGUAGES = [
  ["curl", (url, key) => `curl${key ? ' --header "X-API-Key: $HOTPLATE_API_KEY"' : ""} ${shell(`${url}?n=10`)}`],
  ["Python", (url, key) => `${key ? "import os\n\n" : ""}import httpx

response = httpx.get(
    ${quoted(url)},
    params={"n": 10},${key ? '\n    headers={"X-API-Key": os.environ["HOTPLATE_API_KEY"]},' : ""}
    timeout=0.5,
)
response.raise_for_status()
for item in response.json()["items"]:
    print(item["id"], item["score"], item.get("title"))`],
  ["JavaScript", (url, key) => `const response = await fetch(${quoted(`${url}?n=10`)}, {${
    key ? '\n  headers: { "X-API-Key": process.env.HOTPLATE_API_KEY },' : ""}
  signal: AbortSignal.timeout(500),
});
if (!response.ok) throw new Error((await response.json()).detail);
for (const item of (await response.json()).items) console.log(item.id, item.score, item.title);`],
  ["C#", (url, key) => `using System.Net.Http.Json;
using System.Text.Json;

using var client = new HttpClient { Timeout = TimeSpan.FromMilliseconds(500) };${
    key ? '\nclient.DefaultRequestHeaders.Add("X-API-Key", Environment.GetEnvironmentVariable("HOTPLATE_API_KEY"));' : ""}
var answer = await client.GetFromJsonAsync<JsonElement>(${quoted(`${url}?n=10`)});
foreach (var item in answer.GetProperty("items").EnumerateArray())
    Console.WriteLine($"{item.GetProperty("id")} {item.GetProperty("score")}");`],
];

/** Show the snippets; *service* is what the service says of itself. */
export function start(service) {
  const base = h("input", { id: "base-url", type: "url", value: reachable(service.url), spellcheck: "false",
    autocomplete: "off" });
  const code = h("code");
  const copied = h("span", { class: "muted", role: "status" });
  const panel = h("div", { id: "snippet", class: "snippet", role: "tabpanel", tabindex: "0" }, h("pre", {}, code));
  let chosen = 0;
  const tabs = LANGUAGES.map(([name], place) => h("button", { type: "button", role: "tab", id: `tab-${place}`,
    "aria-controls": "snippet", onclick: () => choose(place) }, name));
  const draw = () => {
    const user = byId("try-kind").value === "user" ? byId("try-id").value.trim() : "";
    const url = `${base.value.replace(/\/+$/, "")}/v1/recommendations/${encodeURIComponent(user || "42")}`;
    code.textContent = LANGUAGES[chosen][1](url, service.reads_take_a_key);
  };
  const choose = (place, focus = false) => {
    chosen = (place + LANGUAGES.length) % LANGUAGES.length;
    tabs.forEach((tab, number) => {
      tab.setAttribute("aria-selected", String(number === chosen));
      tab.tabIndex = number === chosen ? 0 : -1;
    });
    panel.setAttribute("aria-labelledby", `tab-${chosen}`);
    if (focus) tabs[chosen].focus();
    copied.textContent = "";
    draw();
  };
  const list = h("div", { role: "tablist", "aria-label": "Language", class: "tabs", onkeydown: (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) choose(chosen + step, true);
  } }, tabs);
  const copy = h("button", { type: "button", onclick: async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      copied.textContent = "copied";
    } catch { // only pages of https and of this machine may
      getSelection().selectAllChildren(code);
      copied.textContent = "selected; copy it with the keyboard";
    }
  } }, "Copy");
  base.addEventListener("input", draw);
  byId("try-id").addEventListener("input", draw);
  byId("try-kind").addEventListener("change", draw);
  show(byId("snippets"),
    h("div", { class: "row" },
      h("div", { class: "field grow" }, h("label", { for: "base-url" }, "Where programs reach the service"), base)),
    h("div", { class: "row" }, list, h("span", { class: "grow" }), copied, copy), panel,
    h("p", { class: "muted" }, service.reads_take_a_key
      ? "Requests take a key of the scope read, as X-API-Key or as Authorization: Bearer. The lists are of the user in “Try it”."
      : "Requests take no key here. The lists are of the user in “Try it”, or of user 42."));
  choose(0);
}

/** A service that listens on all addresses is named as this page was. */
function reachable(url) {
  const found = new URL(url);
  if (WILDCARDS.includes(found.hostname.replace(/[[\]]/g, ""))) found.hostname = location.hostname;
  return found.href.replace(/\/$/, "");
}
