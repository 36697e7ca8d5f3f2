"""What a sweep cost, and from which artifacts its numbers are."""

from collections.abc import Mapping, Sequence

from nanochat_core.artifacts.types import Manifest
from nanochat_core.conversation.markdown import escape
from nanochat_core.report.begun import began_with
from nanochat_core.report.markdown import NOTHING, Lines, section, table
from nanochat_core.report.numbers import duration
from nanochat_core.report.sweeps.beginnings import sharing
from nanochat_core.report.sweeps.recipe import POINT_STATIONS, SweepRecipe, input_name
from nanochat_core.report.sweeps.rows import SECONDS_PER_HOUR, made_in
from nanochat_core.report.sweeps.table import money


def costs(manifests: Mapping[str, Manifest], recipe: SweepRecipe) -> Lines:
    """Time to make, by station; an artifact that several points share is counted once."""
    body, total = [], 0.0
    for station in POINT_STATIONS:
        made = _made(manifests, station)
        if not made:
            continue
        seconds = sum(made_in(manifest) for manifest in made)
        total += seconds
        body.append(_row(station, str(len(made)), seconds, recipe))
        found = sharing(made) if station == "pretrain" else None
        if found and found.run:
            total += found.seconds
            body.append(_row("shared beginnings, their steps", NOTHING, found.seconds, recipe))
    body.append(_row("**all**", "", total, recipe))
    titles = ["station", "artifacts:", "time to make:"]
    titles += [f"money at {recipe.price_per_hour:g} an hour:"] if recipe.price_per_hour else []
    return section("Costs", table(titles, body), _words(_made(manifests, "pretrain"), recipe))


def _made(manifests: Mapping[str, Manifest], station: str) -> list[Manifest]:
    found = {m.fingerprint: m for m in manifests.values() if m.station == station}
    return list(found.values())


def _row(what: str, number: str, seconds: float, recipe: SweepRecipe) -> list[str]:
    price = recipe.price_per_hour
    cost = [money(seconds / SECONDS_PER_HOUR * price)] if price else []
    return [what, number, duration(seconds), *cost]


def _words(models: Sequence[Manifest], recipe: SweepRecipe) -> Lines:
    found = sharing(models)
    said = (
        "Times are those of when an artifact was made, which may be before this sweep; of one "
        "that was interrupted, of its last part, or of its training steps if that is more."
    )
    if found.shared:
        said += (
            f" Runs share beginnings: for {found.steps:,} steps of pretraining "
            f"{found.all_run:,} were run ({found.all_run / found.steps:.0%})."
        )
    if recipe.price_per_hour:
        said += " The price is that of what one point uses (its GPUs), not of all at a time."
    return [said]


def lineage(manifests: Mapping[str, Manifest], recipe: SweepRecipe) -> Lines:
    """Every artifact behind the numbers; digests say what came out."""
    points: dict[str, list[str]] = {}
    made: dict[str, Manifest] = {}
    for index, point in enumerate(recipe.points):
        for station in POINT_STATIONS:
            manifest = manifests.get(input_name(index, station))
            if manifest is not None:
                points.setdefault(manifest.ref.short, []).append(point.label)
                made[manifest.ref.short] = manifest
    body = [_lineage_row(manifest, points[short]) for short, manifest in made.items()]
    return section("Lineage", table(("artifact", "of", "digest", "made from", "made at"), body))


def _lineage_row(manifest: Manifest, labels: Sequence[str]) -> list[str]:
    inputs = ", ".join(f"`{ref.short}`" for _, ref in sorted(manifest.input_refs.items()))
    inputs = "; ".join(filter(None, (inputs, began_with(manifest, "`"))))
    return [
        f"`{manifest.ref.short}`",
        escape("; ".join(labels)),
        f"`{manifest.digest[:12]}`",
        inputs or NOTHING,
        manifest.created,
    ]
