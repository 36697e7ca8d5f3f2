"""Bodies as JSON: what is doubtful is refused, in no time."""

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat_core.serving.problems import MediaTypeError, RequestError
from nanochat_core.serving.strict_json import check_type, strict_json

MEGABYTE = 1 << 20


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "line 1, column 1"),
        (b"{", "line 1, column 2"),
        (b'{"a": 1,\n}', "line 2"),
        (b'{"a": 1} x', "Extra data"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": "\\ud83d"}', "\\ud83d alone"),
        (b'{"a": "\\uDE00 x"}', "\\ude00 alone"),
        (b'{"\\ud83d": 1}', "half a surrogate pair"),
        (b'{"a": [[{"b": "\\ude00\\ud83d"}]]}', "half a surrogate pair"),
        (b'{"a": 1, "b": 2, "a": 1}', "'a' twice"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' twice"),
        (b'{"a": "\x00"}', "control character"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"1" * 100_000, "too many digits"),
    ],
)
def test_what_is_no_strict_json_is_refused_with_its_reason(body: bytes, words: str) -> None:
    with pytest.raises(RequestError, match="the body is no JSON") as caught:
        strict_json(body)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).filter(lambda value: value not in (float("inf"), float("-inf")))
)
def test_whatever_json_can_say_is_read(value: object) -> None:
    try:
        body = json.dumps(value, allow_nan=False)
    except ValueError:  # an infinity somewhere inside
        return
    assert strict_json(body.encode()) == value
    # What stands for half a pair in a text is only an escape there.
    assert strict_json(json.dumps("\\ud83d").encode()) == "\\ud83d"


def test_whole_pairs_and_escaped_controls_are_characters() -> None:
    assert strict_json(b'"\\ud83d\\ude00"') == "\U0001f600"
    assert strict_json(b'"\\u0000\\u001f"') == "\x00\x1f"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * MEGABYTE,
        b'{"a":' * (MEGABYTE // 5),
        b"9" * MEGABYTE,
        b'"' + b"\\ud83d" * (MEGABYTE // 6) + b'"',
        b"[" + b"{}," * (MEGABYTE // 3) + b"{}]",
        b"{" + b",".join(b'"%d":0' % i for i in range(90_000)) + b',"89999":0}',
    ],
)
def test_the_longest_body_takes_no_time(body: bytes) -> None:
    begin = time.process_time()
    with contextlib.suppress(RequestError):
        strict_json(body)
    # Some milliseconds; anything worse than linear would take minutes.
    assert time.process_time() - begin < 2.0


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON", "application/json; charset=utf-8"]
)
def test_json_goes_by_its_name(content_type: str) -> None:
    check_type(content_type)


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
)
def test_what_a_form_could_send_is_refused(content_type: str) -> None:
    with pytest.raises(MediaTypeError, match="application/json"):
        check_type(content_type)
