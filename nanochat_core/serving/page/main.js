// Everything is put together here.
const STARTERS = ["What is 17+25?", "Who are you?", "What can you do?"];

// The dialog that asks for the key; null when it is left without one.
function askKey(isWrong) {
  const dialog = at("key");
  at("key-wrong").hidden = !isWrong;
  at("key-text").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const key = at("key-text").value.trim();
      at("key-text").value = "";
      resolve(dialog.returnValue === "use" && key ? key : null);
    }, { once: true });
  });
}

function start() {
  const client = new Client(askKey);
  const history = new History(lasting instanceof MemoryStorage ? null : lasting);
  const log = new Log();
  let chat = null;
  const onChoice = () => chat.onChoice();
  const picker = new ModelPicker(client, onChoice);
  const settings = new Settings(onChoice);
  chat = new Chat({ client, picker, settings, history, log });
  const sidebar = new Sidebar(chat, history);
  chat.onChange = () => {
    sidebar.render();
    const { title } = chat.conversation;
    document.title = title ? `${title} – nanochat` : "nanochat";
  };
  listenToComposer(chat);
  listenToKeys({ chat, sidebar, settings });
  listShortcuts();
  at("help-open").addEventListener("click", openHelp);
  at("help-too").addEventListener("click", openHelp);
  at("fresh").addEventListener("click", () => chat.fresh());
  at("starters").replaceChildren(...STARTERS.map((text) => make("li", {}, textButton(text, () => chat.send(text)))));
  loadModels(picker).then(() => reopen(chat));
  sidebar.render();
  focusText();
}

async function loadModels(picker) {
  try {
    await picker.load();
    showError("");
  } catch (error) {
    showError(error.message);
    at("error").append(" ", textButton("Retry", () => loadModels(picker), "text"));
  }
}

// A reload shows what was open.
function reopen(chat) {
  const id = passing.getItem("nanochat.open");
  if (id && !chat.exchanges.length) chat.open(id);
}

function listenToComposer(chat) {
  const box = at("text");
  const fit = () => {
    fitBox(box);
    const isLong = box.value.length > MOST_IN_ONE;
    box.setCustomValidity(isLong ? `${box.value.length} characters; the most is ${MOST_IN_ONE}` : "");
  };
  at("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = box.value.trim();
    if (!question || !chat.send(question)) return;
    box.value = "";
    fit();
  });
  box.addEventListener("input", fit);
  box.addEventListener("keydown", (event) => {
    if (isSend(event)) {
      event.preventDefault();
      at("composer").requestSubmit();
    } else if (event.key === "ArrowUp" && !box.value && chat.exchanges.length) {
      event.preventDefault();
      editLast(chat);
    }
  });
  at("stop").addEventListener("click", () => chat.stop());
}

function editLast(chat) {
  const mine = chat.log.views.filter((view) => view.exchange.question);
  if (!chat.running) mine.at(-1)?.startEdit();
}

start();
