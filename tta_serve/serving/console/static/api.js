// The server, asked with the keys that the operator gave. They are held here, in memory alone: never
// in storage, never in an address, and gone with the page.

const keys = { management: "", requests: "" };
const LIMIT_MS = 120_000;

/** What the server refuses, in its own words. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  /** Whether a key is missing, or may not go there. */
  get wantsKey() {
    return this.status === 401 || this.status === 403;
  }
}

/** Hold other keys; views hear of it by the event `keys`. */
export function setKeys(management, requests) {
  Object.assign(keys, { management, requests });
  document.dispatchEvent(new CustomEvent("keys"));
}

/** Return whether a key is held: `management` or `requests`. */
export function hasKey(kind) {
  return keys[kind] !== "";
}

/** Ask a route of management. */
export function manage(path, options = {}) {
  return callJson(path, { ...options, key: keys.management });
}

/** Ask a route that is open to all, where the server has no keys for requests. */
export function ask(path, options = {}) {
  return callJson(path, { ...options, key: keys.requests });
}

/** Return what `/metrics` says. A key of management may mostly read it, as one for metrics may. */
export async function readMetrics(signal) {
  const answer = await send("/metrics", { signal, key: keys.management || keys.requests });
  return answer.text();
}

/** Ask for an answer in a stream, and yield its events. */
export async function* stream(path, body, signal) {
  const answer = await send(path, { method: "POST", body, signal, key: keys.requests });
  for await (const data of readEvents(answer.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(event.error.code, event.error.message);
    yield event;
  }
}

async function callJson(path, options) {
  return (await send(path, options)).json();
}

async function send(path, { method = "GET", body, headers = {}, signal, key }) {
  const late = AbortSignal.timeout(LIMIT_MS);
  const answer = await fetch(path, {
    method,
    headers: {
      ...headers,
      ...(key && { authorization: `Bearer ${key}` }),
      ...(body !== undefined && { "content-type": "application/json" }),
    },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: signal ? AbortSignal.any([signal, late]) : late,
    credentials: "omit",
    cache: "no-store",
  });
  if (!answer.ok) throw new ApiError(answer.status, await explain(answer));
  return answer;
}

async function explain(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return text || `the server answers ${answer.status}`;
  }
}

/** Yield the data of server-sent events. */
async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) yield line.slice("data:".length).trim();
      }
    }
  } finally {
    await reader.cancel();
  }
}
