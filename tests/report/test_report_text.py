"""The tables of the training text, from files of real artifacts."""

from pathlib import Path

from report_tools import NASTY

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import Request
from nanochat_core.config.job import StageOutput
from nanochat_core.data.source_notes import SOURCES_FILE, SourceNote, save_notes
from nanochat_core.report.material import Material
from nanochat_core.report.text import COMPARISON_FILE, training_text
from nanochat_core.tokenizer import comparing
from nanochat_core.tokenizer.comparing import Comparison, SourceRow

PLAY = SourceNote(
    name="play",
    language="en",
    share=0.2996,
    wanted_share=0.3,
    documents=1_600,
    bytes=3_270_000,
    epochs=3.0,
    held_out_bytes=22_000,
)
DOCS = SourceNote(
    name="docs",
    share=0.7004,
    wanted_share=0.7,
    documents=4_000,
    bytes=7_640_000,
    epochs=0.4213,
    held_out_bytes=51_300,
    left_out_documents=5_500,
    left_out_bytes=10_490_000,
    near_duplicates=12,
    too_short=3,
)


def page(folder: Path, *notes: SourceNote, comparison: Comparison | None = None) -> str:
    """The section, of published artifacts with these notes and this comparison."""
    store = ArtifactStore(str(folder / "store"))
    made: dict[str, str] = {}
    for station in ("shards", "tokenizer"):
        (folder / station).mkdir()
    if notes:
        save_notes(notes, folder / "shards")
        made["shards"] = SOURCES_FILE
    if comparison:
        made["tokenizer"] = comparison.save(folder / "tokenizer")
    refs = {
        station: store.publish(
            Request(station=station, code_version=1, recipe={}, inputs={}),
            folder / station,
            StageOutput(files={name: "record"}),
        )
        for station, name in made.items()
    }
    material = Material(
        {name: store.manifest(ref) for name, ref in refs.items()},
        {name: store.materialize(ref) for name, ref in refs.items()},
    )
    return "\n".join(training_text(material))


def test_a_mixture_is_told_with_shares_epochs_and_what_was_left_out(tmp_path: Path) -> None:
    assert page(tmp_path, PLAY, DOCS).splitlines() == [
        "## Training text",
        "",
        "| source | language | documents | MB | share (asked) | epochs | held out, MB "
        "| too short | near-duplicates | not needed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| play | en | 1,600 | 3.27 | 30.0% (30.0%) | 3 | 0.02 | 0 | 0 | 0 |",
        "| docs | - | 4,000 | 7.64 | 70.0% (70.0%) | 0.421 | 0.05 | 3 | 12 | 5,500 |",
        "",
        "Shares are of the bytes of text to train on, repetitions included. *Not needed*: 10.5 MB "
        "to which another source has too little text for its share. More text of that source, or "
        "a larger `max_epochs` of it, would let them in.",
    ]


def test_one_source_has_no_columns_of_zeros_and_its_name_is_no_markup(tmp_path: Path) -> None:
    told = page(tmp_path, SourceNote(name=NASTY, documents=10, bytes=1_000, epochs=1.0))
    assert "too short" not in told
    assert "language" not in told
    assert "<script>" not in told
    assert len(told.splitlines()) == 5


def test_tokens_are_told_by_source_beside_known_tokenizers(tmp_path: Path) -> None:
    rows = [("play", "en", 2.614, 2.9), ("docs", "", 2.75, 4.1), ("all", "", 2.7, 3.456)]
    comparison = Comparison(
        split_pattern="nanochat",
        vocab_sizes={"this one": 2_048, "GPT-2": 50_257},
        rows=tuple(
            SourceRow(
                name=name,
                language=language,
                sample_bytes=1_000,
                bytes_per_token={"this one": ours, "GPT-2": gpt2},
            )
            for name, language, ours, gpt2 in rows
        ),
        skipped={},
    )
    assert page(tmp_path, PLAY, comparison=comparison).splitlines()[-5:] == [
        "| held-out text of | language | bytes per token, this one (2,048) "
        "| bytes per token, GPT-2 (50,257) |",
        "| --- | --- | ---: | ---: |",
        "| play | en | 2.61 | 2.90 |",
        "| docs | - | 2.75 | 4.10 |",
        "| all | - | 2.70 | 3.46 |",
    ]
    assert comparing.COMPARISON_FILE == COMPARISON_FILE


def test_the_samples_are_read_by_the_tokenizer_report(tmp_path: Path) -> None:
    sampled = [PLAY.model_copy(update={"sample": "\u00e9t\u00e9"}), DOCS]
    save_notes(sampled, tmp_path)
    (sample,) = comparing.read_samples(tmp_path)
    assert sample.model_dump() == {"name": "play", "language": "en", "sample": "\u00e9t\u00e9"}


def test_older_artifacts_without_notes_have_no_section(tmp_path: Path) -> None:
    assert training_text(Material({}, {})) == []
    assert page(tmp_path) == ""
