"""Conversations as fine-tuning sees them, on a terminal and elsewhere; and the check of a file."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from flows.data_preview import check, preview, printable, styled, verdict
from nanochat_core.conversation.types import Conversation, exchange, python, python_output, user
from nanochat_core.data.conversation_preview import preview_of
from nanochat_core.errors import ConfigError, DataError, UnknownNameError
from nanochat_core.tokenizer.chat_format import render
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer

CALCULATED = exchange("What is 6*7?", python("6*7"), python_output("42"), "It is 42 → done.")
WORDS = ["the quick brown fox jumps over a lazy dog and then it is 42"] * 20


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    made = Tokenizer.train(WORDS, TokenizerRecipe(vocab_size=280))
    made.save(tmp_path_factory.mktemp("words"))
    return made


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> str:
    tokenizer.save(tmp_path / "words")
    return str(tmp_path / "words")


@pytest.fixture
def own(tmp_path: Path) -> str:
    values = [CALCULATED, exchange("Hi", "Hello\nyou"), exchange("word " * 80, "Yes.")]
    path = tmp_path / "me.jsonl"
    path.write_text("".join(json.dumps(each.model_dump(mode="json")) + "\n" for each in values))
    return str(path)


def test_the_pieces_are_the_tokens_and_their_mask(tokenizer: Tokenizer) -> None:
    shown = preview_of(tokenizer, CALCULATED, 256)
    ids, mask = render(tokenizer, CALCULATED)
    assert "".join(piece.text for piece in shown.pieces) == tokenizer.decode(ids)
    assert (shown.num_tokens, shown.num_trained) == (len(ids), sum(mask))
    trained = "".join(piece.text for piece in shown.pieces if piece.is_trained)
    assert trained == "<|python_start|>6*7<|python_end|>It is 42 → done.<|assistant_end|>"
    # The arrow is three tokens here, and one piece.
    assert "→" in [piece.text.strip() for piece in shown.pieces]


@pytest.mark.parametrize(
    ("conversation", "context", "what"),
    [
        (exchange("a", "b"), 64, "7 tokens, 2 trained on; fits a context of 64"),
        (exchange("a", "b"), 6, "7 tokens, 2 trained on; fits a context of 6"),
        (exchange("a", "b"), 5, "longer than a context of 5: left out"),
        (Conversation(messages=(user("a"),)), 64, "0 trained on; nothing to train on: left out"),
        (exchange("a", "b" * 5000), 4096, "cut to 2,048; fits a context of 4,096"),
    ],
)
def test_the_verdict_says_what_fine_tuning_does(
    tokenizer: Tokenizer, conversation: Conversation, context: int, what: str
) -> None:
    assert verdict(preview_of(tokenizer, conversation, context), context).endswith(what)


def test_elsewhere_than_on_a_terminal_signs_tell_what_is_trained_on(
    own: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    preview(own, tokenizer=folder, number=2, context=64)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{own}:1: ")
    assert lines[1] == "- <|bos|><|user_start|>What is 6*7?<|user_end|><|assistant_start|>"
    assert lines[2:5] == [
        "+ <|python_start|>6*7<|python_end|>",
        "- <|output_start|>42<|output_end|>",
        "+ It is 42 → done.<|assistant_end|>",
    ]
    assert lines[6].startswith(f"{own}:2: ")
    assert lines[8:10] == ["+ Hello", "+ you<|assistant_end|>"]


def test_one_line_is_picked_by_its_number(
    own: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    preview(own, tokenizer=folder, number=1, line=3, context=64)
    out = capsys.readouterr().out
    assert out.startswith(f"{own}:3: ")
    assert "longer than a context of 64: left out" in out
    with pytest.raises(DataError, match="no conversation from line 4 on"):
        preview(own, tokenizer=folder, line=4)


def test_on_a_terminal_what_is_trained_on_is_in_colour(
    own: str,
    folder: str,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    preview(own, tokenizer=folder, number=1, context=64)
    assert "\x1b[" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    preview(own, tokenizer=folder, number=1, context=64)
    assert "\x1b[" not in capsys.readouterr().out
    shown = preview_of(tokenizer, CALCULATED, 64)
    styles = [style for _, style in styled(shown.pieces)]
    greens = ["green" in style for style in styles]
    assert greens == [piece.is_trained for piece in shown.pieces]
    assert all(a != b for a, b in pairwise(styles))


def test_what_a_file_holds_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[2J\x07\x9b\r\n\tb") == "a\\x1b[2J\\x07\\x9b\\x0d\n\tb"


def test_made_conversations_and_sets_can_be_looked_at(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preview("sums", tokenizer=folder, number=1)
    assert "+ <|python_start|>" in capsys.readouterr().out
    preview("identity", tokenizer=folder, number=1)
    assert "sums" not in capsys.readouterr().out
    row = {"question": "Six times seven?", "answer": "It is <<6*7=42>>42.\n#### 42"}
    (tmp_path / "gsm8k-train.jsonl").write_text(json.dumps(row))
    preview("gsm8k", tokenizer=folder, benchmarks=str(tmp_path))
    assert "+ It is <|python_start|>6*7<|python_end|>" in capsys.readouterr().out


def test_what_cannot_be_looked_at_is_refused(own: str, folder: str) -> None:
    with pytest.raises(ConfigError, match="name its folder with --benchmarks"):
        preview("gsm8k", tokenizer=folder)
    with pytest.raises(UnknownNameError, match="did you mean sums"):
        preview("sum", tokenizer=folder)
    with Path(own).open("a") as file:
        file.write("[]\n")
    with pytest.raises(DataError, match=rf"^{own}:4: a conversation without messages"):
        preview(own, tokenizer=folder, line=4)


def test_a_sound_file_is_counted(own: str, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(own, tokenizer=folder, context=64)
    counted = dict(
        (name, int(number.replace(",", "")))
        for number, name in (
            line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()
        )
    )
    assert counted["conversations"] == 3
    assert counted["messages"] == 6
    assert counted["longer than the context of 64, left out"] == 1
    assert counted["tokens"] > counted["tokens trained on"] > 0
    assert counted["without an answer to train on"] == 0


def test_every_bad_line_of_a_file_is_told(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Path(own).open("a") as file:
        file.write('oops\n[{"role": "user", "content": ""}]\n')
    with pytest.raises(DataError, match="2 of 5 lines to mend"):
        check(own)
    told = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in told] == [f"{own}:4", f"{own}:5"]


def test_a_file_without_conversations_is_refused(tmp_path: Path) -> None:
    (tmp_path / "me.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no conversation"):
        check(str(tmp_path / "me.jsonl"))
