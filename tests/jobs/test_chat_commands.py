"""The commands of a chat, each on a real conversation with a scripted model."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nanochat_core.errors import ArtifactNotFoundError, StoreUnavailableError
from nanochat_core.inference.named_models import ModelShelf, NamedModel
from nanochat_core.jobs.chat_commands import Commands
from nanochat_core.jobs.chat_dialogue import ChatModel, Dialogue, unheard
from nanochat_core.jobs.chat_terminal import Screen
from tests.jobs.chat_tools import SUM, YES, greedy_dialogue, save_by_hand, scripted_model


@dataclass
class Desk:
    """A chat without a keyboard; says what a command wrote."""

    dialogue: Dialogue = field(default_factory=lambda: greedy_dialogue(*YES))
    models: Sequence[NamedModel] = ()
    fault: Exception | None = None

    def __post_init__(self) -> None:
        self.aside = io.StringIO()
        screen = Screen(io.StringIO(), self.aside)
        self.commands = Commands(self.dialogue, screen, self, self.retry)

    def __call__(self, line: str) -> str:
        self.aside.seek(0)
        self.aside.truncate()
        self.commands.carry_out(line)
        return self.aside.getvalue()

    def retry(self) -> None:
        self.dialogue.retry(unheard)

    def names(self) -> Sequence[NamedModel]:
        if self.fault:
            raise self.fault
        return self.models

    def load(self, name: str) -> ChatModel:
        if name not in [model.name for model in self.models]:
            raise ArtifactNotFoundError(f"no model {name}")
        return scripted_model("assistant_start", "n", "o", "assistant_end", name=name)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("/temperature 1.5", "temperature", 1.5),
        ("/top_k 7", "top_k", 7),
        ("/top-p .5", "top_p", 0.5),
        ("/MAX_TOKENS 12", "max_tokens", 12),
        ("/seed 99", "seed", 99),
        ("/system Be brief.\nBe kind.", "system", "Be brief.\nBe kind."),
        ("/system none", "system", ""),
    ],
)
def test_a_setting_is_changed_and_said(line: str, name: str, value: object) -> None:
    desk = Desk()
    said = desk(line)
    assert getattr(desk.dialogue.settings, name) == value
    assert said == f"{name} {value or 'none'}\n"
    assert desk(f"/{name}") == said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/temperature -1", "temperature -1: give 0 (greedy) or more"),
        ("/top_p 2", "top_p 2: give more than 0"),
        ("/max_tokens many", "max_tokens many: give 1 or more"),
        ("/tempratur 1", "there is no command /tempratur; did you mean /temperature?"),
        ("/exti", "did you mean /exit?"),
        ("/usr/bin is a folder", "no command /usr/bin; /help lists the commands. (A message may"),
        ("/", "there is no command /;"),
        ("/ help", "there is no command /;"),
        ("/undo", "nothing to take back"),
        ("/retry", "no reply to try again"),
        ("/save", "name one, as in /save chat.md"),
        ("/save chat.txt", "ends with '.txt'; a file ends with .md (Markdown) or .json"),
        ("/save chat.md", "nothing to save yet"),
        ("/save ~nobody-here/chat.md", "nothing to save yet"),
        ("/model nowhere", "no model nowhere"),
    ],
)
def test_what_a_command_cannot_do_is_said_and_changes_nothing(line: str, words: str) -> None:
    desk = Desk()
    settings = desk.dialogue.settings
    said = desk(line)
    assert words in said
    assert said.count("\n") == 1
    assert desk.dialogue.settings == settings


def test_undo_retry_and_reset() -> None:
    desk = Desk()
    desk.dialogue.ask("first\nline two", unheard)
    desk.dialogue.ask("x" * 80, unheard)
    assert desk("/undo") == f"took back: {'x' * 59}…\n"
    assert "temperature 0 the reply would be the same" in desk("/retry")
    desk("/temperature 0.5")
    assert desk("/retry") == ""
    assert desk.dialogue.exchanges[-1].answer.settings.seed == 1
    assert desk("/undo") == "took back: first\n"
    desk.dialogue.ask("again", unheard)
    assert desk("/reset") == "a new conversation\n"
    assert desk.dialogue.exchanges == []


@pytest.mark.parametrize("line", ["/quit", "/exit", "/QUIT "])
def test_quit_ends(line: str) -> None:
    desk = Desk()
    assert desk(line) == ""
    assert desk.commands.has_quit


def test_help_lists_every_command_and_the_settings_as_they_are() -> None:
    desk = Desk()
    desk("/top_k 7")
    said = desk("/help")
    names = "model temperature top_k top_p max_tokens seed system retry undo reset save help quit"
    assert [line.split()[0] for line in said.splitlines()[:13]] == [
        f"/{name}" for name in names.split()
    ]
    assert "(now 7)" in said
    assert all(len(line) < 80 for line in said.splitlines())


def test_models_are_listed_and_switched() -> None:
    models = [
        NamedModel("latest", "sft", "2026-01-02T03:04:05Z", target="sft/3f2a91c0"),
        NamedModel("sft/3f2a91c0", "sft", "2026-01-02T03:04:05Z"),
    ]
    desk = Desk(models=models)
    assert desk("/model").splitlines() == [
        "  latest (sft/3f2a91c0)        2026-01-02 03:04",
        "  sft/3f2a91c0                 2026-01-02 03:04",
        "* scripted (cpu)",
    ]
    desk.dialogue.ask("x", unheard)
    assert desk("/model sft/3f2a91c0") == "sft/3f2a91c0 (cpu) answers from here on\n"
    assert desk.dialogue.ask("x", unheard).text == "no"
    assert len(desk.dialogue.exchanges) == 2
    assert [line[0] for line in desk("/model").splitlines()] == ["*", "*"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("/mo", ["/model "]),
        ("/re", ["/retry", "/reset"]),
        ("/sa", ["/save "]),
        ("/model la", ["/model latest"]),
        ("/model ", ["/model latest", "/model sft/3f2a91c0"]),
        ("/nothing", []),
        ("hello", []),
        ("", []),
    ],
)
def test_commands_and_models_are_completed(line: str, found: list[str]) -> None:
    models = [NamedModel(name, "sft", "") for name in ("latest", "sft/3f2a91c0")]
    assert Desk(models=models).commands.complete(line) == found


def test_a_store_that_is_away_completes_nothing() -> None:
    desk = Desk(fault=StoreUnavailableError("away"))
    assert desk.commands.complete("/model ") == []
    assert desk("/model") == "away\n"


@pytest.fixture
def said_sum() -> Dialogue:
    dialogue = greedy_dialogue(*SUM, system="Sum.")
    dialogue.settings = dialogue.settings.with_number("max_tokens", 5)
    dialogue.ask("What is\n6*7?", unheard)
    return dialogue


def test_a_conversation_is_saved_as_markdown(said_sum: Dialogue, tmp_path: Path) -> None:
    desk = Desk(said_sum)
    assert desk(f"/save {tmp_path}/my chat.MD") == f"saved to {tmp_path}/my chat.MD\n"
    text = (tmp_path / "my chat.MD").read_text()
    assert "## System\n\nSum.\n\n## You\n\nWhat is\n6*7?\n\n## scripted\n\n[6*7 = 42]\n" in text
    assert "temperature 0.0, top_k 50, top_p 1.0, max_tokens 5, seed 0" in text


def test_a_conversation_is_saved_as_json(said_sum: Dialogue, tmp_path: Path) -> None:
    Desk(said_sum)(f"/save {tmp_path}/chat.json")
    values = json.loads((tmp_path / "chat.json").read_text())
    assert values["settings"]["system"] == "Sum."
    asked, replied = values["messages"]
    assert asked == {"role": "user", "content": "What is\n6*7?"}
    assert (replied["role"], replied["content"]) == ("assistant", "")
    assert [part["text"] for part in replied["parts"]] == ["6*7", "42"]
    assert replied["settings"]["max_tokens"] == 5


def test_a_file_is_replaced_only_when_told_so(said_sum: Dialogue, tmp_path: Path) -> None:
    desk, path = Desk(said_sum), tmp_path / "chat.md"
    path.write_text("precious")
    assert desk(f"/save {path}") == f"{path} is there already; /save! {path} replaces it\n"
    assert path.read_text() == "precious"
    assert desk(f"/save! {path}") == f"saved to {path}\n"
    assert path.read_text().startswith("# A chat with scripted")
    assert [child.name for child in tmp_path.iterdir()] == ["chat.md"]


@pytest.mark.parametrize("place", ["none/chat.md", "folder.md", f"{'x' * 300}.md"])
@pytest.mark.parametrize("command", ["/save", "/save!"])
def test_a_place_that_cannot_be_written_is_said(
    said_sum: Dialogue, tmp_path: Path, place: str, command: str
) -> None:
    (tmp_path / "folder.md").mkdir()
    assert str(tmp_path / place) in (said := Desk(said_sum)(f"{command} {tmp_path}/{place}"))
    assert said.count("\n") == 1
    assert [child.name for child in tmp_path.iterdir()] == ["folder.md"]


def test_models_made_by_hand_are_on_the_shelf(tmp_path: Path) -> None:
    save_by_hand(tmp_path / "by-hand", "mine", *YES)
    shelf = ModelShelf(str(tmp_path / "store"), tmp_path / "by-hand")
    assert [model.name for model in shelf.names()] == ["sft/mine"]
    found = shelf.find("sft/mine")
    assert (found.model, found.ref) == (tmp_path / "by-hand" / "sft" / "mine" / "model-1", None)
    assert ModelShelf(str(tmp_path / "store")).names() == []
