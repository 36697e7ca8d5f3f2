"""The training text of a report: how much is from where, what was left out, and its tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from nanochat_core.conversation.markdown import escape
from nanochat_core.data.source_notes import SOURCES_FILE, SourceNote, parse_notes
from nanochat_core.report.markdown import NOTHING, Lines, section, table
from nanochat_core.report.material import Material

COMPARISON_FILE = "comparison.json"
"""Of the tokenizer: bytes per token of every source, beside published tokenizers."""
LEFT_OUT = {
    "empty": "empty",
    "too_short": "too short",
    "near_duplicates": "near-duplicates",
    "left_out_documents": "not needed",
}
"""Reasons for which documents are not in the shards, as the table calls them."""


def training_text(material: Material) -> Lines:
    """The sources of the text with their shares, epochs, what was left out, and their tokens."""
    notes = parse_notes(material.json("shards", SOURCES_FILE))
    return section(
        "Training text",
        sources_table(notes),
        _words(notes),
        tokens_table(material.json("tokenizer", COMPARISON_FILE)),
    )


def sources_table(notes: Sequence[SourceNote]) -> Lines:
    """A row a source; columns that say nothing of any of them are not there."""
    reasons = {name: head for name, head in LEFT_OUT.items() if any(_count(n, name) for n in notes)}
    has_languages = any(note.language for note in notes)
    titles = ["source", *(["language"] if has_languages else [])]
    titles += ["documents:", "MB:", "share (asked):", "epochs:", "held out, MB:"]
    titles += [f"{head}:" for head in reasons.values()]
    rows = [
        [
            escape(note.name),
            *([escape(note.language) or NOTHING] if has_languages else []),
            f"{note.documents:,}",
            f"{note.bytes / 1e6:,.2f}",
            f"{note.share:.1%} ({note.wanted_share:.1%})",
            f"{note.epochs:.3g}",
            f"{note.held_out_bytes / 1e6:,.2f}",
            *(f"{_count(note, name):,}" for name in reasons),
        ]
        for note in notes
    ]
    return table(titles, rows)


def _count(note: SourceNote, name: str) -> int:
    return int(getattr(note, name))


def _words(notes: Sequence[SourceNote]) -> Lines:
    """What the columns do not say of themselves."""
    said = []
    if len(notes) > 1:
        said.append("Shares are of the bytes of text to train on, repetitions included.")
    if any(note.left_out_documents for note in notes):
        size = sum(note.left_out_bytes for note in notes) / 1e6
        said.append(
            f"*Not needed*: {size:,.1f} MB to which another source has too little text for its "
            "share. More text of that source, or a larger `max_epochs` of it, would let them in."
        )
    return [" ".join(said)] if said else []


def tokens_table(comparison: Mapping[str, Any] | None) -> Lines:
    """Bytes per token of held-out text, by this tokenizer and by known ones."""
    if not comparison:
        return []
    sizes: Mapping[str, int] = comparison["vocab_sizes"]
    titles = ["held-out text of", "language"]
    titles += [f"bytes per token, {escape(name)} ({size:,}):" for name, size in sizes.items()]
    rows = [
        [
            escape(row["name"]),
            escape(row["language"]) or NOTHING,
            *(f"{row['bytes_per_token'][name]:.2f}" for name in sizes),
        ]
        for row in comparison["rows"]
    ]
    return table(titles, rows)
