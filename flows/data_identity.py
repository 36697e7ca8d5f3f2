"""The function behind `nanochat data identity`; `flows.data_command` registers it."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.artifacts_command import StoreOption
from nanochat_core.errors import ConfigError, DataError, StationBusyError

if TYPE_CHECKING:
    from nanochat_core.conversation.asking import Journal, Tally
    from nanochat_core.conversation.chat_endpoint import AskPolicy, Endpoint
    from nanochat_core.conversation.made_identity import FactSheet
    from nanochat_core.conversation.types import Conversation

KEY_VARIABLE = "OPENAI_API_KEY"
DEFAULT_OUTPUT = Path("data/identity_sft.jsonl")
LINE_SECONDS = 10.0
EPILOG_LINES = (
    "nanochat data identity --name Ada              from templates, in a second",
    "nanochat data identity --name Ada --model d4   with the numbers of a model",
    "nanochat data identity --facts ada.json        with answers of your own",
    "nanochat data identity --facts ada.json --endpoint http://127.0.0.1:8080/v1",
    "    --endpoint-model NAME --count 500          another model writes them",
    "",
    "A file of facts is JSON; a wrong field is answered with all that there are:",
    '{"name": "Ada", "data": "letters", "answers": {"maker": "Jo made me."},',
    ' "more": [{"topic": "where you live", "answer": "In Oslo."}]}',
    "With --endpoint every accepted conversation is kept at once, in FILE.asked;",
    "after a stop, the same command goes on.",
)


@dataclass(frozen=True)
class Wish:
    """What file is wanted, and whether one that is there may go."""

    output: Path
    count: int
    seed: int
    overwrite: bool

    @property
    def journal(self) -> Path:
        """Where asked conversations are kept from the first one on."""
        return self.output.with_name(f"{self.output.name}.asked")


def identity(  # noqa: PLR0913  one parameter per option
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="JSONL, one conversation a line")
    ] = DEFAULT_OUTPUT,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="conversations")] = 1_000,
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="what the model calls itself; default: that of --facts, of --model, or nanochat",
        ),
    ] = "",
    facts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False, help="JSON of what it knows of itself"),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="REF",
            show_default=False,
            help="its depth, parameters and so on: alias, station/fingerprint, tag as d4, or "
            "folder; without it, nothing is asked that the facts do not tell",
        ),
    ] = "",
    seed: Annotated[int, typer.Option(metavar="N", help="other conversations")] = 7,
    endpoint: Annotated[
        str,
        typer.Option(
            metavar="URL",
            show_default=False,
            help="an OpenAI-compatible server that writes the conversations; default: templates",
        ),
    ] = "",
    endpoint_model: Annotated[
        str, typer.Option(metavar="NAME", show_default=False, help="which of its models")
    ] = "",
    key_variable: Annotated[
        str,
        typer.Option(
            metavar="VARIABLE",
            show_default=False,
            help=f"environment variable that holds the key; default: {KEY_VARIABLE}, if it is set",
        ),
    ] = "",
    concurrency: Annotated[
        int, typer.Option(metavar="N", min=1, max=256, help="requests at once")
    ] = 8,
    temperature: Annotated[
        float | None,
        typer.Option(metavar="X", min=0.0, show_default=False, help="default: the server's"),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, show_default=False, help="of a reply; default: the server's"
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="begin anew where a file is there")
    ] = False,
    store: StoreOption = "default",
) -> None:
    """Make conversations in which a model learns who it is.

    From templates, without any network, the same for the same seed; or written by another model
    over an OpenAI-compatible endpoint, each about a topic, by a person and of a length of its own.
    Those that contradict the facts, or say again what an earlier one said, are refused.
    """
    environ = os.environ  # noqa: TID251  an entry: read here, passed down as values
    if endpoint and not endpoint_model:
        raise ConfigError("--endpoint needs --endpoint-model NAME, one of the server's models")
    if not endpoint and (endpoint_model or key_variable):
        raise ConfigError("--endpoint-model and --key-variable need --endpoint URL")
    wish = Wish(output, count, seed, overwrite)
    check_output(wish, is_asked=bool(endpoint))
    sheet = sheet_of(name, facts, model_numbers(model, store, environ) if model else {})
    make_folder(wish)
    if not endpoint:
        from nanochat_core.conversation.made_identity import made_conversations

        write(wish, made_conversations(sheet, count, seed))
        return
    from nanochat_core.conversation.chat_endpoint import AskPolicy, Endpoint

    key = find_key(endpoint, key_variable, environ)
    asked = Endpoint(endpoint, endpoint_model, key, temperature, max_tokens)
    write(wish, ask(wish, sheet, asked, AskPolicy(), num_threads=concurrency))


def check_output(wish: Wish, *, is_asked: bool) -> None:
    """Refuse a file that is there and that this command would not make."""
    if wish.output.is_dir():
        raise ConfigError(f"--output {wish.output} is a folder; give the path of a file")
    goes_on = is_asked and wish.journal.exists()
    if wish.output.exists() and not wish.overwrite and not goes_on:
        raise ConfigError(
            f"{wish.output} is there already; give another --output, or --overwrite to replace it"
        )


def make_folder(wish: Wish) -> None:
    """Make the folder of the file; ConfigError where that cannot be."""
    try:
        wish.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the folder {wish.output.parent} cannot be made ({error.strerror}); give another "
            "--output"
        ) from error


def sheet_of(name: str, facts: Path | None, of_model: Mapping[str, Any]) -> "FactSheet":
    """What is known: the numbers of the model, then the file, then the name that is given.

    ConfigError where the file says another number than the model has.
    """
    from nanochat_core.conversation.made_identity import make_sheet, read_sheet

    given_name = {"name": name} if name else {}
    if facts is None:
        return make_sheet({**of_model, **given_name}, "the facts")
    told = read_sheet(facts)
    for field in told.model_fields_set & of_model.keys() - {"name", "data"}:
        if getattr(told, field) not in (None, of_model[field]):
            raise ConfigError(
                f"{facts} says {field}={getattr(told, field)}, but the model has "
                f"{of_model[field]}; leave it out of the file, or --model away"
            )
    of_file = told.model_dump(exclude_unset=True, exclude_none=True)
    return make_sheet({**of_model, **of_file, **given_name}, str(facts))


def model_numbers(model: str, store: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Sizes of a model, and what it has been taught about itself, if anything."""
    import json

    from flows.looking import open_store
    from nanochat_core.inference.by_hand import by_hand_base
    from nanochat_core.inference.finding import ModelFinder
    from nanochat_core.model.config import ModelConfig
    from nanochat_core.model.counts import parameter_counts

    # Any path will do for the tokenizer, which is not looked at: a folder may lack one.
    finder = ModelFinder(open_store(store, environ), by_hand_base(environ), tokenizer=Path())
    folder = finder.find(model).model
    try:
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = ModelConfig.model_validate(written["model"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / 'config.json'} does not describe a model of this project; name one that "
            "nanochat run or nanochat train has made"
        ) from error
    taught = written.get("facts", {})
    return {
        "depth": config.n_layer,
        "num_parameters": parameter_counts(config).total,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "vocab_size": config.vocab_size,
        "sequence_len": config.sequence_len,
        **{field: taught[field] for field in ("name", "data") if field in taught},
    }


def find_key(endpoint: str, variable: str, environ: Mapping[str, str]) -> str:
    """The key that the endpoint gets; '' for none. Never part of a message.

    The usual variable may hold the key of somebody else's service: it is sent over a line that
    others can read only if its name is given.
    """
    from nanochat_core.conversation.chat_endpoint import completions_url, may_have_key

    url = completions_url(endpoint)
    key = environ.get(variable or KEY_VARIABLE, "").strip()
    if variable and not key:
        raise ConfigError(f"--key-variable {variable}: that environment variable is not set")
    if not all("!" <= character <= "~" for character in key):
        raise ConfigError(f"{variable or KEY_VARIABLE} holds characters that no key has")
    if key and not variable and not may_have_key(url):
        typer.echo(
            f"note: {KEY_VARIABLE} is not sent to {url}, since others can read along; if it is "
            f"meant for it, give --key-variable {KEY_VARIABLE}",
            err=True,
        )
        return ""
    return key


def ask(
    wish: Wish, sheet: "FactSheet", endpoint: "Endpoint", policy: "AskPolicy", *, num_threads: int
) -> list["Conversation"]:
    """Conversations that a model behind an endpoint writes, in the order of their numbers."""
    import threading

    from nanochat_core.conversation.asking import Collection, Journal, counted_reasons
    from nanochat_core.conversation.chat_endpoint import ChatClient

    stop = threading.Event()
    with _alone(wish), ChatClient(endpoint, policy, stop) as client:
        if wish.overwrite:
            wish.journal.unlink(missing_ok=True)
        with Journal(wish.journal, sheet, wish.seed) as journal:
            _check_untouched(wish, journal)
            collection = Collection(sheet, wish.seed, wish.count, journal, model=endpoint.model)
            tally = collection.tally
            if tally.given:
                typer.echo(f"{tally.given} of {wish.count} are there from before: {wish.journal}")
            with _shown(tally) as progress:
                collection.collect(client, num_threads, stop, progress)
            if tally.refused:
                typer.echo(
                    f"refused {tally.refused.total()} replies: {counted_reasons(tally.refused)}"
                )
            taken = sorted(journal.conversations.items())[: wish.count]
    return [conversation for _, conversation in taken]


def _check_untouched(wish: Wish, journal: "Journal") -> None:
    """Refuse to replace a file in which somebody has written."""
    from nanochat_core.conversation.made_identity import as_line

    if not wish.output.exists() or wish.overwrite:
        return
    own = {as_line(conversation).encode() for conversation in journal.conversations.values()}
    foreign = [line for line in wish.output.read_bytes().split(b"\n") if line and line not in own]
    if foreign:
        raise ConfigError(
            f"{wish.output} was changed: it holds {len(foreign)} lines that {wish.journal} does "
            "not; give it another name first, or --overwrite to begin anew"
        )


@contextmanager
def _alone(wish: Wish) -> Iterator[None]:
    from nanochat_core.artifacts.locks import locked

    try:
        with locked(wish.output.with_name(f".{wish.output.name}.lock"), "", wait=False):
            yield
    except StationBusyError as error:
        raise DataError(
            f"another command is making {wish.output}; wait for it, or give another --output"
        ) from error


def write(wish: Wish, conversations: Sequence["Conversation"]) -> None:
    """Put the conversations into the file, whole or not at all, and say so."""
    from flows.wording import size
    from nanochat_core.conversation.made_identity import as_line
    from nanochat_core.training.durable_files import write_durably

    lines = [as_line(conversation) for conversation in conversations]
    try:
        written = write_durably(wish.output, [f"{line}\n".encode() for line in lines])
    except OSError as error:
        raise DataError(f"{wish.output} cannot be written: {error.strerror}") from error
    typer.echo(
        f"{wish.output}: {len(lines):,} conversations, {len(set(lines)):,} of them different, "
        f"{size(written['bytes'])}"
    )


@contextmanager
def _shown(tally: "Tally") -> Iterator[Callable[["Tally"], None]]:
    """How far it is: a line every ten seconds, on stderr."""
    started = said = time.monotonic()

    def show(now_tally: "Tally") -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= LINE_SECONDS:
            said = now
            typer.echo(progress_line(now_tally, now - started), err=True)

    yield show
    if tally.accepted > tally.given:
        typer.echo(progress_line(tally, time.monotonic() - started), err=True)


def progress_line(tally: "Tally", seconds: float) -> str:
    """What is accepted, refused and left, with a guess of the time."""
    from flows.wording import duration
    from nanochat_core.conversation.asking import counted_reasons

    done = tally.accepted - tally.given
    left = tally.wanted - tally.accepted
    guess = f", about {duration(seconds / done * left)} left" if done and left > 0 else ""
    refused = f", refused {counted_reasons(tally.refused)}" if tally.refused else ""
    return f"{tally.accepted} of {tally.wanted} conversations{refused}{guess}"
