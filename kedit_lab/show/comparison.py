"""Figures that put many methods side by side: all metrics of all cases as colours, and what quality costs."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from kedit_lab.show.style import PAPER, canvas, label_ends, log_axis, looks, unit_axis

GOOD, DEAR = 0.75, 2  # of the best score, times the least cost


def method_map(card: pd.DataFrame, title: str = "") -> Figure:
    """Methods x metrics as colours, one panel per case, 1 the best: ``card`` is what ``scorecard`` returns.

    Rows follow the table; a method that refuses a case has a row of crosses there.
    """
    cases = list(dict.fromkeys(card.index.get_level_values("case")))
    methods = list(dict.fromkeys(card.index.get_level_values("method")))
    height = 1.9 + 0.27 * len(methods)
    with canvas(2.2 + 2.8 * len(cases), height, columns=len(cases)) as (figure, axes):
        for i, (case, panel) in enumerate(zip(cases, np.atleast_1d(axes), strict=True)):
            values = card.loc[case].reindex(methods).to_numpy(dtype=float)
            image = panel.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            rows, columns = np.nonzero(~np.isfinite(values))
            panel.scatter(columns, rows, marker="x", color=PAPER, s=18, linewidth=1)
            panel.set_title(case)
            panel.set_xticks(range(card.shape[1]), card.columns, rotation=60, ha="right", rotation_mode="anchor")
            panel.set_yticks(range(len(methods)), methods if i == 0 else [""] * len(methods))
            panel.hlines(np.arange(len(methods) - 1) + 0.5, -0.5, card.shape[1] - 0.5, color="white", linewidth=0.8)
            panel.tick_params(length=0)
            panel.spines[:].set_visible(False)
        figure.colorbar(image, ax=axes, label="share of the best (×: refused)", pad=0.01)
        if title:
            figure.suptitle(title, x=0.01, ha="left")
    return figure


def front(frame: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """The rows that no other row beats in both: none has a smaller x with at least the y; in order of x."""
    ordered = frame.sort_values([x, y], ascending=[True, False])
    before = ordered[y].cummax().shift(fill_value=-np.inf)
    return ordered[ordered[y] > before]


def price(frame: pd.DataFrame, x: str, y: str, hue: str, title: str = "") -> Figure:
    """Methods (the index) as points, cost ``x`` on a log scale against quality ``y`` in 0 to 1, coloured by ``hue``.

    Those on the front, which no other beats in both, are joined by a grey line. The good and cheap (``GOOD`` of the
    best at least, ``DEAR`` times the cheapest at most) crowd in one corner, which the right panel shows larger. Every
    point is named in one of the two. Where nobody is both there is one panel.
    """
    best, look = front(frame, x, y), looks(list(dict.fromkeys(frame[hue])))
    good = (frame[y] >= GOOD * frame[y].max()) & (frame[x] <= DEAR * frame[x].min())
    with canvas(13 if good.any() else 8, 5, columns=2 if good.any() else 1) as (figure, panels):
        both = np.atleast_1d(panels)
        for axes in both:
            axes.step(best[x], best[y], where="post", color=PAPER, linewidth=1.2, linestyle="--", label="front")
            for kind, style in look.items():
                rows = frame[frame[hue] == kind]
                axes.scatter(rows[x], rows[y], s=80, label=str(kind), edgecolor="white", linewidth=0.7, **style)
            axes.set(xlabel=x, ylabel=y)
        figure.suptitle(title, x=0.01, ha="left")
        both[0].set_title("all methods", loc="left")
        log_axis(both[0], "x")
        both[0].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        both[0].xaxis.set_minor_formatter(NullFormatter())
        both[0].set_xlabel(f"{x} (log scale)")
        unit_axis(both[0], y)
        for name, row in frame[~good].iterrows():
            both[0].annotate(str(name), (row[x], row[y]), xytext=(8, 0), textcoords="offset points", va="center")
        both[0].legend(loc="upper right", title=hue, alignment="left")
        for close in both[1:]:
            near = frame[good]
            for bounds, column in ((close.set_xlim, x), (close.set_ylim, y)):
                room = 0.08 * np.ptp(near[column]) or 0.01
                bounds(near[column].min() - room, near[column].max() + room)
            close.set_title("its upper left corner", loc="left")
            ends = [(row[x], row[y], str(name), look[row[hue]]["color"]) for name, row in near.iterrows()]
            label_ends(close, ends, edge=near[x].max())
        sns.despine(figure)
    return figure
