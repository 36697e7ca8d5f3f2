"""docker-compose.yml, .env and the Dockerfile, read as Docker reads them, as far as we need it."""

import importlib.util
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
COMPOSE_FILE = CHECKOUT / "docker-compose.yml"
DOCKERFILE = CHECKOUT / "deploy" / "docker" / "Dockerfile"
ENV_EXAMPLE = CHECKOUT / ".env.example"

_VARIABLE = re.compile(
    r"\$(?:(?P<escaped>\$)|\{(?P<name>\w+)(?:(?P<sign>:?[-?])(?P<rest>[^{}$]*))?\})"
)
_SECONDS = re.compile(r"(?:(\d+)m)?(?:(\d+)s)?")


class MissingVariableError(Exception):
    """docker compose would refuse to start; the message is what it would say."""


def interpolate(text: str, environ: Mapping[str, str]) -> str:
    """Text with its variables put in, as docker compose does it."""

    def value(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        name, sign, rest = match["name"], match["sign"] or "", match["rest"] or ""
        # With a colon an empty value is as good as none.
        if name in environ and (environ[name] or not sign.startswith(":")):
            return environ[name]
        if sign.endswith("-"):
            return rest
        told = f" a value: {rest}" if rest else ""
        raise MissingVariableError(f"required variable {name} is missing{told}")

    rest = _VARIABLE.sub("", text)
    assert "$" not in rest, f"not a form of variable that we use: {text!r}"
    return _VARIABLE.sub(value, text)


def variables(text: str) -> dict[str, str]:
    """Name -> sign and default of every variable in a text, as in `:?` or `:-4`."""
    found = {}
    for match in _VARIABLE.finditer(text):
        if match["name"]:
            rest = match["rest"] if (match["sign"] or "").endswith("-") else ""
            found[match["name"]] = f"{match['sign'] or ''}{rest or ''}"
    return found


def read_env(path: Path) -> dict[str, str]:
    """Name -> value of a .env; every other line is empty or a comment."""
    values = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, sign, value = line.partition("=")
            assert sign, f"{path.name}: {line!r} is neither a comment nor NAME=value"
            assert re.fullmatch(r"[A-Z_]+", name), name
            values[name] = value
    return values


def load_script(name: str) -> ModuleType:
    """A script of the image, as a module."""
    path = CHECKOUT / "deploy" / "docker" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"script_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled() -> dict[str, str]:
    """What `new_env.py` makes of .env.example."""
    new_env = load_script("new_env")
    return dict(new_env.values(new_env.fill(ENV_EXAMPLE.read_text(encoding="utf-8"))))


@dataclass(frozen=True)
class Service:
    """One service, its variables put in."""

    name: str
    values: Mapping[str, Any]

    @property
    def command(self) -> list[str]:
        """Entrypoint and command, as the container runs them."""
        return [*_words(self.values.get("entrypoint")), *_words(self.values["command"])]

    @property
    def environment(self) -> dict[str, str]:
        """What the file gives it; the image has its own besides."""
        given = self.values.get("environment", {})
        assert all(isinstance(value, str) for value in given.values()), f"{self.name}: {given}"
        return dict(given)

    @property
    def health(self) -> list[str]:
        """The command of its health check; none for a job."""
        test = self.values["healthcheck"].get("test", [])
        assert not test or test[0] == "CMD", f"{self.name}: {test}"
        return list(test[1:])

    @property
    def is_job(self) -> bool:
        """Whether it ends by itself."""
        return self.values["restart"] == "no"

    @property
    def is_ours(self) -> bool:
        """Whether it runs in our image."""
        return str(self.values["image"]).startswith("nanochat-flows:")

    @property
    def needs(self) -> dict[str, str]:
        """Service -> what has to be true of it before this one is started."""
        given = self.values.get("depends_on", {})
        return {name: values["condition"] for name, values in given.items()}

    @property
    def grace_seconds(self) -> float:
        """From its signal to its SIGKILL."""
        return seconds(self.values["stop_grace_period"])

    @property
    def stop_signal(self) -> str:
        """The name of the signal by which it is asked to end."""
        return str(self.values.get("stop_signal", "SIGTERM"))

    @property
    def startup_seconds(self) -> float:
        """How long it may take until it is healthy."""
        check = self.values["healthcheck"]
        return seconds(check["start_period"]) + check["retries"] * seconds(check["interval"])

    @property
    def volumes(self) -> dict[str, str]:
        """Name of a volume, or path of this machine -> path in the container."""
        pairs = [str(volume).split(":") for volume in self.values.get("volumes", ())]
        return {pair[0]: pair[1] for pair in pairs}

    @property
    def published(self) -> list[tuple[str, str, int]]:
        """Address, port of this machine, and port of the container."""
        found = []
        for given in self.values.get("ports", ()):
            address, outside, inside = str(given).rsplit(":", 2)
            found.append((address, outside, int(inside)))
        return found

    @property
    def ports(self) -> set[int]:
        """Every port that its command, environment and publications name as its own."""
        lines = [" ".join(self.command), *(f"{k}={v}" for k, v in self.environment.items())]
        named = re.findall(r"port[= ](\d{2,5})\b", "\n".join(lines), re.IGNORECASE)
        return {int(port) for port in named} | {port[2] for port in self.published}


@dataclass(frozen=True)
class Compose:
    """The whole file."""

    services: dict[str, Service]
    volumes: set[str]
    networks: set[str]


def read_compose(environ: Mapping[str, str]) -> Compose:
    """docker-compose.yml with these variables; MissingVariableError as docker compose."""
    given = _put_in(yaml.safe_load(COMPOSE_FILE.read_bytes()), environ)
    services = {name: Service(name, values) for name, values in given["services"].items()}
    return Compose(services, set(given["volumes"]), set(given["networks"]))


def seconds(duration: str) -> float:
    """Seconds of a duration as in `1m30s`."""
    match = _SECONDS.fullmatch(duration)
    assert match, duration
    assert duration, "an empty duration"
    return 60.0 * int(match[1] or 0) + int(match[2] or 0)


def _put_in(value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return interpolate(value, environ)
    if isinstance(value, dict):
        return {name: _put_in(member, environ) for name, member in value.items()}
    if isinstance(value, list):
        return [_put_in(member, environ) for member in value]
    return value


def _words(command: Any) -> list[str]:
    if command is None:
        return []
    return shlex.split(command) if isinstance(command, str) else [str(word) for word in command]


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, its lines joined."""

    name: str
    text: str


def read_dockerfile() -> list[Instruction]:
    """The instructions of the Dockerfile, in order."""
    lines = DOCKERFILE.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", text)
    parts = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [Instruction(name, rest.strip()) for name, rest in parts]


def texts(instructions: list[Instruction], name: str) -> list[str]:
    """What follows a word, each time that it is there."""
    return [instruction.text for instruction in instructions if instruction.name == name]


def image_environment() -> dict[str, str]:
    """ENV of the Dockerfile."""
    pairs = [pair for text in texts(read_dockerfile(), "ENV") for pair in shlex.split(text)]
    return dict(pair.split("=", 1) for pair in pairs)


def image_command() -> list[str]:
    """CMD of the Dockerfile."""
    (text,) = texts(read_dockerfile(), "CMD")
    return list(json.loads(text))


def image_health() -> list[str]:
    """The command of HEALTHCHECK."""
    (text,) = texts(read_dockerfile(), "HEALTHCHECK")
    return list(json.loads(text.partition("CMD ")[2]))


def copied() -> list[tuple[str, str]]:
    """Source -> target of every COPY out of the folder of the build."""
    pairs = []
    for text in texts(read_dockerfile(), "COPY"):
        *sources, target = text.split()
        assert not any(source.startswith("--") for source in sources), text
        pairs += [(source, target) for source in sources]
    return pairs


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file or folder into a build: the last pattern that fits wins."""
    patterns = (CHECKOUT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = True
    for pattern in patterns:
        if not pattern or pattern.startswith("#"):
            continue
        if _fits(path, pattern.lstrip("!")):
            sent = pattern.startswith("!")
    return sent


def _fits(path: str, pattern: str) -> bool:
    """As Docker: a pattern holds for what lies below, and a star for one folder alone."""
    parts = path.split("/")
    starts = range(len(parts)) if pattern.startswith("**/") else (0,)
    wanted = pattern.removeprefix("**/").split("/")
    return any(
        len(parts) - start >= len(wanted)
        and all(fnmatch(part, want) for part, want in zip(parts[start:], wanted, strict=False))
        for start in starts
    )
