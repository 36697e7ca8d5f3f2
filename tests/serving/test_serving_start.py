"""Starting the server: mistakes are one line, and come before anything is loaded."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat_core.errors import ConfigError
from nanochat_core.serving import app
from nanochat_core.serving.connections import (
    FILES_KEPT_BACK,
    ConnectionLimits,
    bind,
    raise_file_limit,
    url_of,
    within_files,
)
from nanochat_core.serving.guards import is_loopback
from nanochat_core.serving.settings import ServerSettings

NOWHERE = ["--model", "nowhere", "--tokenizer", "nowhere"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "--port 70000"),
        (["--port", "0", "--max-waiting", "0"], "--max-waiting 0"),
        (["--port", "0", "--rows", "0"], "--rows 0"),
        (["--port", "0", "--replicas", "many"], "--replicas 'many'"),
        (["--port", "0", "--device", "abacus"], "abacus"),
        (["--port", "0", "--host", "no.such.host.invalid"], "no.such.host.invalid"),
    ],
)
def test_a_mistake_is_one_line(
    capsys: pytest.CaptureFixture, arguments: list[str], words: str
) -> None:
    assert app.main([*NOWHERE, *arguments]) == app.EXIT_USER_ERROR
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert words in said.err


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("arguments", "words"),
    [(NOWHERE, "nowhere"), (["--store", "no-store-here"], "no-store-here"), ([], "--model")],
)
def test_a_model_that_is_not_there_is_one_line(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    command = [sys.executable, "-m", "nanochat_core.serving.app", *arguments, "--port", "0"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert words in ended.stderr


def test_a_port_in_use_is_said_before_the_model_is_looked_at(
    capsys: pytest.CaptureFixture,
) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1 port {port} .* give another --port"):
            bind("127.0.0.1", port)
        assert app.main([*NOWHERE, "--port", str(port)]) == app.EXIT_USER_ERROR
    assert f"port {port}" in capsys.readouterr().err


def test_the_url_is_one_that_a_browser_can_open() -> None:
    for host, shown in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]")):
        if host == "::1" and not socket.has_ipv6:
            continue
        with bind(host, 0) as bound:
            port = bound.getsockname()[1]
            assert url_of(bound) == f"http://{shown}:{port}/"
            assert port > 0


@pytest.mark.parametrize(
    ("host", "is_private"),
    [
        ("localhost", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("192.168.0.9", False),
        ("localhost.evil.example", False),
    ],
)
def test_what_counts_as_this_machine_alone(host: str, is_private: bool) -> None:
    assert is_loopback(host) == is_private


def read(*arguments: str, **environ: str) -> ServerSettings:
    return app.read_settings(app.parse_arguments(arguments), environ)


def test_options_are_settings() -> None:
    options = ["--rows", "4", "--replicas", "2", "--max-loaded", "3", "--drain-seconds", "1.5"]
    settings = read("--store", "s3://bucket/store", "--model", "demo", *options, "--exact")
    assert (settings.store, settings.model) == ("s3://bucket/store", "demo")
    assert (settings.num_rows, settings.replicas, settings.max_loaded) == (4, 2, 3)
    assert (settings.drain_seconds, settings.is_exact) == (1.5, True)
    assert read() == ServerSettings()


def test_the_key_comes_by_the_environment_and_goes_no_further() -> None:
    environ = {app.KEY_VARIABLE: " abc \n", "OTHER": "x"}
    settings = app.read_settings(app.parse_arguments([]), environ)
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "abc"
    assert environ == {"OTHER": "x"}
    assert "abc" not in repr(settings)
    with pytest.raises(ConfigError, match="NANOCHAT_API_KEY") as caught:
        read(NANOCHAT_API_KEY="two words")
    assert "two" not in str(caught.value)


def test_an_origin_is_taken_as_browsers_send_it(capsys: pytest.CaptureFixture) -> None:
    settings = read("--cors-origin", "https://Chat.Example.com/", "--cors-origin", "*")
    assert settings.cors_origins == ("https://chat.example.com", "*")
    for wrong in ("chat.example.com", "https://a.example/path", "https://*.example", "null"):
        with pytest.raises(SystemExit):
            read("--cors-origin", wrong)
        assert "is no origin" in capsys.readouterr().err


def test_there_are_never_more_connections_than_files() -> None:
    limits = ConnectionLimits()
    assert within_files(limits, 1_024).max_connections == 1_024 - FILES_KEPT_BACK
    assert within_files(limits, 1 << 20) == limits
    assert within_files(limits, 10).max_connections == 1


@pytest.mark.skipif(os.name != "posix", reason="files have no such limit")
def test_as_many_files_as_the_system_allows_may_be_open() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        assert raise_file_limit() == min(before[1], 1 << 16)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


IMPORTS = """
import sys
from nanochat_core.serving import app, catalog
assert app.main(["--model", "nowhere", "--port", "0"]) == app.EXIT_USER_ERROR
print(sorted({"torch", "prefect"} & set(sys.modules)))
"""


@pytest.mark.e2e
def test_the_process_that_listens_has_no_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", IMPORTS]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "[]\n", ended.stderr
