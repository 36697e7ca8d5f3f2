"""The function behind `nanochat export`; `flows.cli` registers it."""

import os
import shlex
import shutil
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args
from uuid import uuid4

import typer

from flows.artifacts_command import StoreOption
from flows.starting import start_server, stop_in_order
from nanochat_core.errors import ConfigError

if TYPE_CHECKING:
    from nanochat_core.artifacts.store import ArtifactStore
    from nanochat_core.artifacts.types import ArtifactRef

EPILOG_LINES = (
    "nanochat export --output my-model          the newest model",
    "nanochat export sft/3f2a91c0 --output chat any model of: nanochat artifacts ls",
    "nanochat export d12                        into the store alone",
)


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="alias, station/fingerprint, or tag as d12, of the store"
        ),
    ] = "latest",
    output: Annotated[
        str,
        typer.Option(
            metavar="DIR", show_default=False, help="a new or empty folder; default: the store only"
        ),
    ] = "",
    store: StoreOption = "default",
    device: Annotated[
        str, typer.Option(metavar="KIND", help="where it is compared: auto, cuda, mps or cpu")
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE", help="float32: weights as they are; bfloat16: rounded, half the size"
        ),
    ] = "float32",
    force: Annotated[bool, typer.Option("--force", help="export it again")] = False,
) -> None:
    """Give a model away: a folder that Hugging Face's transformers can load.

    Weights, tokenizer, chat template, the model's code and a card with scores and lineage. The
    folder is loaded and compared with the original before anything is published: logits, greedy
    replies, and ten thousand strings through the tokenizer.
    """
    from flows.exporting.inputs import model_ref

    stop_in_order()
    from flows.looking import open_store
    from nanochat_core.config.execution import Device
    from nanochat_core.export.recipe import ExportDtype, check_packages

    environ = os.environ  # noqa: TID251  an entry: read here, passed down as values
    check_packages()
    folder = Path(output).expanduser().absolute() if output else None
    if folder is not None:
        check_free(folder)
    opened = open_store(store, environ)
    asked = {
        "model": model,
        "store": opened.url,
        "recipe": {"dtype": one_of_type("--dtype", dtype, ExportDtype)},
        "device": one_of_type("--device", device, Device),
        "force": force,
    }
    # A model that is not there is said before anything starts.
    model_ref(opened, model)
    ref = _exported(opened, asked, environ)
    if folder is None:
        typer.echo(f"{ref.short} is in {opened.materialize(ref)}")
        typer.echo(f"copy it out: nanochat export {shlex.quote(model)} --output DIR")
        return
    copy_out(opened, ref, folder)
    for line in loading_lines(folder):
        typer.echo(line)


def check_free(folder: Path, but: Path | None = None) -> None:
    """Refuse a folder that holds anything `but` this, and what is no folder; `ConfigError`."""
    if folder.is_dir():
        first = next((path for path in folder.iterdir() if path != but), None)
        if first is not None:
            raise ConfigError(
                f"--output {folder} is not empty (it holds {first.name}), and nothing is "
                "overwritten; give a new folder"
            )
    elif folder.exists() or folder.is_symlink():
        raise ConfigError(f"--output {folder} is no folder; give a new one")


def _exported(
    store: "ArtifactStore", asked: dict[str, Any], environ: MutableMapping[str, str]
) -> "ArtifactRef":
    """The artifact, found or made by the flow under a server as `nanochat run` has it."""
    store.check_writable()
    typer.echo(f"{asked['model']}: artifacts in {store.url}")
    server = start_server(environ, needs_workers=False)
    from flows.exporting.flow import ExportParameters, export_watched

    return export_watched(ExportParameters.model_validate(asked), server, sys.stdout)


def one_of_type(option: str, given: str, kind: Any) -> str:
    """`given` if it is one of a Literal's words; else `ConfigError`."""
    words: tuple[str, ...] = get_args(kind)
    if given not in words:
        raise ConfigError(f"{option} {given!r}; there is {', '.join(words)}")
    return given


def copy_out(store: "ArtifactStore", ref: "ArtifactRef", folder: Path) -> None:
    """Copy an export, hashed as it is read, and put it in its place when all of it is there.

    Until then a folder that exists holds one more, since it may be a disk of its own, and one that
    does not has it beside. The card is written anew: the model may have been evaluated meanwhile.
    """
    from nanochat_core.config.job import LOG_FILE
    from nanochat_core.export.current_card import material_of_export
    from nanochat_core.export.model_card import write_card

    source, manifest = store.materialize(ref), store.manifest(ref)
    is_there, name = folder.is_dir(), f".{folder.name}.{uuid4().hex[:8]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder / name if is_there else folder.with_name(name)
    try:
        for file in manifest.files:
            if file.path != LOG_FILE:
                (part / file.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / file.path, part / file.path)
        write_card(part, material_of_export(store, ref))
        # Somebody may have used the folder while the model was compared.
        check_free(folder, but=part)
        if is_there:
            for path in part.iterdir():
                path.rename(folder / path.name)
        else:
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def loading_lines(folder: Path) -> list[str]:
    """What is said at the end: where it is, and how it is loaded."""
    path = str(folder)
    return [
        f"exported to {path}",
        "load it, offline too:",
        "  from transformers import AutoModelForCausalLM, AutoTokenizer",
        f"  tokenizer = AutoTokenizer.from_pretrained({path!r}, trust_remote_code=True)",
        f"  model = AutoModelForCausalLM.from_pretrained({path!r}, trust_remote_code=True)",
        f"what it is, and what it cannot do: {folder / 'README.md'}",
    ]
