"""The house style of the figures: palette, canvas, direct labels and colour grids."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

# Okabe and Ito's palette, told apart with every common kind of colour blindness, also in grey
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
PAPER = "#707070"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
METHODS = ("memit", "memit-merge", "eamet", "pmet", "alphaedit", "eamet-mutual")  # the same colour in every figure
STYLE = {
    "font.size": 12,
    "axes.titlesize": 13,
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "text.parse_math": False,
    "figure.constrained_layout.use": True,
}
SUBJECTS = {"same": "one subject", "distinct": "distinct subjects"}
LABELS_SHOWN = 12
NUMBERS_SHOWN = 6
MOVED = 0.02  # of an axis: from here on a thin line leads from a name to its point


@contextmanager
def canvas(
    width: float | int = 7, height: float | int = 4, title: str = "", columns: int = 1
) -> Iterator[tuple[Figure, Any]]:
    """A figure with one pair of axes (or an array of them) in the house style.

    Closed behind the context, the global style untouched; fonts are resolved while the style still holds.
    """
    with sns.axes_style("ticks"), plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, columns, figsize=(width, height))
        try:
            if title:
                figure.axes[0].set_title(title, loc="left")
            yield figure, axes
            figure.draw_without_rendering()  # labels and colour bars find their places in this style
        finally:
            plt.close(figure)


def looks(kinds: Sequence[Any]) -> dict[Any, dict[str, str]]:
    """The colour and marker of every kind: of the best-known methods always the same, of others what those leave, in
    their order. A colour that comes again has another marker."""
    own = {kind: METHODS.index(str(kind).lower()) for kind in kinds if str(kind).lower() in METHODS}
    free = [i for i in range(len(COLORS)) if i not in own.values()] or list(range(len(COLORS)))
    others = [kind for kind in kinds if kind not in own]
    turns = {kind: divmod(i, len(free)) for i, kind in enumerate(others)}
    places = {kind: (own[kind], 0) if kind in own else (free[turns[kind][1]], turns[kind][0]) for kind in kinds}
    marker = lambda at, turn: MARKERS[(at + turn) % len(MARKERS)]  # noqa: E731
    return {kind: {"color": COLORS[at], "marker": marker(at, turn)} for kind, (at, turn) in places.items()}


def spread(ends: Sequence[Any], gap: float, low: float, high: float) -> list[float]:
    """Heights near ``ends`` that are at least ``gap`` apart and between ``low`` and ``high`` where there is room."""
    order = np.argsort(ends, kind="stable")
    places = np.array(ends, dtype=float)[order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    places[-1:] = places[-1:].clip(max=high)
    for i in range(len(places) - 2, -1, -1):
        places[i] = min(places[i], places[i + 1] - gap)
    if len(places):
        places += max(0.0, low - places[0])
    out = np.empty_like(places)
    out[order] = places
    return out.tolist()


def label_ends(axes: Axes, ends: Sequence[tuple[Any, Any, str, str]], edge: Any = None) -> None:
    """Write each line's name in its colour behind its last point, apart from the others: (x, y, name, colour).

    A thin line leads to those that had to move. With ``edge`` all names stand in one column there.
    """
    low, high = axes.get_ylim()
    right = max(x for x, *_ in ends)
    outer = [end for end in ends if edge is not None or end[0] == right]
    heights = spread([y for _, y, *_ in outer], 0.075 * (high - low), low, high)
    inner = [(end, end[1]) for end in ends if end not in outer]
    behind = offset_copy(axes.transData, axes.figure, x=18, y=0, units="points")
    for (x, y, name, color), height in [*zip(outer, heights, strict=True), *inner]:
        place = (x if edge is None else edge, height)
        where: dict[str, Any] = {"xytext": place, "textcoords": behind, "va": "center", "annotation_clip": False}
        if edge is not None or abs(height - y) > MOVED * (high - low):
            lead = {"arrowstyle": "-", "color": PAPER, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 5, "relpos": (0, 0.5)}
            where["arrowprops"] = lead
        axes.annotate(name, (x, y), color=color, **where)


def unit_axis(axes: Axes, name: str) -> None:
    """A y axis from 0 to 1 with a little room, so that lines at the ends are seen."""
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_ylabel(name)


def log_axis(axes: Axes, which: str) -> None:
    """A logarithmic x or y axis whose ticks are plain numbers."""
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"{which}axis").set_major_formatter("{x:g}")


def visible(token: str) -> str:
    """A token with its leading space and line breaks made visible."""
    return token.replace(" ", "·").replace("\n", "↵") or "∅"


def shown(labels: Sequence[Any]) -> list[str]:
    """At most a dozen of the labels, evenly spaced; the others are left empty."""
    step = -(-len(labels) // LABELS_SHOWN)
    return [str(label) if i % step == 0 else "" for i, label in enumerate(labels)]


def color_grid(
    axes: Axes, values: Float[np.ndarray, "rows columns"], colors: str, low: float | int, high: float | int, label: str,
    numbers: int = NUMBERS_SHOWN,
) -> None:  # fmt: skip
    """A matrix as coloured cells with its colour bar, first row on top; numbers in the cells where there are few, at
    most ``numbers`` a side."""
    image = axes.imshow(values, cmap=colors, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label=label)
    if max(values.shape) <= numbers:
        size = 12 if max(values.shape) <= NUMBERS_SHOWN else 9
        for row, column in np.argwhere(np.isfinite(values)):
            value = values[row, column]
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            where = {"size": size, "ha": "center", "va": "center"}
            axes.text(column, row, f"{value:.2f}", color="white" if dark else "black", **where)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def fact_grid(
    axes: Axes, values: Float[np.ndarray, "facts facts"], colors: str, low: float | int, high: float | int, label: str
) -> None:
    """A matrix between the facts of a batch, which are counted from one along both sides."""
    color_grid(axes, values, colors, low, high, label)
    axes.set(xlabel="fact", ylabel="fact", aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        axis.set_major_formatter(lambda at, _: f"{at + 1:.0f}")
