"""What is made again and what is not, with the real tiny line."""

import time

import pytest
from line_tools import (
    BASE_STATIONS,
    CHAT_STATIONS,
    END,
    STATIONS,
    Line,
    Uninterrupted,
    check_store_is_sound,
    states,
)

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("tiny-line")]


@pytest.fixture(scope="module")
def line(uninterrupted: Uninterrupted, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """A copy of the finished line."""
    return uninterrupted.line.copy_until(END, tmp_path_factory.mktemp("caching"))


def went(line: Line, *options: str) -> dict[str, str]:
    output = line.run(*options).output
    assert "Traceback" not in output
    return states(output)


def test_the_finished_store_is_sound(uninterrupted: Uninterrupted) -> None:
    assert set(uninterrupted.digests) == set(STATIONS)
    check_store_is_sound(uninterrupted.line)
    assert list(uninterrupted.line.store_folder.glob("inprogress/*/*")) == []


def test_the_second_run_makes_nothing(line: Line, uninterrupted: Uninterrupted) -> None:
    start = time.monotonic()
    assert went(line) == {**dict.fromkeys(STATIONS, "cached"), "release": "made"}
    # 15 on a machine of its own: here other tests run beside it.
    assert time.monotonic() - start < 45
    assert line.digests() == uninterrupted.digests
    assert set(line.store.aliases()) == {"tiny", "latest"}


AFTER_SFT = {
    **dict.fromkeys(BASE_STATIONS, "cached"),
    **dict.fromkeys((*CHAT_STATIONS, "release"), "made"),
}


def test_another_number_of_sft_makes_sft_and_what_follows(line: Line) -> None:
    assert went(line, "--set", "sft.epochs=2") == AFTER_SFT


def test_starting_from_sft_makes_the_same(line: Line, uninterrupted: Uninterrupted) -> None:
    assert went(line, "--start-from", "sft") == AFTER_SFT
    check_store_is_sound(line)
    made = [ref for name in CHAT_STATIONS for ref in line.store.list(name)]
    digests = {ref.digest for ref in made if ref.manifest == 2}
    assert digests == {uninterrupted.digests[name] for name in CHAT_STATIONS}


def test_a_forced_station_with_the_same_result_lets_the_rest_stay(line: Line) -> None:
    states = went(line, "--force", "tokenizer")
    assert states.pop("tokenizer") == "made"
    # Whether names move depends on the tests before, which another worker may have run.
    states.pop("release")
    assert states == dict.fromkeys(states, "cached")
