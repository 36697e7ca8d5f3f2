"""The stations tokenizer and tokens in a flow: what they leave in the store and on their pages."""

import json
from pathlib import Path

import httpx
import pytest
from prefect import flow

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.config.base import Recipe
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import StageOutput
from nanochat_core.data.mixing import Dealt
from nanochat_core.data.recipes import TokensRecipe
from nanochat_core.data.shards import INDEX_FILE, write_shards
from nanochat_core.data.token_files import TokenIndex
from nanochat_core.tokenizer.comparing import COMPARISON_FILE, OURS, SAMPLES_FILE, Comparison
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.split_patterns import SPLIT_PATTERNS
from tasks.listening import Listener
from tasks.stage import Run, StageCall, StageWork, stage
from tasks.tokenizer import HELD_OUT, tokenizer
from tasks.tokens import tokens

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]

TEXTS = [f"Document {number} of many, which says {number % 7} things." for number in range(80)]
NOTES = [
    {"name": "news", "language": "English", "sample": "Many things.", "documents": 9},
    {
        "name": "noticias",
        "language": "Spanish",
        "sample": "Muchas cosas, ni\u00f1o.",
        "documents": 1,
    },
]


class TextRecipe(Recipe):
    has_notes: bool


@stage("shards", code_version=1)
def shards(work: StageWork) -> StageOutput:
    """A few documents, with or without notes on their sources."""
    dealt = [Dealt(int(number % 10 == 0), 0, text) for number, text in enumerate(TEXTS)]
    index = write_shards(dealt, work.output, 1)
    (work.output / INDEX_FILE).write_text(index.model_dump_json())
    files = dict.fromkeys((*index.train, index.validation, INDEX_FILE), "result")
    if work.recipe.model_dump()["has_notes"]:
        (work.output / SAMPLES_FILE).write_text(json.dumps(NOTES))
        files[SAMPLES_FILE] = "record"
    return StageOutput.model_validate({"files": files})


def make(store: ArtifactStore, recipe: TokenizerRecipe, *, has_notes: bool) -> Run:
    run = Run(store, Listener())

    @flow
    def line() -> None:
        text = shards(StageCall(run, TextRecipe(has_notes=has_notes), Execution()), {})
        made = tokenizer(StageCall(run, recipe, Execution()), {"shards": text})
        tokens(StageCall(run, TokensRecipe(), Execution()), {"shards": text, "tokenizer": made})

    line()
    return run


def page_of(station: str) -> str:
    """The newest report of a station, as the server's pages ask for it."""
    from prefect.settings import get_current_settings

    url = f"{get_current_settings().api.url}/artifacts/{station}-report/latest"
    return httpx.get(url, timeout=30).raise_for_status().json()["data"]


def test_bytes_per_token_of_every_source_are_kept_and_shown(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    run = make(store, TokenizerRecipe(vocab_size=300, split_pattern="marks"), has_notes=True)
    ref = run.records["tokenizer"].ref
    assert ref is not None
    manifest = store.manifest(ref)
    assert manifest.recipe["split_pattern"] == SPLIT_PATTERNS["marks"]
    roles = {file.path: file.role for file in manifest.files}
    assert roles.pop(COMPARISON_FILE) == "record"
    assert set(roles.values()) == {"result"}
    comparison = Comparison.load(store.materialize(ref))
    assert [(row.name, row.language) for row in comparison.rows] == [
        ("news", "English"),
        ("noticias", "Spanish"),
        ("all", ""),
    ]
    assert comparison.split_pattern == "marks"
    assert manifest.metrics["bytes_per_token"] == comparison.rows[-1].bytes_per_token[OURS]
    page = page_of("tokenizer")
    assert "## bytes per token" in page
    assert "Split pattern: marks." in page
    assert (
        f"| noticias | Spanish | 20 bytes | {comparison.rows[1].bytes_per_token[OURS]:.2f}" in page
    )


def test_without_notes_held_out_documents_are_measured_and_the_digest_is_the_same(
    tmp_path: Path,
) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    other = ArtifactStore(str(tmp_path / "other"))
    recipe = TokenizerRecipe(vocab_size=300)
    with_notes = make(other, recipe, has_notes=True).records["tokenizer"].ref
    run = make(store, recipe, has_notes=False)
    without = run.records["tokenizer"].ref
    assert with_notes is not None
    assert without is not None
    assert with_notes.digest == without.digest
    (row,) = Comparison.load(store.materialize(without)).rows
    assert row.name == HELD_OUT
    assert row.sample_bytes == len("\n".join(TEXTS[::10]))
    made = run.records["tokens"].ref
    assert made is not None
    index = TokenIndex.load(store.materialize(made))
    assert index.total(index.train).documents == 72


def test_a_cached_tokenizer_has_the_same_page(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    recipe = TokenizerRecipe(vocab_size=300)
    make(store, recipe, has_notes=True)
    table = page_of("tokenizer").partition("## bytes per token")[2]
    run = make(store, recipe, has_notes=True)
    assert run.records["tokenizer"].state == "cached"
    assert table
    assert page_of("tokenizer").partition("## bytes per token")[2] == table
