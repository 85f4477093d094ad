// Requests of this listener: with the operator's key where it takes one, problems as sentences, events as they come.

let key = null;

/** What was answered instead of what was requested. */
export class Problem extends Error {
  constructor(status, type, detail) {
    super(detail);
    this.status = status;
    this.type = type.replace("urn:hotplate:problem:", "");
  }
}

export const signIn = (given) => { key = given; };
export const isSignedIn = () => key !== null;

async function send(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, cache: "no-store", credentials: "omit",
      headers: key === null ? {} : { "X-API-Key": key } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "no-answer", "the service does not answer; it may have stopped, or the network is away");
  }
  if (response.ok) return response;
  const fields = await response.json().catch(() => ({}));
  throw new Problem(response.status, fields.type ?? "", fields.detail ?? `the service answered ${response.status}`);
}

export const get = async (path, options) => (await send(path, options)).json();
export const post = async (path) => (await send(path, { method: "POST" })).json();

/** Call *take* with the name and the data of each server-sent event, until the stream ends. */
export async function events(path, take) {
  const response = await send(path);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const [name, data] = block.split("\n");
      take(name.slice("event: ".length), JSON.parse(data.slice("data: ".length)));
    }
  }
}
