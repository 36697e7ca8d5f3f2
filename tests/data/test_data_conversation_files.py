"""Files of conversations: every line is checked, and told by its number when it is none."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat_core.conversation.types import exchange
from nanochat_core.data.conversation_files import (
    MAX_LINE_BYTES,
    ConversationFile,
    check_conversations,
    read_lines,
)
from nanochat_core.errors import DataError

VALUES = [exchange(f"Question {n}?", f"Answer {n}.") for n in range(7)]
MESSAGES = [
    [{"role": message.role, "content": message.text} for message in each.messages]
    for each in VALUES
]
TEXT = "".join(json.dumps({"messages": messages}) + "\n" for messages in MESSAGES).encode()


def written(folder: Path, form: str) -> str:
    path = folder / f"me{form}"
    if form == ".parquet":
        pq.write_table(
            pa.table({"source": ["a"] * 7, "messages": MESSAGES}), path, row_group_size=3
        )
    else:
        path.write_bytes(gzip.compress(TEXT) if form.endswith(".gz") else TEXT)
    return str(path)


@pytest.mark.parametrize("form", [".jsonl", ".jsonl.gz", ".parquet"])
def test_the_same_conversations_come_out_of_every_form_in_every_pass(
    tmp_path: Path, form: str
) -> None:
    path = written(tmp_path, form)
    found = ConversationFile(path)
    assert len(found) == check_conversations(path) == 7
    for _ in range(2):
        assert list(found.pick(range(7))) == list(enumerate(VALUES))
    assert list(ConversationFile(f"file://{path}").pick({5, 2})) == [(2, VALUES[2]), (5, VALUES[5])]
    assert list(found.pick(())) == []


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_passed_over(
    tmp_path: Path,
) -> None:
    path = tmp_path / "me.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace(b"\n", b"\r\n\r\n") + b"  ")
    found = ConversationFile(str(path))
    assert len(found) == 7
    assert list(found.pick(range(7))) == list(enumerate(VALUES))
    assert [line.number for line in read_lines(str(path))] == list(range(1, 15, 2))


GOOD = TEXT.splitlines(keepends=True)[0]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"{oops}\n", r"not JSON .*'\{oops\}'; expected one conversation a line"),
        (b'{"messages": []}\n', "a conversation without messages"),
        (b'{"messages": [{"role": "user", "content": "caf\xe9"}]}\n', "not UTF-8: byte 46 .* 0xe9"),
        ("[]".encode("utf-16"), "UTF-16; expected UTF-8"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b'"' + b"a" * MAX_LINE_BYTES + b'"\n', "longer than 4,194,304 bytes"),
        (b"[3]\n", "message 1: a number"),
    ],
    ids=["json", "empty", "latin-1", "utf-16", "deep", "long", "number"],
)
def test_a_line_that_is_none_is_told_and_the_others_are_read(
    tmp_path: Path, line: bytes, what: str
) -> None:
    path = tmp_path / "me.jsonl"
    path.write_bytes(GOOD + line + (b"" if line.endswith(b"\n") else b"\n") + GOOD)
    found = list(read_lines(str(path)))
    assert [each.number for each in found] == [1, 2, 3]
    assert [each.conversation is None for each in found] == [False, True, False]
    with pytest.raises(DataError, match=f"^{path}:2: {what}"):
        check_conversations(str(path))
    with pytest.raises(DataError, match=f"^{path}:2: "):
        list(ConversationFile(str(path)).pick({1}))
    assert len(list(ConversationFile(str(path)).pick({0, 2}))) == 2


def test_many_bad_lines_are_told_by_the_first_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "me.jsonl"
    path.write_bytes(b"{}\n" * 8 + GOOD)
    with pytest.raises(DataError) as caught:
        check_conversations(str(path))
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[0] for line in lines[:5]] == [f"{path}:{n}" for n in range(1, 6)]
    assert lines[5].startswith("and 3 more lines of 9; see all with: nanochat data check")


def test_files_without_conversations_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "me.jsonl"
    empty.write_bytes(b"\n\n")
    with pytest.raises(DataError, match="holds no conversation"):
        check_conversations(str(empty))
    with pytest.raises(DataError, match="cannot read"):
        check_conversations(str(tmp_path / "absent.jsonl"))
    other = tmp_path / "me.parquet"
    pq.write_table(pa.table({"text": ["a"]}), other)
    with pytest.raises(DataError, match="has the columns text; expected a column messages"):
        check_conversations(str(other))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(TEXT * 1000)[:-20])
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_bytes(TEXT)
    parquet = tmp_path / "me.parquet"
    parquet.write_bytes(TEXT)
    for path in (cut, plain, parquet):
        with pytest.raises(DataError, match=f"{path} cannot be read"):
            check_conversations(str(path))
