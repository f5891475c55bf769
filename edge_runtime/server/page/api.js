// The server's HTTP interface. Knows addresses, the key and the shape of errors; knows nothing of the page.

let key = null; // in memory only: a kiosk must not remember who used it

export function setKey(value) {
  key = value;
}

/** The server answered, and refused. Its sentence is the message. */
export class Refused extends Error {
  constructor(message, { status = null, code = null, retryAfterS = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfterS });
  }
}

/** No answer, or one that ended half way. */
export class Unreachable extends Error {}

async function send(path, { method = "GET", body, signal, keepalive = false } = {}) {
  const headers = {};
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    return await fetch(path, {
      method,
      headers,
      signal,
      keepalive,
      cache: "no-store",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Unreachable("The server cannot be reached.");
  }
}

async function refusal(response) {
  const { error } = await response.json().catch(() => ({}));
  const retryAfterS = Number.parseFloat(response.headers.get("Retry-After"));
  return new Refused(error?.message ?? `The server answered with HTTP ${response.status}.`, {
    status: response.status,
    code: error?.code ?? null,
    retryAfterS: Number.isFinite(retryAfterS) ? retryAfterS : null,
  });
}

/** For short calls: a server that hangs counts as one that is not there. */
async function withinLimit(limit_s, call) {
  const limit = new AbortController();
  const timer = setTimeout(() => limit.abort(), limit_s * 1000);
  try {
    return await call(limit.signal);
  } catch (error) {
    if (limit.signal.aborted) throw new Unreachable("The server does not answer.");
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

/** `/health` and `/live` may come with 503 and still be the report, so the body decides. */
const report = (path) =>
  withinLimit(5, async (signal) => {
    const response = await send(path, { signal });
    const body = await response
      .clone()
      .json()
      .catch(() => null);
    if (typeof body?.status === "string") return body;
    throw await refusal(response);
  });

export const health = () => report("/health");
export const live = () => report("/live");

/** The plan may need a process that is started for it. */
const figures = (path) =>
  withinLimit(30, async (signal) => {
    const response = await send(path, { signal });
    if (!response.ok) throw await refusal(response);
    return response.json();
  });

export const plan = () => figures("/plan");
export const stats = () => figures("/stats");

/** Markdown to HTML that the server has made safe. */
export const markdown = (text) =>
  withinLimit(5, async (signal) => {
    const response = await send("/markdown", { method: "POST", body: { text }, signal });
    if (!response.ok) throw await refusal(response);
    return (await response.json()).html;
  });

/** Clears the conversation from the server's memory. One that is already gone is fine. */
export async function forget(id, { keepalive = false } = {}) {
  const response = await send(`/v1/conversations/${id}`, { method: "DELETE", keepalive });
  if (!response.ok && response.status !== 404) throw await refusal(response);
}

/**
 * One answer, as it is written.
 *
 * Yields `{ facts }` of the template, `{ thoughts }`, `{ text }`, then `{ finish, ending }` ("stop" or "length",
 * and what it does not tell), then `{ usage, timings }`. Aborting `signal` cancels the generation on the server.
 */
export async function* answer(request, signal) {
  const body = { ...request, stream: true, stream_options: { include_usage: true } };
  const response = await send("/v1/chat/completions", { method: "POST", body, signal });
  if (!response.ok) throw await refusal(response);
  for await (const data of serverSentEvents(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(chunk.error.message, { code: chunk.error.code });
    const choice = chunk.choices?.[0];
    if (chunk.medge) yield { facts: chunk.medge };
    if (choice?.delta?.reasoning_content) yield { thoughts: choice.delta.reasoning_content };
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason, ending: choice.medge ?? {} };
    if (chunk.usage) yield { usage: chunk.usage, timings: chunk.timings ?? {} };
  }
  throw new Unreachable("The connection ended before the answer was complete.");
}

async function* serverSentEvents(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } catch (error) {
    if (error instanceof TypeError) throw new Unreachable("The connection to the server was lost.");
    throw error;
  } finally {
    reader.cancel().catch(() => {}); // also when the reader of this generator leaves early
  }
}
