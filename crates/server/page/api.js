// The server's HTTP interface, as the page uses it.

import { readEvents } from "./sse.js";

const KEY = "sparamx.key";

/// The key of this tab. It is gone when the tab is closed.
export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY)),
};

/// What went wrong, in words, and what to do about it.
export class ApiError extends Error {
  constructor({ message, advice, status = 0, code = null, param = null }) {
    super(message);
    Object.assign(this, { advice, status, code, param });
  }
}

/// The model that is served: an entry of /v1/models.
export async function fetchModel() {
  const response = await request("/v1/models");
  const { data } = await response.json();
  return data[0];
}

/// Generates, and calls `onChunk` with each piece of the answer. `signal` stops it.
export async function generate(path, body, signal, onChunk) {
  const response = await request(path, { method: "POST", body: JSON.stringify({ ...body, stream: true }), signal });
  let ended = false;
  await readEvents(response.body, (data) => {
    if (data === "[DONE]") {
      ended = true;
      return;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw described(chunk.error.code ?? 500, chunk.error);
    onChunk(chunk);
  });
  if (!ended) throw new ApiError({ message: "The answer broke off.", advice: "The server went away. Retry." });
}

async function request(path, options = {}) {
  const headers = {};
  if (options.body) headers["Content-Type"] = "application/json";
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ message: "The server cannot be reached.", advice: "See whether it runs, and retry." });
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  let error = {};
  try {
    ({ error = {} } = await response.json());
  } catch {
    // No JSON: something between the page and the server answered.
  }
  return described(response.status, error, response.headers.get("Retry-After"));
}

/// An error of the server with what to do about it.
export function described(status, { message, code = null, param = null } = {}, retryAfter = null) {
  const wait = retryAfter ? `Retry in ${retryAfter} seconds.` : "Retry in a moment.";
  const said = message || `The server answered with status ${status}.`;
  const make = (advice) => new ApiError({ message: said, advice, status, code, param });
  if (code === "context_length_exceeded") {
    return make("Begin a new chat, shorten the system prompt or an earlier message, or ask for fewer tokens.");
  }
  if (status === 401) return make("Enter the API key of the server under Settings.");
  if (status === 413) return make("Send less text at once.");
  if (status === 429) return make(`Many requests wait for this server. ${wait}`);
  if (status === 503) return make(`The server loads its model, or is about to stop. ${wait}`);
  if (status >= 500) return make("This is a fault of the server. Retry; its log says more.");
  if (param) return make(`Change “${param}” under Settings.`);
  return make("Change what you sent, or the settings.");
}
