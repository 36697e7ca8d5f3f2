"""Whatever one end says, the other hears, one message a line."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat_core.inference.requests import EngineStats, Output, Request, TokenLogprob
from nanochat_core.inference.settings import SamplingSettings
from nanochat_core.inference.streaming import Piece
from nanochat_core.serving.wire import (
    MAX_LINE_BYTES,
    Cancel,
    Command,
    Event,
    Failure,
    ModelFacts,
    Ready,
    Refused,
    Report,
    Step,
    Submit,
    decode_command,
    decode_report,
    encode,
)

COUNTS = st.integers(0, 2**62)
# Lone surrogates come from JSON of clients, and ends of lines from anywhere.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20) | st.just("\n\r\u2028\ud800")
PROBABILITIES = st.floats(max_value=0.0, allow_nan=False)
TOKENS = st.integers(0, 2**20)
SETTINGS = st.builds(
    SamplingSettings,
    temperature=st.floats(0, 2),
    top_k=st.integers(0, 200),
    top_p=st.floats(0, 1, exclude_min=True),
    seed=st.integers(-(2**63), 2**63 - 1),
)
REQUESTS = st.builds(
    Request,
    prompt=st.lists(TOKENS, max_size=9).map(tuple),
    settings=SETTINGS,
    max_new_tokens=st.integers(1, 2**62),
    stops=st.lists(TEXTS, max_size=3).map(tuple),
    num_logprobs=st.none() | st.integers(0, 20),
    ignores_stop_tokens=st.booleans(),
)
LOGPROBS = st.builds(
    TokenLogprob,
    token=TOKENS,
    logprob=PROBABILITIES,
    top=st.lists(st.tuples(TOKENS, PROBABILITIES), max_size=3).map(tuple),
)
PIECES = st.builds(Piece, kind=st.sampled_from(("text", "python", "python_output")), text=TEXTS)
OUTPUTS = st.builds(
    Output,
    sequence_id=COUNTS,
    token=st.none() | TOKENS,
    pieces=st.lists(PIECES, max_size=3).map(tuple),
    logprob=st.none() | LOGPROBS,
    finish_reason=st.sampled_from((None, "stop", "length")),
)
STATS = st.builds(EngineStats, **{field.name: COUNTS for field in fields(EngineStats)})
FACTS = st.builds(ModelFacts, device=TEXTS, dtype=TEXTS)
FAILURES = st.builds(Failure, number=COUNTS, is_of_request=st.booleans(), message=TEXTS)
COMMANDS = st.builds(Submit, number=COUNTS, request=REQUESTS) | st.builds(Cancel, number=COUNTS)
REPORTS = (
    st.builds(Ready, facts=FACTS, num_devices=COUNTS, stats=STATS)
    | st.builds(Refused, kind=TEXTS, message=TEXTS)
    | st.builds(
        Step,
        events=st.just(()),
        stats=STATS,
        failures=st.lists(FAILURES, max_size=3).map(tuple),
        gone=st.lists(COUNTS, max_size=3).map(tuple),
    )
)


@given(COMMANDS)
def test_a_command_is_heard_as_it_was_said_in_one_line(command: Command) -> None:
    line = encode(command)
    assert line.isascii()
    assert line.index(b"\n") == len(line) - 1
    assert decode_command(line) == command


@given(REPORTS)
def test_a_report_is_heard_as_it_was_said_in_one_line(report: Report) -> None:
    line = encode(report)
    assert line.isascii()
    assert line.index(b"\n") == len(line) - 1
    assert decode_report(line) == report


@given(st.lists(st.tuples(COUNTS, OUTPUTS), max_size=4))
def test_what_an_engine_put_out_is_heard(outputs: list[tuple[int, Output]]) -> None:
    events = tuple(Event.of(number, output) for number, output in outputs)
    step = decode_report(encode(Step(events, EngineStats(0, 0, 1, 0, 1))))
    assert isinstance(step, Step)
    for event, (number, output) in zip(step.events, outputs, strict=True):
        assert (event.number, event.num_tokens) == (number, int(output.token is not None))
        assert (event.shown, event.token_logprob) == (output.pieces, output.logprob)
        assert event.finish_reason == output.finish_reason


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"\n", b"warning: x\n", b"[]\n", b"{}\n", b'["step"]\n', b'["fly",1]\n'),
        *(b"[" * 9999, b'["cancel",1]\n', b"\xff\n", b'["step",[[1]],[],[],[]]\n'),
    ],
)
def test_what_is_no_report_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="no message of this protocol"):
        decode_report(line)


@pytest.mark.parametrize("line", [b"3\n", b'["submit",1,{}]\n', b'["submit",1]\n', b'["step"]\n'])
def test_what_is_no_command_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="no message of this protocol"):
        decode_command(line)


def test_the_longest_prompt_there_is_fits_a_line() -> None:
    # 24 layers' worth of context, ten times over, with the longest ids.
    assert len(encode(Submit(1, Request((10**6,) * 200_000)))) < MAX_LINE_BYTES
