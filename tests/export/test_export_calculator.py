"""An exported model that asks the calculator is answered, as our engine answers it."""

import ast
import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as HubTokenizer

from nanochat_core.export.comparing import load_exported
from nanochat_core.export.folder import CALCULATOR_FILE, CODE_FILES, write_model
from nanochat_core.export.hub_model.answers_nanochat import MAX_CODE_TOKENS, CalculatorAnswers
from nanochat_core.export.tokenizer_json import TOKENIZER_FILE, write_tokenizer
from nanochat_core.inference import tools
from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.loading import save_model
from nanochat_core.inference.settings import GREEDY
from nanochat_core.sandbox.calculator import calculate
from nanochat_core.tokenizer.tokenizer import Tokenizer
from tests.inference.scripted import bigram_model, byte_tokenizer, chain

pytestmark = pytest.mark.usefixtures("code_cache")

SPECIAL = ("python_start", "python_end", "output_start", "output_end")


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory, code_cache: None) -> tuple[Path, Any]:
    """Folder of a model that asks for 7*8 and then says so, and our engine with it."""
    tokenizer = byte_tokenizer()
    steps = ("assistant_start", "python_start", *"7*8", "python_end")
    successors = chain(tokenizer, *steps) | chain(tokenizer, "output_end", *"So!", "assistant_end")
    model = bigram_model(tokenizer, successors)
    root = tmp_path_factory.mktemp("asking")
    save_model(model, root / "ours", {"tokenizer": tokenizer.identity})
    folder = root / "export"
    folder.mkdir()
    write_model(root / "ours", tokenizer, folder, "float32")
    write_tokenizer(tokenizer, folder)
    # The first reply in a process takes seconds.
    load_exported(folder, "cpu").generate(torch.tensor([[tokenizer.bos_id]]), max_new_tokens=1)
    return folder, InferenceEngine(model, tokenizer)


def prompt(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.bos_id, *tokenizer.encode("?"), tokenizer.special_id("assistant_start")]


def test_generate_writes_the_reply_of_our_engine(asking: tuple[Path, Any]) -> None:
    folder, engine = asking
    theirs, tokenizer = load_exported(folder, "cpu"), engine.tokenizer
    ids = prompt(tokenizer)
    ours = list(engine.generate_ids(ids, GREEDY, max_new_tokens=30))
    end = tokenizer.special_id("assistant_end")
    assert tokenizer.decode(ours) == (
        "<|python_start|>7*8<|python_end|><|output_start|>56<|output_end|>So!"
    )
    # The second row is longer, so the first is padded: on the left, and after its end.
    longer = [*ids[:-1], *tokenizer.encode("????"), ids[-1]]
    padded = [*[end] * (len(longer) - len(ids)), *ids]
    mask = [[int(i >= len(longer) - len(ids)) for i in range(len(longer))], [1] * len(longer)]
    found = theirs.generate(
        input_ids=torch.tensor([padded, longer]),
        attention_mask=torch.tensor(mask),
        max_new_tokens=30,
    )
    assert found[:, len(longer) :].tolist() == [[*ours, end]] * 2


def test_beams_are_answered_too(asking: tuple[Path, Any]) -> None:
    folder, engine = asking
    ids = torch.tensor([prompt(engine.tokenizer)])
    found = load_exported(folder, "cpu").generate(ids, num_beams=3, max_new_tokens=30)
    assert is_answered(found, engine)


def test_the_model_is_left_alone_where_that_is_asked(asking: tuple[Path, Any]) -> None:
    folder, engine = asking
    theirs, ids = load_exported(folder, "cpu"), prompt(engine.tokenizer)
    given = torch.tensor([ids])
    bare = theirs.generate(given, max_new_tokens=6, calculator=False)
    assert bare[0, -1] == engine.tokenizer.bos_id
    endless = theirs.generate(given, max_new_tokens=6, eos_token_id=None)
    theirs.generation_config.eos_token_id = None
    assert theirs.generate(given, max_new_tokens=6).tolist() == bare.tolist() == endless.tolist()


def test_settings_that_say_nothing_of_an_end_leave_the_models_own(asking: tuple[Path, Any]) -> None:
    from transformers import GenerationConfig

    folder, engine = asking
    settings = GenerationConfig(max_new_tokens=30)
    found = load_exported(folder, "cpu").generate(
        torch.tensor([prompt(engine.tokenizer)]), generation_config=settings
    )
    assert found[0, -1] == engine.tokenizer.special_id("assistant_end")
    assert is_answered(found, engine)


def is_answered(found: torch.Tensor, engine: InferenceEngine) -> bool:
    return "<|output_start|>56<|output_end|>So!" in engine.tokenizer.decode(found[0].tolist())


def test_what_transformers_saves_asks_and_is_answered(
    asking: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, engine = asking
    load_exported(folder, "cpu").save_pretrained(tmp_path)
    ids, again = torch.tensor([prompt(engine.tokenizer)]), load_exported(tmp_path, "cpu")
    assert not is_answered(again.generate(ids, max_new_tokens=30), engine)
    # The tokenizer may be saved later than the model is used.
    shutil.copyfile(folder / TOKENIZER_FILE, tmp_path / TOKENIZER_FILE)
    assert is_answered(again.generate(ids, max_new_tokens=30), engine)


def test_a_relative_folder_is_the_one_of_when_it_was_loaded(
    asking: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, engine = asking
    monkeypatch.chdir(folder.parent)
    model = load_exported(Path(folder.name), "cpu")
    monkeypatch.chdir(tmp_path)
    ids = torch.tensor([prompt(engine.tokenizer)])
    assert is_answered(model.generate(ids, max_new_tokens=30), engine)


def test_random_replies_are_answered_as_by_our_tools(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    write_tokenizer(tokenizer, tmp_path)
    theirs = CalculatorAnswers(HubTokenizer.from_file(str(tmp_path / TOKENIZER_FILE)), calculate)
    rng, num_answers = random.Random(0), 0
    words = [*(tokenizer.special_id(name) for name in SPECIAL[:2] * 3), *tokenizer.encode("12+*é")]
    for _ in range(300):
        ours, reply = tools.ToolCalls(tokenizer), []
        for _ in range(12):
            token = rng.choice(words)
            assert theirs.forced(reply) is None
            reply.append(token)
            for forced in ours.see(token):
                assert theirs.forced(reply) == forced
                reply.append(forced)
                num_answers += 1
    assert num_answers > 100
    assert tools.MAX_CODE_TOKENS == MAX_CODE_TOKENS


def test_code_that_is_too_long_has_no_answer(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    write_tokenizer(tokenizer, tmp_path)
    theirs = CalculatorAnswers(HubTokenizer.from_file(str(tmp_path / TOKENIZER_FILE)), calculate)
    start, end, output, _ = (tokenizer.special_id(name) for name in SPECIAL)
    for length, expected in ((MAX_CODE_TOKENS, output), (MAX_CODE_TOKENS + 1, None)):
        code = tokenizer.encode("1" + " " * (length - 1))
        assert theirs.forced([start, *code, end]) == expected


def test_the_exported_code_needs_nothing_of_ours(asking: tuple[Path, Any]) -> None:
    codes = {path.name: path.read_text(encoding="utf-8") for path in asking[0].glob("*.py")}
    assert codes.keys() == {*CODE_FILES, CALCULATOR_FILE}
    # transformers 4.57 takes no more files along than these.
    direct = re.findall(r"^from \.(\w+) import", codes["modeling_nanochat.py"], re.MULTILINE)
    assert {f"{name}.py" for name in [*direct, "modeling_nanochat"]} == codes.keys()
    needed = {"torch", "transformers", "tokenizers"}
    assert set().union(*map(imported, codes.values())) - sys.stdlib_module_names == needed
    values: dict[str, Any] = {"__name__": "elsewhere"}
    exec(compile(codes[CALCULATOR_FILE], CALCULATOR_FILE, "exec"), values)
    assert values["calculate"]("6*7") == "42"
    assert "elsewhere" not in sys.modules


def imported(code: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module).partition(".")[0])
    return names
