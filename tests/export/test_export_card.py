"""The card of an export says what the manifests say, and the Hub can read it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from nanochat_core.artifacts.types import FileRecord, Manifest, Request, result_digest
from nanochat_core.errors import CheckpointError, DataError
from nanochat_core.export.card_sources import EVALUATIONS, card_material
from nanochat_core.export.model_card import CardMaterial, card, write_card

CONFIG = (
    '{"facts": {"name": "Ada: \\"the\\" first", "data": "two books", "num_parameters": 4321},'
    ' "model": {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_kv_head": 2, "sequence_len": 128,'
    ' "vocab_size": 512, "window_pattern": "SSSL"}}'
)
FILES = {
    "kind": "files",
    "files": [{"name": f"book{i}.txt", "sha256": f"{i}" * 64, "bytes": 9} for i in range(7)],
}


def manifest(
    station: str,
    metrics: dict[str, Any],
    *inputs: Manifest,
    recipe: dict[str, Any] | None = None,
    created: str = "2026-01-02T03:04:05+00:00",
    **provenance: Any,
) -> Manifest:
    """One of a made-up line."""
    request = Request(
        station=station,
        code_version=1,
        recipe={**(recipe or {}), "created": created},
        inputs={one.station: one.digest for one in inputs},
    )
    files = (FileRecord(path="a", role="result", bytes=1, sha256=request.fingerprint),)
    return Manifest(
        number=1,
        station=station,
        fingerprint=request.fingerprint,
        code_version=1,
        recipe=request.recipe,
        inputs=request.inputs,
        input_refs={one.station: one.ref for one in inputs},
        attempt="a",
        files=files,
        metrics=metrics,
        provenance=provenance,
        digest=result_digest(files),
        created=created,
    )


SHARDS = manifest("shards", {"documents": 70, "characters": 9_000}, recipe={"source": FILES})
TOKENIZER = manifest("tokenizer", {}, SHARDS, recipe={"split_pattern": r"\w+|\W+"})
BASE = manifest(
    "pretrain",
    {"steps": 30, "tokens": 61_440, "total_training_flops": 1.25e12, "parameters": 99},
    TOKENIZER,
    compute_dtype="float32",
)
CHAT = manifest("sft", {"steps": 5, "conversations": 40}, BASE, TOKENIZER)
BPB = manifest("base_eval", {"val/bpb": 1.4580254, "demo_score": 0.61}, BASE)
OLD = manifest("chat_eval_sft", {"sums": 0.1}, CHAT, created="2026-01-01T00:00:00+00:00")
SCORES = {"sums": 0.755, "sums/stderr": 0.0304, "sums/asked": 200, "sums/right": 151}
EVAL = manifest("chat_eval_sft", SCORES, CHAT)
OTHER = manifest("chat_eval_sft", {"sums": 1.0}, manifest("sft", {}, BASE, recipe={"other": 1}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a model."""
    (tmp_path / "config.json").write_text(CONFIG, encoding="utf-8")
    return tmp_path


@pytest.fixture
def material(folder: Path) -> CardMaterial:
    return card_material(CHAT, folder, [SHARDS, TOKENIZER, BASE], [OLD, EVAL, OTHER, BPB])


def test_scores_are_those_of_this_model_and_of_its_base(material: CardMaterial) -> None:
    shown = {score.name: (score.text, score.asked, score.artifact) for score in material.scores}
    assert shown == {
        "sums": ("0.755 ± 0.030", 200, EVAL.ref.short),
        "val/bpb": ("1.458", None, BPB.ref.short),
        "demo_score": ("0.610", None, BPB.ref.short),
    }


def test_a_quick_look_hides_no_whole_evaluation(folder: Path) -> None:
    late = "2026-02-01T00:00:00+00:00"
    quick = manifest("chat_eval_sft", {"sums": 0.5, "sums/asked": 10}, CHAT, created=late)
    whole, part = (
        manifest("base_eval", {"val/bpb": 1.5}, BASE, recipe={"validation_tokens": n}, created=day)
        for n, day in ((4_000, SHARDS.created), (20, late))
    )
    found = card_material(CHAT, folder, [BASE], [EVAL, quick, whole, part]).scores
    assert {score.artifact for score in found} == {EVAL.ref.short, whole.ref.short}
    again = manifest("chat_eval_sft", {**SCORES, "sums": 0.7}, CHAT, created=late)
    (score, _) = card_material(CHAT, folder, [BASE], [again, EVAL, whole]).scores
    assert score.artifact == again.ref.short


def test_own_text_breaks_neither_the_page_nor_its_head(material: CardMaterial) -> None:
    name, evil = 'A 🤖 "b"\n---\nx: \u0085\ud83e', "<script>|\n# [x](http://y) `"
    changed = {"name": name, "data": evil, "sources": (evil,), "training": {evil: evil}}
    score = material.scores[0].model_copy(update={"name": evil})
    shape = material.model.model_copy(update={"window_pattern": evil})
    page = card(material.model_copy(update={**changed, "scores": (score,), "model": shape}))
    page.encode()
    _, head, body = page.split("---\n", 2)
    (index,) = yaml.safe_load(head)["model-index"]
    assert index["name"] == 'A 🤖 "b" --- x:'
    assert '# A 🤖 "b" ⏎ --- ⏎ x\\:\n' in body
    assert "<script>" not in body
    assert "http://" not in body
    assert body.count("&lt;script&gt;\\| ⏎ \\# \\[x\\](http\\://y) \\`") == 6


def test_files_that_were_published_are_named_and_own_ones_counted(folder: Path) -> None:
    pages = [
        card(card_material(BASE, folder, [manifest("shards", {}, recipe={"source": source})], []))
        for source in (FILES, {**FILES, "kind": "hub"})
    ]
    assert ".txt" not in pages[0]
    assert "000000" not in pages[0]
    assert "Files\\: book0.txt (sha256 000000000000…)" in pages[1]
    assert "and 2 more" in pages[1]


def test_the_card_names_data_training_shape_and_every_ancestor(material: CardMaterial) -> None:
    page = card(material)
    for part in (
        '# Ada\\: "the" first',
        "4,321 parameters, 2 layers, a vocabulary of 512 tokens, a context of 128",
        "It was trained on two books.",
        "Files of one's own\\: 7 of 63 bytes",
        "70 documents of 9,000 characters",
        "Pretraining: 30 steps, 61,440 tokens, 1.25e+12 FLOPs, in float32",
        "Taught to chat (SFT): 5 steps, 40 conversations",
        "| heads (for keys and values) | 4 (2) |",
        "| split pattern | own |",
        f"| sums | 0.755 ± 0.030 | 200 | `{EVAL.ref.short}` |",
        f"`{BPB.ref.short}`, of its base model |",
        f"`sft/{CHAT.fingerprint}`, digest `{CHAT.digest}`",
    ):
        assert part in page
    for one in (SHARDS, TOKENIZER, BASE, CHAT):
        assert f"| `{one.ref.short}` | 2026-01-02 03:04 | `{one.digest[:16]}` |" in page


def test_the_head_is_yaml_that_the_hub_reads(material: CardMaterial) -> None:
    from huggingface_hub import ModelCard

    page = card(material)
    head = yaml.safe_load(page.split("---\n")[1])
    assert head["library_name"] == "transformers"
    assert head["tags"] == ["nanochat", "custom_code", "conversational"]
    read = ModelCard(page).data
    assert read.model_name == 'Ada: "the" first'
    found = {one.metric_name: (one.metric_type, one.metric_value) for one in read.eval_results}
    assert found == {
        "sums": ("accuracy", 0.755),
        "val/bpb": ("bits_per_byte", 1.4580254),
        "demo_score": ("demo_score", 0.61),
    }


def test_a_base_model_without_scores_has_a_card_too(folder: Path) -> None:
    page = card(card_material(BASE, folder, [SHARDS], []))
    assert "base model, which continues text" in page
    assert "This model was not evaluated." in page
    assert "calculator" not in page
    assert "apply_chat_template(\n" not in page
    assert "model-index" not in page


def test_the_card_says_what_was_compared(material: CardMaterial, tmp_path: Path) -> None:
    checks = {"prompts": 100, "largest_logit_difference": 2.5e-6}
    packages = {"transformers": "5.99.1", "tokenizers": "0.1"}
    changed = {"checks": checks, "packages": packages}
    name = write_card(tmp_path, material.model_copy(update=changed))
    page = (tmp_path / name).read_text(encoding="utf-8")
    assert name == "README.md"
    assert "with the original under transformers 5.99.1 and tokenizers 0.1. transformers" in page
    assert "ignore that option without a word" in page
    assert "| prompts | 100 |\n| largest logit difference | 2.5e-06 |" in page


def test_a_mixture_and_a_harvest_are_named(folder: Path) -> None:
    harvest = {"kind": "harvest", "python": "3.11", "versions": {"click": "8.5.1"}}
    parts = [
        {"name": "books", "weight": 0.25, "source": FILES},
        {"name": "docs", "weight": 0.75, "source": harvest},
    ]
    shards = manifest("shards", {}, recipe={"source": {"kind": "mixture", "parts": parts}})
    page = card(card_material(BASE, folder, [shards], []))
    assert "- books, weight 0.25\\: Files of one's own\\: 7 of 63 bytes" in page
    assert "- docs, weight 0.75\\: Documentation inside Python 3.11 and installed packages" in page
    assert "click 8.5.1" in page


def test_the_material_is_read_back_as_it_was_saved(material: CardMaterial, tmp_path: Path) -> None:
    assert material.save(tmp_path) == "card.json"
    assert CardMaterial.load(tmp_path) == material
    with pytest.raises(DataError, match=r"card\.json cannot be read .* nanochat export again"):
        CardMaterial.load(tmp_path / "elsewhere")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model": {}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read as the description of a model"):
        card_material(BASE, tmp_path, [], [])


def test_every_station_of_models_has_an_evaluation_and_a_title(folder: Path) -> None:
    models = [manifest(station, {"steps": 3}) for station in EVALUATIONS]
    assert len(card_material(models[0], folder, models, []).training) == len(EVALUATIONS)
