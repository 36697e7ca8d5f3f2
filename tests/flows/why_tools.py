"""What the tests of `why` share: a store with a whole line, and questions to it."""

import shutil
from pathlib import Path
from typing import Any

import typer
from made_line import make_line, resolved_run
from typer.testing import CliRunner

from flows.dry_line import Planned, dry_run
from flows.explaining import Explainer, Explanation
from flows.parameters import ResolvedRun
from flows.why_command import COMMANDS
from nanochat_core.artifacts.records import Manifests, manifest_path
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request


class Made:
    """A store with a whole line, and runs that want something a little different."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.benchmarks, self.text = folder / "benchmarks", folder / "text.txt"
        self.store = ArtifactStore(str(folder / "store"))

    def resolved(self, **values: Any) -> ResolvedRun:
        # Reinforcement from files, so that it has the benchmarks as an input.
        overrides = {"rl.task": "gsm8k", **values.pop("overrides", {})}
        common = {"benchmarks": str(self.benchmarks), "source": (str(self.text),), **values}
        return resolved_run(self.folder / "store", overrides=overrides, **common)

    def planned(self, **values: Any) -> dict[str, Planned]:
        return dry_run(self.resolved(**values), self.store)

    def explain(self, station: str, **values: Any) -> Explanation:
        return Explainer(self.store).station(self.planned(**values)[station])

    def copy(self, folder: Path) -> "Made":
        """The same in a store of its own, which may be changed."""
        shutil.copytree(self.folder, folder / "made")
        return Made(folder / "made")

    def command(self, *arguments: str) -> tuple[int, str]:
        own = ("--source", str(self.text), "--benchmarks", str(self.benchmarks))
        return command(*arguments, *own, "--store", self.store.url)


def command(*arguments: str) -> tuple[int, str]:
    app = typer.Typer(rich_markup_mode=None)
    for name, function, _ in COMMANDS:
        app.command(name)(function)
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def make_whole(folder: Path) -> Made:
    """A store with everything that its run asks for."""
    made = Made(folder)
    made.benchmarks.mkdir()
    for split in ("train", "test"):
        (made.benchmarks / f"gsm8k-{split}.jsonl").write_text('{"question": "1 + 1?"}\n')
    made.text.write_text("A river runs.\n\nA stone lies.\n")
    make_line(made.store, made.resolved())
    return made


def request_of(planned: Planned) -> Request:
    assert planned.request is not None
    return planned.request


def refs_of(planned: Planned) -> dict[str, ArtifactRef]:
    return {name: known.ref for name, known in planned.inputs.items() if known.ref is not None}


def raised(request: Request) -> Request:
    """The same, computed by another version of the code."""
    return request.model_copy(update={"code_version": request.code_version + 1})


def texts(found: Explanation) -> list[str]:
    return [cause.text for cause in found.first_causes]


def date(store: ArtifactStore, ref: ArtifactRef, seconds: int) -> ArtifactRef:
    """Let an artifact seem to be published in 2099, at a given second; in stores of tests only."""
    manifest = store.manifest(ref).model_copy(
        update={"created": f"2099-01-01T00:00:{seconds:02d}+00:00"}
    )
    store.files.remove(manifest_path(ref.station, ref.fingerprint, ref.manifest))
    assert Manifests(store.files).create(manifest)
    return manifest.ref


def damage(own: Made, station: str, pattern: str) -> None:
    (path,) = (own.folder / "store" / station).glob(pattern)
    path.chmod(0o644)
    path.write_bytes(b"#" * path.stat().st_size)
