"""Official files come from the hub verified, joined and checked, or not at all."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from flows.data_fetch import fetch
from nanochat_core.benchmarks.official_files import (
    CORE_FILE,
    OFFICIAL,
    RECORD_FILE,
    Folder,
    check_names,
)
from nanochat_core.data.fetching import FetchPolicy
from nanochat_core.errors import ConfigError, DataError, UnknownNameError
from tests.data.hub_server import HubServer, corrupt, cut

PROBLEM = {"question": "What is 1 + 1?", "answer": "It is 2.\n#### 2"}
CHOICE = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 1, "subject": "x"}
TRAIN, TEST = OFFICIAL["mmlu"]


@contextmanager
def silently(_what: str, _total: int) -> Iterator[Callable[[int], None]]:
    yield lambda _bytes: None


def parquet(*rows: dict[str, Any], row_group: int = 2) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), file, row_group_size=row_group)
    return file.getvalue()


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as bundle:
        bundle.writestr("core.yaml", "icl_tasks: []\n" * 50)
    return file.getvalue()


def numbered(*numbers: int) -> list[dict[str, Any]]:
    return [{**CHOICE, "question": f"Question {number}?"} for number in numbers]


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        parts = {
            "auxiliary_train-00000-of-00002.parquet": parquet(*numbered(0, 1, 2)),
            "auxiliary_train-00001-of-00002.parquet": parquet(*numbered(3, 4)),
            "dev-00000-of-00001.parquet": parquet(*numbered(9)),
            "test-00000-of-00001.parquet": parquet(*numbered(7, 8)),
        }
        server.add(parts, "cais/mmlu", folder="all")
        yield server


def folder_at(path: Path, hub: HubServer) -> Folder:
    policy = FetchPolicy(endpoint=hub.endpoint, first_wait_seconds=0.01)
    return Folder(path, policy, counted=silently)


def questions(path: Path) -> list[str]:
    found: list[str] = pq.read_table(path)["question"].to_pylist()
    return found


def test_parts_are_joined_in_order_under_the_name_that_stations_look_for(
    hub: HubServer, tmp_path: Path
) -> None:
    hub.fault("auxiliary_train-00001-of-00002.parquet", cut(100), corrupt(times=1))
    fetched, was_there = folder_at(tmp_path, hub).bring(TRAIN)
    assert not was_there
    assert questions(tmp_path / "mmlu-train.parquet") == [f"Question {n}?" for n in range(5)]
    assert [part.name[-22:] for part in fetched.parts] == [
        *("00000-of-00002.parquet", "00001-of-00002.parquet")
    ]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [RECORD_FILE, "mmlu-train.parquet"]


def test_a_single_part_stays_the_file_that_the_hub_has(hub: HubServer, tmp_path: Path) -> None:
    fetched, _ = folder_at(tmp_path, hub).bring(TEST)
    (part,) = fetched.parts
    assert fetched.file == part.model_copy(update={"name": "mmlu-test.parquet"})


def test_what_is_there_stays_and_what_was_changed_is_fetched_again(
    hub: HubServer, tmp_path: Path
) -> None:
    folder = folder_at(tmp_path, hub)
    folder.bring(TRAIN)
    folder.bring(TEST)
    hub.asked.clear()
    assert folder.bring(TEST)[1]
    assert [asked.path.split("/")[0] for asked in hub.asked] == ["api"]
    (tmp_path / "mmlu-test.parquet").write_bytes(b"changed")
    assert not folder.bring(TEST)[1]
    assert questions(tmp_path / "mmlu-test.parquet") == ["Question 7?", "Question 8?"]
    assert folder.bring(TRAIN)[1]


def test_rows_of_another_form_do_not_appear_under_the_name(hub: HubServer, tmp_path: Path) -> None:
    hub.add({"test-0.parquet": parquet({"question": "Which?"})}, "openai/gsm8k", folder="main")
    with pytest.raises(DataError, match=r"gsm8k-test\.parquet, row 1: answer: Field required"):
        folder_at(tmp_path, hub).bring(OFFICIAL["gsm8k"][1])
    assert not (tmp_path / "gsm8k-test.parquet").exists()


def test_a_set_without_that_split_says_what_it_has(hub: HubServer, tmp_path: Path) -> None:
    hub.add({"test-0.parquet": parquet(PROBLEM)}, "openai/gsm8k", folder="main")
    with pytest.raises(DataError, match=r"no train-\*\.parquet in main.*it has test-0\.parquet"):
        folder_at(tmp_path, hub).bring(OFFICIAL["gsm8k"][0])


def test_parts_with_other_columns_are_refused(hub: HubServer, tmp_path: Path) -> None:
    parts = {"train-0.parquet": parquet(PROBLEM), "train-1.parquet": parquet({"other": 1})}
    hub.add(parts, "openai/gsm8k", folder="main")
    with pytest.raises(DataError, match=r"parts of gsm8k-train\.parquet do not go together"):
        folder_at(tmp_path, hub).bring(OFFICIAL["gsm8k"][0])


def test_the_zip_of_the_core_tasks_is_recorded_when_first_fetched(
    hub: HubServer, tmp_path: Path
) -> None:
    data = archive()
    url = f"{hub.put({CORE_FILE: data})}/{CORE_FILE}"
    hub.fault(CORE_FILE, cut(50))
    folder = folder_at(tmp_path, hub)
    fetched, was_there = folder.bring_core(url)
    assert not was_there
    assert fetched.file.sha256 == hashlib.sha256(data).hexdigest()
    assert (tmp_path / CORE_FILE).read_bytes() == data
    hub.asked.clear()
    assert folder.bring_core(url)[1]
    assert hub.asked == []
    with pytest.raises(DataError, match="has sha256"):
        folder.bring_core(url, sha256="0" * 64)
    assert (tmp_path / CORE_FILE).read_bytes() == data


def test_a_damaged_zip_is_not_kept(hub: HubServer, tmp_path: Path) -> None:
    url = f"{hub.put({CORE_FILE: archive(), 'page.zip': b'<html>'})}"
    hub.fault(CORE_FILE, corrupt())
    with pytest.raises(DataError, match="not kept"):
        folder_at(tmp_path, hub).bring_core(f"{url}/{CORE_FILE}")
    with pytest.raises(DataError, match="is no zip file"):
        folder_at(tmp_path, hub).bring_core(f"{url}/page.zip")
    with pytest.raises(DataError, match="is not at"):
        folder_at(tmp_path, hub).bring_core(f"{url}/nothing.zip")
    assert not (tmp_path / CORE_FILE).exists()


def test_names_and_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="'mmul'; there is smoltalk, mmlu"):
        check_names(["mmul"], "", "")
    with pytest.raises(ConfigError, match="--revision is of one set"):
        check_names(["mmlu", "gsm8k"], "v1", "")
    with pytest.raises(ConfigError, match="--sha256"):
        check_names(["mmlu"], "", "00")


def test_the_command_tells_what_it_fetched(hub: HubServer, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(fetch)
    arguments = ["mmlu", "--output", str(tmp_path / "official"), "--endpoint", hub.endpoint]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    assert first.output.count("  fetched  ") == 2
    again = CliRunner().invoke(app, arguments)
    assert again.output.count("  there already  ") == 2
    record = json.loads((tmp_path / "official" / RECORD_FILE).read_text())
    assert sorted(record["files"]) == ["mmlu-test.parquet", "mmlu-train.parquet"]
