// The server's API: requests, streams and errors. Knows nothing of what is shown.

const BASE = new URL(".", document.baseURI); // a proxy may have put the server below a path
const KEY = "octavo.key";

export class ApiError extends Error {
  constructor(message, { status = 0, code = null, requestId = null, retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, requestId, retryAfter });
  }
}

let askForKey = async () => null;

/** ask(why): asks the user for a key; null if there is none. */
export function onKeyWanted(ask) {
  let asking = null; // several requests may find out at once
  askForKey = (why) => (asking ??= ask(why).finally(() => (asking = null)));
}

/** Sends a request; asks for a key when the server does. Throws ApiError, or AbortError when stopped. */
export async function request(path, { body, signal, quiet = false } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const response = await send(path, body, signal, key);
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401 || quiet) throw error;
    if (sessionStorage.getItem(KEY) !== key) continue; // another request has got one meanwhile
    const given = await askForKey(key ? "That key was not accepted." : "");
    if (!given) throw error;
    sessionStorage.setItem(KEY, given);
  }
}

async function send(path, body, signal, key) {
  const headers = { accept: "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  if (body) headers["content-type"] = "application/json";
  try {
    return await fetch(new URL(path, BASE), {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Does it run?");
  }
}

async function errorOf(response) {
  const requestId = response.headers.get("x-request-id");
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // a proxy's page, say: the status must do
  }
  const message = error.message || `The server answered with status ${response.status}.`;
  return new ApiError(message, { status: response.status, code: error.code, requestId, retryAfter });
}

export const getJson = async (path, options) => (await request(path, options)).json();

/** The events of a chat completion. Throws ApiError if the stream ends before its end. */
export async function* streamChat(body, signal) {
  const response = await request("v1/chat/completions", { body: { ...body, stream: true }, signal });
  const requestId = response.headers.get("x-request-id");
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ApiError(event.error.message, { code: event.error.code, requestId });
      yield event;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError("The connection broke before the answer was complete.", { requestId });
  }
  throw new ApiError("The answer was cut off before its end.", { requestId });
}

async function* events(stream) {
  const reader = stream.getReader(); // read at once: a connection that is cut loses what waits in pipes
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + decoder.decode(value, { stream: true })).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (data.length) yield data.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
