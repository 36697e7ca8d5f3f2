"""Write .env for docker-compose.yml: .env.example with fresh secrets, for its owner's eyes only.

    python3 deploy/docker/new_env.py

Needs nothing but Python, as it runs on the machine of whoever starts the containers. A .env that is
there is never touched: the volumes know its secrets.
"""

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECRET_BYTES = 24
BEFORE = {"PREFECT_AUTH_STRING": "nanochat:"}
"""What stands before the random part of a secret: a user's name, where there has to be one."""


def fill(example: str) -> str:
    """The example with a secret for every empty value."""
    lines = []
    for line in example.splitlines():
        name, sign, value = line.partition("=")
        is_empty = bool(sign) and not value and not line.startswith("#")
        secret = BEFORE.get(name, "") + secrets.token_hex(SECRET_BYTES) if is_empty else ""
        lines.append(line + secret)
    return "\n".join(lines) + "\n"


def write(folder: Path) -> Path:
    """Make the .env of a folder from its .env.example; FileExistsError when there is one."""
    path = folder / ".env"
    filled = fill((folder / ".env.example").read_text(encoding="utf-8"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(filled)
    return path


def values(text: str) -> Mapping[str, str]:
    """Name -> value of the lines of a .env."""
    pairs = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, sign, value in pairs if sign}


def main() -> int:
    """Entry point."""
    try:
        path = write(ROOT)
    except FileExistsError as error:
        sys.stderr.write(f"{error.filename} is there already, and stays as it is\n")
        return 1
    login = values(path.read_text(encoding="utf-8"))["PREFECT_AUTH_STRING"]
    sys.stdout.write(f"wrote {path}\nPrefect's pages will ask for: {login}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
