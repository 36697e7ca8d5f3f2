// Conversations kept in the browser: one key of the storage for each, so that two open tabs never
// write over each other; the list is read from the keys. What comes in is checked field by field.
const History = (() => {
  const PREFIX = "nanochat.conversation.";
  const FORMAT = "nanochat conversations";
  const VERSION = 1;
  const TITLE_LENGTH = 60;
  const MAX_IMPORT_CHARACTERS = 50e6;
  const MAX_CONVERSATIONS = 10000;
  const MAX_MESSAGES = 10000;
  const MAX_CHARACTERS = 2e6;
  const MAX_SETTINGS_DEPTH = 4;

  // ---- Checks: each takes a value and its place, and throws an Error that says both.

  function refuse(value, at, expected) {
    const shown = JSON.stringify(value) ?? String(value);
    const short = shown.length > 60 ? `${shown.slice(0, 60)}…` : shown;
    throw new Error(`${at} is ${short}, expected ${expected}`);
  }

  const textUpTo = (most) => (value, at) => {
    const isGood = typeof value === "string" && value.length <= most;
    if (!isGood) refuse(value, at, `a text of at most ${most} characters`);
  };
  const matching = (pattern, expected) => (value, at) => {
    if (typeof value !== "string" || !pattern.test(value)) refuse(value, at, expected);
  };
  const oneOf = (...values) => (value, at) => {
    if (!values.includes(value)) refuse(value, at, values.join(" or "));
  };
  const listOf = (check, most) => (value, at) => {
    const isGood = Array.isArray(value) && value.length <= most;
    if (!isGood) refuse(value, at, `a list of at most ${most}`);
    value.forEach((item, i) => check(item, `${at}[${i}]`));
  };
  const orNull = (check) => (value, at) => value === null || check(value, at);

  function aNumber(value, at) {
    if (typeof value !== "number" || !Number.isFinite(value)) refuse(value, at, "a number");
  }

  function aTime(value, at) {
    const isText = typeof value === "string" && value.length <= 40;
    if (!isText || Number.isNaN(Date.parse(value))) refuse(value, at, "a time in ISO form");
  }

  function anObject(value, at) {
    const isObject = typeof value === "object" && value !== null && !Array.isArray(value);
    if (!isObject) refuse(value, at, "an object");
  }

  // No field beside these: an unknown one is of a format that would be lost here. It is also how a
  // "__proto__" of a file ends.
  function recordOf(required, optional = {}) {
    const checks = new Map(Object.entries({ ...required, ...optional }));
    return (value, at) => {
      anObject(value, at);
      const missing = Object.keys(required).find((field) => !Object.hasOwn(value, field));
      if (missing) throw new Error(`${at} has no field "${missing}"`);
      for (const [field, item] of Object.entries(value)) {
        const check = checks.get(field);
        if (!check) throw new Error(`${at} has the unknown field "${field.slice(0, 60)}"`);
        check(item, `${at}.${field}`);
      }
    };
  }

  const aSetting = matching(/^(?!constructor$|prototype$)[a-z]\w{0,39}$/i, "a name as top_p");

  // Settings may be any small JSON: they are the page's own, which reads them with care.
  function someSettings(value, at, depth = 0) {
    if (typeof value !== "object" || value === null) {
      if (String(value).length > 1000) refuse(value, at, "at most 1000 characters");
      return;
    }
    const isSmall = depth < MAX_SETTINGS_DEPTH && Object.keys(value).length <= 100;
    if (!isSmall) refuse(value, at, "something smaller");
    for (const [field, item] of Object.entries(value)) {
      if (!Array.isArray(value)) aSetting(field, `a field of ${at}`);
      someSettings(item, `${at}.${field}`, depth + 1);
    }
  }

  const PART = recordOf({
    kind: oneOf("text", "python", "python_output"), text: textUpTo(MAX_CHARACTERS),
  });
  const SAID = {
    role: oneOf("user", "assistant", "system"), content: textUpTo(MAX_CHARACTERS),
  };
  // How a reply was made and how it ended.
  const MADE = {
    nanochat_parts: listOf(PART, MAX_MESSAGES), sampling: orNull(someSettings),
    model: orNull(textUpTo(1000)), note: orNull(textUpTo(1000)), finish: orNull(textUpTo(100)),
    seed: orNull(aNumber), tokens: orNull(aNumber), seconds: orNull(aNumber),
  };
  const REPLY = recordOf(SAID, MADE);
  // With what a second model said to the same question, or the same one before.
  const MESSAGE = recordOf(SAID, {
    ...MADE, other: REPLY, variants: listOf(REPLY, 1000), variant: aNumber,
  });
  const CONVERSATION = recordOf({
    id: matching(/^[\w-]{1,64}$/, "1 to 64 letters, digits, _ or -"),
    title: textUpTo(1000), created: aTime, updated: aTime,
    settings: (value, at) => {
      anObject(value, at);
      someSettings(value, at);
    },
    messages: listOf(MESSAGE, MAX_MESSAGES),
  });
  const EXPORTED = recordOf({
    format: oneOf(FORMAT), version: oneOf(VERSION), exported: aTime,
    conversations: listOf(CONVERSATION, MAX_CONVERSATIONS),
  });

  // ---- Texts

  function shortened(line, most) {
    const characters = [...line.slice(0, 2 * most + 2)]; // never half of an emoji
    if (characters.length <= most) return line;
    return `${characters.slice(0, most - 1).join("").trimEnd()}…`;
  }

  function titleOf(messages) {
    const question = messages.find(({ role }) => role === "user")?.content ?? "";
    return shortened(question.trim().replace(/\s+/g, " "), TITLE_LENGTH) || "Untitled";
  }

  function newId() {
    const bytes = crypto.getRandomValues(new Uint8Array(9));
    return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  // Between fences that are longer than any inside.
  function fenced(code, label) {
    const runs = Array.from(code.matchAll(/`+/g), ([run]) => run.length);
    const fence = "`".repeat(runs.reduce((most, length) => Math.max(most, length), 2) + 1);
    return `${fence}${label}\n${code}\n${fence}`;
  }

  function messageText({ content, nanochat_parts: parts }) {
    if (!parts?.length) return content;
    return parts.map(({ kind, text }) => {
      if (kind === "text") return text.trim();
      return fenced(text, kind === "python" ? "python" : "output");
    }).filter(Boolean).join("\n\n");
  }

  function headingOf({ role, model, seed }) {
    const name = { user: "You", assistant: "Model", system: "System" }[role];
    const facts = [model, Number.isFinite(seed) ? `seed ${seed}` : ""].filter(Boolean).join(", ");
    return facts ? `${name} (${facts})` : name;
  }

  function parsed(text) {
    try {
      return JSON.parse(text);
    } catch {
      throw new Error("This is not a file of conversations: it is no JSON");
    }
  }

  // For the list; null where something else stands.
  function entryOf(raw, id) {
    try {
      const conversation = parsed(raw);
      CONVERSATION(conversation, "the conversation");
      const { title, updated } = conversation;
      return conversation.id === id ? { id, title, updated } : null;
    } catch {
      return null;
    }
  }

  const isFull = (error) =>
    error.name === "QuotaExceededError" || error.name === "NS_ERROR_DOM_QUOTA_REACHED";

  class History {
    // `storage` is as localStorage; null where there is none. `onChange` is called when another
    // tab has changed something.
    constructor(storage) {
      this.storage = storage;
      this.isUsable = storage !== null;
      this.memory = new Map(); // what the storage would not take, by id
      this.known = new Map(); // what was read and checked, by id, to be read once
      this.onChange = () => {};
      window.addEventListener("storage", ({ storageArea, key }) => {
        const isOurs = key === null || key.startsWith(PREFIX);
        if (isOurs && storageArea === this.storage) this.onChange();
      });
    }

    // False when something is kept until the page closes, and no longer.
    get isPersistent() {
      return this.isUsable && this.memory.size === 0;
    }

    // [{id, title, updated}], newest first.
    list() {
      return this.#ids().map((id) => this.#read(id)?.entry).filter(Boolean)
        .sort((a, b) => Date.parse(b.updated) - Date.parse(a.updated));
    }

    // A conversation, or null where there is none that can be read.
    load(id) {
      const found = this.#read(id);
      return found ? JSON.parse(found.raw) : null;
    }

    // Keeps a conversation; how many of the oldest had to go for it. One that has no room even so
    // stays in memory, and then none goes.
    save(conversation) {
      const copy = JSON.parse(JSON.stringify(conversation));
      CONVERSATION(copy, "the conversation");
      copy.title ||= titleOf(copy.messages);
      const raw = JSON.stringify(copy);
      const others = this.list().filter(({ id }) => id !== copy.id && !this.memory.has(id));
      const dropped = new Map();
      while (!this.#put(copy.id, raw)) {
        if (!others.length) return this.#keepInMemory(copy.id, raw, dropped);
        const { id } = others.pop();
        dropped.set(id, this.#get(id));
        this.remove(id);
      }
      return dropped.size;
    }

    remove(id) {
      this.memory.delete(id);
      this.#try(() => this.storage.removeItem(PREFIX + id));
    }

    clear() {
      for (const id of this.#ids()) this.remove(id);
    }

    exportAll() {
      const conversations = this.list().map(({ id }) => this.load(id));
      const exported = new Date().toISOString();
      return JSON.stringify({ format: FORMAT, version: VERSION, exported, conversations }, null, 1);
    }

    // Takes in all of an exported text, or nothing of one that is not in order; how many came. One
    // that is here already stays as it is, and what differs from it comes beside it: an old copy
    // never replaces what was said since. Where there is no room for them, they stay in memory.
    importAll(text) {
      const { length } = text;
      if (length > MAX_IMPORT_CHARACTERS) {
        throw new Error(`The file has ${length} characters, the most is ${MAX_IMPORT_CHARACTERS}`);
      }
      const file = parsed(text);
      EXPORTED(file, "the file");
      return file.conversations.filter((conversation) => this.#add(conversation)).length;
    }

    // For reading elsewhere.
    toMarkdown({ title, messages }) {
      const said = messages.map((one) => `## ${headingOf(one)}\n\n${messageText(one)}`);
      return `${[`# ${title || titleOf(messages)}`, ...said].join("\n\n")}\n`;
    }

    #ids() {
      const { storage } = this;
      const keyAt = (_, i) => storage.key(i) ?? "";
      const keys = this.#try(() => Array.from({ length: storage.length }, keyAt)) ?? [];
      const ours = keys.filter((key) => key.startsWith(PREFIX));
      const ids = ours.map((key) => key.slice(PREFIX.length));
      return [...new Set([...ids, ...this.memory.keys()])];
    }

    #get(id) {
      return this.memory.get(id) ?? this.#try(() => this.storage.getItem(PREFIX + id));
    }

    // What is kept and its line of the list; null for what others put in its place.
    #read(id) {
      const raw = this.#get(id);
      if (raw === null) return null;
      if (this.known.get(id)?.raw !== raw) this.known.set(id, { raw, entry: entryOf(raw, id) });
      const found = this.known.get(id);
      return found.entry && found;
    }

    // False when there is no room. A storage that refuses for another reason is not asked again.
    #put(id, raw) {
      try {
        if (this.isUsable) this.storage.setItem(PREFIX + id, raw);
      } catch (error) {
        if (isFull(error)) return false;
        this.isUsable = false;
      }
      if (this.isUsable) this.memory.delete(id);
      else this.memory.set(id, raw);
      return true;
    }

    #keepInMemory(id, raw, dropped) {
      for (const [other, before] of dropped) {
        if (!this.#put(other, before)) this.memory.set(other, before);
      }
      this.memory.set(id, raw);
      return 0;
    }

    // False for one that is here already.
    #add(conversation) {
      const here = this.#get(conversation.id);
      if (here === JSON.stringify(conversation)) return false;
      const id = here === null ? conversation.id : newId();
      const raw = JSON.stringify({ ...conversation, id });
      if (!this.#put(id, raw)) this.memory.set(id, raw);
      return true;
    }

    // A storage may refuse even to be read.
    #try(action) {
      try {
        return this.storage ? action() : null;
      } catch {
        return null;
      }
    }
  }

  return History;
})();
