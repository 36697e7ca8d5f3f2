// One reply on the page: its text as Markdown, each calculation as a chip where it was made.
const WAIT_NOTE_MS = 1500;
const SHORT_SECONDS = 0.3; // a rate of less says more of the network than of the model
const CHIP_OPEN = "\uE000", CHIP_END = "\uE001";
const CHIP_MARKS = /\uE000(\d+)\uE001/g;

class ReplyView {
  constructor(reply, actions) {
    this.reply = reply;
    this.prose = make("div", { class: "prose", dir: "auto" });
    this.status = make("p", { class: "status", hidden: true });
    this.below = make("div", { class: "below" });
    this.name = make("p", { class: "reply-name" }, reply.model);
    this.element = make("article", { class: "message assistant", "aria-label": `Reply of ${reply.model || "the model"}` },
      make("span", { class: "hidden" }, "Model: "), this.name, this.prose, this.status, this.below);
    this.actions = actions;
    this.frame = 0;
    this.blocks = [];
  }

  // From now on the reply grows.
  begin(waitingFor) {
    this.element.classList.add("waiting");
    this.element.setAttribute("aria-busy", "true");
    const say = (text) => {
      this.status.textContent = text;
      this.status.hidden = false;
      announce(text);
    };
    if (waitingFor) say(waitingFor);
    else this.timer = setTimeout(() => say("Waiting for the model…"), WAIT_NOTE_MS);
  }

  add(part) {
    const { parts } = this.reply;
    this.arrived();
    const last = parts.at(-1);
    if (last && last.kind === part.kind) last.text += part.text;
    else parts.push({ kind: part.kind, text: part.text });
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  arrived() {
    clearTimeout(this.timer);
    this.status.hidden = true;
  }

  end() {
    this.arrived();
    this.element.classList.remove("waiting");
    this.element.removeAttribute("aria-busy");
    this.draw();
  }

  // Blocks that are as they were stay, so that nothing flickers and a selection in them lives.
  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    const chips = chipsOf(this.reply.parts);
    const sources = splitMarkdownBlocks(markedText(chips));
    const keys = sources.map((source) => source.replaceAll(CHIP_MARKS, (_, i) => chips[i].text));
    let same = 0;
    while (same < keys.length && keys[same] === this.blocks[same]?.key) same += 1;
    for (const { nodes } of this.blocks.splice(same)) nodes.forEach((node) => node.remove());
    for (const [i, source] of sources.entries()) {
      if (i < same) continue;
      const fragment = proseOf(source, chips);
      this.blocks.push({ key: keys[i], nodes: [...fragment.childNodes] });
      this.prose.append(fragment);
    }
  }

  // What stands below a finished reply: how it ended, how it was made, what can be done with it.
  finish({ isLast, canKeep, canChange, variants }) {
    const { reply, actions } = this;
    const rows = [];
    if (reply.note) rows.push(make("p", { class: "note" }, reply.note));
    else if (!reply.parts.length && !reply.problem) rows.push(make("p", { class: "note" }, "(the model said nothing)"));
    if (reply.problem) rows.push(new ProblemView(reply.problem, () => actions.retry()).element);
    const tools = make("div", { class: "actions" });
    if (variants.length > 1 && isLast) tools.append(...this.switcher(variants));
    if (isAnswered(reply)) tools.append(iconButton("copy", "Copy this reply", (event) => copyFrom(event.currentTarget, plainOf(reply.parts))));
    if (canChange) {
      tools.append(iconButton("again", "Another reply", () => actions.regenerate()),
        iconButton("trash", "Delete this reply", () => actions.remove()));
    }
    if (isLast && reply.finish === "length") tools.append(textButton("Continue", () => actions.continue(), "text"));
    if (canKeep) tools.append(textButton("Go on with this one", () => actions.keep(), "text"));
    if (reply.seed !== null) tools.append(this.facts());
    rows.push(tools);
    this.below.replaceChildren(...rows);
  }

  facts() {
    const { model, seed, tokens, seconds } = this.reply;
    const rate = seconds > SHORT_SECONDS ? `, ${Math.round(tokens / seconds)}/s` : "";
    const speed = tokens ? ` · ${tokens} token${tokens === 1 ? "" : "s"}${rate}` : "";
    const again = make("button", { type: "button", class: "text seed", title: "Set these settings and this seed, to repeat the reply",
      click: () => this.actions.reuse() }, `seed ${seed}`);
    return make("span", { class: "facts" }, make("span", { class: "facts-model" }, `${model} · `), again, speed);
  }

  switcher(variants) {
    const place = variants.indexOf(this.reply);
    const step = (by, name, label) => {
      const button = iconButton(name, label, () => this.actions.vary(variants[place + by]));
      button.disabled = !variants[place + by];
      return button;
    };
    const count = make("span", { class: "count" }, `${place + 1} of ${variants.length}`);
    return [step(-1, "left", "Earlier reply"), count, step(1, "right", "Later reply")];
  }
}

// Why there is no (whole) reply, and the way to try again: at once, or when the server said.
class ProblemView {
  constructor(problem, retry) {
    this.left = problem.kind === "busy" ? Math.ceil(Math.min(problem.retryAfter, 600)) : 0;
    this.button = textButton("Retry", () => {
      this.left = 0;
      retry();
    }, "main");
    // The button counts outside the alert, which would be read again with each second.
    this.element = make("div", { class: "problem" }, make("p", { role: "alert" }, problem.message), this.button);
    if (this.left) this.count();
  }

  count() {
    this.button.disabled = this.left > 0;
    this.button.textContent = this.left > 0 ? `Retry in ${this.left} s` : "Retry";
    if (this.left <= 0) return;
    this.left -= 1;
    setTimeout(() => this.count(), 1000);
  }
}

// A calculation and what it gave, as one text; `parts` has both as neighbours.
function chipsOf(parts) {
  const pieces = [];
  for (const { kind, text } of parts) {
    const last = pieces.at(-1);
    if (kind === "python_output" && last?.isChip && !last.isDone) {
      last.text += ` = ${text}`;
      last.isDone = true;
    } else {
      pieces.push({ isChip: kind !== "text", isDone: kind === "python_output", text: kind === "python_output" ? `= ${text}` : text });
    }
  }
  return pieces;
}

const plainOf = (parts) => chipsOf(parts).map(({ text }) => text).join("");

// Markdown with the chips in the middle of it: marks of a private kind hold their places.
function markedText(pieces) {
  return pieces.map(({ isChip, text }, i) => (isChip ? `${CHIP_OPEN}${i}${CHIP_END}`
    : text.replaceAll(/[\uE000\uE001]/g, "\uFFFD"))).join("");
}

function proseOf(source, pieces) {
  const fragment = renderMarkdown(source);
  const walker = document.createTreeWalker(fragment, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) texts.push(walker.currentNode);
  for (const node of texts) placeChips(node, pieces);
  for (const pre of fragment.querySelectorAll("pre")) addCopy(pre);
  // From left to right in every reply, and no sign of the direction in which that is written.
  for (const code of fragment.querySelectorAll(".code, :not(pre) > code")) code.dir = "ltr";
  return fragment;
}

function placeChips(node, pieces) {
  const places = node.data.split(CHIP_MARKS);
  if (places.length === 1) return;
  // A mark that is none of ours stays text.
  const shown = (place) => (pieces[Number(place)]?.isChip ? chip(pieces[Number(place)].text) : place);
  node.replaceWith(...places.map((place, i) => (i % 2 ? shown(place) : place)));
}

function chip(text) {
  return make("span", { class: "tool", dir: "ltr", role: "note", "aria-label": `calculator: ${text}`,
    title: "worked out with the calculator" }, text);
}

// The log hears the button's click, since a block that grows is made again and again.
function addCopy(pre) {
  pre.setAttribute("tabindex", "0");
  pre.after(make("button", { type: "button", class: "icon copy-code", "aria-label": "Copy this code",
    title: "Copy this code" }, icon("copy")));
}
