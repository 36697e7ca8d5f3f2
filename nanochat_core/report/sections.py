"""The sections of a report; each is empty when there is nothing to say."""

from collections.abc import Mapping
from typing import Any

from nanochat_core.conversation.markdown import escape
from nanochat_core.report.begun import began_with
from nanochat_core.report.markdown import NOTHING, Lines, quoted, section, shortened, table
from nanochat_core.report.material import TRAINING, Material, Series
from nanochat_core.report.numbers import duration, is_number
from nanochat_core.report.plots import REWARD, pass_at
from nanochat_core.report.results import HEADS
from nanochat_core.report.samples import pick_answers, pick_samples
from nanochat_core.report.scores import expected, points_of, question, reply

RECIPE_SETTINGS = {
    "sft": ("epochs", "lr_scale"),
    "rl": (
        "task",
        "questions_per_step",
        "samples_per_question",
        "temperature",
        "top_k",
        "max_new_tokens",
        "lr_scale",
    ),
}
"""Fields of a recipe that people change; `nanochat artifacts show` lists them all."""
IN_TRAINING = ("core_metric", "demo_score")


def curves(material: Material, plots: Mapping[str, str]) -> Lines:
    """The plots, each with where its curve began and ended."""
    words = {
        "pretrain.png": _training_words(material, "pretrain"),
        "sft.png": _training_words(material, "sft"),
        "rl.png": _rl_words(material),
    }
    blocks: list[Lines] = []
    for name, title in plots.items():
        blocks += [[f"**{title}.** {words.get(name, '')}".strip()], [f"![{title}]({name})"]]
    return section("Curves", *blocks)


def _training_words(material: Material, station: str) -> str:
    loss = _from_to("train loss", material.series(station, "train/loss"))
    bpb = _from_to("validation bits per byte", material.series(station, "val/bpb"))
    held_out = _from_to("held-out loss", material.series(station, "val/loss"))
    looks = [_from_to(name, material.series(station, name)) for name in IN_TRAINING]
    return _sentence(loss, bpb, held_out, *looks)


def _rl_words(material: Material) -> str:
    passes = [_from_to(f"pass@{k}", series) for k, series in pass_at(material).items()]
    return _sentence(_from_to("reward", material.series("rl", *REWARD)), *passes[:1], *passes[-1:])


def _from_to(name: str, series: Series) -> str:
    if not series:
        return ""
    first, last = series.values[0], series.values[-1]
    return (
        f"{name} {first:.3f} at step {series.steps[0]:,}, {last:.3f} at step {series.steps[-1]:,}"
    )


def _sentence(*parts: str) -> str:
    said = list(dict.fromkeys(part for part in parts if part))
    return f"{'; '.join(said)[:1].upper()}{'; '.join(said)[1:]}." if said else ""


def samples(material: Material, number: int) -> Lines:
    """What the models write: completions, replies right and wrong, rollouts with rewards.

    Lists, since not every page breaks the lines of a table.
    """
    completions = [
        f"- {_temperature(s)}: **{quoted(str(s['prompt']))}** {quoted(str(s['completion']))}"
        for s in pick_samples(material, number)
    ]
    blocks = [_titled("The base model goes on", completions)]
    for station, head in HEADS.items():
        answers = pick_answers(material, station, number)
        blocks.append(_titled(f"Questions {head}", [_exchange(_verdict(a), a) for a in answers]))
    rollouts = [
        _exchange(f"step {row['step']:,}, reward {row['reward']:g}", row)
        for row in material.rollouts(number)
    ]
    blocks.append(_titled("Rollouts of RL", rollouts))
    return section("Samples", *blocks)


def _titled(title: str, lines: Lines) -> Lines:
    return [f"### {title}", "", *lines] if lines else []


def _exchange(head: str, answer: Mapping[str, Any]) -> str:
    return f"- {head}: **{quoted(question(answer))}** → {quoted(reply(answer))}"


def _temperature(sample: Mapping[str, Any]) -> str:
    temperature = sample.get("temperature", 0.0)
    return f"temperature {temperature:g}" if temperature else "greedy"


def _verdict(answer: Mapping[str, Any]) -> str:
    points = points_of(answer)
    if points is None or points > 0.5:
        return "not judged" if points is None else "right"
    wanted = expected(answer)
    return f"wrong (expected {quoted(shortened(wanted, 120))})" if wanted else "wrong"


def settings(material: Material) -> Lines:
    """The numbers that make this model this model."""
    rows = [
        [what, value] for what, value in (*_model_settings(material), *_chat_settings(material))
    ]
    return section("Settings", table(("setting", "value"), rows))


def _model_settings(material: Material) -> list[tuple[str, str]]:
    config = material.json("pretrain", "config.json") or {}
    model, plan = config.get("model", {}), config.get("plan", {})
    metrics = material.manifests["pretrain"].metrics if "pretrain" in material.manifests else {}
    per_token = material.metric("tokens", "characters_per_token")
    found = [
        ("depth", model.get("n_layer")),
        ("width, heads", _joined(model.get("n_embd"), model.get("n_head"))),
        ("parameters", metrics.get("parameters")),
        ("vocabulary", model.get("vocab_size")),
        ("characters per token", per_token),
        ("sequence length", model.get("sequence_len")),
        ("attention windows", model.get("window_pattern")),
        ("tokens a step", plan.get("tokens_per_step")),
        ("pretraining steps", metrics.get("steps")),
        ("pretraining tokens", metrics.get("tokens")),
        ("tokens in the training text", material.metric("tokens", "train_tokens")),
        ("FLOPs of pretraining", metrics.get("total_training_flops")),
    ]
    return [(what, _value(value)) for what, value in found if value not in (None, "")]


def _chat_settings(material: Material) -> list[tuple[str, str]]:
    rows = []
    for station in RECIPE_SETTINGS:
        manifest = material.manifests.get(station)
        if manifest is None:
            continue
        rows += [
            (f"{station} {escape(name)}", _value(value))
            for name, value in manifest.metrics.items()
            if isinstance(value, int) and "time" not in name
        ]
        rows += [
            (f"{station} {escape(name)}", _value(manifest.recipe[name]))
            for name in RECIPE_SETTINGS[station]
            if name in manifest.recipe
        ]
    return rows


def _joined(*values: Any) -> str:
    return "" if None in values else ", ".join(_value(value) for value in values)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))


def environment(material: Material) -> Lines:
    """The machine that wrote the report, and the devices on which models were computed."""
    hardware, packages = (material.run.get(name, {}) for name in ("hardware", "packages"))
    facts = [
        ("machine", hardware.get("platform")),
        ("CPUs", hardware.get("cpus")),
        ("Python", hardware.get("python")),
        ("packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
    ]
    rows = [[what, escape(str(value))] for what, value in facts if value]
    computed = [_device_row(material, name) for name in material.stations]
    titles = ("station", "device", "processes:", "compute dtype", "torch", "by run")
    return section(
        "Environment",
        table(("written on", ""), rows),
        table(titles, [row for row in computed if row]),
    )


def _device_row(material: Material, station: str) -> list[str]:
    said = material.manifests[station].provenance
    if "device_type" not in said:
        return []
    device = said.get("device") or said["device_type"]
    values = (said.get("ranks"), said.get("compute_dtype"), said.get("torch"), said.get("run"))
    return [station, escape(str(device)), *(escape(str(value or NOTHING)) for value in values)]


def lineage(material: Material) -> Lines:
    """What every artifact was made from; digests say what came out."""
    rows = []
    for station in material.stations:
        manifest = material.manifests[station]
        inputs = ", ".join(f"`{ref.short}`" for _, ref in sorted(manifest.input_refs.items()))
        inputs = "; ".join(filter(None, (inputs, began_with(manifest, "`"))))
        artifact, digest = f"`{manifest.ref.short}`", f"`{manifest.digest[:12]}`"
        rows.append([artifact, digest, inputs or NOTHING, manifest.created])
    return section("Lineage", table(("artifact", "digest", "made from", "made at"), rows))


def stages(material: Material) -> Lines:
    """How each stage of this run went, and the time that everything took when it was made."""
    rows = []
    for row in material.rows:
        said = (
            material.manifests[row.station].provenance if row.station in material.manifests else {}
        )
        took = said.get("seconds")
        making = duration(float(took)) if is_number(took) else NOTHING
        making += " (last part)" if said.get("resumed") else ""
        artifact = f"`{row.artifact}`" if row.artifact else NOTHING
        numbers = escape(row.numbers) or NOTHING
        rows.append([row.station, row.state, duration(row.seconds), making, artifact, numbers])
    titles = ("station", "in this run", "time here:", "time to make:", "artifact", "numbers")
    return section("Stages", table(titles, rows), _total_times(material) if rows else [])


def _total_times(material: Material) -> Lines:
    here = sum(row.seconds for row in material.rows)
    said = [manifest.provenance.get("seconds") for manifest in material.manifests.values()]
    making = sum(float(seconds) for seconds in said if is_number(seconds))
    times = [material.metric(station, "total_training_time") for station in TRAINING]
    training = sum(float(seconds) for seconds in times if is_number(seconds))
    words = f"This run: {duration(here)} in these stages. Making all of it: {duration(making)}"
    return [f"{words}, of which training steps {duration(training)}." if training else f"{words}."]
