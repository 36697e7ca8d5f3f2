"""The function behind `nanochat data fetch`; `flows.cli` registers it."""

import os
from pathlib import Path
from typing import Annotated

import typer

EPILOG_LINES = (
    "nanochat data fetch                      all of it, into data/official",
    "nanochat data fetch gsm8k mmlu           only these",
    "nanochat data fetch core --sha256 3f2a…  refuse another zip than that",
    "nanochat run speedrun --benchmarks data/official",
    "nanochat eval core --eval-bundle data/official/eval_bundle.zip",
    "",
    "What is there already stays. A token for the hub is read from HF_TOKEN.",
)
DEFAULT_OUTPUT = Path("data/official")


def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            show_default=False,
            help="smoltalk, mmlu, gsm8k, arc-easy, arc-challenge, humaneval or core; none: all",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="where the files come to lie")
    ] = DEFAULT_OUTPUT,
    endpoint: Annotated[
        str,
        typer.Option(metavar="URL", envvar="HF_ENDPOINT", help="the hub, or a mirror of it"),
    ] = "https://huggingface.co",
    revision: Annotated[
        str,
        typer.Option(metavar="NAME", show_default=False, help="of the one set that is named"),
    ] = "",
    sha256: Annotated[
        str,
        typer.Option(
            metavar="HEX",
            show_default=False,
            help="of eval_bundle.zip; else recorded when first fetched",
        ),
    ] = "",
) -> None:
    """Fetch official benchmarks and conversations, under the names that --benchmarks looks for.

    Every file is verified by the sha256 that the hub tells, cut connections are continued, parts
    are joined, and rows are checked before a file appears.
    """
    # Not at the top: what reads data loads slowly, and every command shows its help at once.
    from flows.counted import counted
    from flows.wording import size
    from nanochat_core.benchmarks.official_files import CORE, NAMES, OFFICIAL, Folder, check_names
    from nanochat_core.data.fetching import FetchPolicy
    from nanochat_core.data.hub import hub_headers

    wanted = tuple(dict.fromkeys(names or NAMES))
    check_names(wanted, revision, sha256)
    token = os.environ.get("HF_TOKEN", "")  # noqa: TID251  an entry: passed down as a value
    folder = Folder(output, FetchPolicy(endpoint=endpoint), hub_headers(token), counted=counted)
    for name in wanted:
        if name == CORE:
            brought = [folder.bring_core(sha256=sha256)]
        else:
            brought = [folder.bring(file, revision or "main") for file in OFFICIAL[name]]
        for fetched, was_there in brought:
            state = "there already" if was_there else "fetched"
            typer.echo(
                f"{fetched.file.name:<28} {size(fetched.file.bytes):>8}  {state}  "
                f"sha256 {fetched.file.sha256[:12]}"
            )
    typer.echo(f"in {output}")
