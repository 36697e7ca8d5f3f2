// Markdown to elements: what chat models write, and nothing that could run, load, or hang.
// Elements are created one by one and text is set as text; raw HTML and images have no way in.
// All work is linear in the text. References: CommonMark 0.31 and GitHub's extensions; left out are
// indented code, underlined headings and link definitions; a line's end is a line's end.
const { renderMarkdown, splitMarkdownBlocks } = (() => {
  // Deeper is no writing, only a way to break a browser: what is beyond stays text.
  const MAX_OPEN_BLOCKS = 32;
  const MAX_COLUMNS = 60;
  const MAX_LABEL = 30;
  // The page has the first two levels for itself.
  const HEADING_SHIFT = 2;

  function element(tag, className = "") {
    const made = document.createElement(tag);
    if (className) made.className = className;
    return made;
  }

  const isBlank = (text) => !/[^ \t]/.test(text);

  // ---- Blocks: open blocks are a stack; each line says which go on, and what begins inside.

  class Block {
    constructor(kind, start, fields = {}) {
      Object.assign(this, { kind, start, end: start, children: [], lines: [] }, fields);
    }
    get isContainer() { return this.kind === "quote" || this.kind === "item"; }
    get isLoose() {
      return hasGap(this.children) || this.children.some(({ children }) => hasGap(children));
    }
  }

  const hasGap = (blocks) => blocks.some(({ start }, i) => i > 0 && start > blocks[i - 1].end + 1);

  // A line and how far its containers have read it. A tab reaches to the next stop of four columns.
  class Cursor {
    constructor(line) {
      this.line = line;
      this.at = 0;
      this.column = 0;
      this.#findText();
    }
    get indent() { return this.textColumn - this.column; }
    get isBlank() { return this.textAt === this.line.length; }
    get text() { return this.line.slice(this.textAt); }
    get rest() { return this.line.slice(this.at); }

    #findText() {
      this.textAt = this.at;
      this.textColumn = this.column;
      for (; " \t".includes(this.line[this.textAt] ?? "x"); this.textAt += 1) {
        this.textColumn += this.line[this.textAt] === " " ? 1 : 4 - (this.textColumn % 4);
      }
    }
    // Past white space of so many columns, or all there is.
    skip(columns) {
      const end = Math.min(this.column + columns, this.textColumn);
      while (this.column < end) {
        if (this.line[this.at] === "\t") this.#spreadTab();
        this.at += 1;
        this.column += 1;
      }
    }
    #spreadTab() {
      const width = 4 - (this.column % 4);
      this.line = this.line.slice(0, this.at) + " ".repeat(width) + this.line.slice(this.at + 1);
      this.textAt += width - 1;
    }
    // Past the indent and a marker of so many characters.
    take(length) {
      this.at = this.textAt + length;
      this.column = this.textColumn + length;
      this.#findText();
    }
  }

  // Whether an open block goes on with this line; a container reads its own part of it.
  function goesOn(block, cursor) {
    switch (block.kind) {
      case "quote": return takeQuoteMark(cursor);
      case "item": return takeItemIndent(block, cursor);
      case "paragraph": case "table": return !cursor.isBlank;
      default: return block.kind === "list" || block.kind === "fence";
    }
  }

  function takeItemIndent({ children, offset }, cursor) {
    const isInside = cursor.isBlank ? children.length > 0 : cursor.indent >= offset;
    if (isInside) cursor.skip(offset);
    return isInside;
  }

  function takeQuoteMark(cursor) {
    if (cursor.line[cursor.textAt] !== ">") return false;
    cursor.take(1);
    cursor.skip(1);
    return true;
  }

  // What a line can begin, in the order of asking. `before` is the open paragraph or table that it
  // would end, if any. An indent decides nothing here, for there is no indented code.
  const BEGINNERS = [
    function quote(cursor, _before, start) {
      return takeQuoteMark(cursor) ? new Block("quote", start) : null;
    },
    function fence({ text, indent }, _before, start) {
      const mark = /^(?:`{3,}|~{3,})/.exec(text)?.[0];
      if (!mark || (mark[0] === "`" && text.includes("`", mark.length))) return null;
      const label = text.slice(mark.length).trim().split(/\s/, 1)[0].slice(0, MAX_LABEL);
      return new Block("fence", start, { mark, indent, label });
    },
    function rule({ text }, _before, start) {
      const marks = text.replace(/[ \t]/g, "");
      return /^(?:\*{3,}|-{3,}|_{3,})$/.test(marks) ? new Block("rule", start) : null;
    },
    function table({ text }, before, start) {
      const alignments = before?.kind === "paragraph" ? alignmentsOf(text) : null;
      if (!alignments || cellsOf(before.lines.at(-1)).length !== alignments.length) return null;
      const header = cellsOf(before.lines.pop());
      return new Block("table", start - 1, { alignments, header });
    },
    function item(cursor, before, start) {
      const [mark, bullet, number, bracket] =
        /^(?:([-+*])|(\d{1,9})([.)]))(?=[ \t]|$)/.exec(cursor.text) ?? [];
      if (!mark) return null;
      const { indent } = cursor;
      const isBare = isBlank(cursor.text.slice(mark.length));
      if (before?.kind === "paragraph" && (isBare || Number(number ?? 1) !== 1)) return null;
      cursor.take(mark.length);
      const gap = isBare || cursor.indent > 4 ? 1 : cursor.indent;
      cursor.skip(gap);
      const type = bullet ?? bracket;
      return new Block("item", start, { type, number, offset: indent + mark.length + gap });
    },
    function heading({ text, indent }, _before, start) {
      const mark = /^#{1,6}(?=[ \t]|$)/.exec(text)?.[0];
      if (!mark || indent > 3) return null;
      const lines = [withoutClosingMarks(text.slice(mark.length).trim())];
      return new Block("heading", start, { level: mark.length, lines });
    },
  ];

  function blockBegunBy(cursor, before, number) {
    for (const begin of BEGINNERS) {
      const block = begin(cursor, before, number);
      if (block) return block;
    }
    return null;
  }

  // A loop, since a pattern that ends in `#+ *$` is quadratic on long runs.
  function withoutClosingMarks(text) {
    let end = text.length;
    while (text[end - 1] === "#") end -= 1;
    return end === 0 || " \t".includes(text[end - 1]) ? text.slice(0, end).trim() : text;
  }

  function cellsOf(line) {
    const cells = [""];
    for (const [piece] of line.trim().replace(/^\|/, "").matchAll(/\\\||\||[^\\|]+|\\/g)) {
      if (piece === "|") cells.push("");
      else cells[cells.length - 1] += piece === "\\|" ? "|" : piece;
    }
    if (cells.at(-1) === "" && cells.length > 1) cells.pop();
    return cells.map((cell) => cell.trim());
  }

  // Of a table's second line; null for any other line.
  function alignmentsOf(text) {
    if (!/^[-:| \t]+$/.test(text) || !text.includes("|")) return null;
    const cells = cellsOf(text);
    if (cells.length > MAX_COLUMNS || !cells.every((cell) => /^:?-+:?$/.test(cell))) return null;
    return cells.map((cell) => {
      if (cell.endsWith(":")) return cell.startsWith(":") ? "center" : "right";
      return cell.startsWith(":") ? "left" : "";
    });
  }

  class BlockParser {
    constructor(lines) {
      this.root = new Block("root", 0);
      this.open = [this.root];
      lines.forEach((line, number) => this.#read(line, number));
    }

    #read(line, number) {
      const cursor = new Cursor(line);
      const tip = this.open.at(-1);
      let count = 1;
      while (count < this.open.length && goesOn(this.open[count], cursor)) count += 1;
      if (count === this.open.length && tip.kind === "fence") this.#readCode(tip, cursor, number);
      else if (cursor.isBlank) this.open.length = count;
      else this.#readText(cursor, count, number);
    }

    #readCode(fence, cursor, number) {
      const text = cursor.text.trimEnd();
      const isEnd = text.length >= fence.mark.length && cursor.indent < fence.indent + 4
        && text === fence.mark[0].repeat(text.length);
      cursor.skip(fence.indent);
      if (!isEnd) fence.lines.push(cursor.rest);
      this.#extend(number);
      if (isEnd) this.open.pop();
    }

    // Of the open blocks, the first `count` go on with this line.
    #readText(cursor, count, number) {
      const hasBegun = this.#begin(cursor, count, number);
      const tip = this.open.at(-1);
      const isTable = tip.kind === "table" && count === this.open.length;
      if (!hasBegun && (tip.kind === "paragraph" || isTable)) {
        tip.lines.push(cursor.text.trimEnd()); // a paragraph even without its containers' marks
      } else if (!hasBegun || (tip.isContainer && !cursor.isBlank)) {
        if (!hasBegun) this.open.length = count;
        this.#add(new Block("paragraph", number, { lines: [cursor.text.trimEnd()] }));
      }
      this.#extend(number);
    }

    // Opens what the rest of the line begins, one block inside the other.
    #begin(cursor, count, number) {
      let hasBegun = false;
      while (count <= MAX_OPEN_BLOCKS && !cursor.isBlank) {
        const tip = this.open[count - 1];
        const before = tip.kind === "paragraph" || tip.kind === "table" ? tip : null;
        const block = blockBegunBy(cursor, before, number);
        if (!block) break;
        this.open.length = before ? count - 1 : count;
        if (before?.lines.length === 0 && block.kind === "table") this.open.at(-1).children.pop();
        this.#add(block);
        hasBegun = true;
        if (!block.isContainer) break;
        count = this.open.length;
      }
      return hasBegun;
    }

    #add(block) {
      const { kind, start, type, number } = block;
      const tip = this.open.at(-1);
      const hasList = tip.kind === "list" && kind === "item" && tip.type === type;
      if (tip.kind === "list" && !hasList) this.open.pop();
      if (kind === "item" && !hasList) this.#push(new Block("list", start, { type, number }));
      this.#push(block);
    }

    #push(block) {
      this.open.at(-1).children.push(block);
      this.open.push(block);
    }

    #extend(number) {
      for (const block of this.open) block.end = number;
    }
  }

  const linesOf = (text) => text.replace(/\r\n?/g, "\n").split("\n");

  // Of these lines; an empty last one is the end of the one before.
  function blocksOf(lines) {
    return new BlockParser(lines.at(-1) === "" ? lines.slice(0, -1) : lines).root.children;
  }

  // ---- Blocks to elements.

  const ELEMENT_OF = {
    paragraph: ({ lines }) => inlined(element("p"), lines.join("\n")),
    heading({ level, lines }) {
      return inlined(element(`h${Math.min(level + HEADING_SHIFT, 6)}`), lines[0]);
    },
    rule: () => element("hr"),
    quote: ({ children }) => filled(element("blockquote"), children),
    list(block) {
      const made = element(block.number === undefined ? "ul" : "ol");
      if (block.number !== undefined && Number(block.number) !== 1) made.start = block.number;
      const { isLoose } = block;
      for (const item of block.children) made.append(itemElement(item, isLoose));
      return made;
    },
    fence({ label, lines }) {
      const [made, pre, code] = [element("div", "code"), element("pre"), element("code")];
      if (label) made.append(Object.assign(element("div", "language"), { textContent: label }));
      pre.tabIndex = 0; // it scrolls, so that keys must reach it
      code.textContent = lines.map((line) => `${line}\n`).join("");
      pre.append(code);
      made.append(pre);
      return made;
    },
    table({ alignments, header, lines }) {
      const [made, table] = [element("div", "table"), element("table")];
      const [head, body] = [element("thead"), element("tbody")];
      head.append(rowElement("th", header, alignments));
      for (const line of lines) body.append(rowElement("td", cellsOf(line), alignments));
      made.tabIndex = 0;
      table.append(head, ...(lines.length ? [body] : []));
      made.append(table);
      return made;
    },
  };

  // One by one here and elsewhere: a call takes only so many arguments.
  function filled(parent, blocks) {
    for (const block of blocks) parent.append(ELEMENT_OF[block.kind](block));
    return parent;
  }

  function itemElement({ children }, isLoose) {
    const item = element("li");
    const [first] = children;
    const task = first?.kind === "paragraph" && /^\[([ xX])\][ \t]+(?=\S)/.exec(first.lines[0]);
    if (task) {
      first.lines[0] = first.lines[0].slice(task[0].length);
      item.className = "task";
      item.append(checkbox(task[1] !== " "));
    }
    for (const block of children) {
      if (block.kind === "paragraph" && !isLoose) inlined(item, block.lines.join("\n"));
      else filled(item, [block]);
    }
    return item;
  }

  function checkbox(isDone) {
    const box = element("input");
    Object.assign(box, { type: "checkbox", disabled: true, checked: isDone });
    box.setAttribute("aria-label", isDone ? "done" : "to do");
    return box;
  }

  // Cells that a row lacks stay out: a wide header over many short rows would multiply.
  function rowElement(tag, cells, alignments) {
    const row = element("tr");
    row.append(...cells.slice(0, alignments.length).map((cell, i) => {
      const made = element(tag, alignments[i]);
      if (tag === "th") made.scope = "col";
      return inlined(made, cell);
    }));
    return row;
  }

  function inlined(parent, text) {
    parent.append(renderInline(text));
    return parent;
  }

  // ---- What the page uses.

  // Where the last line has no end yet, more of it may show that it begins no block, or that a
  // paragraph above it has no table as its last line.
  function isUnsettled(lines, before, last) {
    const isSplit = last.kind === "table" && before.kind === "paragraph";
    const isNew = last.start >= lines.length - (isSplit ? 2 : 1);
    const isApart = before.end < last.start - 1;
    return isNew && (!isApart || (before.kind === "list" && /^[ \t\d.)*+-]*$/.test(lines.at(-1))));
  }

  // The elements of a text.
  function render(text) {
    return filled(document.createDocumentFragment(), blocksOf(linesOf(text)));
  }

  // The text in pieces that, rendered one after another, give what the whole gives. When text is
  // added at the end, all pieces but the last stay as they are.
  function split(text) {
    const lines = linesOf(text);
    const blocks = blocksOf(lines);
    if (blocks.length > 1 && isUnsettled(lines, ...blocks.slice(-2))) blocks.pop();
    const starts = blocks.map(({ start }, i) => (i === 0 ? 0 : start));
    return starts.map((start, i) => {
      const piece = lines.slice(start, starts[i + 1]).join("\n");
      return i + 1 < starts.length ? `${piece}\n` : piece;
    });
  }

  return { renderMarkdown: render, splitMarkdownBlocks: split };
})();
