"""The commands of a chat, each a line that starts with a slash; `/help` lists them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from nanochat_core.errors import NanochatError, UnknownNameError
from nanochat_core.inference.named_models import NamedModel
from nanochat_core.jobs.chat_dialogue import ChatModel, Dialogue
from nanochat_core.jobs.chat_saving import save
from nanochat_core.jobs.chat_settings import KNOBS
from nanochat_core.jobs.chat_terminal import Screen

NUM_SHOWN = 20
NO_SYSTEM = "none"
SYNONYMS = {"exit": "quit", "?": "help"}


class Models(Protocol):
    """Where a chat gets its models from."""

    def names(self) -> Sequence[NamedModel]:
        """The models that there are."""

    def load(self, name: str) -> ChatModel:
        """One of them, ready to answer."""


@dataclass(frozen=True)
class Command:
    """What a command is called, takes and does."""

    name: str
    argument: str
    meaning: str
    act: Callable[[str], None]


class Commands:
    """Carries out the commands of one chat; `retry` lets the model answer anew."""

    def __init__(
        self, dialogue: Dialogue, screen: Screen, models: Models, retry: Callable[[], None]
    ) -> None:
        self.dialogue, self.screen, self.models = dialogue, screen, models
        self.has_quit = False
        self._names: list[str] | None = None
        numbers = [
            Command(name, "X" if knob.type is float else "N", knob.meaning, self._number(name))
            for name, knob in KNOBS.items()
        ]
        every = [
            Command("model", "[NAME]", "list the models, or go on with another", self._model),
            *numbers,
            Command(
                "system",
                "TEXT",
                f"stands before the conversation; {NO_SYSTEM} removes it",
                self._system,
            ),
            Command("retry", "", "the last reply again, of the next seed", lambda _: retry()),
            Command("undo", "", "take the last message and its reply back", self._undo),
            Command("reset", "", "forget the conversation; the settings stay", self._reset),
            Command("save", "FILE", ".md or .json; /save! replaces a file", self._save),
            Command("save!", "FILE", "", lambda name: self._save(name, replaces=True)),
            Command("help", "", "this list", self._help),
            Command("quit", "", "end, as Ctrl-D does", self._quit),
        ]
        self._commands = {command.name: command for command in every}

    def carry_out(self, line: str) -> None:
        """One command as it was typed; what it cannot do is said, and nothing is changed."""
        words = line.removeprefix("/").split(maxsplit=1)
        name = words[0].replace("-", "_").lower() if words and line[1:2].strip() else ""
        try:
            self._find(name).act(words[1].strip() if len(words) > 1 else "")
        except NanochatError as error:
            self.screen.note(str(error), "error")

    def complete(self, line: str) -> list[str]:
        """What a line may become: names of commands and, after /model, of models."""
        if line.startswith("/model "):
            begun = line.removeprefix("/model ")
            return [f"/model {name}" for name in self._model_names() if name.startswith(begun)]
        if not line.startswith("/"):
            return []
        listed = [command for command in self._commands.values() if command.meaning]
        names = [f"/{command.name}{' ' if command.argument else ''}" for command in listed]
        return [name for name in names if name.startswith(line)]

    def _find(self, name: str) -> Command:
        found = self._commands.get(SYNONYMS.get(name, name))
        if found is None:
            close = difflib.get_close_matches(name, [*self._commands, *SYNONYMS], n=1)
            hint = f"did you mean /{close[0]}?" if close else "/help lists the commands."
            raise UnknownNameError(
                f"there is no command /{name}; {hint} (A message may start with //.)"
            )
        return found

    def _number(self, name: str) -> Callable[[str], None]:
        def act(given: str) -> None:
            if given:
                self.dialogue.settings = self.dialogue.settings.with_number(name, given)
            self.screen.note(f"{name} {getattr(self.dialogue.settings, name)}")

        return act

    def _system(self, text: str) -> None:
        if text:
            system = "" if text == NO_SYSTEM else text
            self.dialogue.settings = replace(self.dialogue.settings, system=system)
        self.screen.note(f"system {self.dialogue.settings.system or NO_SYSTEM}")

    def _model(self, name: str) -> None:
        if not name:
            self._list_models()
            return
        self.dialogue.model = self.models.load(name)
        self.screen.note(f"{described(self.dialogue.model)} answers from here on")

    def _list_models(self) -> None:
        now = self.dialogue.model
        models = self.models.names()
        for model in models[:NUM_SHOWN]:
            target = f" ({model.target})" if model.target else ""
            mark = "*" if now.name in (model.name, model.target) else " "
            made = model.created[:16].replace("T", " ")
            self.screen.note(f"{mark} {model.name + target:<28} {made}".rstrip())
        if now.name not in {name for model in models for name in (model.name, model.target)}:
            self.screen.note(f"* {described(now)}")
        if len(models) > NUM_SHOWN:
            self.screen.note(f"  and {len(models) - NUM_SHOWN:,} more; nanochat artifacts ls")

    def _model_names(self) -> list[str]:
        if self._names is None:
            try:
                self._names = [model.name for model in self.models.names()]
            except NanochatError:  # it is said when /model is tried
                return []
        return self._names

    def _undo(self, _: str) -> None:
        taken = self.dialogue.undo()
        first = taken.question.splitlines()[0]
        self.screen.note(f"took back: {first if len(first) <= 60 else f'{first[:59]}…'}")

    def _reset(self, _: str) -> None:
        self.dialogue.reset()
        self.screen.note("a new conversation")

    def _save(self, name: str, *, replaces: bool = False) -> None:
        if not name:
            raise UnknownNameError("/save got no file; name one, as in /save chat.md")
        path = Path(os.path.expanduser(name))  # ~nobody stays as it is
        save(self.dialogue, path, replaces=replaces)
        self.screen.note(f"saved to {path}")

    def _help(self, _: str) -> None:
        for command in self._commands.values():
            if not command.meaning:
                continue
            now = ""
            if command.name in KNOBS:
                now = f" (now {getattr(self.dialogue.settings, command.name)})"
            usage = f"/{command.name} {command.argument}"
            self.screen.note(f"  {usage:<18} {command.meaning}{now}")
        for line in HELP_LINES:
            self.screen.note(f"  {line}")

    def _quit(self, _: str) -> None:
        self.has_quit = True


HELP_LINES = (
    'a line that ends with \\ goes on in the next; """ opens and closes a block;',
    "// sends a message that starts with a slash;",
    "Ctrl-C stops a reply, Ctrl-D ends; Tab completes commands and models",
)


def described(model: ChatModel) -> str:
    """A model in a few words: its name, what that stands for, and where it runs."""
    ref = [model.ref] if model.ref and model.ref != model.name else []
    return f"{model.name} ({', '.join([*ref, str(model.engine.model.device)])})"
