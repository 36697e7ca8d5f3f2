"""Models that come and go: on demand, by death, at the end of the server."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat_core.errors import CheckpointError
from nanochat_core.serving.catalog import open_catalog
from nanochat_core.serving.loaded import LoadedModel
from nanochat_core.serving.pool import ModelPool
from nanochat_core.serving.problems import (
    BusyError,
    FailedError,
    ModelError,
    StoppingError,
    UnknownModelError,
)
from tests.serving.pool_tools import (
    LAUGH,
    NO,
    YES,
    is_running,
    pooled,
    read_all,
    request,
    save_by_hand,
    settings_of,
    text_of,
    until,
)

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that say different things, and one that cannot be loaded."""
    folder = tmp_path_factory.mktemp("by-hand")
    save_by_hand(folder, "laugh", *LAUGH, sequence_len=1000)
    save_by_hand(folder, "yes", *YES)
    save_by_hand(folder, "no", *NO)
    broken = save_by_hand(folder, "broken", *NO)
    (broken / "model.safetensors").write_bytes(b"nothing")
    return folder


def pids(model: LoadedModel) -> list[int]:
    return [link.pid for link in model.links]


async def says(model: LoadedModel) -> str:
    (stream,) = model.submit([request(20)])
    return text_of(await read_all(stream))


def test_a_killed_engine_fails_its_replies_and_is_started_again_but_not_all_the_time(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pooled(base, "sft/laugh") as ready:

        async def body() -> None:
            model = await ready.pool.open()
            (first,) = pids(model)
            streams = model.submit([request()] * 6)
            await anext(streams[0])
            os.kill(first, signal.SIGKILL)
            for outcome in await asyncio.gather(*map(read_all, streams), return_exceptions=True):
                assert isinstance(outcome, FailedError)
                assert "signal 9" in str(outcome)
            assert ready.pool.loaded() == []
            with pytest.raises(BusyError, match="being started again"):
                model.submit([request()])
            model = await ready.pool.open()
            assert len(await says(model)) == 20
            assert not is_running(first)
            assert len(ready.pool.loaded()) == 1
            # One that had answered did not die of its start, so the next comes at once; that one
            # is not worth a third attempt in a row.
            for _ in range(2):
                model = await ready.pool.open()
                os.kill(pids(model)[0], signal.SIGKILL)
                await until(lambda model=model: not model.is_alive)
            with pytest.raises(ModelError, match="failed 2 times; it is tried again in 1 s"):
                await ready.pool.open()
            assert not ready.pool.is_ready
            await until(lambda: ready.pool.is_ready)

        ready.run(body())
    assert "ended: signal 9" in caplog.text


def test_models_come_on_demand_and_the_longest_unused_one_leaves(base: Path) -> None:
    with pooled(base, "sft/laugh", max_loaded=2) as ready:

        async def body() -> None:
            pool = ready.pool
            laugh = await pool.open()
            # One that is not there yet is loaded once for all who ask, though the first one leaves.
            leaving, *staying = [asyncio.create_task(pool.open("sft/yes")) for _ in range(5)]
            await asyncio.sleep(0.2)
            leaving.cancel()
            many = await asyncio.gather(*staying)
            assert (leaving.cancelled(), len({id(model) for model in many})) == (True, 1)
            yes = many[0]
            assert (yes.name, yes.target, await says(yes)) == ("sft/yes", "sft/yes", "yes")
            streams = laugh.submit([request()])
            assert await says(await pool.open("sft/no")) == "no"
            assert {model.name for model in pool.loaded()} == {"sft/laugh", "sft/no"}
            assert not any(map(is_running, pids(yes)))
            with pytest.raises(BusyError, match="just unloaded"):
                yes.submit([request()])
            (kept,) = (await pool.open("sft/no")).submit([request(3)])
            with pytest.raises(BusyError, match=r"'sft/yes' is not in memory.*in use"):
                await pool.open("sft/yes")
            assert text_of(await read_all(kept)) == "no"
            assert await says(await pool.open("sft/yes")) == "yes"
            streams[0].cancel()

        ready.run(body())


def test_a_model_that_cannot_be_loaded_disturbs_no_other_and_is_not_tried_all_the_time(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pooled(base, "sft/yes", max_loaded=2) as ready:

        async def body() -> None:
            for _ in range(2):
                with pytest.raises(ModelError, match="could not be loaded") as caught:
                    await ready.pool.open("sft/broken")
                assert str(base) not in str(caught.value)
            started = time.monotonic()
            with pytest.raises(ModelError, match="failed 2 times"):
                await ready.pool.open("sft/broken")
            assert time.monotonic() - started < 0.5
            with pytest.raises(UnknownModelError, match="sft/laugh"):
                await ready.pool.open("sft/lauhg")
            assert await says(await ready.pool.open()) == "yes"
            # It takes nobody's place, either.
            assert await says(await ready.pool.open("sft/no")) == "no"
            assert len(ready.pool.loaded()) == 2

        ready.run(body())
    assert "cannot be read as weights" in caplog.text


def test_a_server_whose_own_model_cannot_be_loaded_says_why(base: Path) -> None:
    settings = settings_of("sft/broken", by_hand=base)
    pool = ModelPool(open_catalog(settings), settings)
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        asyncio.run(pool.start())
    assert not pool.is_ready


def test_draining_lets_replies_end_and_ends_those_that_do_not(base: Path) -> None:
    with pooled(base, "sft/laugh") as ready:

        async def body() -> None:
            pool = ready.pool
            model = await pool.open()
            short, endless = model.submit([request(100), request()])
            loading = asyncio.create_task(pool.open("sft/yes"))
            await anext(endless)
            draining = asyncio.create_task(pool.drain(1000.0))
            await asyncio.sleep(0)
            assert (pool.is_draining, pool.is_ready) == (True, False)
            with pytest.raises(StoppingError):
                model.submit([request()])
            with pytest.raises(StoppingError):
                await pool.open()
            with pytest.raises(StoppingError):
                await loading
            assert len(text_of(await read_all(short))) == 100
            # The shorter grace of the two counts.
            await pool.drain(0.1)
            with pytest.raises(StoppingError):
                await read_all(endless)
            await draining
            assert pool.loaded() == []
            assert not any(map(is_running, pids(model)))

        ready.run(body())


def test_two_replicas_share_the_work_and_one_that_dies_comes_back(base: Path) -> None:
    with pooled(base, "sft/laugh", replicas=2, num_rows=2) as ready:

        async def body() -> None:
            model = await ready.pool.open()
            first, second = model.links
            streams = model.submit([request()] * 2)
            assert (first.num_open, second.num_open) in {(2, 0), (0, 2)}
            streams += model.submit([request()])
            assert {first.num_open, second.num_open} == {1, 2}
            streams += model.submit([request()] * 3)
            assert (first.num_open, second.num_open, model.num_waiting) == (3, 3, 2)
            os.kill(first.pid, signal.SIGKILL)
            await until(lambda: not first.is_alive)
            assert (model.is_alive, second.num_open) == (True, 3)
            assert await ready.pool.open() is model
            await until(lambda: all(link.is_alive for link in model.links))
            assert (len(model.links), model.links[1]) == (2, second)
            for stream in streams:
                stream.cancel()
            await until(lambda: model.num_open == 0)
            assert len(await says(model)) == 20
            assert model.stats.num_rows == 4

        ready.run(body())


def test_engines_are_out_of_reach_of_ctrl_c_and_end_with_their_server(base: Path) -> None:
    """A server that is killed takes its engines with it, in the middle of a reply."""
    program = (
        "import asyncio, sys, pathlib\n"
        "from tests.serving.pool_tools import *\n"
        "async def main():\n"
        "    settings = settings_of('sft/laugh', by_hand=pathlib.Path(sys.argv[1]))\n"
        "    pool = ModelPool(open_catalog(settings), settings)\n"
        "    await pool.start()\n"
        "    model = await pool.open()\n"
        "    model.submit([request()] * 4)\n"
        "    print(model.links[0].pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(base)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        try:
            assert os.getsid(pid) == pid != os.getsid(server.pid)
            assert is_running(pid)
        finally:
            server.kill()
    ends_at = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < ends_at:
        time.sleep(0.01)
    assert not is_running(pid)


def test_what_libraries_print_and_read_does_not_reach_the_pipes() -> None:
    program = (
        "import os, sys\n"
        "from nanochat_core.serving.worker import take_over_pipes\n"
        "commands, reports = take_over_pipes()\n"
        "print('from python', flush=True)\n"
        "os.system('echo from a child; cat')\n"
        "assert sys.stdin.read() == ''\n"
        "reports.write(commands.read())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=b"a command\n", capture_output=True, check=True
    )
    assert done.stdout == b"a command\n"
    assert done.stderr.split(b"\n") == [b"from python", b"from a child", b""]
