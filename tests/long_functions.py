"""Print files over 400 lines and functions over 60: a hint for the reader, never a failure."""

import ast
from pathlib import Path

FILE_LINES = 400
FUNCTION_LINES = 60


def main() -> None:
    """Look through the three packages and the tests."""
    for top in ("flows", "tasks", "nanochat_core", "tests"):
        for path in sorted(Path(top).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            num_lines = source.count("\n")
            if num_lines > FILE_LINES:
                print(f"hint: {path} has {num_lines} lines")  # noqa: T201
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    length = (node.end_lineno or node.lineno) - node.lineno + 1
                    if length > FUNCTION_LINES:
                        print(f"hint: {path}:{node.lineno} {node.name} has {length} lines")  # noqa: T201


if __name__ == "__main__":
    main()
