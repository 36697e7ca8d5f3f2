"""Starting the server: mistakes are one line, and come before the model is loaded."""

import socket

import pytest

from nanochat_core.errors import ConfigError
from nanochat_core.serving import app
from nanochat_core.serving.guards import is_loopback

NOWHERE = ["--model", "nowhere", "--tokenizer", "nowhere"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "--port 70000"),
        (["--port", "0", "--max-waiting", "0"], "--max-waiting 0"),
        (["--port", "0"], "nowhere"),
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


def test_a_port_in_use_is_said_before_the_model_is_looked_at(
    capsys: pytest.CaptureFixture,
) -> None:
    with app.bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1 port {port} .* give another --port"):
            app.bind("127.0.0.1", port)
        assert app.main([*NOWHERE, "--port", str(port)]) == app.EXIT_USER_ERROR
    assert f"port {port}" in capsys.readouterr().err


def test_the_url_is_one_that_a_browser_can_open() -> None:
    for host, shown in (("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]")):
        if host == "::1" and not socket.has_ipv6:
            continue
        with app.bind(host, 0) as bound:
            port = bound.getsockname()[1]
            assert app.url_of(bound) == f"http://{shown}:{port}/"
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
