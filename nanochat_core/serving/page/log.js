// The conversation on the page: one section for each exchange, in step with the conversation.

// What is on the page of one exchange. `chat` does what its buttons ask for.
class ExchangeView {
  constructor(exchange, chat) {
    this.exchange = exchange;
    this.chat = chat;
    this.replies = [];
    this.mine = make("div", { class: "mine" });
    this.sides = make("div", { class: "sides" });
    this.element = make("section", { class: "exchange" }, this.mine, this.sides);
    this.showQuestion();
    this.showReplies();
  }

  get index() {
    return this.chat.conversation.exchanges.indexOf(this.exchange);
  }

  showQuestion() {
    const { question } = this.exchange;
    if (!question) return;
    const bubble = make("div", { class: "message user", dir: "auto" }, make("span", { class: "hidden", dir: "ltr" }, "You: "), question);
    this.edit = iconButton("edit", "Edit this message", () => this.startEdit());
    this.tools = make("div", { class: "actions" },
      iconButton("copy", "Copy this message", (event) => copyFrom(event.currentTarget, question)),
      this.edit,
      iconButton("trash", "Delete this message and its reply", () => this.chat.removeExchange(this.index)));
    this.mine.replaceChildren(bubble, this.tools);
  }

  startEdit() {
    const box = make("textarea", { rows: 1, dir: "auto", "aria-label": "Edit your message", maxlength: MOST_IN_ONE });
    box.value = this.exchange.question;
    const cancel = () => {
      this.showQuestion();
      this.edit.focus();
    };
    const save = () => {
      const text = box.value.trim();
      if (!text) return;
      if (text === this.exchange.question) cancel();
      else this.chat.edit(this.index, text);
    };
    box.addEventListener("input", () => fitBox(box));
    box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") cancel();
      else if (isSend(event)) save();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.mine.replaceChildren(make("div", { class: "editing" }, box,
      make("div", { class: "row-end" }, textButton("Cancel", cancel), textButton("Send", save, "main"))));
    fitBox(box);
    box.focus();
  }

  showReplies() {
    const { replies } = this.exchange;
    this.replies = replies.map((reply, side) => new ReplyView(reply, this.actionsOf(side)));
    this.sides.classList.toggle("pair", replies.length > 1);
    this.element.classList.toggle("wide-one", replies.length > 1);
    this.sides.replaceChildren(...this.replies.map((view) => view.element));
  }

  actionsOf(side) {
    const { chat } = this;
    return {
      retry: () => chat.retry(this.index, side),
      regenerate: () => chat.regenerate(this.index),
      remove: () => chat.removeReply(this.index),
      continue: () => chat.send(CONTINUE),
      keep: () => chat.keep(this.index, side),
      vary: (reply) => chat.vary(this.index, reply),
      reuse: () => chat.reuse(this.exchange.replies[side]),
    };
  }

  finish(isLast) {
    const { replies, question, variants } = this.exchange;
    this.element.classList.toggle("last", isLast);
    const isPair = replies.length > 1;
    for (const view of this.replies) {
      if (view.reply.isPending) continue;
      view.draw();
      view.finish({ isLast, variants, canKeep: isPair && isLast && isAnswered(view.reply),
        canChange: Boolean(question) && !isPair && isAnswered(view.reply) });
    }
    if (isPair) this.finishPair();
    if (!replies.length) this.offerReply(isLast);
  }

  // Two replies are asked for again, and deleted, together.
  finishPair() {
    this.shared?.remove();
    if (this.chat.running || !this.exchange.replies.some(isAnswered)) return;
    this.shared = make("div", { class: "actions shared" },
      iconButton("again", "Another reply of both", () => this.chat.regenerate(this.index)),
      iconButton("trash", "Delete both replies", () => this.chat.removeReply(this.index)));
    this.sides.append(this.shared);
  }

  // A question whose reply was deleted, or never came.
  offerReply(isLast) {
    const note = make("p", { class: "note" }, isLast ? "No reply yet." : "No reply: the model does not see this message.");
    const get = isLast ? textButton("Get a reply", () => this.chat.regenerate(this.index)) : null;
    this.sides.replaceChildren(make("div", { class: "unanswered" }, note, get));
  }
}

class Log {
  constructor() {
    this.element = at("log");
    this.views = [];
    this.element.addEventListener("click", (event) => {
      const button = event.target.closest(".copy-code");
      if (button) copyFrom(button, button.parentElement.querySelector("pre").textContent.replace(/\n$/, ""));
    });
    this.follow();
  }

  render(chat) {
    this.views = chat.conversation.exchanges.map((exchange) => new ExchangeView(exchange, chat));
    this.element.replaceChildren(...this.views.map((view) => view.element));
    this.finish();
    this.toEnd();
  }

  // Bring the page in step from one exchange on.
  update(chat, from) {
    const focused = this.element.contains(document.activeElement);
    for (const view of this.views.splice(from)) view.element.remove();
    for (const exchange of chat.conversation.exchanges.slice(from)) {
      this.views.push(new ExchangeView(exchange, chat));
      this.element.append(this.views.at(-1).element);
    }
    this.finish();
    if (focused && !this.element.contains(document.activeElement)) focusText();
  }

  // Buttons depend on what is last, so all of them are looked at again.
  finish() {
    at("empty").hidden = this.views.length > 0;
    for (const [i, view] of this.views.entries()) view.finish(i === this.views.length - 1);
  }

  // Whoever reads at the end stays there when a reply grows, or the box below it.
  follow() {
    const scroller = at("scroller");
    this.follows = true;
    let top = 0;
    scroller.addEventListener("scroll", () => {
      // Only a person scrolls up; what grows may leave the end behind for a moment.
      const isAtEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
      if (isAtEnd || scroller.scrollTop < top) this.follows = isAtEnd;
      top = scroller.scrollTop;
      at("to-end").hidden = this.follows;
    });
    const resized = new ResizeObserver(() => this.follows && this.toEnd());
    resized.observe(scroller);
    resized.observe(this.element);
    at("to-end").addEventListener("click", () => {
      this.toEnd();
      focusText();
    });
  }

  toEnd() {
    this.follows = true;
    at("to-end").hidden = true;
    at("scroller").scrollTop = at("scroller").scrollHeight;
  }
}

function fitBox(box) {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

const isSend = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;

// On a phone the keyboard would cover what was just asked for.
function focusText() {
  if (hasKeyboard.matches) at("text").focus();
  else at("scroller").focus();
}
