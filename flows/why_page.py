"""An explanation as lines for people: the answer first, then what was compared, then the way."""

from collections.abc import Sequence

from flows.differing import shown
from flows.explaining import Explanation, InputChange, Origin, Step
from flows.looking import flat, table
from flows.wording import duration

_STATES = {"hit": "hit", "miss": "miss", "unknown": "not known yet", "published": "published"}
MAX_LINES = 20
"""Of more changes, say of another set of files, the first ones tell what happened."""


def why_lines(found: Explanation) -> list[str]:
    """The whole answer."""
    lines = [f"{found.station}: {_STATES[found.state]}"]
    if found.compared_with is None or found.waits_for:
        lines.append(f"  {found.summary}")
    if found.origin is not None:
        lines += [f"  {line}" for line in origin_lines(found.origin)]
    if found.compared_with is not None:
        lines += [f"  {line}" for line in _compared_lines(found, found.compared_with)]
    for waited in found.waits_for:
        lines += ["", *why_lines(waited)]
    if found.upstream:
        lines += ["", f"made before {found.station}:"]
        lines += [f"  {line}" for line in table([_step_row(step) for step in found.upstream])]
    return lines


def origin_lines(origin: Origin) -> list[str]:
    """When and by what an artifact was made, from what, and what was chosen for it."""
    number = "" if origin.ref.manifest == 1 else f", manifest {origin.ref.manifest}"
    rows = [
        ("artifact", f"{origin.ref.short}{number}"),
        ("made", made_text(origin)),
        ("code version", str(origin.code_version)),
    ]
    rows += [(f"from {name}", ref.short) for name, ref in origin.inputs.items()]
    chosen = flat(origin.fields)
    rows += [("recipe", f"{name} = {shown(value)}") for name, value in chosen[:MAX_LINES]]
    if len(chosen) > MAX_LINES:
        rows.append(("", f"and {len(chosen) - MAX_LINES:,} more: nanochat artifacts show"))
    if not chosen:
        rows.append(("recipe", "nothing but defaults"))
    return table(rows)


def made_text(origin: Origin) -> str:
    """`2026-11-23 05:54 UTC in 3.1 s by run 20261123-055412-1f3a5b (preset tiny)`."""
    text = f"{origin.created[:16].replace('T', ' ')} UTC"
    if origin.seconds is not None:
        text += f" in {duration(origin.seconds)}"
    if origin.run:
        text += f" by run {origin.run}"
    return text + (f" (preset {origin.preset})" if origin.preset else "")


def _compared_lines(found: Explanation, other: Origin) -> list[str]:
    which = "made before it" if found.state == "published" else "the nearest one"
    changed = [cause.text for cause in found.own]
    for change in found.inputs:
        changed += _input_lines(change)
    if not changed and found.state == "published":
        changed = [cause.text for cause in found.first_causes]
    if not changed:
        changed = ["the same, as far as that is known: a hit if what is made first is, too"]
    return [
        f"compared with {other.ref.short}, {which},",
        f"made {made_text(other)}:",
        *(f"  {line}" for line in _limited(changed)),
    ]


def _input_lines(change: InputChange) -> list[str]:
    old, new = ("(absent)" if side is None else shown(side) for side in (change.old, change.new))
    causes = [f"  because {cause.text}" for cause in change.first_causes]
    return [f"input {change.name}: {old} -> {new}", *causes]


def _limited(lines: Sequence[str]) -> list[str]:
    more = len(lines) - MAX_LINES
    return [*lines[:MAX_LINES], *([f"and {more:,} more; --json has them"] if more > 0 else [])]


def _step_row(step: Step) -> tuple[str, str, str]:
    going_on = "" if not step.in_progress_step else f"continues after step {step.in_progress_step}"
    return (step.station, _STATES[step.state], step.artifact or going_on)
