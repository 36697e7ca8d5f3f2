"""stub"""
from collections.abc import Sequence

from nanochat_core.data.recipes import FilesSource


def expand(paths: Sequence[str]) -> list[str]:
    """Files behind files, folders, globs and fsspec URLs, in the order in which they are read."""
    raise NotImplementedError


def resolve_files_source(
    paths: Sequence[str], *, text_column: str = "text", max_document_characters: int = 2_000
) -> FilesSource:
    """The user's own text as a recipe: name, sha256 and bytes of every file."""
    raise NotImplementedError
