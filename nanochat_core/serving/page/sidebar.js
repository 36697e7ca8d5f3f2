// The list of conversations: beside the chat on a wide window, a drawer on a narrow one.
class Sidebar {
  constructor(chat, history) {
    Object.assign(this, { chat, history });
    this.nav = at("history");
    this.drawer = at("drawer");
    at("history-open").addEventListener("click", () => this.toggle());
    at("history-close").addEventListener("click", () => this.hide());
    at("search").addEventListener("input", () => this.render());
    at("export-one").addEventListener("click", () => this.exportOne());
    at("export-all").addEventListener("click", () => this.exportAll());
    at("import").addEventListener("click", () => at("import-file").click());
    at("import-file").addEventListener("change", () => this.importFile());
    at("clear").addEventListener("click", () => this.clear());
    this.drawer.addEventListener("close", () => this.place());
    this.drawer.addEventListener("click", (event) => event.target === this.drawer && this.drawer.close());
    isNarrow.addEventListener("change", () => this.place());
    history.onChange = () => this.render();
    this.isOpen = recalled("sidebar") !== "closed";
    this.place();
  }

  // The list stands where the window has room for it.
  place() {
    if (this.drawer.open) this.drawer.close();
    at("app").prepend(this.nav);
    this.nav.hidden = isNarrow.matches || !this.isOpen;
    at("history-open").setAttribute("aria-expanded", String(!this.nav.hidden));
  }

  toggle() {
    if (isNarrow.matches) {
      this.drawer.append(this.nav);
      this.nav.hidden = false;
      this.drawer.showModal();
      return;
    }
    this.setOpen(!this.isOpen);
  }

  hide() {
    if (this.drawer.open) this.drawer.close();
    else {
      this.setOpen(false);
      at("history-open").focus();
    }
  }

  setOpen(isOpen) {
    this.isOpen = isOpen;
    remember("sidebar", isOpen ? "open" : "closed");
    this.place();
  }

  search() {
    if (this.nav.hidden) this.toggle();
    at("search").focus();
  }

  render() {
    const wanted = at("search").value.trim().toLowerCase();
    const all = this.history.list();
    const shown = wanted ? all.filter((item) => this.matches(item, wanted)) : all;
    let day = "";
    const items = shown.flatMap((item) => {
      const before = day;
      day = dayOf(item.updated);
      const head = day === before ? [] : [make("li", { class: "day" }, day)];
      return [...head, this.item(item)];
    });
    at("history-list").replaceChildren(...items);
    at("history-note").textContent = this.history.isPersistent ? "Kept in this browser alone."
      : "This browser has no room for more: kept until the page is closed. Export what you need.";
    at("history-note").classList.toggle("bad", !this.history.isPersistent);
    at("history-none").hidden = shown.length > 0;
    at("history-none").textContent = wanted ? "None has these words." : "What you talk about is listed here.";
  }

  matches(item, wanted) {
    if (item.title.toLowerCase().includes(wanted)) return true;
    const found = this.history.load(item.id)?.messages ?? [];
    return found.some((message) => String(message?.content ?? "").toLowerCase().includes(wanted));
  }

  item({ id, title }) {
    const isCurrent = id === this.chat.conversation.id;
    const name = title || "Untitled";
    const row = make("li", { class: isCurrent ? "item current" : "item" });
    row.append(
      make("button", { type: "button", class: "title", dir: "auto", "aria-current": isCurrent && "true", click: () => {
        if (this.drawer.open) this.drawer.close();
        if (!isCurrent) this.chat.open(id);
        focusText();
      } }, name),
      iconButton("edit", `Rename ${name}`, () => this.rename(row, id, title)),
      iconButton("trash", `Delete ${name}`, () => this.remove(id, name)));
    return row;
  }

  rename(row, id, title) {
    const box = make("input", { type: "text", "aria-label": "New name", maxlength: 200 });
    box.value = title;
    let isDone = false;
    const end = (isWanted) => {
      if (isDone) return;
      isDone = true;
      const name = box.value.trim();
      if (isWanted && name && name !== title) this.setTitle(id, name);
      this.render();
      at("history-list").querySelector(`[aria-label=${CSS.escape(`Rename ${name}`)}]`)?.focus();
    };
    box.addEventListener("blur", () => end(true));
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault();
      event.stopPropagation();
      end(event.key === "Enter");
    });
    row.replaceChildren(box);
    box.focus();
    box.select();
  }

  setTitle(id, title) {
    if (id === this.chat.conversation.id) {
      this.chat.conversation.title = title;
      this.chat.save();
    } else {
      this.attempt(() => this.history.save({ ...this.history.load(id), title }));
    }
  }

  remove(id, name) {
    const stored = this.history.load(id);
    const isCurrent = id === this.chat.conversation.id;
    this.history.remove(id);
    if (isCurrent) this.chat.forget(id);
    this.render();
    toast(`Deleted “${name}”.`, () => {
      this.attempt(() => this.history.save(stored));
      if (isCurrent) this.chat.open(id);
      this.render();
    });
  }

  clear() {
    const count = this.history.list().length;
    if (!count) return;
    const before = this.history.exportAll();
    this.history.clear();
    this.chat.forget("");
    this.render();
    toast(`Deleted ${count === 1 ? "1 conversation" : `${count} conversations`}.`, () => {
      this.attempt(() => this.history.importAll(before));
      this.render();
    });
  }

  exportOne() {
    if (!this.chat.exchanges.length) return toast("There is nothing to save yet.");
    const { title } = this.chat.conversation;
    const name = title.replaceAll(/[^\p{L}\p{N}]+/gu, "-").replaceAll(/^-|-$/g, "") || "conversation";
    return download(`${name}.md`, this.history.toMarkdown(flatForm(this.chat.conversation)), "text/markdown");
  }

  exportAll() {
    download("nanochat-conversations.json", this.history.exportAll(), "application/json");
  }

  async importFile() {
    const [file] = at("import-file").files;
    at("import-file").value = "";
    if (!file) return;
    const text = await file.text();
    this.attempt(() => {
      const count = this.history.importAll(text);
      toast(`Imported ${count === 1 ? "1 conversation" : `${count} conversations`}.`);
    });
    this.render();
  }

  attempt(action) {
    try {
      action();
    } catch (error) {
      showError(sentence(error.message));
    }
  }
}

function dayOf(moment) {
  const date = new Date(moment);
  if (Number.isNaN(date.getTime())) return "Earlier";
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (date >= midnight) return "Today";
  if (date >= midnight - 864e5) return "Yesterday";
  return date >= midnight - 6 * 864e5 ? "This week" : "Earlier";
}
