"""A forecast learns from what is in a store, and says how sure it is."""

from pathlib import Path
from typing import Any

import pytest
from finished_runs import LAPTOP, finish, open_store, tiny

from flows.dry_line import dry_run
from flows.forecast.amounts import Amounts
from flows.forecast.benched import read_bench
from flows.forecast.comparing import WHOLE, compared
from flows.forecast.forecasting import forecast
from flows.forecast.machine import Machine, machine_of
from flows.forecast.nominal import SECONDS
from flows.forecast.types import Forecast, Range, StationForecast, total
from flows.presets import MAKING_STATIONS
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.errors import ConfigError
from tasks.listening import StageRecord

MADE = tuple(name for name in MAKING_STATIONS if name != "benchmarks")
KNOWN = machine_of({"hardware": LAPTOP})
assert KNOWN is not None
MACHINE: Machine = KNOWN
SEED = {"overrides": {"pretrain.seed": 7}}
"""Another base model that takes as long."""


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return open_store(tmp_path)


def predict(store: ArtifactStore, *, price: float | None = None, **values: Any) -> Forecast:
    return forecast(tiny(store, **values), store, price_per_hour=price, machine=MACHINE)


def row(found: Forecast, station: str) -> StationForecast:
    there = found.station(station)
    assert there is not None
    return there


def test_every_station_that_makes_something_has_a_closed_form() -> None:
    assert set(SECONDS) == set(MAKING_STATIONS)


def test_without_records_everything_runs_by_formula_with_a_wide_range(store: ArtifactStore) -> None:
    found = predict(store)
    assert [station.station for station in found.stations] == [*MADE, "release"]
    for name in MADE:
        each = row(found, name)
        assert (each.state, each.source) == ("run", "reference")
        assert each.seconds.high / each.seconds.mid > 2
    assert found.seconds.mid > sum(row(found, name).seconds.mid for name in MADE)


def test_what_is_in_the_store_is_cached_and_takes_no_time(store: ArtifactStore) -> None:
    finish(store)
    found = predict(store)
    assert all(row(found, name).state == "cached" for name in MADE)
    assert sum(row(found, name).seconds.high for name in MADE) < 3
    assert found.disk_bytes == 0


def test_one_record_predicts_the_same_work_on_the_same_machine(store: ArtifactStore) -> None:
    records = finish(store, slow=3.0)
    found = predict(store, **SEED)
    for name in ("pretrain", "base_eval", "sft", "chat_eval_sft", "rl", "report"):
        each = row(found, name)
        assert (each.state, each.source) == ("run", "store")
        assert each.seconds.mid == pytest.approx(records[name].seconds, rel=0.02)
    assert row(found, "shards").state == "cached"


@pytest.mark.parametrize("slow", [0.3, 1.0, 4.0])
def test_a_record_of_one_depth_predicts_the_next(store: ArtifactStore, slow: float) -> None:
    finish(store, slow=slow)
    found = predict(store, depth=3)
    records = finish(store, "20260101-000001-bbbbbb", slow=slow, depth=3)
    for name in ("pretrain", "sft", "rl"):
        actual = records[name].seconds
        assert row(found, name).seconds.holds(actual)
        assert row(found, name).seconds.mid == pytest.approx(actual, rel=0.1)


def test_larger_models_are_predicted_less_surely(store: ArtifactStore) -> None:
    finish(store)
    near, far = (row(predict(store, depth=depth), "pretrain").seconds for depth in (3, 24))
    assert far.mid > 10 * near.mid
    assert far.high / far.mid > near.high / near.mid


def test_records_that_agree_narrow_the_range_and_others_widen_it(store: ArtifactStore) -> None:
    finish(store, "20260101-000000-aaaaaa", slow=2.0)
    one = row(predict(store, **SEED), "pretrain").seconds
    for i in (1, 2):
        seed = {"pretrain.seed": 100 + i}
        finish(store, f"20260101-00000{i}-aaaaaa", slow=2.0, overrides=seed, stop_after="pretrain")
    many = row(predict(store, **SEED), "pretrain").seconds
    assert many.high / many.low < one.high / one.low
    finish(
        store,
        "20260101-000009-aaaaaa",
        slow=6.0,
        overrides={"pretrain.seed": 200},
        stop_after="pretrain",
    )
    torn = row(predict(store, **SEED), "pretrain").seconds
    assert torn.high / torn.low > one.high / one.low


def test_records_of_other_hardware_count_less(store: ArtifactStore) -> None:
    finish(store, told={"hardware": {**LAPTOP, "cpus": 64}})
    each = row(predict(store, **SEED), "pretrain")
    assert each.source == "elsewhere"
    assert each.seconds.high / each.seconds.mid > 1.8


def test_times_of_a_gpu_say_nothing_about_training_on_a_cpu(store: ArtifactStore) -> None:
    finish(store, told={"device_type": "cuda", "device": "NVIDIA H100 80GB HBM3"})
    found = predict(store, **SEED)
    assert row(found, "pretrain").source == "reference"
    assert row(found, "report").source == "store"


def test_a_station_never_made_here_is_predicted_by_its_kind(store: ArtifactStore) -> None:
    finish(store, slow=3.0, stop_after="base_eval")
    found, plain = predict(store), predict(open_store(Path(store.url) / "none"))
    for name in ("sft", "chat_eval_sft"):
        each = row(found, name)
        assert each.source == "similar"
        assert each.seconds.mid == pytest.approx(3 * row(plain, name).seconds.mid, rel=0.15)


def test_an_unfinished_training_is_resumed_and_only_the_rest_is_counted(
    store: ArtifactStore,
) -> None:
    finish(store, slow=100.0)
    whole = row(predict(store, **SEED), "pretrain").seconds.mid
    request = dry_run(tiny(store, **SEED), store)["pretrain"].request
    assert request is not None
    saved = store.generation(request) / "work" / "checkpoints" / "step-00000020-0123abcd"
    saved.mkdir(parents=True)
    (saved / "manifest.json").write_text("{}")
    each = row(predict(store, **SEED), "pretrain")
    assert (each.state, each.from_step, each.num_steps) == ("resume", 20, 30)
    start = whole - 30 * _step_seconds(store)
    assert each.seconds.mid == pytest.approx(start + 10 * _step_seconds(store), rel=0.02)


def _step_seconds(store: ArtifactStore) -> float:
    metrics = store.manifest(store.list("pretrain")[0]).metrics
    return float(metrics["total_training_time"]) / (int(metrics["steps"]) - 10)


def test_a_resumed_record_tells_of_its_own_steps_only(store: ArtifactStore) -> None:
    # 30 steps, of which the last process made 10 and took its start beside them.
    finish(store, told={"resumed_from_step": 20}, slow=2.0)
    ref = store.list("pretrain")[0]
    record = store.runs()["20260101-000000-aaaaaa"]
    whole = record["stations"]["pretrain"]["seconds"]
    step = 2.0 * (whole / 2.0 - 4.0) / 30
    record["stations"]["pretrain"] |= {"state": "resumed", "seconds": whole - 20 * step}
    store.save_run("20260101-000000-aaaaaa", record)
    assert store.manifest(ref).provenance["resumed_from_step"] == 20
    found = row(predict(store, **SEED), "pretrain")
    assert found.seconds.mid == pytest.approx(whole, rel=0.1)


def test_after_a_forced_station_the_rest_depends_on_what_comes_out(store: ArtifactStore) -> None:
    records = finish(store)
    found = predict(store, force=("pretrain",))
    assert row(found, "tokens").state == "cached"
    assert row(found, "pretrain").state == "run"
    after = row(found, "sft")
    assert after.state == "depends"
    assert after.seconds.low < 1 < records["sft"].seconds < after.seconds.high


def test_what_is_damaged_or_of_another_kind_is_passed_over(store: ArtifactStore) -> None:
    finish(store, "20260101-000000-aaaaaa")
    sound = predict(store, **SEED)
    root = Path(store.url)
    (root / "runs" / "20260101-000001-bbbbbb.json").write_text("{")
    odd: dict[str, Any] = {"pretrain": {"state": "made", "seconds": "x", "ref": None}, "x": 1}
    store.save_run("20260101-000002-cccccc", {"stations": odd})
    store.save_run("20260101-000003-dddddd", {"state": "of another time"})
    assert predict(store, **SEED) == sound
    for manifest in root.glob("pretrain/*/manifest-*.json"):
        manifest.write_text("{")
    # Without the base model's manifest nobody knows what the later stations had to do.
    found = predict(store, **SEED)
    assert row(found, "pretrain").source == "reference"
    assert row(found, "tokens").state == "cached"


def test_money_is_hours_times_the_price(store: ArtifactStore) -> None:
    found = predict(store, price=24.0)
    assert found.money is not None
    assert found.money.mid == pytest.approx(found.seconds.mid * 24 / 3600)
    assert row(found, "pretrain").money == row(found, "pretrain").seconds.times(24 / 3600)
    assert Forecast.model_validate_json(found.model_dump_json()) == found


def test_looking_writes_nothing(store: ArtifactStore) -> None:
    root = Path(store.url)
    predict(store)
    assert not root.exists()
    finish(store)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    predict(store, **SEED)
    predict(store, force=("sft",))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_own_text_is_measured_by_its_bytes(store: ArtifactStore, tmp_path: Path) -> None:
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    small.write_text("a line of text\n" * 30_000)
    large.write_text("a line of text\n" * 300_000)
    overrides = {"shards.max_documents": 0}
    rows = [
        row(predict(store, source=(str(path),), overrides=overrides), "tokens")
        for path in (small, large)
    ]
    assert rows[1].seconds.mid > rows[0].seconds.mid
    assert rows[1].disk_bytes == pytest.approx(10 * rows[0].disk_bytes, rel=0.01)


def test_inputs_in_a_store_elsewhere_are_counted_as_downloads(tmp_path: Path) -> None:
    store = ArtifactStore(f"memory://{tmp_path.name}", cache_folder=tmp_path / "cache")
    finish(store)
    found = predict(store, **SEED)
    sizes = {ref.station: store.manifest(ref).bytes for ref in store.list()}
    assert row(found, "pretrain").download_bytes == sizes["tokens"] + sizes["tokenizer"]
    once = sum(sizes[name] for name in ("shards", "tokens", "tokenizer"))
    assert found.download_bytes == once, "what a station has fetched is there for the next"


def test_what_is_upstream_is_cached_and_downloaded(store: ArtifactStore, tmp_path: Path) -> None:
    upstream = open_store(tmp_path / "upstream")
    finish(upstream)
    below = ArtifactStore(store.url, upstream=upstream)
    found = forecast(tiny(store), below, machine=MACHINE)
    size = upstream.manifest(upstream.list("pretrain")[0]).bytes
    assert row(found, "pretrain").state == "cached"
    assert row(found, "pretrain").download_bytes == size
    assert not Path(store.url).exists()


def test_predicted_against_actual_has_a_row_a_station_and_one_for_all(store: ArtifactStore) -> None:
    finish(store)
    found = predict(store, **SEED)
    times = {"pretrain": row(found, "pretrain").seconds.mid, "sft": 10_000.0}
    records = {
        name: StageRecord(station=name, state="made", seconds=seconds)
        for name, seconds in times.items()
    }
    records["rl"] = StageRecord(station="rl", state="failed", seconds=1.0)
    rows = {each.station: each for each in compared(found, records)}
    assert list(rows) == ["pretrain", "sft", WHOLE]
    assert rows["pretrain"].is_inside
    assert not rows["sft"].is_inside
    assert rows[WHOLE].actual_seconds == pytest.approx(sum(times.values()))


def test_a_total_is_wider_than_independent_errors_and_narrower_than_equal_ones() -> None:
    parts = [Range.around(100.0, 1.5)] * 4
    whole = total(parts)
    assert whole.mid == 400
    assert 100 < whole.high - whole.mid < 200


def test_a_bench_of_the_same_machine_sets_the_steps(store: ArtifactStore, tmp_path: Path) -> None:
    line = (
        '{"device": "cpu x86_64", "ranks": 1, "threads": 1, "device_batch_size": 4, '
        '"compile": "off", "depth": 2, "width": 32, "sequence_len": 64, "tokens_per_step": 512, '
        '"steps": 20, "vocab_size": 512, "dtype": "float32", "step_seconds": {"p50": 2.0}, "x": 1}'
    )
    path = tmp_path / "bench.json"
    path.write_text(line + "\n")
    timing, machine = read_bench(path, MACHINE)
    assert machine == MACHINE
    found = forecast(tiny(store), store, machine=MACHINE, bench=timing)
    each = row(found, "pretrain")
    assert each.source == "bench"
    assert each.seconds.mid == pytest.approx(30 * 2.0, rel=0.15)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="bench train --out"):
        read_bench(path, MACHINE)


def test_closed_forms_agree_with_the_steps_that_were_measured() -> None:
    """`nanochat bench train` on the machine of reference, fastest twentieth (`rates.CPU`)."""
    from flows.forecast.nominal import Job
    from flows.forecast.rates import rates
    from nanochat_core.config.execution import Execution
    from nanochat_core.tokenizer.recipe import TokenizerRecipe
    from nanochat_core.training.recipes import PretrainRecipe

    tokenizer = TokenizerRecipe(vocab_size=2048)
    measured = {(2, True): 0.120, (2, False): 0.160, (3, True): 0.437, (3, False): 0.511}
    measured |= {(4, True): 0.497, (4, False): 0.628, (6, True): 1.665, (6, False): 1.862}
    for (depth, compiled), seconds in measured.items():
        recipe = PretrainRecipe(depth=depth, sequence_len=256, tokens_per_step=2_048)
        execution = Execution(compile=compiled, eval_every=-1)
        figures = rates(MACHINE, execution, "bfloat16")
        amounts = Amounts({"pretrain": recipe, "tokenizer": tokenizer})
        job = Job("pretrain", amounts, execution, "bfloat16", "cpu", figures)
        assert job.nominal().step == pytest.approx(seconds, rel=0.2)


@pytest.mark.s3
def test_a_bucket_is_planned_from_as_a_folder_is(
    store: ArtifactStore, s3_url: str, tmp_path: Path
) -> None:
    finish(store)
    local = predict(store, **SEED)
    bucket = ArtifactStore(s3_url, cache_folder=tmp_path / "cache")
    finish(bucket)
    found = predict(bucket, **SEED)
    assert [station.state for station in found.stations] == [s.state for s in local.stations]
    assert row(found, "pretrain").seconds.mid > row(local, "pretrain").seconds.mid
    assert row(found, "pretrain").download_bytes > 0
    assert row(found, "report").source == "store"
