"""The sources of a recipe, opened: what each holds, under which name and with which share."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from nanochat_core.data.document_sketches import SeenDocuments
from nanochat_core.data.documents import SourceText, in_memory
from nanochat_core.data.harvest import harvest
from nanochat_core.data.mixing import Part, shares
from nanochat_core.data.own_text import open_files, open_published
from nanochat_core.data.recipes import (
    FilesSource,
    HarvestSource,
    HubSource,
    MixturePart,
    MixtureSource,
    ShardsRecipe,
)
from nanochat_core.errors import DataError
from nanochat_core.logs import Progress

HARVEST_NAME = "docs"


class Opener:
    """Opens the sources of one recipe; `provenance` is what they tell about themselves."""

    def __init__(self, recipe: ShardsRecipe, workers: int, progress: Progress) -> None:
        self.provenance: dict[str, object] = {}
        self._recipe, self._workers, self._progress = recipe, workers, progress
        self._seen = SeenDocuments()

    def parts(self, paths: Sequence[str] | Mapping[str, Sequence[str]]) -> list[Part]:
        """The parts of a mixture in order, or the one source."""
        source = self._recipe.source
        if not isinstance(source, MixtureSource):
            assert not isinstance(paths, Mapping), f"one source, but paths of {sorted(paths)}"
            return [Part(_name_of(source), self._open(source, paths))]
        assert isinstance(paths, Mapping), "a mixture needs paths by the names of its parts"
        names = [part.name for part in source.parts]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(
                f"two parts of the mixture are called {', '.join(twice)}; give each another name"
            )
        wanted = shares([part.weight for part in source.parts])
        return [
            Part(
                part.name,
                self._open_part(number, part, paths.get(part.name, ())),
                share=share,
                max_epochs=part.max_epochs,
                language=part.language,
            )
            for number, (part, share) in enumerate(zip(source.parts, wanted, strict=True))
        ]

    def _open_part(self, number: int, part: MixturePart, paths: Sequence[str]) -> SourceText:
        try:
            return self._open(part.source, paths)
        except DataError as error:
            # A remedy names a field of the source, which in a mixture has another address.
            text = str(error).replace("shards.source.", f"shards.source.parts.{number}.source.")
            raise DataError(f"part {part.name} of the mixture: {text}") from error

    def _open(
        self, source: HarvestSource | FilesSource | HubSource, paths: Sequence[str]
    ) -> SourceText:
        percent, limit = self._recipe.validation_percent, self._recipe.max_documents
        if isinstance(source, HarvestSource):
            return self._harvest(source)
        if isinstance(source, FilesSource):
            return open_files(
                source,
                paths,
                validation_percent=percent,
                max_documents=limit,
                progress=self._progress,
                seen=self._seen,
            )
        if len(paths) != 1:
            raise DataError(
                f"published shards need the one folder in which they lie; got {len(paths)} paths"
            )
        return open_published(
            source, Path(paths[0]), validation_percent=percent, max_documents=limit
        )

    def _harvest(self, source: HarvestSource) -> SourceText:
        found = harvest(
            source,
            validation_percent=self._recipe.validation_percent,
            max_documents=self._recipe.max_documents,
            workers=self._workers,
            progress=self._progress,
        )
        self.provenance["bytes_by_distribution"] = found.bytes_by_distribution
        return in_memory(found.documents, tuple(found.questions))


def _name_of(source: HarvestSource | FilesSource | HubSource) -> str:
    """What reports call a source that is alone."""
    if isinstance(source, HarvestSource):
        return HARVEST_NAME
    if len(source.files) == 1:
        return PurePosixPath(source.files[0].name).name
    return f"{len(source.files):,} files"
