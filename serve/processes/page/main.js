// The console: signs in where a key is needed, reads what stays, and follows the events.

import { events, get, isSignedIn, signIn } from "./api.js";
import { byId } from "./dom.js";
import * as details from "./details.js";
import * as figures from "./figures.js";
import * as log from "./log.js";
import * as lookup from "./lookup.js";
import * as releases from "./releases.js";
import * as snippets from "./snippets.js";

// The first and the longest pause before a lost connection is tried again.
const AGAIN_MS = [500, 10_000];

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

/** Return what the service says of itself, once the operator has given a key that may see it. */
async function opened() {
  for (let wait = AGAIN_MS[0]; ; wait = Math.min(2 * wait, AGAIN_MS[1])) {
    try {
      return await get("console/service");
    } catch (problem) {
      if (problem.status === 401 || problem.status === 403) {
        await keyGiven(isSignedIn() ? `${problem.message}.` : "");
        wait = AGAIN_MS[0] / 2;
      } else {
        figures.disconnected(`${problem.message}; trying again.`);
        await pause(wait);
      }
    }
  }
}

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

/** Follow the events, and again when they end: a stopped service comes back, perhaps as another version. */
async function follow() {
  let wait = AGAIN_MS[0];
  let release = "";
  for (;;) {
    let reason = "The connection to the service was lost";
    try {
      await events("console/stream", (name, data) => {
        wait = AGAIN_MS[0];
        if (name === "history") {
          figures.takeHistory(data);
          log.clear();
        } else if (name === "log") log.take(data);
        else if (name === "figures") {
          figures.takeFigures(data);
          const now = JSON.stringify(data.tiers.map((tier) => tier.releases));
          if (now !== release) releases.refresh(); // somebody else has changed it, or a flip has ended
          release = now;
        }
      });
    } catch (problem) {
      if (problem.status === 401 || problem.status === 403) {
        location.reload();
        return;
      }
      reason = problem.message;
    }
    figures.disconnected(`${reason}; the figures are the last ones known. Trying again.`);
    await pause(wait);
    wait = Math.min(2 * wait, AGAIN_MS[1]);
  }
}

figures.start();
log.start();
const service = await opened();
byId("sign-out").hidden = !isSignedIn();
byId("sign-out").addEventListener("click", () => location.reload());
lookup.start();
snippets.start(service);
await Promise.all([follow(), releases.start(service), details.start(service)]);
