"""Collections that are stopped, cut, edited, doubled, or gone on with; and of our own server."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from endpoint_tools import (
    GOOD,
    KEY,
    QUICK,
    Answer,
    Asked,
    EndpointServer,
    collect,
    endpoint,
    in_turn,
    journal_records,
    new_talk,
    said_by,
)

from flows.data_identity import Wish, ask
from nanochat_core.conversation.chat_endpoint import Endpoint
from nanochat_core.conversation.made_identity import FactSheet
from nanochat_core.errors import ConfigError, DataError


@pytest.fixture
def sheet() -> FactSheet:
    return FactSheet(name="Ada", depth=4, num_parameters=1_179_690)


def test_more_are_asked_for_beside_those_that_are_there(tmp_path: Path, sheet: FactSheet) -> None:
    with endpoint(in_turn()) as server:
        few = collect(server, tmp_path, sheet, 4)
        many = collect(server, tmp_path, sheet, 9)
        again = collect(server, tmp_path, sheet, 9)
        fewer = collect(server, tmp_path, sheet, 2)
    assert server.numbers == list(range(9))
    assert (many[:4], again, fewer) == (few, many, few[:2])


def test_a_duplicate_of_an_earlier_run_is_refused(tmp_path: Path, sheet: FactSheet) -> None:
    with endpoint(in_turn()) as server:
        collect(server, tmp_path, sheet, 2)
    with endpoint(in_turn(new_talk(1))) as server:
        collect(server, tmp_path, sheet, 3)
    assert server.numbers == [2, 3]


def test_a_line_that_a_kill_has_cut_is_asked_for_again(tmp_path: Path, sheet: FactSheet) -> None:
    with endpoint(in_turn()) as server:
        before = collect(server, tmp_path, sheet, 4)
        journal = tmp_path / "a.jsonl.asked"
        journal.write_bytes(journal.read_bytes()[:-30])
        (tmp_path / "a.jsonl").unlink()
        assert collect(server, tmp_path, sheet, 4) == before
    assert server.numbers == [0, 1, 2, 3, 3]


def test_a_journal_that_does_not_fit_is_refused(tmp_path: Path, sheet: FactSheet) -> None:
    other = sheet.model_copy(update={"depth": 5})
    with endpoint(in_turn()) as server:
        collect(server, tmp_path, sheet, 2)
        with pytest.raises(ConfigError, match=r"begun with another depth \(4, now 5\)"):
            collect(server, tmp_path, other, 2)
        assert server.numbers == [0, 1]
        assert len(collect(server, tmp_path, other, 2, overwrite=True)) == 2
        journal = tmp_path / "a.jsonl.asked"
        journal.write_bytes(journal.read_bytes().replace(b'"number": 1', b'"numb'))
        with pytest.raises(DataError, match="line 3 is damaged"):
            collect(server, tmp_path, other, 2)


def test_two_collections_into_one_file_do_not_mix(tmp_path: Path, sheet: FactSheet) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def answer(asked: Asked, _: int) -> Answer:
        reached.set()
        assert go_on.wait(10.0)
        return new_talk(asked.number)

    with endpoint(answer) as server:
        first = threading.Thread(target=collect, args=(server, tmp_path, sheet, 1))
        first.start()
        try:
            assert reached.wait(10.0)
            with pytest.raises(DataError, match="another command is making"):
                collect(server, tmp_path, sheet, 1)
        finally:
            go_on.set()
            first.join()
    assert len(server.asked) == 1


def test_a_file_that_was_edited_is_not_replaced(tmp_path: Path, sheet: FactSheet) -> None:
    output = tmp_path / "a.jsonl"
    with endpoint(in_turn()) as server:
        collect(server, tmp_path, sheet, 2)
        edited = output.read_text().replace("Who are you", "And who are you")
        output.write_text(edited)
        with pytest.raises(ConfigError, match="holds 2 lines that"):
            collect(server, tmp_path, sheet, 3)
    assert output.read_text() == edited
    assert server.numbers == [0, 1]


COMMAND = (
    "from flows.cli import examples, told; from flows.data_command import data_app; "
    "data_app(told, examples)()"
)


def command(output: Path, server: EndpointServer) -> list[str]:
    where = ["--output", str(output), "--endpoint", server.url, "--endpoint-model", "writer"]
    return [
        *(sys.executable, "-c", COMMAND, "identity", *where),
        *("--name", "Ada", "--count", "6", "--concurrency", "2"),
    ]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)]
)
def test_a_stopped_command_goes_on_where_it_was(
    sent: signal.Signals, code: int, tmp_path: Path
) -> None:
    process: list[subprocess.Popen[bytes]] = []
    stopped, ended = threading.Event(), threading.Event()

    def answer(asked: Asked, _: int) -> Answer:
        if asked.number == 4 and not stopped.is_set():
            stopped.set()
            process[0].send_signal(sent)
            # No answer before the end: a request on its way does not hold it up.
            assert ended.wait(30.0)
            return Answer(b"")
        return new_talk(asked.number)

    output = tmp_path / "a.jsonl"
    with endpoint(answer) as server:
        asking = command(output, server)
        process.append(subprocess.Popen(asking))
        try:
            assert process[0].wait(20.0) == code
        finally:
            process[0].kill()
            ended.set()
        num_kept = len(journal_records(tmp_path))
        assert not output.exists()
        done = subprocess.run(asking, check=True, capture_output=True, text=True)
    assert num_kept >= 3
    assert f"{num_kept} of 6 are there from before" in done.stdout
    assert [json.loads(line)["messages"] for line in output.read_text().splitlines()] == [
        json.loads(said_by(new_talk(number))) for number in range(6)
    ]
    # Asked twice: what was on its way when the process ended.
    assert len(server.numbers) <= 6 + 2
    assert set(server.numbers) == set(range(6))


@pytest.mark.e2e
def test_our_own_server_is_asked(tmp_path: Path, sheet: FactSheet) -> None:
    from nanochat_core.inference.loading import save_model
    from nanochat_core.tokenizer.recipe import SPLIT_PATTERN
    from nanochat_core.tokenizer.tokenizer import Tokenizer
    from tests.inference.scripted import bigram_model, chain
    from tests.serving.serving_tools import NAME, started

    # One token is all of the conversation, since a token has one successor only.
    whole = [bytes([i]) for i in range(256)] + [GOOD.encode()]
    tokenizer = Tokenizer(whole, SPLIT_PATTERN)
    says = chain(tokenizer, "assistant_start", 256, "assistant_end")
    model = bigram_model(tokenizer, says, sequence_len=4096)
    save_model(model, tmp_path / NAME, {})
    tokenizer.save(tmp_path / "tokenizer")
    folders = ["--model", str(tmp_path / NAME), "--tokenizer", str(tmp_path / "tokenizer")]
    with started(folders, key=KEY) as running:
        asked = Endpoint(f"{running.url}v1", NAME, KEY, temperature=0.0, max_tokens=20)
        (conversation,) = ask(Wish(tmp_path / "a", 1, 7, False), sheet, asked, QUICK, num_threads=2)
        assert [message.text for message in conversation.messages] == [
            message["content"] for message in json.loads(GOOD)
        ]
        for wrong, message in (
            (Endpoint(running.url, NAME, "wrong"), "asks for a key.*--key-variable"),
            (Endpoint(running.url, "nobody", KEY), "nobody.*name of the model"),
        ):
            with pytest.raises(ConfigError, match=message):
                ask(Wish(tmp_path / "b", 2, 7, False), sheet, wrong, QUICK, num_threads=2)
