// What a person does with a conversation: ask, stop, edit, ask again, compare, delete.
const CONTINUE = "Please continue.";
const NOTES = {
  length: "Cut off: the reply reached its length limit.",
  stopped: "Stopped.",
  broken: "Incomplete.",
};

class Chat {
  constructor({ client, picker, settings, history, log }) {
    Object.assign(this, { client, picker, settings, history, log });
    this.running = null;
    this.onChange = () => {};
    this.conversation = newConversation({});
  }

  get exchanges() {
    return this.conversation.exchanges;
  }

  // True when the question was taken.
  send(question) {
    if (this.running) return false;
    const given = this.settings.read();
    if (!given) return false;
    if (!this.conversation.title) this.conversation.title = titleOf(question);
    this.exchanges.push(newExchange(question));
    this.ask(this.exchanges.length - 1, given);
    return true;
  }

  // Ask for the reply of an exchange, which becomes the last; undo brings back what went.
  ask(index, { sampling, seed }) {
    const exchange = this.exchanges[index];
    const models = this.picker.chosen;
    const used = seed ?? randomSeed();
    exchange.replies = models.map((model) => newReply(model, used, sampling));
    this.exchanges.splice(index + 1);
    this.log.update(this, index);
    this.log.toEnd();
    return this.run(index, exchange.replies.keys());
  }

  // Let the models of these sides fill their replies, at once.
  async run(index, sides) {
    const run = { controller: new AbortController(), conversation: this.conversation };
    const exchange = this.exchanges[index];
    const view = this.log.views[index];
    this.setRunning(run);
    showError("");
    this.save();
    const filled = [...sides].map((side) => this.fill(run, exchange.replies[side], view.replies[side],
      promptOf(this.exchanges, index, side)));
    await Promise.all(filled);
    if (exchange.replies.length > 1) exchange.variants = [];
    else if (isAnswered(exchange.replies[0])) exchange.variants.push(exchange.replies[0]);
    this.save(run.conversation);
    if (this.running !== run) {
      if (run.conversation === this.conversation) this.log.finish();
      return;
    }
    this.setRunning(null);
    this.log.finish();
    announce(exchange.replies.map(spoken).join(" "));
  }

  async fill(run, reply, view, messages) {
    const { signal } = run.controller;
    const isLoaded = this.picker.isLoaded(reply.model);
    view.begin(isLoaded ? "" : `Loading the model ${reply.model}…`);
    try {
      await this.stream(reply, view, messages, signal);
    } catch (error) {
      if (signal.aborted) reply.finish = "stopped";
      else {
        reply.problem = error instanceof Problem ? error : new Problem("failed", `Something went wrong here: ${error.message}`);
        reply.finish = "broken";
      }
    }
    reply.note = [NOTES[reply.problem && !reply.parts.length ? "" : reply.finish], droppedNote(reply.dropped)]
      .filter(Boolean).join(" ");
    reply.isPending = false;
    view.end();
    if (run.conversation === this.conversation) view.finish({ variants: [] });
    if (!isLoaded) this.picker.refresh();
  }

  async stream(reply, view, messages, signal) {
    const body = { model: reply.model, messages, seed: reply.seed, ...reply.sampling };
    let since = 0;
    for await (const chunk of this.client.complete(body, signal)) {
      reply.model ||= chunk.model;
      reply.dropped = chunk.nanochat_dropped_messages ?? reply.dropped;
      if (chunk.usage) reply.tokens = chunk.usage.completion_tokens;
      const choice = chunk.choices[0];
      if (!choice) continue;
      since ||= performance.now();
      for (const part of choice.nanochat_parts || []) view.add(part);
      if (choice.delta.content) view.add({ kind: "text", text: choice.delta.content });
      reply.finish = choice.finish_reason || reply.finish;
      reply.seconds = (performance.now() - since) / 1000;
    }
  }

  stop() {
    this.running?.controller.abort();
  }

  edit(index, question) {
    const given = this.settings.read();
    if (!given) return;
    this.undoable("The messages after the edited one were replaced.", this.exchanges.length - 1 > index);
    this.exchanges[index] = newExchange(question);
    if (index === 0) this.conversation.title = titleOf(question);
    this.ask(index, given);
  }

  // Another reply to the same question: always of a new seed. What it said before can be had back.
  regenerate(index) {
    const given = this.settings.read();
    if (!given) return;
    this.undoable("The messages after this reply were removed.", this.exchanges.length - 1 > index);
    const before = this.exchanges[index];
    this.exchanges[index] = { ...before, variants: [...before.variants] };
    this.ask(index, { ...given, seed: randomSeed() });
  }

  // The same once more, for one side only when two were asked.
  retry(index, side) {
    if (this.running) return;
    const exchange = this.exchanges[index];
    this.undoable("The messages after this reply were removed.", this.exchanges.length - 1 > index);
    const { model, seed, sampling } = exchange.replies[side];
    const known = this.picker.find(model) ? model : this.picker.chosen[side] ?? this.picker.chosen[0];
    exchange.variants = exchange.variants.filter((reply) => reply !== exchange.replies[side]);
    exchange.replies[side] = newReply(known, seed, sampling);
    this.exchanges.splice(index + 1);
    this.log.update(this, index);
    this.run(index, [side]);
  }

  removeExchange(index) {
    this.undoable("Message and reply deleted.");
    this.exchanges.splice(index, 1);
    this.changed(index);
  }

  removeReply(index) {
    this.undoable("Reply deleted.");
    this.exchanges[index] = newExchange(this.exchanges[index].question);
    this.changed(index);
  }

  vary(index, reply) {
    this.exchanges[index].replies = [reply];
    this.changed(index);
  }

  // End the comparison with the better one.
  keep(index, side) {
    this.undoable(`${this.exchanges[index].replies[side].model} goes on alone.`);
    const { model } = this.exchanges[index].replies[side];
    this.conversation.exchanges = this.exchanges.map((exchange) => {
      if (exchange.replies.length < 2) return exchange;
      const replies = exchange.replies.slice(side, side + 1);
      return { ...exchange, replies, variants: [...replies] };
    });
    this.picker.compare(false);
    this.picker.choose(model);
    this.onChoice();
    this.log.render(this);
    this.save();
    focusText();
  }

  // The controls as they were for that reply, and its seed, so that it can be had again.
  reuse(reply) {
    this.settings.show(reply.sampling, reply.seed);
    this.onChoice();
    toast(`Settings and seed ${reply.seed} are set for what comes next.`, () => {
      this.settings.show(reply.sampling, null);
      this.onChoice();
    });
  }

  // Keep what is there now for the toast's Undo; a running reply ends first.
  undoable(text, isWorth = true) {
    this.stop();
    this.setRunning(null);
    const { conversation } = this;
    const before = conversation.exchanges.map((exchange) => ({ ...exchange }));
    if (!isWorth) return;
    toast(text, () => {
      this.stop();
      this.setRunning(null);
      conversation.exchanges = before;
      this.save(conversation);
      if (conversation === this.conversation) this.log.render(this);
    });
  }

  changed(index) {
    this.log.update(this, index);
    this.save();
    focusText();
  }

  fresh() {
    this.show(newConversation({}));
    announce("New conversation.");
    focusText();
  }

  open(id) {
    const stored = this.history.load(id);
    if (!stored) return false;
    const conversation = readConversation(stored);
    this.show(conversation);
    const { models = [], sampling } = conversation.settings;
    this.picker.compare(models.length > 1);
    this.picker.choose(...models);
    if (sampling) this.settings.show(sampling, null);
    announce(`Opened ${conversation.title}.`);
    return true;
  }

  show(conversation) {
    this.stop();
    this.setRunning(null);
    hideToast();
    showError("");
    this.conversation = conversation;
    passing.setItem("nanochat.open", conversation.id);
    this.log.render(this);
    this.onChange();
  }

  // What is chosen belongs to the conversation, as soon as there is one.
  onChoice() {
    if (this.exchanges.length) this.save();
  }

  // It was deleted from the history, where a reply that still grows must not put it again.
  forget(id) {
    if (id && id !== this.conversation.id) return;
    this.conversation.isForgotten = true;
    this.fresh();
  }

  save(conversation = this.conversation) {
    if (conversation.isForgotten) return;
    if (conversation === this.conversation) {
      passing.setItem("nanochat.open", conversation.id);
      conversation.settings = { models: this.picker.chosen, sampling: this.settings.sampling };
    }
    if (!conversation.exchanges.length) this.history.remove(conversation.id);
    else {
      conversation.updated = new Date().toISOString();
      keepIn(this.history, conversation);
    }
    this.onChange();
  }

  setRunning(run) {
    const active = document.activeElement;
    this.running = run;
    at("send").hidden = run !== null;
    at("stop").hidden = run === null;
    at("app").classList.toggle("running", run !== null);
    if (active === at("send") || active === at("stop")) focusText();
  }
}

function keepIn(history, conversation) {
  const wasPersistent = history.isPersistent;
  const dropped = history.save(storedForm(conversation));
  if (dropped) toast(`There was no room: ${dropped === 1 ? "the oldest conversation" : `the oldest ${dropped} conversations`} had to go.`);
  else if (wasPersistent && !history.isPersistent) toast("This browser has no room: what you say is kept until the page is closed.");
}

function droppedNote(number) {
  if (!number) return "";
  const what = number === 1 ? "1 message was" : `${number} messages were`;
  return `This conversation is long: the oldest ${what} not shown to the model.`;
}

// An alert speaks for itself.
const spoken = (reply) => [plainOf(reply.parts), reply.note].filter(Boolean).join(" ");
