"""How every plot looks: panels as wide as a page, colours, and PNG files without a date."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 9.0, 3.6, 100
# Okabe and Ito, "Color Universal Design" (2008): told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#808080"
SEQUENCE = ("#74a9cf", "#3690c0", "#0570b0", "#023858")
"""From light to dark: an order that is also seen without colour."""


def blank_figure(height_inches: float = HEIGHT_INCHES) -> "Figure":
    """A figure of its own, without the global state of matplotlib."""
    # Imported where it is used: it takes half a second, and plots are the last of a flow.
    from matplotlib.figure import Figure

    size = (WIDTH_INCHES, height_inches)
    return Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")


def new_figure(num_panels: int) -> "tuple[Figure, list[Axes]]":
    """Panels beside one another, as wide as a page."""
    figure = blank_figure()
    axes: Any = figure.subplots(1, num_panels, squeeze=False)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e0e0e0", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, list(axes[0])


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG; without the name of the software, so the same numbers give the same bytes."""
    figure.savefig(path, format="png", metadata={"Software": None})
