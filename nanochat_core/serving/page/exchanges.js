// A conversation as the page works with it: exchanges of one question and its replies. A reply is
// {content, parts, model, seed, sampling, finish, note, tokens, seconds, problem}; `replies` has
// one for each model that was asked (two when comparing), `variants` what a single model said
// before for the same question. The history keeps flat messages, as the API has them.

// The server takes 500 messages, 8,000 characters each and 32,000 in all; the model sees only the
// newest anyway.
const MOST_MESSAGES = 400, MOST_CHARACTERS = 24000, MOST_IN_ONE = 8000;
const TITLE_LENGTH = 48;

const textOf = (parts) => parts.filter((part) => part.kind === "text").map((part) => part.text).join("");
const hasTools = (reply) => reply.parts.some((part) => part.kind !== "text");
const isAnswered = (reply) => Boolean(reply) && (reply.parts.length > 0 || !reply.problem);
const sizeOf = (reply) => reply.parts.reduce((sum, part) => sum + part.text.length, 0);

function newConversation(settings) {
  const now = new Date().toISOString();
  const id = [...crypto.getRandomValues(new Uint8Array(9))]
    .map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, title: "", created: now, updated: now, settings, exchanges: [] };
}

function titleOf(question) {
  const line = question.trim().split(/\s+/).join(" ");
  if (line.length <= TITLE_LENGTH) return line;
  const cut = line.slice(0, TITLE_LENGTH);
  return `${cut.slice(0, Math.max(cut.lastIndexOf(" "), TITLE_LENGTH / 2))}…`;
}

// The API's messages before and with a question, as the model of that side saw them. Exchanges
// without an answer are left out, the oldest are left out where the server would take no more.
function promptOf(exchanges, index, side) {
  const messages = [{ role: "user", content: exchanges[index].question }];
  let room = MOST_CHARACTERS - exchanges[index].question.length;
  for (let i = index - 1; i >= 0 && messages.length < MOST_MESSAGES; i -= 1) {
    const { question, replies } = exchanges[i];
    const reply = replies[Math.min(side, replies.length - 1)];
    if (!question || !isAnswered(reply)) continue;
    room -= question.length + sizeOf(reply);
    if (room < 0) break;
    messages.unshift({ role: "user", content: question }, messageOf(reply));
  }
  return messages;
}

function messageOf(reply) {
  const message = { role: "assistant", content: textOf(reply.parts) };
  if (hasTools(reply)) message.nanochat_parts = reply.parts;
  return message;
}

function storedReply(reply) {
  const { model, seed, note, sampling, finish, tokens, seconds } = reply;
  return { ...messageOf(reply), model, seed, note, sampling, finish, tokens, seconds };
}

function storedForm(conversation) {
  const messages = [];
  for (const { question, replies, variants } of conversation.exchanges) {
    if (question) messages.push({ role: "user", content: question });
    if (!replies.some(isAnswered)) continue;
    const [first, second] = replies.map((reply) => storedReply(isAnswered(reply) ? reply
      : { ...reply, note: "No reply." }));
    if (second) first.other = second;
    if (variants.length > 1) {
      first.variants = variants.map(storedReply);
      first.variant = variants.indexOf(replies[0]);
    }
    messages.push(first);
  }
  const { id, title, created, updated, settings } = conversation;
  return { id, title, created, updated, settings, messages };
}

const PART_KINDS = ["text", "python", "python_output"];

// What a file or the storage has may be anything: only what fits is taken.
function readReply(stored) {
  const given = Array.isArray(stored.nanochat_parts) ? stored.nanochat_parts : [];
  const parts = given.filter((part) => part && PART_KINDS.includes(part.kind))
    .map((part) => ({ kind: part.kind, text: String(part.text ?? "") }));
  const content = typeof stored.content === "string" ? stored.content : "";
  if (!parts.length && content) parts.push({ kind: "text", text: content });
  const text = (value) => (typeof value === "string" ? value : "");
  const number = (value) => (Number.isFinite(value) ? value : null);
  return {
    parts, model: text(stored.model), note: text(stored.note), finish: text(stored.finish),
    seed: number(stored.seed), tokens: number(stored.tokens), seconds: number(stored.seconds),
    sampling: stored.sampling && typeof stored.sampling === "object" ? stored.sampling : null,
    problem: null,
  };
}

function readConversation(stored) {
  const exchanges = [];
  for (const message of Array.isArray(stored.messages) ? stored.messages : []) {
    if (message?.role === "user") exchanges.push(newExchange(String(message.content ?? "")));
    else if (message?.role === "assistant") {
      if (!exchanges.length || exchanges.at(-1).replies.length) exchanges.push(newExchange(""));
      readReplies(exchanges.at(-1), message);
    }
  }
  const settings = stored.settings && typeof stored.settings === "object" ? stored.settings : {};
  return { ...stored, settings, title: String(stored.title ?? ""), exchanges };
}

function readReplies(exchange, message) {
  const isReply = (value) => value && typeof value === "object";
  exchange.replies = [readReply(message)];
  if (isReply(message.other)) exchange.replies.push(readReply(message.other));
  else {
    const variants = (Array.isArray(message.variants) ? message.variants : []).filter(isReply).map(readReply);
    const chosen = variants[message.variant];
    if (chosen) exchange.replies = [chosen];
    exchange.variants = chosen ? variants : [...exchange.replies];
  }
}

function newExchange(question) {
  return { question, replies: [], variants: [] };
}

function newReply(model, seed, sampling) {
  return { parts: [], model, seed, sampling, note: "", finish: "", tokens: null, seconds: null,
    problem: null, isPending: true };
}

// For reading elsewhere: what the second model said follows what the first did.
function flatForm(conversation) {
  const stored = storedForm(conversation);
  const messages = stored.messages.flatMap(({ other, ...message }) => (other ? [message, other] : [message]));
  return { ...stored, messages };
}
