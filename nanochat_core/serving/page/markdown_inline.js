// Markdown inside a paragraph: nodes stand in a row, and are wrapped as it turns out what they are.
// As in markdown.js: no HTML, no images, linear in the text.
const renderInline = (() => {
  // Deeper is no writing, only a way to break a browser: what is beyond stays text.
  const MAX_DEPTH = 12;
  const MAX_PARENTHESES = 32;

  const SPECIAL = /`+|\*+|_+|~+|[\\[\]!<&\n]|https?:\/\//gi;
  const PUNCTUATION = /[!-/:-@[-`{-~]/;
  const ENTITY = /&(?:#(\d{1,7})|#x([\da-f]{1,6})|([a-z]{2,6}));/iy;
  const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0",
    copy: "\u00a9", ndash: "\u2013", mdash: "\u2014", hellip: "\u2026", times: "\u00d7" };
  const BRACKETED = /<((?:https?:\/\/|mailto:)[^\s<>]*|[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+)>/iy;
  // Direction marks end an address, since they could show it as another one.
  const BARE = /https?:\/\/[^\s<>"`\\[\]{}|^\u200e\u200f\u202a-\u202e\u2066-\u2069]+/iy;
  const TARGET_START = /\(\s*/y;
  const TARGET_QUOTED = /<((?:[^<>\n\\]|\\.)*)>/y;
  const TARGET_END =
    /(?:\s+(?:"(?:[^"\\]|\\[^])*"|'(?:[^'\\]|\\[^])*'|\((?:[^()\\]|\\[^])*\)))?\s*\)/y;

  function matchAt(pattern, text, at) {
    pattern.lastIndex = at;
    return pattern.exec(text);
  }

  // Only what a person may want to visit: never a script, never data, never a name that hides
  // the host as in https://bank@thief. Anything else is null.
  function safeAddress(text) {
    if (!/^(?:https?:\/\/|mailto:)/i.test(text) || !URL.canParse(text)) return null;
    const { href, protocol, username, password } = new URL(text);
    return /^(?:https?|mailto):$/.test(protocol) && !username && !password ? href : null;
  }

  // Half a pair is no character, and private ones are the page's own marks.
  function characterOf(code) {
    const isGood = code > 0 && code <= 0x10ffff && (code < 0xd800 || code > 0xf8ff);
    return isGood ? String.fromCodePoint(code) : "\ufffd";
  }

  function entityAt(text, at) {
    const [whole, decimal, hex, name] = matchAt(ENTITY, text, at) ?? [];
    if (decimal || hex) return [characterOf(decimal ? Number(decimal) : parseInt(hex, 16)), whole];
    return Object.hasOwn(ENTITIES, name ?? "") ? [ENTITIES[name], whole] : null;
  }

  function unescaped(text) {
    return text.replace(/\\([!-/:-@[-`{-~])|&#?\w{2,8};/g, (whole, escaped) =>
      escaped ?? entityAt(whole, 0)?.[0] ?? whole);
  }

  // What stands at a place, as emphasis sees it.
  function kindAt(text, at) {
    const code = text.codePointAt(at);
    const character = code === undefined ? " " : String.fromCodePoint(code);
    if (/\s/.test(character)) return "space";
    return /[\p{P}\p{S}]/u.test(character) ? "sign" : "word";
  }

  // A run of * or _ or ~ opens or closes by what stands beside it (CommonMark 0.31, 6.2).
  function flanking(text, start, end) {
    const isPair = text.codePointAt(start - 2) > 0xffff;
    const [before, after] = [kindAt(text, start - (isPair ? 2 : 1)), kindAt(text, end)];
    const isLeft = after !== "space" && (after === "word" || before !== "word");
    const isRight = before !== "space" && (before === "word" || after !== "word");
    if (text[start] !== "_") return { canOpen: isLeft, canClose: isRight };
    return { canOpen: isLeft && (!isRight || before === "sign"),
      canClose: isRight && (!isLeft || after === "sign") };
  }

  // The rule of three of CommonMark 6.2: `*a**b*` has one emphasis, not three.
  function fits(opener, closer) {
    if (opener.sign !== closer.sign) return false;
    const isBoth = opener.canClose || closer.canOpen;
    const isThird = opener.length % 3 === 0 && closer.length % 3 === 0;
    return !isBoth || isThird || (opener.length + closer.length) % 3 !== 0;
  }

  function bareTargetEnd(text, from) {
    let depth = 0;
    for (let at = from; at < text.length; at += 1) {
      if (/[\s\0-\x1f]/.test(text[at])) return at;
      if (text[at] === "\\") at += 1;
      else if (text[at] === "(") depth += 1;
      else if (text[at] === ")") depth -= 1;
      if (depth < 0 || depth > MAX_PARENTHESES) return at;
    }
    return text.length;
  }

  // `(address "title")` at a place; null where it is none, or leads where no link may.
  function targetAt(text, at) {
    if (!matchAt(TARGET_START, text, at)) return null;
    const from = TARGET_START.lastIndex;
    const quoted = matchAt(TARGET_QUOTED, text, from);
    const to = quoted ? TARGET_QUOTED.lastIndex : bareTargetEnd(text, from);
    if (!matchAt(TARGET_END, text, to)) return null;
    const address = safeAddress(unescaped(quoted ? quoted[1] : text.slice(from, to)));
    return address && { address, end: TARGET_END.lastIndex };
  }

  // A full stop after an address ends the sentence, and a bracket what stands around both.
  function withoutTail(address) {
    let extra = address.split(")").length - address.split("(").length;
    let end = address.length;
    for (; end > 0; end -= 1) {
      if (address[end - 1] === ")") {
        if (extra <= 0) break;
        extra -= 1;
      } else if (!"?!.,:;*_~'".includes(address[end - 1])) break;
    }
    return address.slice(0, end);
  }

  function anchor(address, text = "") {
    const link = document.createElement("a");
    Object.assign(link, { href: address, target: "_blank", rel: "noopener noreferrer nofollow" });
    link.textContent = text;
    return link;
  }

  class InlineParser {
    constructor(text) {
      Object.assign(this, { text, at: 0, plain: "", numImages: 0, runs: null });
      Object.assign(this, { marks: [], brackets: [], anchors: [], depths: new Map() });
      this.root = document.createDocumentFragment();
    }

    parse() {
      while (this.at < this.text.length) {
        const found = matchAt(SPECIAL, this.text, this.at);
        const start = found?.index ?? this.text.length;
        this.plain += this.text.slice(this.at, start);
        this.at = start;
        if (found && !this.#read(found[0])) this.#skip(found[0].length);
      }
      this.#flush();
      this.#emphasise(0);
      return this.root;
    }

    // Whether the token meant something; if not, it is text.
    #read(token) {
      switch (token[0]) {
        case "`": return this.#readCode(token.length);
        case "\\": return this.#readEscape();
        case "[": return this.#openBracket("[");
        case "!": return this.text[this.at + 1] === "[" && this.#openBracket("![");
        case "]": return this.#closeBracket();
        case "<": return this.#readBracketed();
        case "&": return this.#readEntity();
        case "\n": return this.#append(document.createElement("br"), 1);
        case "h": case "H": return this.#readAddress();
        default: return this.#readMark(token);
      }
    }

    #skip(length) {
      this.plain += this.text.slice(this.at, this.at + length);
      this.at += length;
      return true;
    }

    #flush() {
      if (this.plain) this.root.append(this.plain);
      this.plain = "";
    }

    #append(node, length) {
      this.#flush();
      this.root.append(node);
      this.at += length;
      return true;
    }

    #readCode(length) {
      const from = this.at + length;
      const to = this.#nextRun(length, from);
      if (to === undefined) return false;
      const content = this.text.slice(from, to).replaceAll("\n", " ");
      const isPadded = /^ [^]* $/.test(content) && /[^ ]/.test(content);
      const code = document.createElement("code");
      code.textContent = isPadded ? content.slice(1, -1) : content;
      return this.#append(code, to + length - this.at);
    }

    // Where the next run of so many backticks stands. All are found once, and each is passed once.
    #nextRun(length, from) {
      this.runs ??= Map.groupBy([...this.text.matchAll(/`+/g)].reverse(), ([run]) => run.length);
      const runs = this.runs.get(length) ?? [];
      while (runs.length && runs.at(-1).index < from) runs.pop();
      return runs.at(-1)?.index;
    }

    #readEscape() {
      const next = this.text[this.at + 1];
      if (next !== "\n" && !PUNCTUATION.test(next ?? "")) return false;
      this.at += 1;
      return next === "\n" || this.#skip(1);
    }

    #readEntity() {
      const [character, whole] = entityAt(this.text, this.at) ?? [];
      if (!whole) return false;
      this.plain += character;
      this.at += whole.length;
      return true;
    }

    #readBracketed() {
      const [whole, shown] = matchAt(BRACKETED, this.text, this.at) ?? [];
      const address = whole && safeAddress(shown.includes(":") ? shown : `mailto:${shown}`);
      return Boolean(address) && this.#appendLink(anchor(address, shown), whole.length);
    }

    #readAddress() {
      if (/[a-z\d]/i.test(this.text[this.at - 1] ?? "")) return false;
      const whole = matchAt(BARE, this.text, this.at)?.[0];
      if (!whole) return false;
      const shown = withoutTail(whole);
      const address = safeAddress(shown);
      // Passed as a whole, or a row of bad addresses would be read again from each on.
      return address ? this.#appendLink(anchor(address, shown), shown.length)
        : this.#skip(whole.length);
    }

    #appendLink(link, length) {
      this.anchors.push(link);
      this.depths.set(link, 1);
      return this.#append(link, length);
    }

    #readMark(sign) {
      if (sign[0] === "~" && sign.length !== 2) return false;
      const { length } = sign;
      const node = document.createTextNode(sign);
      const sides = flanking(this.text, this.at, this.at + length);
      this.marks.push({ node, sign: sign[0], length, count: length, ...sides });
      return this.#append(node, length);
    }

    #openBracket(sign) {
      const node = document.createTextNode(sign);
      const { marks, anchors, numImages } = this;
      const counts = { numMarks: marks.length, numAnchors: anchors.length, numImages };
      this.brackets.push({ node, isImage: sign === "![", ...counts });
      return this.#append(node, sign.length);
    }

    // An image becomes a link to it, for the page loads nothing. No link stands in another one: the
    // brackets around a link are text, and an image or an address in a link is its text.
    #closeBracket() {
      const opener = this.brackets.pop();
      const target = opener && targetAt(this.text, this.at + 1);
      if (!target || (opener.isImage && this.numImages > opener.numImages)) return false;
      this.#flush();
      this.#emphasise(opener.numMarks);
      const link = anchor(target.address);
      this.#wrap(link, opener.node, null);
      opener.node.remove();
      for (const inner of this.anchors.splice(opener.numAnchors)) unwrap(inner);
      if (!link.hasChildNodes()) link.textContent = target.address;
      this.anchors.push(link);
      if (opener.isImage) this.numImages += 1;
      else this.brackets = [];
      this.at = target.end;
      return true;
    }

    // Moves the nodes between two into the element, which takes their place.
    #wrap(wrapper, first, end) {
      this.depths.set(wrapper, this.#depthBetween(first, end) + 1);
      first.after(wrapper);
      while (wrapper.nextSibling !== end) wrapper.append(wrapper.nextSibling);
    }

    // Turns the marks from this one on into emphasis; none of them is looked at again.
    #emphasise(from) {
      const open = [];
      const floors = new Map();
      this.marks.splice(from).forEach((mark, serial) => {
        mark.serial = serial;
        if (mark.canClose) this.#close(mark, open, floors);
        if (mark.canOpen && mark.count > 0) open.push(mark);
      });
    }

    // `floors` keeps, for each sort of closer, up to where none was found that it could close: by
    // this the search is linear (the "openers_bottom" of CommonMark's appendix).
    #close(closer, open, floors) {
      const sort = `${closer.sign} ${closer.canOpen} ${closer.length % 3}`;
      while (closer.count > 0) {
        const floor = floors.get(sort) ?? -1;
        let i = open.length - 1;
        while (i >= 0 && open[i].serial > floor && !fits(open[i], closer)) i -= 1;
        if (i < 0 || open[i].serial <= floor) {
          floors.set(sort, closer.serial - 1);
          return;
        }
        open.length = i + 1;
        // Too deep: what is around stays text, and is not tried again by each closer.
        if (!this.#wrapMarked(open[i], closer)) open.length = 0;
        else if (open[i].count === 0) open.pop();
      }
    }

    #wrapMarked(opener, closer) {
      if (this.#depthBetween(opener.node, closer.node) >= MAX_DEPTH) return false;
      const used = Math.min(opener.count, closer.count, 2);
      const tag = opener.sign === "~" ? "del" : ["em", "strong"][used - 1];
      this.#wrap(document.createElement(tag), opener.node, closer.node);
      for (const mark of [opener, closer]) {
        mark.count -= used;
        mark.node.data = mark.sign.repeat(mark.count);
        if (mark.count === 0) mark.node.remove();
      }
      return true;
    }

    #depthBetween(first, last) {
      let depth = 0;
      for (let node = first.nextSibling; node !== last; node = node.nextSibling) {
        depth = Math.max(depth, this.depths.get(node) ?? 0);
      }
      return depth;
    }
  }

  function unwrap(link) {
    while (link.firstChild) link.before(link.firstChild);
    link.remove();
  }

  return (text) => (text.search(SPECIAL) < 0 ? text : new InlineParser(text).parse());
})();
