"""Figures that put many methods side by side: all metrics of all cases as colours, and what quality costs."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from kedit_lab.show.style import COLORS, MARKERS, PAPER, canvas, unit_axis


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

    Those on the front, which no other beats in both, are joined by a grey line and named.
    """
    best = front(frame, x, y)
    with canvas(9, 4.6, title) as (figure, axes):
        axes.step(best[x], best[y], where="post", color=PAPER, linewidth=1.2, linestyle="--")
        for i, kind in enumerate(dict.fromkeys(frame[hue])):
            rows = frame[frame[hue] == kind]
            style = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)], "alpha": 0.85}
            axes.scatter(rows[x], rows[y], s=80, label=str(kind), edgecolor="white", linewidth=0.7, **style)
        for name, row in best.iterrows():
            axes.annotate(str(name), (row[x], row[y]), xytext=(0, 9), textcoords="offset points", ha="center")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"{x} (log scale)")
        unit_axis(axes, y)
        axes.set_ylim(-0.05, 1.15)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), title=hue, alignment="left")
        sns.despine(figure)
    return figure
