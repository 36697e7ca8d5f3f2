"""HumanEval: functions to complete, judged by their tests (openai/openai_humaneval; 2107.03374)."""

import re
import secrets
from collections.abc import Sequence

from nanochat_core.benchmarks.files import Row
from nanochat_core.conversation.types import Conversation, exchange
from nanochat_core.sandbox.execution import Sandbox, SandboxLimits

LIMITS = SandboxLimits(wall_seconds=5.0, memory_bytes=256 * 2**20)  # RECIPE section 6
_FENCED = re.compile(r"```[^\n`]*\n(.*?)\n?```", re.DOTALL)


class HumanEvalRow(Row):
    """A row of the hub: `test` defines `check(candidate)`."""

    task_id: str
    prompt: str
    canonical_solution: str
    test: str
    entry_point: str


class HumanEval:
    """Python functions; a reply is right when it passes the tests inside the sandbox."""

    name = "humaneval"
    baseline = 0.0

    def __init__(self, rows: Sequence[HumanEvalRow], sandbox: Sandbox) -> None:
        self._rows = rows
        self._sandbox = sandbox

    def __len__(self) -> int:
        return len(self._rows)

    def conversation(self, index: int) -> Conversation:
        """The head of a function, and the whole function."""
        row = self._rows[index]
        return exchange(row.prompt, row.prompt + row.canonical_solution)

    def score(self, index: int, reply: str) -> float:
        """1.0 when the tests ran to their end and nothing failed."""
        return float(passes(self._rows[index], reply, self._sandbox))


def passes(
    row: HumanEvalRow, reply: str, sandbox: Sandbox, *, limits: SandboxLimits = LIMITS
) -> bool:
    """Whether the code of a reply passes the tests.

    Code may end the process itself before the tests, so a word that it cannot guess must be
    printed after them. (It could search its interpreter's memory for that word, and tests can be
    deceived in other ways; no reply does so by accident.)
    """
    word = secrets.token_hex(16)
    result = sandbox.run(program(row, reply, word), limits=limits)
    return result.passed and word in result.stdout.splitlines()


def program(row: HumanEvalRow, reply: str, word: str) -> str:
    """Imports of the prompt, the code of the reply, the tests, and `word` printed at the end."""
    # Not print(): the code may have its own function of that name, or its own sys.stdout.
    end = f'__import__("os").write(1, b"\\n{word}\\n")'
    parts = (leading_imports(row.prompt), code_of(reply), row.test, f"check({row.entry_point})")
    return "\n\n".join((*parts, end)) + "\n"


def leading_imports(prompt: str) -> str:
    """The import lines at the head of a prompt, up to its first line of other code."""
    imports = []
    for line in prompt.splitlines():
        stripped = line.strip()
        if stripped.startswith(("import ", "from ")):
            imports.append(stripped)
        elif stripped and not stripped.startswith("#"):
            break
    return "\n".join(imports)


def code_of(reply: str) -> str:
    """The first fenced block of a reply, or all of it where there is none."""
    fenced = _FENCED.search(reply)
    return (fenced.group(1) if fenced else reply).strip()
