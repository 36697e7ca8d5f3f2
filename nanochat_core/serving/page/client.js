// The server's public API: JSON over fetch, and a reply as a stream of server-sent events.

// What went wrong, in a kind that decides what can be done, and words for a person.
class Problem extends Error {
  constructor(kind, message, retryAfter = 0) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

const GONE = "The server does not answer. Is it still running?";
const BROKEN = "The connection broke before the reply was complete.";

class Client {
  // `askKey(isWrong)` gives a promise of a key, or of null when the person will not.
  constructor(askKey) {
    this.askKey = askKey;
    this.asking = null;
  }

  async models() {
    return (await (await this.fetch("v1/models")).json()).data;
  }

  async health() {
    return (await this.fetch("health")).json();
  }

  // The chunks of a reply. Raises Problem, or the signal's AbortError.
  async *complete(body, signal) {
    const response = await this.fetch("v1/chat/completions", {
      method: "POST", signal, headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    });
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Problem("failed", sentence(chunk.error.message));
      yield chunk;
    }
  }

  async fetch(path, options = {}) {
    for (;;) {
      const key = passing.getItem("nanochat.key");
      const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
      const response = await reach(path, { ...options, headers });
      if (response.ok) return response;
      if (response.status !== 401) throw await problemOf(response);
      await this.renewKey(key);
    }
  }

  // One question for all requests that were refused at once.
  async renewKey(refused) {
    if (passing.getItem("nanochat.key") !== refused) return;
    this.asking ??= this.askKey(refused !== null).finally(() => { this.asking = null; });
    const key = await this.asking;
    if (!key) throw new Problem("key", "This server wants an API key.");
    passing.setItem("nanochat.key", key);
  }
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("gone", GONE);
  }
}

async function problemOf(response) {
  const said = await response.json().then((body) => body.error.message).catch(() => "");
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  const { status } = response;
  if (status === 429) {
    return new Problem("busy", `The server is busy. ${sentence(said)}`.trim(), retryAfter || 2);
  }
  if (status === 503) {
    return new Problem("busy", sentence(said) || "The server is busy.", retryAfter || 2);
  }
  const kind = status >= 500 ? "failed" : "refused";
  return new Problem(kind, sentence(said) || `The server answered with status ${status}.`);
}

// The server's messages are clauses, as those of a command line are.
function sentence(text) {
  if (!text) return "";
  const end = /[.!?]$/.test(text) ? "" : ".";
  return text[0].toUpperCase() + text.slice(1) + end;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Problem("broken", BROKEN);
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (block === "data: [DONE]") return;
        if (block.startsWith("data: ")) yield JSON.parse(block.slice(6));
      }
    }
  } catch (error) {
    if (error instanceof TypeError) throw new Problem("broken", BROKEN);
    throw error;
  }
}
