"""The plots of a report: PNG files of about 900 pixels, without a global state of matplotlib."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat_core.report.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SEQUENCE,
    new_figure,
    save_figure,
)
from nanochat_core.report.material import CHAT_EVALS, Material, Series
from nanochat_core.report.scores import IDENTITY, IDENTITY_KINDS, OVERALL, Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_POINTS, SMOOTH_FROM = 15, 40
"""Below the first every point is marked; from the second on a noisy curve gets a running mean."""
LABEL_GAP = 0.055
"""Height of a line of text, as a share of an axis."""
REWARD = ("rl/reward", "reward", "rl/mean_reward")
_PASS = re.compile(r"^(?:.*/)?pass@(\d+)$")

Draw = Callable[[Material], "Figure | None"]


def draw_plots(material: Material, folder: Path) -> dict[str, str]:
    """Write every plot that there is data for; returns its title by file name."""
    written = {}
    for name, (title, draw) in PLOTS.items():
        figure = draw(material)
        if figure is not None:
            save_figure(figure, folder / name)
            written[name] = title
    return written


def pretrain_plot(material: Material) -> "Figure | None":
    """Loss and bits per byte over steps, with tokens on top."""
    return _training_plot(material, "pretrain", "train loss / nats per token")


def sft_plot(material: Material) -> "Figure | None":
    """Loss over steps of fine-tuning, and that of held-out conversations if it was measured."""
    return _training_plot(material, "sft", "train loss / nats per supervised token")


def _training_plot(material: Material, station: str, loss_label: str) -> "Figure | None":
    curves = (
        ("train/loss", loss_label, BLUE),
        ("val/bpb", "validation / bits per byte", ORANGE),
        ("val/loss", "held-out loss / nats per supervised token", ORANGE),
    )
    found = [(material.series(station, name), label, color) for name, label, color in curves]
    panels = [panel for panel in found if panel[0]]
    if not panels:
        return None
    tokens, steps = (material.metric(station, name) for name in ("tokens", "steps"))
    figure, axes = new_figure(len(panels))
    for axis, (series, label, color) in zip(axes, panels, strict=True):
        _curve(axis, series, color, label)
        if tokens and steps:
            _tokens_on_top(axis, tokens / steps)
    return figure


def rl_plot(material: Material) -> "Figure | None":
    """Reward over steps, and pass@k where it was measured."""
    reward, passes = material.series("rl", *REWARD), pass_at(material)
    if not reward and not passes:
        return None
    figure, axes = new_figure(bool(reward) + bool(passes))
    if reward:
        _noisy_curve(axes[0], reward, BLUE, "mean reward per sample")
        axes[0].set_ylim(0, max(1.0, *reward.values))
    if passes:
        _pass_curves(axes[-1], passes)
    return figure


def scores_plot(material: Material) -> "Figure | None":
    """Scores of the chat models as bars with their standard errors."""
    both = {name: material.chat_scores(name) for name in CHAT_EVALS if name in material.manifests}
    both = {name: bar_scores(scores) for name, scores in both.items()}
    names = list(dict.fromkeys(name for scores in both.values() for name in scores))
    if not names:
        return None
    figure, (axis,) = new_figure(1)
    _bars(axis, names, both)
    return figure


def bar_scores(scores: Mapping[str, Score]) -> dict[str, Score]:
    """Those that are shares, from 0 to 1; no means over others, nor parts of `identity`."""
    parts = (*OVERALL, *(IDENTITY_KINDS if IDENTITY in scores else ()))
    shares = {name: score for name, score in scores.items() if 0 <= score.value <= 1}
    return {name: score for name, score in shares.items() if name not in parts}


def pass_at(material: Material) -> dict[int, Series]:
    """pass@k over steps, by k."""
    found = {}
    for name in material.metric_names("rl"):
        match = _PASS.match(name)
        if match and (series := material.series("rl", name)):
            found[int(match[1])] = series
    return dict(sorted(found.items()))


PLOTS: dict[str, tuple[str, Draw]] = {
    "pretrain.png": ("Pretraining", pretrain_plot),
    "sft.png": ("Fine-tuning", sft_plot),
    "rl.png": ("Reinforcement learning", rl_plot),
    "scores.png": ("Scores of the chat model", scores_plot),
}


def _curve(axis: "Axes", series: Series, color: str, label: str) -> None:
    """Values over steps, from step 0 on."""
    axis.plot(series.steps, series.values, color=color, marker=_marker(series), markersize=4)
    _label(axis, label)


def _noisy_curve(axis: "Axes", series: Series, color: str, label: str) -> None:
    """As `_curve`; of many points, these are faint behind a running mean over a sixth of them."""
    if len(series) < SMOOTH_FROM:
        _curve(axis, series, color, label)
        return
    axis.plot(series.steps, series.values, color=color, alpha=0.3, linewidth=1)
    axis.plot(series.steps, running_mean(series.values, len(series) // 12), color=color)
    _label(axis, label)


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """The mean of each value and up to `reach` on either side."""
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _marker(series: Series) -> str:
    return "o" if len(series) < FEW_POINTS else ""


def _label(axis: "Axes", label: str) -> None:
    axis.set_xlim(left=0)
    axis.set_xlabel("step")
    axis.set_ylabel(label)
    axis.xaxis.set_major_formatter("{x:,.0f}")


def _tokens_on_top(axis: "Axes", tokens_per_step: float) -> None:
    unit, name = next(
        (unit, name)
        for unit, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"), (1.0, ""))
        if axis.get_xlim()[1] * tokens_per_step >= unit or unit == 1.0
    )
    scale = tokens_per_step / unit

    def to_tokens(step: Any) -> Any:
        return step * scale

    def to_steps(token: Any) -> Any:
        return token / scale

    top = axis.secondary_xaxis("top", functions=(to_tokens, to_steps))
    top.set_xlabel(f"{name} tokens".strip())


def _pass_curves(axis: "Axes", passes: Mapping[int, Series]) -> None:
    shown = [k for k in passes if k & (k - 1) == 0][-4:] or list(passes)[:4]
    heights = spread([passes[k].values[-1] for k in shown], LABEL_GAP)
    for k, color, height in zip(shown, SEQUENCE, heights, strict=False):
        series = passes[k]
        dots: dict[str, Any] = {"color": color, "marker": "o", "markersize": 4, "clip_on": False}
        axis.plot(series.steps, series.values, **dots)
        # At the end of its line: no legend to look up.
        axis.annotate(f"  k={k}", (series.steps[-1], height), va="center", annotation_clip=False)
    axis.set_ylim(0, 1.02)
    axis.margins(x=0.12)
    _label(axis, "pass@k: a right reply among k")


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved apart to at least `gap`, downwards first, then up from 0."""
    placed = list(heights)
    for i in reversed(range(len(placed) - 1)):
        placed[i] = min(placed[i], placed[i + 1] - gap)
    lowest = 0.0
    for i in range(len(placed)):
        placed[i] = max(placed[i], lowest)
        lowest = placed[i] + gap
    return placed


def _bars(axis: "Axes", names: Sequence[str], both: Mapping[str, Mapping[str, Score]]) -> None:
    colors = {"chat_eval_sft": GREY, "chat_eval_rl": BLUE}
    labels = {"chat_eval_sft": "after SFT", "chat_eval_rl": "after RL"}
    width = 0.8 / len(both)
    for i, (station, scores) in enumerate(both.items()):
        places = [j + (i - (len(both) - 1) / 2) * width for j, n in enumerate(names) if n in scores]
        shown = [scores[name] for name in names if name in scores]
        axis.bar(
            places,
            [score.value for score in shown],
            width * 0.9,
            yerr=[score.stderr or 0.0 for score in shown],
            color=colors.get(station, GREEN),
            label=labels.get(station, station),
            error_kw={"ecolor": "black", "capsize": 3, "linewidth": 1},
        )
    axis.set_xticks(range(len(names)), names)
    axis.tick_params(axis="x", rotation=0 if len(names) <= 8 else 30)
    axis.set_ylim(0, 1.05)
    # A few benchmarks stand in the middle, not as bars of the width of a hand.
    room = max(4 - len(names), 0) / 2
    axis.set_xlim(-0.6 - room, len(names) - 0.4 + room)
    axis.set_ylabel("share of right answers")
    if len(both) > 1:
        axis.legend(frameon=False, loc="upper right", ncols=2, bbox_to_anchor=(1, 1.12))
    else:
        axis.set_title(labels.get(next(iter(both)), ""), loc="left", fontsize=10)
