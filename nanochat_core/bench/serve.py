"""Speed of a chat server over HTTP, as one line of JSON: throughput, and how long clients wait.

So many clients each ask, read the whole answer and ask again. Without --url a server of the
benchmark's own is started on loopback, and ended afterwards. Request i has the same text and seed
in every run. Clients take processor time, too: what they take is missing from a server that shares
the machine with them.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from nanochat_core.bench.serve_client import Response, Target, fetch
from nanochat_core.bench.serve_load import (
    PATH,
    START_SECONDS,
    WORDS,
    Load,
    Prompts,
    Window,
    clients_of,
)
from nanochat_core.bench.serve_own import own_server
from nanochat_core.bench.serve_report import batch_size_mean, figures, read_metrics
from nanochat_core.errors import ConfigError, JobError, NanochatError

EXIT_ERROR, EXIT_CONFIG, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143
CLIENTS_OF_A_PROCESS = 64
PROBE_WORDS = (len(WORDS), 3 * len(WORDS))
EPILOG = """\
figures:
  tokens_per_second  of replies, while it was measured; the tokens of a calculator count, too
  ttft_seconds       from the request to the first text of a stream
  tpot_seconds       from one token to the next, the mean of each reply
  gap_seconds        between two events with text, which may hold several tokens each
  request_seconds    from the request to the end of the answer
  requests_busy      answered by 429, and asked again after what Retry-After says
  batch_size_mean    tokens that a step of the engine sampled meanwhile, by /metrics
  engine_share       of what the bare engine does under the same load (--against-engine)

examples:
  nanochat bench serve                              the newest model of the store
  nanochat bench serve --model tiny --clients 16 --seconds 10
  nanochat bench serve --model DIR --tokenizer DIR --against-engine
  nanochat bench serve --url http://127.0.0.1:8000 --prompt "Who are you?" --no-stream

on an H100: 64 clients beside the bare engine
  nanochat bench serve --depth 12 --rows 64 --clients 64 --prompt-tokens 1024 \\
    --max-tokens 256 --seconds 60 --against-engine
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="nanochat bench serve",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_server_options(made.add_argument_group("server"))
    _add_load_options(made.add_argument_group("load"))
    _add_measuring_options(made.add_argument_group("what is measured"))
    return made


def _add_server_options(group: Any) -> None:
    group.add_argument("--url", help="a server that runs already; default: one is started")
    group.add_argument("--yes-remote", action="store_true", help="the URL is of another machine")
    group.add_argument("--name", default="", help="what that server calls the model")
    group.add_argument("--model", default="latest", help="a name in the store, or a folder")
    group.add_argument("--tokenizer", metavar="FOLDER", help="needed for a folder that has none")
    group.add_argument("--depth", type=int, help="instead: a model of the dial, never trained")
    group.add_argument("--store", metavar="URL", help="default: NANOCHAT_STORE")
    group.add_argument("--device", default="auto", help="auto, cuda, mps, cpu")
    group.add_argument("--rows", type=int, help="replies that it makes at a time")
    group.add_argument("--max-waiting", type=int, help="requests that it lets wait")
    group.add_argument(
        "--api-key-env", metavar="NAME", default="NANOCHAT_API_KEY", help="variable with its key"
    )


def _add_load_options(group: Any) -> None:
    group.add_argument("--clients", type=int, default=64, help="(%(default)s)")
    group.add_argument("--client-processes", type=int, default=0, help="0: one for each 64 clients")
    group.add_argument("--prompt", action="append", metavar="TEXT", help="may be given repeatedly")
    group.add_argument(
        "--prompt-tokens", type=int, default=64, help="else about so many (%(default)s)"
    )
    group.add_argument("--max-tokens", type=int, default=128, help="of a reply (%(default)s)")
    group.add_argument("--stream", action=argparse.BooleanOptionalAction, default=True)
    group.add_argument("--temperature", type=float, default=0.6, help="(%(default)s)")
    group.add_argument("--top-k", type=int, default=50, help="(%(default)s)")


def _add_measuring_options(group: Any) -> None:
    group.add_argument("--seconds", type=float, default=20.0, help="(%(default)s)")
    group.add_argument("--warm-up", type=float, default=2.0, help="seconds before (%(default)s)")
    group.add_argument("--requests", type=int, help="instead: all of so many requests")
    group.add_argument(
        "--against-engine", action="store_true", help="the same load on the bare engine, too"
    )
    group.add_argument("--out", metavar="FILE", help="write the line here, too")


def check(options: argparse.Namespace) -> None:
    """Refuse what nothing can be measured with, and load on a machine that may be another's."""
    least: dict[str, float] = {"clients": 1, "max_tokens": 1, "prompt_tokens": 1, "warm_up": 0}
    least |= {"client_processes": 0, "seconds": 0.1, "requests": 1, "rows": 1, "max_waiting": 1}
    least |= {"depth": 1}
    for name, number in least.items():
        given = getattr(options, name)
        if given is not None and not number <= given < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} {given}; give {number:g} or more")
    if options.url is None:
        if options.name:
            raise ConfigError("--name is what the server of --url calls a model; give --model")
        return
    if options.against_engine:
        raise ConfigError(
            "--against-engine compares with an engine here; leave --url out, so that the server "
            "runs here, too"
        )
    if not Target.of_url(options.url).is_loopback and not options.yes_remote:
        raise ConfigError(
            f"--url {options.url} is of another machine, and this is a load test: give "
            "--yes-remote, too, if that server is yours"
        )


def run(argv: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    """The report."""
    options = parser().parse_args(argv)
    check(options)
    with tempfile.TemporaryDirectory(prefix="nanochat-bench-") as folder:
        if options.depth is not None:
            from nanochat_core.bench.serve_engine import save_made_up

            options.model = str(save_made_up(Path(folder), options.depth))
        report = report_of(options, environ)
    if options.out:
        Path(options.out).write_text(json.dumps(report) + "\n", encoding="utf-8")
    return report


def report_of(options: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, Any]:
    """Measure what was asked for."""
    with serving(options, environ) as url:
        target = Target.of_url(url, environ.get(options.api_key_env, ""))
        load = load_of(options, target)
        report = measure(options, target, load)
    if options.against_engine:
        report |= _against_engine(options, load, report)
    return report


@contextmanager
def serving(options: argparse.Namespace, environ: Mapping[str, str]) -> Iterator[str]:
    """The URL of the server that is measured, which runs as long as the block does."""
    if options.url is not None:
        yield options.url
        return
    names = ("model", "tokenizer", "store", "device", "rows", "max_waiting")
    given = {name: getattr(options, name) for name in names}
    words = [
        word
        for name, value in given.items()
        if value is not None
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    with own_server(words, environ) as url:
        yield url


def load_of(options: argparse.Namespace, target: Target) -> Load:
    """What clients ask. How many words make so many tokens, the server is asked."""
    texts = tuple(options.prompt or ())
    prompts = Prompts(texts) if texts else _sized(options, target)
    return Load(
        num_clients=options.clients,
        prompts=prompts,
        max_tokens=options.max_tokens,
        model=options.name,
        is_streamed=options.stream,
        temperature=options.temperature,
        top_k=options.top_k,
    )


def _sized(options: argparse.Namespace, target: Target) -> Prompts:
    few, many = PROBE_WORDS
    counted = {words: _count(options, target, words) for words in (few, many)}
    per_word = (counted[many] - counted[few]) / (many - few)
    if per_word <= 0:
        raise JobError(
            f"the server says that {few} words are {counted[few]} tokens and {many} words "
            f"{counted[many]}; give --prompt texts instead of --prompt-tokens"
        )
    words = few + (options.prompt_tokens - counted[few]) / per_word
    return Prompts(num_words=max(round(words), 1))


def _count(options: argparse.Namespace, target: Target, num_words: int) -> int:
    """Tokens of a prompt of so many words, by the server's count."""
    probe = Load(1, Prompts(num_words=num_words), 1, model=options.name, is_streamed=False)
    response = _fetched(target, "POST", PATH, probe.body(0))
    if response.status != 200:
        answer = response.body.decode(errors="replace")[:500]
        raise JobError(f"the server answers {response.status} to the first request: {answer}")
    tokens: int = json.loads(response.body)["usage"]["prompt_tokens"]
    return tokens


def _fetched(target: Target, method: str, path: str, body: dict[str, Any] | None) -> Response:
    try:
        return asyncio.run(fetch(target, method, path, body))
    except (OSError, ValueError) as error:
        raise JobError(
            f"{target.host} port {target.port} does not answer as a server does ({error}); start "
            "one with: nanochat serve"
        ) from error


def measure(options: argparse.Namespace, target: Target, load: Load) -> dict[str, Any]:
    """Load the server and say what came of it."""
    window = window_of(options, time.monotonic() + START_SECONDS)
    processes = options.client_processes or -(-load.num_clients // CLIENTS_OF_A_PROCESS)
    num_processes = min(processes, load.num_clients)
    with clients_of(target, load, window, num_processes) as samples_of_all:
        before = _metrics_at(target, window.begin if options.requests else window.measured)
        if options.requests is None:
            after = _metrics_at(target, window.end)
        samples = samples_of_all()
        if options.requests is not None:
            after = _metrics_at(target, 0.0)
    return {
        **figures(samples, window),
        "batch_size_mean": batch_size_mean(before, after),
        "rows": round(after["nanochat_rows"]) if "nanochat_rows" in after else None,
        "clients": load.num_clients,
        "stream": load.is_streamed,
        "max_tokens": load.max_tokens,
        "url": options.url,
        "model": (options.name or None) if options.url else options.model,
        "depth": options.depth,
    }


def window_of(options: argparse.Namespace, begin: float) -> Window:
    """When clients start, and what is measured of what they do."""
    if options.requests is not None:
        return Window(begin, num_requests=options.requests)
    measured = begin + options.warm_up
    return Window(begin, measured, measured + options.seconds)


def _metrics_at(target: Target, moment: float) -> dict[str, float]:
    """What the server counts at that moment; nothing if it has no metrics."""
    time.sleep(max(moment - time.monotonic(), 0.0))
    response = _fetched(target, "GET", "/metrics", None)
    return read_metrics(response.body.decode()) if response.status == 200 else {}


def _against_engine(
    options: argparse.Namespace, load: Load, report: Mapping[str, Any]
) -> dict[str, Any]:
    # Only now: torch and a second model would take memory and time from the server.
    from nanochat_core.bench.serve_engine import engine_figures, engine_of

    engine = engine_of(options, report["rows"])
    found = engine_figures(engine, load, window_of(options, time.monotonic()))
    share = report["tokens_per_second"] / found["engine_tokens_per_second"]
    return {**found, "engine_share": round(share, 4)}


def _end(_number: int, _frame: object) -> NoReturn:
    # As an exception, so that the server that was started ends, too.
    raise SystemExit(EXIT_TERMINATED)


def main(argv: Sequence[str]) -> int:
    """Measure and print one line; the exit code is 2 for a mistake in the options."""
    signal.signal(signal.SIGTERM, _end)
    try:
        report = run(argv, os.environ)  # noqa: TID251  an entry: read here, passed down
    except NanochatError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
