// What can be done with the keyboard, and the list that says so.
const SHORTCUTS = [
  ["Enter", "send"],
  ["Shift+Enter", "start a line"],
  ["Esc", "stop the reply; leave what is open"],
  ["↑", "in an empty box: edit your last message"],
  ["Ctrl+Shift+O", "new conversation"],
  ["Ctrl+K", "search your conversations"],
  ["Ctrl+,", "settings"],
  ["/", "to the message box"],
  ["?", "this list (in a text: Ctrl+/)"],
];

function listShortcuts() {
  const rows = SHORTCUTS.flatMap(([keys, what]) => [
    make("dt", {}, ...keys.split("+").flatMap((key, i) => (i ? ["+", make("kbd", {}, key)] : [make("kbd", {}, key)]))),
    make("dd", {}, what),
  ]);
  at("shortcuts").replaceChildren(...rows);
}

function openHelp() {
  at("settings").close();
  at("help").showModal();
}

const isTyping = () => document.activeElement?.matches("input, textarea, select") ?? false;

// The name of a shortcut that an event is, or "".
function shortcutOf(event) {
  if (event.altKey || event.isComposing) return "";
  if (event.ctrlKey || event.metaKey) {
    const key = event.key.toLowerCase();
    if (event.shiftKey) return key === "o" ? "fresh" : "";
    return { "/": "help", k: "search", ",": "settings" }[key] ?? "";
  }
  if (event.key === "Escape") return "stop";
  if (isTyping()) return "";
  return { "?": "help", "/": "text" }[event.key] ?? "";
}

function listenToKeys({ chat, sidebar, settings }) {
  const actions = {
    fresh: () => chat.fresh(),
    help: openHelp,
    search: () => sidebar.search(),
    settings: () => settings.open(),
    text: () => at("text").focus(),
    stop: () => chat.stop(),
  };
  document.addEventListener("keydown", (event) => {
    const name = shortcutOf(event);
    const isCovered = document.querySelector("dialog[open]") !== null;
    if (!name || isCovered || (name === "stop" && !chat.running)) return;
    event.preventDefault();
    actions[name]();
  });
}
