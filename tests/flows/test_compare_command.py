"""`nanochat compare`: models by any name, repeats found in the store, numbers never mixed."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from flows.comparing.command import compare, terminal_lines
from flows.comparing.names import pretrain_of
from flows.comparing.runs import compare_models
from flows.parameters import parse_parameters
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import ArtifactNotFoundError, ConfigError, UnknownNameError
from nanochat_core.evals.recipes import BaseEvalRecipe
from nanochat_core.report.comparing.page import Judged
from nanochat_core.training.recipes import PretrainRecipe
from tasks.listening import StageRecord

RUN = "20260101-000000-abcdef"
STEPS = 30


class Lab:
    """A store with models whose numbers are made up."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.store = ArtifactStore(url or str(folder / "store"), cache_folder=folder / "cache")
        self.cpus, self.eval_every, self.result = 2, 15, ""
        self.tokens = self.publish("tokens", {"of": "text"})
        self.tokenizer = self.publish("tokenizer", {"vocab_size": 512})

    def publish(
        self,
        station: str,
        recipe: dict[str, Any],
        inputs: dict[str, ArtifactRef] | None = None,
        metrics: dict[str, Any] | None = None,
        lines: list[dict[str, Any]] | None = None,
    ) -> ArtifactRef:
        refs = inputs or {}
        digests = {name: ref.digest for name, ref in refs.items()}
        request = Request(station=station, code_version=1, recipe=recipe, inputs=digests)
        folder = self.store.generation(request, fresh=True)
        (folder / "result.txt").write_text(self.result or request.fingerprint)
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines or []))
        output = StageOutput(
            files={"result.txt": "result", "metrics.jsonl": "record"}, metrics=metrics or {}
        )
        told = {"run": RUN, "preset": "tiny", "hardware": {"cpus": self.cpus}}
        told |= {"execution": {"eval_every": self.eval_every, "threads": 1}}
        ref = self.store.publish(request, folder, output, input_refs=refs, provenance=told)
        self.store.discard_generations(request)
        return ref

    def model(self, bpb: float, seed: int = 42, **fields: Any) -> ArtifactRef:
        """A base model whose training ended at `bpb`."""
        inputs = {"tokens": fields.pop("tokens", self.tokens), "tokenizer": self.tokenizer}
        recipe = PretrainRecipe(num_iterations=STEPS, seed=seed, **fields)
        spent = [
            {"step": s, "total_training_time": s / 10, "total_training_flops": 1000 * s}
            for s in (15, STEPS)
        ]
        measured = [{"step": 15, "val/bpb": bpb + 1}, {"step": STEPS, "val/bpb": bpb}]
        numbers = {
            "steps": STEPS,
            "tokens": 15_360,
            "parameters": 70_000,
            "total_training_time": 3.0,
            "total_training_flops": 30_000.0,
        }
        lines = [*spent, *measured]
        return self.publish("pretrain", recipe.model_dump(mode="json"), inputs, numbers, lines)

    def scored(self, model: ArtifactRef, bpb: float, **fields: Any) -> ArtifactRef:
        """What base_eval says of a model."""
        inputs = {"pretrain": model, "tokens": self.tokens, "tokenizer": self.tokenizer}
        recipe = BaseEvalRecipe(**fields).model_dump(mode="json")
        return self.publish("base_eval", recipe, inputs, {"val/bpb": bpb, "demo_score": bpb / 10})

    def run(self, command: str) -> tuple[int, str]:
        app = typer.Typer(rich_markup_mode=None)
        app.command()(compare)
        words = [*shlex.split(command), "--store", self.store.url]
        result = CliRunner().invoke(app, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_each_side_gathers_the_models_that_differ_in_seeds_only(lab: Lab) -> None:
    base = lab.model(1.500)
    for seed, bpb in ((1, 1.502), (2, 1.498)):
        lab.model(bpb, seed)
    idea = lab.model(1.400, depth=3)
    lab.model(1.402, 7, depth=3)
    lab.model(1.9, 1, depth=4)
    found = compare_models(lab.store, [base.short, idea.short])
    assert [len(side.repeats) for side in found.sides] == [3, 2]
    assert found.sides[0].repeats[0].artifact == base.short
    assert sorted(found.sides[0].finals) == [1.498, 1.5, 1.502]
    assert found.sides[1].differences == ("pretrain.depth: 20 -> 3",)
    assert found.sides[0].repeats[0].curve.values == (2.5, 1.5)
    assert any("pretrain.seed alone" in note for note in found.notes)


def test_what_differs_is_found_in_what_models_were_made_from(lab: Lab) -> None:
    other = lab.publish("tokens", {"of": "another text"})
    sides = compare_models(lab.store, [lab.model(1.5).short, lab.model(1.4, depth=3).short]).sides
    assert len(sides) == 2
    with pytest.raises(ConfigError, match="not measured on the same text"):
        compare_models(lab.store, [lab.model(1.5).short, lab.model(1.4, tokens=other).short])


def test_numbers_of_base_eval_come_first_and_are_never_mixed_with_others(lab: Lab) -> None:
    base, idea = lab.model(1.5), lab.model(1.4, depth=3)
    lab.scored(base, 1.51)
    found = compare_models(lab.store, [base.short, idea.short])
    # One of them is not scored: both are taken from their training.
    assert [side.finals for side in found.sides] == [[1.5], [1.4]]
    assert "the last that training measured" in found.measured
    lab.scored(idea, 1.43, validation_tokens=100)
    assert compare_models(lab.store, [base.short, idea.short]).sides[1].finals == [1.4]
    score = lab.scored(idea, 1.42)
    found = compare_models(lab.store, [base.short, idea.short])
    assert [side.finals for side in found.sides] == [[1.51], [1.42]]
    assert found.sides[1].repeats[0].measured_by == score.short
    # The score of other tasks is another metric; of CORE nothing is known.
    assert compare_models(lab.store, [base.short], "demo").sides[0].finals == [0.151]
    with pytest.raises(ConfigError, match=r"nothing has measured CORE .* base_eval"):
        compare_models(lab.store, [base.short, idea.short], "core")


def test_repeats_on_all_sides_come_before_scores_of_one_run(lab: Lab) -> None:
    base = [lab.model(1.5 + seed / 1000, seed) for seed in range(5)]
    idea = [lab.model(1.4 + seed / 1000, seed, depth=3) for seed in range(5)]
    for model in (base[0], base[1], idea[0]):
        lab.scored(model, 1.45)
    found = compare_models(lab.store, [base[0].short, idea[0].short])
    assert [len(side.finals) for side in found.sides] == [5, 5]
    lab.scored(idea[1], 1.45)
    # Both repeats that were scored are enough to tell the noise of the better number.
    found = compare_models(lab.store, [base[0].short, idea[0].short])
    assert [len(side.finals) for side in found.sides] == [2, 2]


def test_a_model_is_known_by_alias_run_reference_and_what_was_made_of_it(lab: Lab) -> None:
    base = lab.model(1.5)
    sft = lab.publish("sft", {"a": 1}, {"pretrain": base, "tokenizer": lab.tokenizer})
    chat = lab.publish("chat_eval_sft", {"b": 1}, {"sft": sft})
    lab.store.set_alias("mine", sft)
    record = StageRecord(station="pretrain", state="made", seconds=3.0, ref=base)
    stations = {"pretrain": record.model_dump(mode="json")}
    lab.store.save_run(RUN, {"run": RUN, "stations": stations})
    for name in (base.short, "mine", sft.short, chat.short, RUN, RUN[:12], "last", RUN[:6]):
        assert pretrain_of(lab.store, name).ref == base, name


def test_a_name_without_one_base_model_is_refused_with_what_to_give(lab: Lab) -> None:
    one, two = lab.model(1.5), lab.model(1.4, 1)
    sweep = lab.publish("sweep", {}, {"000-pretrain": one, "001-pretrain": two})
    with pytest.raises(ConfigError, match=f"2 base models.*{one.short}"):
        pretrain_of(lab.store, sweep.short)
    with pytest.raises(ConfigError, match="from no base model"):
        pretrain_of(lab.store, lab.tokens.short)
    with pytest.raises(ArtifactNotFoundError, match="names nothing"):
        pretrain_of(lab.store, "nonsense")
    lab.store.save_run(RUN, {"run": RUN, "stations": {}})
    with pytest.raises(ConfigError, match="made no base model"):
        pretrain_of(lab.store, RUN)
    with pytest.raises(UnknownNameError, match="no metric"):
        compare_models(lab.store, [one.short], "accuracy")


def test_repeats_of_each_other_are_one_side(lab: Lab) -> None:
    one, two = lab.model(1.5), lab.model(1.4, 1)
    found = compare_models(lab.store, [one.short, two.short])
    assert [len(side.repeats) for side in found.sides] == [2]
    assert f"{two.short} is a repeat of {one.short}" in found.notes[0]


def test_what_makes_numbers_hard_to_compare_is_noted(lab: Lab) -> None:
    base = lab.model(1.5)
    lab.eval_every = 3
    assert compare_models(lab.store, [base.short, lab.model(1.4, depth=3).short]).notes == ()
    lab.cpus = 64
    notes = compare_models(lab.store, [base.short, lab.model(1.4, depth=4).short]).notes
    assert [note for note in notes if "times may not compare: hardware.cpus: 2 -> 64" in note]
    lab.result = "the same weights"
    sides = [lab.model(1.3, depth=depth).short for depth in (5, 6)]
    assert "B is the same model as A, bit for bit" in compare_models(lab.store, sides).notes[0]


def test_the_command_gives_the_verdict_the_table_and_files(lab: Lab, tmp_path: Path) -> None:
    base, idea = lab.model(1.500), lab.model(1.400, depth=3)
    for seed in (1, 2):
        lab.model(1.5 + seed / 1000, seed)
        lab.model(1.4 + seed / 1000, seed, depth=3)
    output = tmp_path / "out"
    code, said = lab.run(f"{base.short} {idea.short} --output {output}")
    assert code == 0
    assert said.startswith(
        "B is 0.1000 bits per byte better than A (95 % interval of the gain +0.09"
    )
    assert "larger than the noise." in said
    assert "pretrain.depth: 20 -> 3" in said
    for name in ("compare.md", "compare.json", "compare.csv", "by_step.png", "final.png"):
        assert (output / name).exists()
        assert name in said
    (output / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        lab.run(f"{base.short} --output {output / 'file'}")


def test_single_runs_get_the_command_that_makes_their_repeats(lab: Lab) -> None:
    parameters = parse_parameters(
        {
            "preset": "tiny",
            "depth": 3,
            "source": ("my text.txt",),
            "overrides": {"pretrain.seed": "1", "pretrain.head_dim": 8, "sft.epochs": 2},
            "benchmarks": "/sets",
        }
    )
    lab.store.save_run(RUN, {"run": RUN, "parameters": parameters.model_dump(mode="json")})
    one = lab.model(1.5, seed=1)
    found = compare_models(lab.store, [one.short], place="s3://mine/store")
    said = terminal_lines(Judged.of(found), [])
    (line,) = [each for each in said if "nanochat run sweep" in each]
    assert shlex.split(line.partition(": ")[2]) == [
        *("nanochat", "run", "sweep", "--preset", "tiny", "--depth", "3"),
        *("--store", "s3://mine/store", "--benchmarks", "/sets", "--source", "my text.txt"),
        *("--set", "pretrain.head_dim=8", "--set", "pretrain.seed=2,3,4"),
    ]


def test_a_damaged_record_costs_a_curve_and_is_told(lab: Lab, tmp_path: Path) -> None:
    one, other = lab.model(1.5), lab.model(1.4, 1)
    path = tmp_path / "store" / "pretrain" / one.fingerprint
    (file,) = path.glob("*/metrics.jsonl")
    file.chmod(0o644)
    file.write_text(file.read_text().replace("1.5", "1.4"))
    found = compare_models(lab.store, [other.short])
    assert found.sides[0].finals == [1.4]
    assert any("damaged" in note and one.short in note for note in found.notes)
    lab.store.files.remove(f"pretrain/{other.fingerprint}/manifest-000001.json")
    with pytest.raises(ConfigError, match="nothing has measured"):
        compare_models(lab.store, [one.short])


def test_a_store_without_a_folder_is_read_like_any_other(tmp_path: Path) -> None:
    lab = Lab(tmp_path, url="memory://compared")
    one, other = lab.model(1.5), lab.model(1.4, 1)
    assert sorted(compare_models(lab.store, [one.short]).sides[0].finals) == [1.4, 1.5]
    assert other != one
