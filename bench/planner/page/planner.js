// The form of the planner. Every figure comes from the server; this file sends the inputs and shows the answer.

const DELAY_MS = 250; // after the last key press
const ANSWERS = ["summary", "notes", "plots", "all", "elsewhere"]; // the sections that show a plan
const byId = (id) => document.getElementById(id);
const given = new URLSearchParams(location.search);
let timer = null;
let latest = 0;

/** Make an element with attributes and children; strings become text, never markup. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

async function request(route) {
  const response = await fetch(`${route}?${given}`, { cache: "no-store" });
  const body = await response.json();
  if (!response.ok) throw new Error(body.error ?? `the server answered ${response.status}`);
  return body;
}

function control(field) {
  const attributes = { name: field.name, id: `input-${field.name}`, autocomplete: "off" };
  if (field.choices.length && !field.free) {
    const select = element("select", attributes, ...field.choices.map((choice) => element("option", {}, choice)));
    select.value = field.value;
    return [select];
  }
  const input = element("input", attributes);
  input.value = field.value;
  if (!field.free) {
    input.inputMode = "decimal";
    return [input];
  }
  const options = element("datalist", { id: `choices-${field.name}` });
  options.append(...field.choices.map((choice) => element("option", { value: choice })));
  input.setAttribute("list", options.id);
  return [input, options];
}

function showForm(fields) {
  const labels = fields.map((field) =>
    element("label", {}, field.label, ...control(field)));
  byId("inputs").replaceChildren(...labels);
}

/** Hide what is not the answer to the inputs, and mark the input that the message begins with. */
function showProblem(error) {
  byId("problems").replaceChildren(element("p", { class: "problem" }, error.message));
  byId("answer").textContent = "No plan for these inputs";
  for (const id of ANSWERS) byId(id).hidden = true;
  for (const field of byId("inputs").elements) {
    if (error.message.startsWith(`${field.name} `)) field.setAttribute("aria-invalid", "true");
  }
}

function showAnswer(plan) {
  byId("answer").textContent = plan.answer;
  byId("problems").replaceChildren(...plan.complaints.map((text) => element("p", { class: "problem" }, text)));
  byId("notes").replaceChildren(...plan.notes.map((text) => element("p", { class: "note" }, text)));
  byId("summary").innerHTML = plan.summary; // rendered by the server, which escapes all text
  byId("figures").innerHTML = plan.figures;
  byId("command").textContent = plan.command;
  byId("toml").textContent = plan.toml;
  for (const id of ANSWERS) byId(id).hidden = false;
}

function showPlots(plots) {
  const figures = plots.map((plot) => {
    const drawing = element("div", {});
    drawing.innerHTML = plot.svg;
    return element("figure", {}, element("h2", {}, plot.title), drawing, element("figcaption", {}, plot.caption));
  });
  byId("plots").replaceChildren(...figures);
}

/** Show the plan of the query in the address; answers of earlier queries are dropped. */
async function update() {
  latest += 1;
  const number = latest;
  history.replaceState(null, "", `?${given}`);
  for (const field of byId("inputs").elements) field.removeAttribute("aria-invalid");
  try {
    const plan = await request("plan");
    if (number !== latest) return;
    showAnswer(plan);
    const plots = await request("plots");
    if (number === latest) showPlots(plots);
  } catch (error) {
    if (number === latest) showProblem(error);
  }
}

byId("inputs").addEventListener("submit", (event) => event.preventDefault());
byId("inputs").addEventListener("input", (event) => {
  given.set(event.target.name, event.target.value.trim());
  clearTimeout(timer);
  timer = setTimeout(update, DELAY_MS);
});
for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", () => navigator.clipboard.writeText(byId(button.dataset.copies).textContent));
}

try {
  showForm(await request("fields"));
} catch (error) {
  showProblem(error);
}
await update();
