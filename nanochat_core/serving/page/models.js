// Which model answers: the names of the server's store, and the second one when comparing.
class ModelPicker {
  constructor(client, onChange) {
    this.client = client;
    this.models = [];
    this.first = at("model");
    this.second = at("rival");
    this.isComparing = false;
    for (const select of [this.first, this.second]) {
      select.addEventListener("change", () => {
        remember("model", this.first.value);
        onChange();
      });
    }
    at("compare").addEventListener("click", () => {
      this.compare(!this.isComparing);
      onChange();
    });
  }

  // The models that the next question goes to.
  get chosen() {
    return this.isComparing ? [this.first.value, this.second.value] : [this.first.value];
  }

  async load() {
    const [models, health] = await Promise.all([this.client.models(), this.client.health()]);
    this.models = models;
    const wanted = this.first.value || recalled("model") || health.model;
    const rival = this.second.value;
    for (const select of [this.first, this.second]) this.fill(select);
    this.choose(this.find(wanted)?.id ?? this.find(health.model)?.id ?? models[0]?.id, rival);
    at("device").textContent = `${health.model}, on ${health.device}`;
    this.first.title = `Model, on ${health.device}`;
  }

  fill(select) {
    const chat = this.models.filter(isChat);
    const groups = [
      ["Names", chat.filter((model) => model.nanochat?.is_alias)],
      ["Models of the store", chat.filter((model) => !model.nanochat?.is_alias)],
    ].filter(([, models]) => models.length);
    const options = groups.map(([label, models]) => {
      const made = models.map((model) => make("option", { value: model.id }, labelOf(model)));
      return groups.length > 1 ? make("optgroup", { label }, ...made) : made;
    });
    select.replaceChildren(...options.flat());
  }

  // Show these two; a name that the server no longer has changes nothing.
  choose(first, second = "") {
    if (this.find(first)) this.first.value = first;
    const other = this.models.filter(isChat).find(({ id }) => id !== this.first.value);
    this.second.value = this.find(second)?.id ?? other?.id ?? this.first.value;
  }

  compare(isComparing) {
    this.isComparing = isComparing;
    this.second.hidden = !isComparing;
    at("compare").setAttribute("aria-pressed", String(isComparing));
    at("app").classList.toggle("comparing", isComparing);
  }

  find(name) {
    return this.models.find(({ id }) => id === name);
  }

  // A server that says nothing about it has its one model in memory.
  isLoaded(name) {
    return this.find(name)?.nanochat?.loaded !== false;
  }

  // After a model was used: what is in memory may have changed, and a new one may have been made.
  async refresh() {
    const models = await this.client.models().catch(() => null);
    if (models === null) return;
    const isSame = JSON.stringify(models.map(labelOf)) === JSON.stringify(this.models.map(labelOf));
    this.models = models;
    if (isSame) return;
    const [first, second] = [this.first.value, this.second.value];
    for (const select of [this.first, this.second]) this.fill(select);
    this.choose(first, second);
  }
}

const isChat = (model) => model.nanochat?.is_chat !== false;

// An alias says what it stands for.
function labelOf(model) {
  const { is_alias: isAlias, target } = model.nanochat ?? {};
  return isAlias && target && target !== model.id ? `${model.id} (${target})` : model.id;
}
