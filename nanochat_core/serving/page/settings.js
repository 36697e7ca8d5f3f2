// The sampling controls, and what the page looks like.

// Those of the server; a test compares them.
const DEFAULTS = { temperature: 0.6, top_k: 50, top_p: 1, max_tokens: 512 };
const SEED_END = 2 ** 31;

const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % SEED_END;

class Settings {
  constructor(onChange) {
    this.dialog = at("settings");
    for (const name of [...Object.keys(DEFAULTS), "seed"]) {
      at(name).addEventListener("change", () => {
        this.mark();
        onChange();
      });
    }
    at("reset").addEventListener("click", () => {
      this.show(DEFAULTS, null);
      announce("Settings are back to their defaults.");
      onChange();
    });
    at("tune").addEventListener("click", () => this.open());
    this.show(DEFAULTS, null);
    this.chooseTheme(recalled("theme") || "auto");
    for (const choice of document.getElementsByName("theme")) {
      choice.addEventListener("change", () => this.chooseTheme(choice.value));
    }
  }

  open() {
    this.dialog.showModal();
  }

  // What the controls say, or null after leading to one that says what cannot be.
  read() {
    const names = [...Object.keys(DEFAULTS), "seed"];
    const wrong = names.find((name) => !at(name).checkValidity());
    if (wrong) {
      this.open();
      at(wrong).reportValidity();
      return null;
    }
    return { sampling: this.sampling, seed: this.seed };
  }

  // An empty control stands for its default.
  get sampling() {
    return Object.fromEntries(Object.entries(DEFAULTS).map(([name, usual]) => {
      const value = at(name).valueAsNumber;
      return [name, Number.isNaN(value) ? usual : value];
    }));
  }

  get seed() {
    const value = at("seed").valueAsNumber;
    return Number.isNaN(value) ? null : value;
  }

  // Values that an old conversation brings may be anything.
  show(sampling, seed) {
    for (const [name, usual] of Object.entries(DEFAULTS)) {
      const value = sampling?.[name];
      at(name).value = Number.isFinite(value) ? value : usual;
      if (!at(name).checkValidity()) at(name).value = usual;
    }
    at("seed").value = seed ?? "";
    this.mark();
  }

  // A dot on the button says that the next reply is not made with the defaults.
  mark() {
    const { sampling } = this;
    const isUsual = Object.entries(DEFAULTS).every(([name, usual]) => sampling[name] === usual);
    at("tune").classList.toggle("changed", !isUsual || this.seed !== null);
  }

  chooseTheme(theme) {
    const known = ["light", "dark"].includes(theme) ? theme : "auto";
    document.documentElement.dataset.theme = known;
    for (const choice of document.getElementsByName("theme")) choice.checked = choice.value === known;
    remember("theme", known);
  }
}
