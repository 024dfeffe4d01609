"""What an edit keeps against what it spares: settings as points, and those among them that nothing beats."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from kedit_lab.show.style import COLORS, MARKERS, PAPER, canvas


def pareto(frame: pd.DataFrame, x: str, y: str) -> pd.Series:
    """Which rows are on the Pareto front: no other is as good in both columns and better in one (more is better)."""
    points = frame[[x, y]].to_numpy(dtype=float)
    least, most = points[:, None] >= points[None], points[:, None] > points[None]
    beaten = (least.all(-1) & most.any(-1)).any(0)
    return pd.Series(~beaten, index=frame.index)


def tradeoff(frame: pd.DataFrame, x: str, y: str, line: str, marked: Mapping[str, Any] | None = None, title: str = "",
             best: float | None = None) -> Figure:  # fmt: skip
    """``y`` against ``x``, one row a point, a coloured line through the rows of each value of ``line`` in their order.

    The Pareto front is ringed and joined by a dashed line. ``marked`` names rows by their index; ``best`` is where the
    unedited model stands on x (a grey line).
    """
    with canvas(9.5, 5, title) as (figure, axes):
        for i, (value, rows) in enumerate(frame.groupby(line, sort=False)):
            style = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)], "lw": 1.6, "ms": 7}
            axes.plot(rows[x], rows[y], label=f"{value:g}", zorder=2, **style)
        front = frame[pareto(frame, x, y)].sort_values(x)
        axes.plot(front[x], front[y], "--", color="black", lw=1, zorder=3, label="Pareto front")
        axes.scatter(front[x], front[y], s=150, facecolor="none", edgecolor="black", linewidth=1.2, zorder=3)
        for name, at in (marked or {}).items():
            left = frame.loc[at, x] < (frame[x].min() + frame[x].max()) / 2  # labels stay off the axis and the lines
            where = {"xytext": (6, -62) if left else (-30, -62), "textcoords": "offset points"}
            where["ha"] = "left" if left else "center"
            arrow = {"arrowstyle": "-", "color": PAPER, "shrinkB": 8}
            axes.annotate(name, (frame.loc[at, x], frame.loc[at, y]), arrowprops=arrow, **where)
        if best is not None:
            axes.axvline(best, color=PAPER, lw=1.2)
            axes.annotate("unedited", (best, 0.4), color=PAPER, xytext=(6, 0), textcoords="offset points", rotation=90)
        axes.margins(x=0.2)
        axes.set(xlabel=x, ylabel=y, ylim=(-0.05, 1.08), yticks=np.linspace(0, 1, 6))
        axes.legend(loc="upper left", bbox_to_anchor=(1.04, 1), title=line, alignment="left")
        sns.despine(figure)
    return figure
