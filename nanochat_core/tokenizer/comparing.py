"""How far a tokenizer gets: bytes per token of each source and language, beside known ones.

GPT-2's and GPT-4's are read where tiktoken keeps their files on this machine, checked against the
published sha256. Nothing is downloaded: tiktoken itself is not asked, since it would.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import tiktoken
from pydantic import Field

from nanochat_core.config.base import Config
from nanochat_core.errors import DataError
from nanochat_core.tokenizer.split_patterns import SPLIT_PATTERNS, pattern_name
from nanochat_core.tokenizer.tokenizer import Tokenizer, read_ranks

COMPARISON_FILE = "comparison.json"
SAMPLES_FILE = "sources.json"
OURS = "this one"
ALL = "all"
CACHE_VARIABLES = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")
DEFAULT_CACHE = "data-gym-cache"
"""In the folder for temporary files, where the variables name none (tiktoken 0.14, load.py)."""


class Sample(Config):
    """Text of one source that the tokenizer has not learnt from."""

    name: str
    language: str = ""
    sample: str


_FIELDS = tuple(Sample.model_fields)


class SourceRow(Config):
    """What the tokenizers make of one source, of one language, or of all."""

    name: str
    language: str
    sample_bytes: int
    bytes_per_token: dict[str, float] = Field(description="by tokenizer")


class Comparison(Config):
    """`comparison.json`."""

    format: Literal[1] = 1
    split_pattern: str = Field(description="its name")
    vocab_sizes: dict[str, int] = Field(description="by tokenizer, this one first")
    rows: tuple[SourceRow, ...]
    skipped: dict[str, str] = Field(description="tokenizer -> why it is not here")

    @classmethod
    def load(cls, folder: Path) -> "Comparison":
        """Read that of a tokenizer artifact."""
        return cls.model_validate_json((folder / COMPARISON_FILE).read_bytes())

    def save(self, folder: Path) -> str:
        """Write it; returns the file's name."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)
        (folder / COMPARISON_FILE).write_text(text + "\n", encoding="utf-8")
        return COMPARISON_FILE


class _Encodes(Protocol):
    def __call__(self, text: str) -> Sequence[int]: ...


@dataclass(frozen=True)
class Known:
    """A published tokenizer: its file in tiktoken's cache, and what it cuts text with."""

    name: str
    url: str
    sha256: str
    pattern: str
    read: Callable[[Path], list[bytes]]

    def file(self, cache: Path) -> Path:
        """Where tiktoken keeps it: under the SHA-1 of its address."""
        return cache / hashlib.sha1(self.url.encode(), usedforsecurity=False).hexdigest()

    def encoding(self, cache: Path) -> tiktoken.Encoding:
        """Raises `DataError` when the file is not there, or is another one."""
        file = self.file(cache)
        if not file.is_file():
            raise DataError(f"not in {cache.name}, where tiktoken keeps files")
        if hashlib.sha256(file.read_bytes()).hexdigest() != self.sha256:
            raise DataError(f"{file.name} in {cache.name} is not the published file")
        ranks = {token: rank for rank, token in enumerate(self.read(file))}
        return tiktoken.Encoding(
            self.name, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens={}
        )


def _read_merges(path: Path) -> list[bytes]:
    """GPT-2's own file: a merge a line, bytes written as printable characters.

    Bytes that print stand for themselves, the others for the characters from U+0100 on
    (openai/gpt-2, encoder.py). The order of single bytes does not matter here.
    """
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    byte_of = {chr(b): b for b in printable}
    byte_of |= {chr(256 + i): b for i, b in enumerate(others)}
    lines = path.read_text(encoding="utf-8").split("\n")[1:-1]
    merges = [bytes(byte_of[c] for c in line.replace(" ", "")) for line in lines]
    return [bytes([b]) for b in (*printable, *others)] + merges


_PLACE = "https://openaipublic.blob.core.windows.net"
# Addresses and sha256 as in tiktoken 0.14, openai_public.py.
KNOWN = (
    Known(
        "GPT-2",
        f"{_PLACE}/gpt-2/encodings/main/vocab.bpe",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        SPLIT_PATTERNS["gpt2"],
        _read_merges,
    ),
    Known(
        "GPT-2",
        f"{_PLACE}/encodings/r50k_base.tiktoken",
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
        SPLIT_PATTERNS["gpt2"],
        read_ranks,
    ),
    Known(
        "GPT-4",
        f"{_PLACE}/encodings/cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        SPLIT_PATTERNS["gpt4"],
        read_ranks,
    ),
    Known(
        "GPT-4o",
        f"{_PLACE}/encodings/o200k_base.tiktoken",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        SPLIT_PATTERNS["gpt4o"],
        read_ranks,
    ),
)
"""The same tokens may be in either of two files."""


def tiktoken_cache(environ: Mapping[str, str], temporary: Path) -> Path | None:
    """The folder in which tiktoken keeps files; None where it is told to keep none."""
    for name in CACHE_VARIABLES:
        if name in environ:
            return Path(environ[name]) if environ[name] else None
    return temporary / DEFAULT_CACHE


def known_encodings(
    cache: Path | None, known: Sequence[Known] = KNOWN
) -> tuple[dict[str, tiktoken.Encoding], dict[str, str]]:
    """Published tokenizers that are at hand, by name; and why the others are not."""
    found: dict[str, tiktoken.Encoding] = {}
    skipped: dict[str, str] = {}
    for one in known:
        if one.name in found:
            continue
        try:
            if cache is None:
                raise DataError(f"{CACHE_VARIABLES[0]} is empty, which means no cache")
            found[one.name] = one.encoding(cache)
            skipped.pop(one.name, None)
        except (DataError, OSError) as error:
            skipped.setdefault(one.name, str(error))
    return found, skipped


def read_samples(shards: Path) -> list[Sample]:
    """Samples of every source as the station shards has left them; none where it has not."""
    path = shards / SAMPLES_FILE
    if not path.is_file():
        return []
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8"))
        listed = told["sources"] if isinstance(told, dict) else told
        picked = [
            {name: one[name] for name in Sample.model_fields if name in one} for one in listed
        ]
        samples = [Sample.model_validate(one) for one in picked]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read as notes on sources ({error}); make the shards again"
        ) from error
    return [sample for sample in samples if sample.sample]


def compare(tokenizer: Tokenizer, samples: Sequence[Sample], cache: Path | None) -> Comparison:
    """Bytes per token of every sample, of languages and of all, by this one and known ones."""
    known, skipped = known_encodings(cache)
    encode: dict[str, _Encodes] = {OURS: tokenizer.encode}
    encode |= {name: encoding.encode_ordinary for name, encoding in known.items()}
    counts = [
        (one, len(one.sample.encode()), {n: len(f(one.sample)) for n, f in encode.items()})
        for one in samples
    ]
    rows = [_row(one.name, one.language, [(size, tokens)]) for one, size, tokens in counts]
    languages = list(dict.fromkeys(one.language for one in samples))
    for language in languages:
        same = [(size, tokens) for one, size, tokens in counts if one.language == language]
        if language and 1 < len(same) < len(samples):
            rows.append(_row(ALL, language, same))
    if len(samples) > 1:
        language = languages[0] if len(languages) == 1 else ""
        rows.append(_row(ALL, language, [(size, tokens) for _, size, tokens in counts]))
    return Comparison(
        split_pattern=pattern_name(tokenizer.split_pattern),
        vocab_sizes={OURS: tokenizer.vocab_size, **{n: e.n_vocab for n, e in known.items()}},
        rows=tuple(rows),
        skipped=skipped,
    )


def _row(name: str, language: str, counts: Sequence[tuple[int, dict[str, int]]]) -> SourceRow:
    size = sum(part for part, _ in counts)
    names = counts[0][1]
    return SourceRow(
        name=name,
        language=language,
        sample_bytes=size,
        bytes_per_token={
            name: round(size / max(sum(tokens[name] for _, tokens in counts), 1), 3)
            for name in names
        },
    )


def comparison_markdown(comparison: Comparison) -> str:
    """A table: sources down, tokenizers across; what is missing, and why."""
    names = list(comparison.vocab_sizes)
    titles = [f"{name} ({comparison.vocab_sizes[name]:,})" for name in names]
    lines = [
        "## bytes per token",
        "",
        f"Of held-out text; more is better. Split pattern: {comparison.split_pattern}.",
        "",
        f"| source | language | sample | {' | '.join(titles)} |",
        f"| --- | --- | ---: |{' ---: |' * len(titles)}",
    ]
    for row in comparison.rows:
        values = " | ".join(f"{row.bytes_per_token[name]:.2f}" for name in names)
        label = row.name.replace("|", "\\|")
        lines.append(f"| {label} | {row.language} | {_size(row.sample_bytes)} | {values} |")
    for reason in dict.fromkeys(comparison.skipped.values()):
        missing = ", ".join(name for name, why in comparison.skipped.items() if why == reason)
        lines += ["", f"Left out: {missing} ({reason})."]
    return "\n".join(lines)


def _size(size: int) -> str:
    return f"{size / 1000:,.0f} kB" if size >= 1000 else f"{size} bytes"
