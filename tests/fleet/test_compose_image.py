"""The image of docker-compose.yml, and the scripts in it."""

import re
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from compose_tools import (
    CHECKOUT,
    DOCKERFILE,
    copied,
    filled,
    image_command,
    image_health,
    is_sent,
    load_script,
    read_compose,
    read_dockerfile,
    texts,
)

from nanochat_core.errors import ConfigError

COMPOSE = read_compose(filled())


def test_the_image_alone_is_the_chat_of_the_compose_file() -> None:
    chat = COMPOSE.services["chat"]
    assert image_command() == chat.command
    assert image_health() == chat.health


def test_the_image_starts_from_a_pinned_one_and_ends_without_root() -> None:
    instructions = read_dockerfile()
    (base,) = texts(instructions, "FROM")
    assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", base), base
    users = texts(instructions, "USER")
    assert users == [COMPOSE.services["cpu-worker"].values["user"]]
    # Whatever root does is done before.
    after = instructions[[i.name for i in instructions].index("USER") + 1 :]
    assert {instruction.name for instruction in after} == {"EXPOSE", "HEALTHCHECK", "CMD"}
    assert not texts(instructions, "ADD")


def test_its_version_is_ours() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for service in (COMPOSE.services["cpu-worker"], COMPOSE.services["gpu-worker"]):
        assert service.values["image"].startswith(f"{project['name']}:{project['version']}-")


def test_what_is_copied_is_there_and_sent_to_the_build() -> None:
    for source, _ in copied():
        path = CHECKOUT / source
        assert path.exists(), source
        files = [path] if path.is_file() else [*path.rglob("*.py"), *path.rglob("*.html")]
        for file in files:
            assert is_sent(file.relative_to(CHECKOUT).as_posix()), file


def test_all_of_our_packages_are_copied() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {(package, package) for package in packages} <= set(copied())


def test_the_deployments_that_bootstrap_makes_are_copied() -> None:
    """`flows.bootstrap` looks for them beside the packages."""
    deployments = "deploy/prefect.yaml"
    assert (CHECKOUT / deployments).exists()
    assert (deployments, deployments) in copied()


@pytest.mark.parametrize(
    "path",
    [
        *(".env", ".git/config", "tests/conftest.py", ".venv/bin/python", "LOG.md"),
        *("flows/__pycache__/cli.pyc", "nanochat_core/model/__pycache__/gpt.cpython-311.pyc"),
        "deploy/docker/Dockerfile",
    ],
)
def test_what_is_none_of_its_business_is_not_sent(path: str) -> None:
    assert not is_sent(path)


def test_a_change_of_the_source_installs_nothing() -> None:
    """Layers after a changed one are made anew: everything is installed before it is copied."""
    order = [(i.name, i.text) for i in read_dockerfile()]
    installs = [n for n, (name, text) in enumerate(order) if name == "RUN" and "install" in text]
    sources = [n for n, (name, text) in enumerate(order) if name == "COPY" and "flows" in text]
    assert len(installs) == 3
    assert max(installs) < min(sources)


def test_the_image_can_be_built_for_what_the_services_ask() -> None:
    (install,) = (text for text in texts(read_dockerfile(), "RUN") if "$VARIANT" in text)
    for variant in ("cpu", "gpu"):
        assert f" {variant}) pip install" in install
    assert "cpu) pip install $TORCH_OPTIONS " in install
    pins = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^torch==[\d.]+$", pins, re.MULTILINE)


def test_its_shell_commands_are_well_formed() -> None:
    for text in texts(read_dockerfile(), "RUN"):
        command = re.sub(r"^(--\S+\s+)+", "", text)
        done = subprocess.run(["sh", "-n", "-c", command], capture_output=True, check=False)
        assert done.returncode == 0, (command, done.stderr)


def test_the_dockerfile_names_the_image_that_compose_builds() -> None:
    assert COMPOSE.services["gpu-worker"].values["image"] in DOCKERFILE.read_text(encoding="utf-8")


# --- the scripts


class Answers(BaseHTTPRequestHandler):
    """200 at /well, 503 elsewhere."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/well" else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_health_check_says_what_the_service_says(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = load_script("healthy")
    # A proxy of the machine's user is none of its business.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert healthy.main(f"{server}/well") == 0
    assert healthy.main(f"{server}/ill") == 1
    assert healthy.main("http://127.0.0.1:9/nobody") == 1


def test_while_there_is_no_model_the_page_says_so() -> None:
    chat = load_script("chat")
    model = "<b>mine</b>"
    with chat.WaitingServer(("127.0.0.1", 0), model) as probe:
        port = probe.server_port
    with chat.waiting_page("127.0.0.1", port, model), httpx.Client() as client:
        url = f"http://127.0.0.1:{port}"
        assert client.get(f"{url}/health").json() == {"status": "waiting", "model": model}
        page = client.get(url)
        assert page.status_code == 503
        assert "&lt;b&gt;mine&lt;/b&gt;" in page.text
        refusal = client.post(f"{url}/v1/chat/completions", json={"messages": []})
        assert refusal.status_code == 503
        assert refusal.json()["error"]["code"] == "no_model"


@pytest.mark.parametrize("url", ["", "/mnt/store", "memory://x", "s3://"])
def test_a_store_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="bucket"):
        load_script("bucket").bucket_of(url)
