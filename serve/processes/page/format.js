// Numbers and times as people read them; a dash where there is nothing to say.

export const DASH = "–";
// The bounds of the service's histograms: nothing finer is known below the one and beyond the other.
const LEAST_MS = 0.25;
const MOST_MS = 2500;

export function rate(value) {
  if (value === null || value === undefined) return DASH;
  if (value === 0) return "0";
  if (value < 0.1) return "< 0.1";
  return value.toLocaleString("en", { maximumFractionDigits: value < 100 ? 1 : 0 });
}

export const count = (value) => value.toLocaleString("en");

export const share = (part, all, digits = 1) => (all > 0 ? `${((100 * part) / all).toFixed(digits)} %` : DASH);

export function latency(ms) {
  if (ms === null || ms === undefined) return DASH;
  if (ms <= LEAST_MS) return `≤ ${LEAST_MS} ms`;
  if (ms >= MOST_MS) return `≥ ${MOST_MS / 1000} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return `${ms.toFixed(ms < 10 ? 2 : ms < 100 ? 1 : 0)} ms`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  const units = [["d", 86400], ["h", 3600], ["min", 60]];
  for (const [place, [unit, size]] of units.entries()) {
    if (seconds >= size) {
      const rest = Math.floor((seconds % size) / (units[place + 1]?.[1] ?? 1));
      return `${Math.floor(seconds / size)} ${unit}${rest ? ` ${rest} ${units[place + 1]?.[0] ?? "s"}` : ""}`;
    }
  }
  return `${Math.max(0, Math.round(seconds))} s`;
}

/** A Unix time as the date and time in UTC. */
export function time(seconds) {
  return seconds ? `${new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ")}Z` : DASH;
}

/** A Unix time as the time of the day in UTC. */
export const clock = (seconds) => new Date(seconds * 1000).toISOString().slice(11, 23);

export const ago = (seconds) => (seconds ? `${duration(Date.now() / 1000 - seconds)} ago` : DASH);
