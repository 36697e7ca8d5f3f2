// Small helpers over the document. Text always goes in as text, never as HTML.
const at = (id) => document.getElementById(id);
const isNarrow = matchMedia("(max-width: 54rem)");
const hasKeyboard = matchMedia("(pointer: fine)");

// An element with attributes (functions become listeners; false and null are left out) and children.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

function iconButton(name, label, action) {
  return make("button", { type: "button", class: "icon", "aria-label": label, title: label,
    click: action }, icon(name));
}

function textButton(label, action, className = "") {
  return make("button", { type: "button", class: className, click: action }, label);
}

// For those who do not see the page: said when whatever is being read has ended.
function announce(text) {
  at("spoken").textContent = text;
}

let toastTimer = 0;

// A line that goes away by itself, with the way back where there is one.
function toast(text, undo = null) {
  clearTimeout(toastTimer);
  at("toast").hidden = false;
  at("toast-text").textContent = text;
  at("toast-undo").hidden = undo === null;
  at("toast-undo").onclick = () => {
    hideToast();
    undo();
  };
  toastTimer = setTimeout(hideToast, undo ? 12000 : 4000);
}

function hideToast() {
  clearTimeout(toastTimer);
  at("toast").hidden = true;
}

function showError(text) {
  at("error").hidden = !text;
  at("error").textContent = text || "";
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text); // a page over plain HTTP from another machine has no clipboard
  }
}

function copyBySelection(text) {
  const active = document.activeElement;
  const box = make("textarea", { class: "hidden", "aria-hidden": "true" });
  box.value = text;
  document.body.append(box);
  box.select();
  document.execCommand("copy");
  box.remove();
  if (active) active.focus();
}

// Copies, and shows on the button for a moment that it did.
async function copyFrom(button, text) {
  await copyText(text);
  const before = [...button.childNodes];
  button.replaceChildren(icon("check"));
  button.classList.add("done");
  announce("Copied.");
  setTimeout(() => {
    button.replaceChildren(...before);
    button.classList.remove("done");
  }, 1400);
}

function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// What the browser remembers beside the conversations; without its storage, for this visit alone.
class MemoryStorage {
  constructor() {
    this.values = new Map();
  }
  get length() { return this.values.size; }
  key(index) { return [...this.values.keys()][index] ?? null; }
  getItem(name) { return this.values.get(name) ?? null; }
  setItem(name, value) { this.values.set(name, String(value)); }
  removeItem(name) { this.values.delete(name); }
}

function openStorage(name) {
  try {
    const storage = window[name];
    storage.getItem("nanochat");
    return storage;
  } catch {
    return new MemoryStorage();
  }
}

// The history has its own ways when there is no room in it.
const lasting = openStorage("localStorage");

// Reads and writes what a browser may refuse at any moment: what it does not take lives in memory.
class GuardedStorage {
  constructor(storage) {
    this.storage = storage;
    this.refused = new MemoryStorage();
  }
  getItem(name) {
    try {
      return this.refused.getItem(name) ?? this.storage.getItem(name);
    } catch {
      return null;
    }
  }
  setItem(name, value) {
    this.refused.removeItem(name);
    try {
      this.storage.setItem(name, value);
    } catch {
      this.refused.setItem(name, value);
    }
  }
}

const passing = new GuardedStorage(openStorage("sessionStorage"));
const preferences = new GuardedStorage(lasting);
const remember = (name, value) => preferences.setItem(`nanochat.${name}`, value);
const recalled = (name) => preferences.getItem(`nanochat.${name}`);
