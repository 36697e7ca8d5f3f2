"""Real text that is on every machine: prose from the documentation of installed packages.

Docstrings, README texts in package metadata and the language reference of `pydoc`, out of a
fixed list of distributions and the standard library. Nothing is downloaded or redistributed.
One pass over the files in several processes; what comes out does not depend on their number.
"""

import ast
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from nanochat_core.data.distributions import DISTRIBUTIONS
from nanochat_core.data.docstrings import Docstring, docstrings, fast_parsing
from nanochat_core.data.documents import Document, Question
from nanochat_core.data.near_duplicates import SeenShingles, Shingler, seen_in, stable_hash
from nanochat_core.data.prose import FILTER_VERSION, description_paragraphs, paragraphs
from nanochat_core.data.questions import ask, distinct
from nanochat_core.data.recipes import HarvestSource
from nanochat_core.data.workers import map_in_processes
from nanochat_core.errors import DataError
from nanochat_core.logs import Progress

ABSENT = "absent"
STANDARD_LIBRARY = "python"
TOPICS_MODULE = "pydoc_data.topics"
BATCHES = 64
_SKIPPED = """
test tests testing idle_test idlelib lib2to3 turtledemo site-packages dist-packages __pycache__
_vendor vendor vendored _vendored _vendored_packages extern externals third_party node_modules
"""
_SKIPPED_FOLDERS = frozenset(_SKIPPED.split())


def resolve_harvest_source() -> HarvestSource:
    """Versions of the listed distributions on this machine, from metadata, without a scan."""
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ABSENT
    return HarvestSource(
        versions=versions,
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        filter_version=FILTER_VERSION,
    )


@dataclass(frozen=True)
class SourceFile:
    """One Python file, or with no path the README text of a distribution."""

    distribution: str
    module: str
    path: Path | None
    size: int


@dataclass
class Paragraph:
    """Prose, and the name that it opens the documentation of ("" for any other paragraph)."""

    text: str
    name: str
    is_class: bool
    shingles: NDArray[np.uint64]


@dataclass
class Module:
    """The paragraphs of one module, in source order; one topic of the language reference too."""

    distribution: str
    name: str
    paragraphs: list[Paragraph] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The document."""
        return "\n\n".join(paragraph.text for paragraph in self.paragraphs)


def _module_name(path: PurePosixPath) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_wanted(path: PurePosixPath) -> bool:
    return (
        path.suffix == ".py"
        and path.parts[0] != ".."
        and not _SKIPPED_FOLDERS.intersection(path.parts[:-1])
        and not path.name.startswith(("test_", "conftest"))
    )


def _distribution_files(name: str, dist: Distribution) -> list[SourceFile]:
    found = [SourceFile(name, f"{name} description", None, 0)]
    for entry in dist.files or ():
        path = PurePosixPath(entry)
        if _is_wanted(path):
            full = Path(str(dist.locate_file(entry)))
            size = entry.size if entry.size is not None else full.stat().st_size
            found.append(SourceFile(name, _module_name(path), full, size))
    return found


def _standard_library_files() -> list[SourceFile]:
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for full in root.rglob("*.py"):
        path = PurePosixPath(full.relative_to(root).as_posix())
        if _is_wanted(path):
            found.append(
                SourceFile(STANDARD_LIBRARY, _module_name(path), full, full.stat().st_size)
            )
    return found


def list_files(source: HarvestSource) -> list[SourceFile]:
    """Every file to read, in a stable order; refuses other versions than those planned."""
    if source.filter_version != FILTER_VERSION:
        raise DataError(
            f"planned to filter by version {source.filter_version} of the rules, but this code "
            f"has version {FILTER_VERSION}; leave shards.source.filter_version as it is"
        )
    found = []
    for name, planned in source.versions.items():
        if planned == ABSENT:
            continue
        try:
            dist = distribution(name)
        except PackageNotFoundError:
            dist = None
        if dist is None or dist.version != planned:
            raise DataError(
                f"planned to read {name} {planned}, but "
                f"{dist.version if dist else 'no such distribution'} is installed; plan again, "
                "or install what was planned"
            )
        found += _distribution_files(name, dist)
    found += _standard_library_files()
    return sorted(found, key=lambda file: (file.distribution, file.module, str(file.path)))


def _topics(source: bytes) -> dict[str, str]:
    """The topics of the language reference, read from the file's one dictionary."""
    for node in ast.parse(source).body:
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict):
            return {str(name): str(text) for name, text in ast.literal_eval(value).items()}
    return {}


def _paragraphs_of(found: Iterable[Docstring], module: str, shingler: Shingler) -> list[Paragraph]:
    kept = []
    for item in found:
        for number, text in enumerate(paragraphs(item.text)):
            if text:
                name = f"{module}.{item.name}" if item.name and number == 0 else ""
                kept.append(Paragraph(text, name, item.is_class, shingler.shingles(text)))
    return kept


def _read_file(file: SourceFile, shingler: Shingler) -> list[Module]:
    if file.path is None:
        metadata = distribution(file.distribution).metadata
        # The description is the body of the metadata, or in old files a header of it.
        body = metadata.get_payload() or metadata.get("Description") or ""  # type: ignore[attr-defined]
        texts = description_paragraphs(str(body))
        readme = [Paragraph(text, "", False, shingler.shingles(text)) for text in texts]
        return [Module(file.distribution, file.module, readme)]
    try:
        source = file.path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file.path}: {error.strerror}") from error
    if file.module == TOPICS_MODULE and file.distribution == STANDARD_LIBRARY:
        return [
            Module(
                file.distribution,
                f"{TOPICS_MODULE}:{topic}",
                _paragraphs_of([Docstring("", False, text)], "", shingler),
            )
            for topic, text in sorted(_topics(source).items())
        ]
    found = _paragraphs_of(docstrings(source), file.module, shingler)
    return [Module(file.distribution, file.module, found)]


def _read_batch(files: Sequence[SourceFile]) -> list[Module]:
    shingler = Shingler()
    with fast_parsing():
        modules = [module for file in files for module in _read_file(file, shingler)]
    return [module for module in modules if module.paragraphs]


def _batches(files: Sequence[SourceFile], count: int) -> list[list[SourceFile]]:
    """Runs of files of about equal size in bytes."""
    limit = sum(file.size for file in files) / count
    batches: list[list[SourceFile]] = [[]]
    size = 0
    for file in files:
        if size > limit:
            batches.append([])
            size = 0
        batches[-1].append(file)
        size += file.size
    return batches


def _without_duplicates(modules: Iterable[Module], max_bytes: int) -> list[Module]:
    """Paragraphs that are news, in order; no more modules of a distribution once it is full."""
    seen = SeenShingles()
    bytes_of: dict[str, int] = {}
    kept = []
    for module in modules:
        if bytes_of.get(module.distribution, 0) >= max_bytes:
            continue
        news = [p for p in module.paragraphs if seen.keep_new(p.shingles)]
        if news:
            kept.append(Module(module.distribution, module.name, news))
            size = sum(len(p.text) for p in news)
            bytes_of[module.distribution] = bytes_of.get(module.distribution, 0) + size
    return kept


def is_held_out(name: str, percent: float) -> bool:
    """Whether the hash of a module's name falls into the lowest `percent` of all hashes."""
    return stable_hash(name) % 1_000_000 < percent * 10_000


def _split(modules: Sequence[Module], percent: float) -> tuple[list[Module], list[Module]]:
    """Train and validation modules, by hash of their names.

    A paragraph was compared with those before it only, so a short one may be part of a long one
    that comes later, on the other side: such paragraphs leave the side of the short one here.
    """
    train = [module for module in modules if not is_held_out(module.name, percent)]
    held_out = [module for module in modules if is_held_out(module.name, percent)]
    held_out = _without_seen(held_out, _seen_in_modules(train))
    return _without_seen(train, _seen_in_modules(held_out)), held_out


def _seen_in_modules(modules: Iterable[Module]) -> SeenShingles:
    return seen_in(p.shingles for module in modules for p in module.paragraphs)


def _without_seen(modules: Iterable[Module], seen: SeenShingles) -> list[Module]:
    kept = []
    for module in modules:
        news = [p for p in module.paragraphs if not seen.is_near_duplicate(p.shingles)]
        if news:
            kept.append(Module(module.distribution, module.name, news))
    return kept


def read_modules(files: Sequence[SourceFile], *, workers: int, progress: Progress) -> list[Module]:
    """Paragraphs of every module, in the order of `files`."""
    batches = _batches(files, BATCHES)
    progress.total = len(batches)
    modules: list[Module] = []
    for done, part in enumerate(map_in_processes(_read_batch, batches, workers=workers), start=1):
        modules += part
        progress.update(done, f"{done} of {len(batches)} parts of {len(files):,} files")
    return modules


def _in_mixed_order(modules: Iterable[Module]) -> list[Module]:
    # By hash, so that every shard is a sample of all packages.
    return sorted(modules, key=lambda module: (stable_hash(f"order {module.name}"), module.name))


@dataclass
class Harvest:
    """Documents in mixed order, questions about the train ones, and where the text is from."""

    documents: list[Document]
    questions: list[Question]
    bytes_by_distribution: dict[str, int]


def _first(train: list[Module], held_out: list[Module], count: int) -> None:
    """Keep `count` modules of both in proportion, at least one of each; 0 keeps all."""
    if count:
        share = len(held_out) / max(1, len(train) + len(held_out))
        kept_held_out = max(1, round(count * share))
        del held_out[kept_held_out:], train[max(1, count - kept_held_out) :]


def split_modules(
    modules: Iterable[Module], *, max_bytes: int, validation_percent: float, max_documents: int
) -> Harvest:
    """Documents and questions out of the paragraphs that are news."""
    kept = _without_duplicates(modules, max_bytes)
    train, held_out = (_in_mixed_order(part) for part in _split(kept, validation_percent))
    _first(train, held_out, max_documents)
    questions = distinct(
        ask(paragraph.name, is_class=paragraph.is_class, text=paragraph.text)
        for module in train
        for paragraph in module.paragraphs
        if paragraph.name
    )
    bytes_of: Counter[str] = Counter()
    for module in (*train, *held_out):
        bytes_of[module.distribution] += len(module.text)
    documents = [Document(module.text, False) for module in train]
    documents += [Document(module.text, True) for module in held_out]
    return Harvest(documents, questions, dict(bytes_of.most_common()))


def harvest(
    source: HarvestSource,
    *,
    validation_percent: float,
    max_documents: int,
    workers: int,
    progress: Progress,
) -> Harvest:
    """Read the documentation that `source` names."""
    modules = read_modules(list_files(source), workers=workers, progress=progress)
    return split_modules(
        modules,
        max_bytes=source.max_bytes_per_distribution,
        validation_percent=validation_percent,
        max_documents=max_documents,
    )
