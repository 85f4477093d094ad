// The dialog that stands before every change of the releases.

import { byId, h, show } from "./dom.js";

const dialog = byId("confirm");
const ok = byId("confirm-ok");
const error = byId("confirm-error");
let act = async () => {};

/**
 * Show what is about to change, and do it when it is confirmed: *act* returns what ends the dialog, or throws a sentence.
 * *fill* is given the place in which to show what the change means, and a signal that the dialog was closed.
 */
export function confirm({ title, text, action, fill, act: given }) {
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  ok.textContent = action;
  ok.disabled = false;
  error.hidden = true;
  act = given;
  const closed = new AbortController();
  dialog.addEventListener("close", () => closed.abort(), { once: true });
  const body = byId("confirm-body");
  show(body);
  fill?.(body, closed.signal);
  dialog.showModal();
  byId("confirm-cancel").focus(); // what changes nothing comes first
}

byId("confirm-cancel").addEventListener("click", () => dialog.close());
byId("confirm-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  ok.disabled = true;
  error.hidden = true;
  try {
    await act(byId("confirm-body"));
    dialog.close();
  } catch (problem) {
    error.textContent = problem.message;
    error.hidden = false;
    ok.disabled = false;
  }
});

/** A field of the dialog for a share of the users. */
export const percentField = () => h("div", { class: "field narrow" },
  h("label", { for: "percent" }, "Percent of the users"),
  h("input", { id: "percent", type: "number", min: "0.1", max: "99", step: "any", value: "5", required: true }));
