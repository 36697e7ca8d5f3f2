import random
from pathlib import Path

import numpy as np
import pytest
from data_tools import no_progress

from nanochat_core.data.harvest import (
    ABSENT,
    Module,
    Paragraph,
    SourceFile,
    is_held_out,
    list_files,
    read_modules,
    resolve_harvest_source,
    split_modules,
)
from nanochat_core.data.near_duplicates import Shingler, seen_in
from nanochat_core.data.recipes import HarvestSource
from nanochat_core.errors import DataError

TEXT = "the of and a to in is that it for as with on be by this are or an from at which"
WORDS = TEXT.split()

GOLDEN_SHINGLE = [17353650096924959610]


def module(name: str, texts: list[str], distribution: str = "d") -> Module:
    shingler = Shingler()
    return Module(
        distribution,
        name,
        [Paragraph(text, f"{name}.f", False, shingler.shingles(text)) for text in texts],
    )


def some_text(source: random.Random, words: int = 14) -> str:
    return " ".join(source.choices([*WORDS, *map(str, range(90))], k=words))


def test_the_source_comes_from_metadata_and_marks_what_is_absent() -> None:
    source = resolve_harvest_source()
    assert source.versions["numpy"] == np.__version__
    assert len(source.versions) > 80


def test_another_version_than_planned_is_refused() -> None:
    source = HarvestSource(versions={"numpy": "0.1", "nothing-of-this-name": ABSENT}, python="3")
    with pytest.raises(DataError, match=r"planned to read numpy 0\.1"):
        list_files(source)


def test_tests_and_vendored_folders_are_not_read() -> None:
    source = HarvestSource(
        versions={"attrs": resolve_harvest_source().versions["attrs"]}, python="3"
    )
    paths = [file.path for file in list_files(source) if file.path]
    assert any(path.name == "argparse.py" for path in paths)
    assert not any({"tests", "test", "_vendor"} & set(path.parts[-4:-1]) for path in paths)


def shared_share(paragraph: str, others: list[str]) -> float:
    shingler = Shingler()
    seen = set(np.concatenate([shingler.shingles(text) for text in others]).tolist())
    own = shingler.shingles(paragraph).tolist()
    return sum(value in seen for value in own) / len(own)


def test_near_duplicates_never_straddle_train_and_validation() -> None:
    source = random.Random(0)
    originals = [some_text(source, source.choice([9, 14, 40])) for _ in range(120)]
    modules = []
    for number in range(300):
        text = source.choice(originals)
        words = text.split()
        variant = source.choice(
            [text, " ".join(words[:9]), f"{text} {some_text(source)}", some_text(source)]
        )
        modules.append(module(f"m{number}", [variant]))
    found = split_modules(modules, max_bytes=10**9, validation_percent=20, max_documents=0)
    train = [document.text for document in found.documents if not document.held_out]
    held_out = [document.text for document in found.documents if document.held_out]
    assert len(train) > 50
    assert len(held_out) > 10
    assert max(shared_share(text, train) for text in held_out) <= 0.5
    assert max(shared_share(text, held_out) for text in train) <= 0.5


def test_whole_modules_are_held_out_by_their_names() -> None:
    source = random.Random(1)
    modules = [module(f"m{i}", [some_text(source), some_text(source)]) for i in range(100)]
    found = split_modules(modules, max_bytes=10**9, validation_percent=30, max_documents=0)
    texts = {document.text: document.held_out for document in found.documents}
    assert {m.text: is_held_out(m.name, 30) for m in modules} == texts


def test_a_distribution_stops_at_its_cap() -> None:
    source = random.Random(2)
    modules = [module(f"m{i}", [some_text(source)]) for i in range(50)]
    modules += [module("other", [some_text(source)], "e")]
    found = split_modules(modules, max_bytes=300, validation_percent=10, max_documents=0)
    assert 300 <= found.bytes_by_distribution["d"] < 400
    assert found.bytes_by_distribution["e"] > 0


def test_questions_come_from_train_documents_only_and_are_distinct() -> None:
    source = random.Random(3)
    modules = [module(f"m{i}", [some_text(source, 9).capitalize() + "."]) for i in range(200)]
    found = split_modules(modules, max_bytes=10**9, validation_percent=20, max_documents=0)
    train = {document.text for document in found.documents if not document.held_out}
    answers = [question.answer for question in found.questions]
    assert len(answers) > 100
    assert set(answers) <= train
    assert len(set(answers)) == len(answers)


def test_the_first_documents_keep_both_kinds() -> None:
    source = random.Random(4)
    modules = [module(f"m{i}", [some_text(source)]) for i in range(100)]
    found = split_modules(modules, max_bytes=10**9, validation_percent=20, max_documents=10)
    assert 5 <= sum(not document.held_out for document in found.documents) < 10
    assert sum(document.held_out for document in found.documents) >= 1
    assert len(found.documents) == 10


def test_shingles_ignore_case_and_punctuation_and_are_stable() -> None:
    first, second = Shingler(), Shingler()
    text = "This is a text of more than six words."
    same = first.shingles("THIS is a text, of more than 'six' words")
    assert first.shingles(text).tolist() == same.tolist()
    assert seen_in([same]).is_near_duplicate(second.shingles(text))
    assert second.shingles("a b c d e f").tolist() == GOLDEN_SHINGLE


def write_packages(folder: Path) -> list[SourceFile]:
    source = random.Random(5)
    files = []
    for number in range(12):
        text = (
            f"This is the {number} of all the modules that we have, and it is for {number} of us."
        )
        more = f"The {source.random():.9f} of it is a part of the thing that this is for, as it is."
        path = folder / f"m{number}.py"
        path.write_text(f'"""{text}"""\ndef f():\n    """{more}"""\n', encoding="utf-8")
        files.append(SourceFile("pkg", f"pkg.m{number}", path, path.stat().st_size))
    return files


@pytest.mark.distributed
def test_what_is_read_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    files = write_packages(tmp_path)
    one, two = (read_modules(files, workers=n, progress=no_progress()) for n in (1, 2))
    assert [(m.name, m.text) for m in one] == [(m.name, m.text) for m in two]
    assert len(one) == 12
