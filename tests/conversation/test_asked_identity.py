"""Conversations that another model writes, over a loopback endpoint with all its faults."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from endpoint_tools import (
    GOOD,
    KEY,
    QUICK,
    Answer,
    Asked,
    collect,
    endpoint,
    in_turn,
    journal_records,
    new_talk,
    refusal,
    reply,
    said_by,
    talk,
)

from flows.data_identity import find_key, progress_line
from nanochat_core.conversation.asking import Tally
from nanochat_core.conversation.chat_endpoint import Endpoint, completions_url, retry_after
from nanochat_core.conversation.identity import ModelFacts, held_out_questions
from nanochat_core.conversation.made_identity import FactSheet
from nanochat_core.errors import ConfigError, DataError


@pytest.fixture
def sheet() -> FactSheet:
    return FactSheet(name="Ada", depth=4, num_parameters=1_179_690)


def test_every_number_gives_one_conversation(tmp_path: Path, sheet: FactSheet) -> None:
    with endpoint(in_turn()) as server:
        conversations = collect(server, tmp_path, sheet, 12, threads=4)
    assert sorted(server.numbers) == list(range(12))
    assert len(set(conversations)) == 12
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    for number, (line, conversation) in enumerate(zip(lines, conversations, strict=True)):
        # In the order of the numbers, whichever came first.
        assert json.loads(line)["messages"] == json.loads(said_by(new_talk(number)))
        assert conversation.messages[1].text.startswith("My name is Ada.")
    first = server.asked[0]
    assert first.headers["Authorization"] == f"Bearer {KEY}"
    assert first.body["model"] == "writer"


def test_requests_are_sent_at_once(tmp_path: Path, sheet: FactSheet) -> None:
    meeting = threading.Barrier(3)

    def answer(asked: Asked, _: int) -> Answer:
        # Breaks, and fails the test, if fewer than three are ever there together.
        meeting.wait(5.0)
        return new_talk(asked.number)

    with endpoint(answer) as server:
        assert len(collect(server, tmp_path, sheet, 6, threads=3)) == 6


def test_requests_differ_as_their_plans_do(tmp_path: Path, sheet: FactSheet) -> None:
    with endpoint(in_turn()) as server:
        collect(server, tmp_path, sheet, 10)
    assert len({asked.body["messages"][1]["content"] for asked in server.asked}) == 10
    assert len({asked.body["seed"] for asked in server.asked}) == 10
    system = server.asked[0].body["messages"][0]["content"]
    assert "My name is Ada." in system
    assert "I have 4 layers." in system
    assert "vocabulary" not in system


@pytest.mark.parametrize(
    "faults",
    [
        [refusal(503, "busy"), refusal(503, "busy")],
        [refusal(500, "oops"), Answer(b"<html>", 502), Answer(b"", 504)],
        [Answer(b'{"choices": [', cut=500)],
        [Answer(b"no JSON at all"), Answer(b'{"choices": []}')],
    ],
    ids=["503 twice", "other 5xx", "cut", "no completion"],
)
def test_a_passing_fault_costs_another_request(
    faults: list[Answer], tmp_path: Path, sheet: FactSheet
) -> None:
    with endpoint(in_turn(*faults)) as server:
        assert len(collect(server, tmp_path, sheet, 3)) == 3
    assert server.numbers == [0] * len(faults) + [0, 1, 2]
    assert len(journal_records(tmp_path)) == 3


def test_a_server_that_asks_for_patience_is_left_alone(tmp_path: Path, sheet: FactSheet) -> None:
    times: list[float] = []

    def answer(asked: Asked, place: int) -> Answer:
        times.append(time.monotonic())
        return refusal(429, "slow", Retry_After="0.3") if place == 0 else new_talk(asked.number)

    with endpoint(answer) as server:
        collect(server, tmp_path, sheet, 2)
    assert times[1] - times[0] >= 0.3


def test_waits_that_are_asked_for_are_no_failures(tmp_path: Path, sheet: FactSheet) -> None:
    slow = refusal(429, "slow", Retry_After="0.02")
    with endpoint(in_turn(*[slow] * (2 * QUICK.attempts))) as server:
        assert len(collect(server, tmp_path, sheet, 2)) == 2


def test_an_answer_without_words_and_half_a_character_are_refused_and_passed_over(
    tmp_path: Path, sheet: FactSheet
) -> None:
    silent = Answer(reply("").body.replace(b'"content": ""', b'"content": null'))
    with endpoint(in_turn(silent, reply("\ud83d no JSON"))) as server:
        assert len(collect(server, tmp_path, sheet, 2)) == 2
    assert server.numbers == [0, 1, 2, 3]


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2026, 5, 17, 12, 0, tzinfo=UTC)
    date = format_datetime(now + timedelta(seconds=90), usegmt=True)
    assert retry_after(date, now.timestamp()) == pytest.approx(90)
    assert retry_after(date, now.timestamp() + 200) == 0.0
    assert retry_after("7", 0.0) == 7.0
    for nonsense in ("", "soon", "nan", "inf", "-inf"):
        assert retry_after(nonsense, 0.0) in (None, 0.0)


def test_an_endpoint_that_stays_broken_is_one_message(tmp_path: Path, sheet: FactSheet) -> None:
    broken = refusal(503, "under repair")
    with endpoint(in_turn(*[broken] * 6)) as server:
        with pytest.raises(DataError, match="in 6 attempts, at last: status 503, under repair"):
            collect(server, tmp_path, sheet, 3)
        assert len(collect(server, tmp_path, sheet, 3)) == 3
    assert not [number for number in server.numbers[:6] if number]


def test_where_nothing_listens_there_is_no_waiting(tmp_path: Path, sheet: FactSheet) -> None:
    with endpoint(in_turn()) as server:
        pass
    with pytest.raises(DataError, match="nothing answers at http://127"):
        collect(server, tmp_path, sheet, 3, threads=4)


def test_a_refused_key_is_named_and_never_shown(tmp_path: Path, sheet: FactSheet) -> None:
    with (
        endpoint(lambda *_: refusal(401, f"Incorrect API key provided: {KEY}")) as server,
        pytest.raises(ConfigError, match="--key-variable") as caught,
    ):
        collect(server, tmp_path, sheet, 3)
    assert KEY not in str(caught.value)
    assert "provided: ***" in str(caught.value)
    assert KEY not in repr(Endpoint(server.url, "writer", KEY))
    assert KEY not in (tmp_path / "a.jsonl.asked").read_text()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refusal(404, "no model writer"), "no model writer. Check the address"),
        (refusal(429, "insufficient_quota: pay first"), "pay first"),
        (refusal(400, "temperature is too high"), "Check --endpoint-model, --temperature"),
        (refusal(307, "", Location="https://elsewhere/v1"), "points to https://elsewhere/v1"),
    ],
)
def test_what_no_waiting_helps_ends_at_once(
    answer: Answer, message: str, tmp_path: Path, sheet: FactSheet
) -> None:
    with (
        endpoint(lambda *_: answer) as server,
        pytest.raises(ConfigError, match=message),
    ):
        collect(server, tmp_path, sheet, 3, temperature=3.0)
    assert len(server.asked) == 1


def test_an_endpoint_without_seeds_or_with_the_newer_limit_is_asked_in_its_way(
    tmp_path: Path, sheet: FactSheet
) -> None:
    def answer(asked: Asked, _: int) -> Answer:
        if "seed" in asked.body:
            return refusal(422, "extra field: seed")
        if "max_tokens" in asked.body:
            return refusal(400, "Use 'max_completion_tokens' instead.")
        assert asked.body["max_completion_tokens"] == 500
        return new_talk(asked.number)

    with endpoint(answer) as server:
        assert len(collect(server, tmp_path, sheet, 3, max_tokens=500)) == 3
    assert server.numbers == [0, 0, 0, 1, 2]


def bad_replies() -> dict[str, Answer]:
    """A reply for each reason to refuse one."""
    held_out = held_out_questions(FactSheet(name="Ada").model_facts())[0].question
    return {
        "no JSON": reply("Certainly! Here is a conversation."),
        "cut off": reply(GOOD[:-20], "length"),
        "malformed": reply(talk("Who are you?")),
        "wrong name": reply(talk("Who is there?", "Hello! My name is Bob.")),
        "wrong number": reply(talk("Are you deep?", "Yes, I have 12 layers.")),
        "other model": reply(talk("Who trained you?", "I was trained by OpenAI.")),
        "held-out question": reply(talk(f"Hi! {held_out}", "Ada.")),
        "too long": reply(talk("Who are you?", "Ada. " * 1_000)),
        "near-duplicate": new_talk(0),
    }


def test_each_bad_reply_is_counted_and_replaced(
    tmp_path: Path, sheet: FactSheet, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = bad_replies()
    with endpoint(in_turn(new_talk(0), *bad.values())) as server:
        assert len(collect(server, tmp_path, sheet, 3)) == 3
    assert server.numbers == list(range(len(bad) + 3))
    refused = [record["refused"] for record in journal_records(tmp_path) if "refused" in record]
    assert refused == list(bad)
    shown = capsys.readouterr()
    assert f"refused {len(bad)} replies: " in shown.out
    for why in bad:
        assert f"{why} 1" in shown.out


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{GOOD}\n```",
        f"Here [you] go:\n\n{GOOD}\nEnjoy!",
        f'{{"messages": {GOOD}}}',
        f"<think>A [ and a {{ in mind.</think>{GOOD}",
    ],
)
def test_what_stands_around_a_conversation_does_not_matter(
    text: str, tmp_path: Path, sheet: FactSheet
) -> None:
    with endpoint(lambda *_: reply(text)) as server:
        (conversation,) = collect(server, tmp_path, sheet, 1)
    assert conversation.messages[0].text == "Who might you be?"


def test_a_model_that_cannot_do_it_is_given_up(tmp_path: Path, sheet: FactSheet) -> None:
    with (
        endpoint(lambda *_: reply("yes")) as server,
        pytest.raises(DataError, match=r"0 of 2 .* 49 refused \(no JSON 49\).*for: yes"),
    ):
        collect(server, tmp_path, sheet, 2)
    assert len(server.asked) == 49
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1/chat/completions"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1/chat/completions"),
        ("https://host/api/openai/", "https://host/api/openai/chat/completions"),
        ("https://host/v1/chat/completions", "https://host/v1/chat/completions"),
    ],
)
def test_an_endpoint_is_a_base_or_the_place_itself(given: str, expected: str) -> None:
    assert completions_url(given) == expected


@pytest.mark.parametrize(
    "given", ["host:8000", "ftp://host/v1", "http://", "http://[::1", "http:///v1", "http://h:x/v1"]
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="no address"):
        completions_url(given)


def test_a_password_in_the_address_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigError, match="environment variable") as caught:
        completions_url(f"https://me:{KEY}@host/v1")
    assert KEY not in str(caught.value)


def test_the_usual_key_goes_only_where_nobody_reads_along(
    capsys: pytest.CaptureFixture[str],
) -> None:
    environ = {"OPENAI_API_KEY": f"{KEY}\n", "MINE": "abc", "ODD": "a b\u00e9"}
    assert find_key("https://host/v1", "", environ) == KEY
    assert find_key("http://localhost:1/v1", "", environ) == KEY
    assert find_key("http://10.0.0.1/v1", "", environ) == ""
    assert "OPENAI_API_KEY is not sent" in capsys.readouterr().err
    assert find_key("http://10.0.0.1/v1", "MINE", environ) == "abc"
    assert find_key("https://host/v1", "", {}) == ""
    for variable in ("NONE", "ODD"):
        with pytest.raises(ConfigError, match=variable):
            find_key("https://host/v1", variable, environ)


def test_progress_says_what_is_left() -> None:
    tally = Tally(wanted=100, accepted=30, given=10)
    tally.refused["no JSON"] = 3
    assert progress_line(tally, 20.0) == (
        "30 of 100 conversations, refused no JSON 3, about 1 m 10 s left"
    )
    assert progress_line(Tally(wanted=100), 20.0) == "0 of 100 conversations"


def test_the_facts_of_a_model_are_a_sheet(facts: ModelFacts) -> None:
    assert FactSheet(**facts.model_dump()).model_facts() == facts
