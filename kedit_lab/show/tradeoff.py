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
             unedited: float | None = None) -> Figure:  # fmt: skip
    """``y`` against ``x``, one row a point, a coloured line through the rows of each value of ``line`` in their order.

    The Pareto front is ringed and joined by a dashed line; the right panel shows its part of the left one, wider.
    Rows without a value are left out. ``marked`` names rows by their index; ``unedited`` is where the unedited model
    stands on x (a grey line).
    """
    frame = frame.dropna(subset=[x, y])
    front = frame[pareto(frame, x, y)].sort_values(x)
    with canvas(13, 5, columns=2) as (figure, both):
        for panel in both:
            for i, (value, rows) in enumerate(frame.groupby(line, sort=False)):
                style = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)], "lw": 1.6, "ms": 7}
                panel.plot(rows[x], rows[y], label=f"{value:g}", zorder=2, **style)
            panel.plot(front[x], front[y], "--", color="black", lw=1, zorder=3, label="Pareto front")
            panel.scatter(front[x], front[y], s=150, facecolor="none", edgecolor="black", linewidth=1.2, zorder=3)
            if unedited is not None:
                panel.axvline(unedited, color=PAPER, lw=1.2)
            panel.set(xlabel=x, ylabel=y, ylim=(-0.05, 1.08), yticks=np.linspace(0, 1, 6))
        figure.suptitle(title, x=0.01, ha="left")
        axes, close = both
        axes.set_title("all settings", loc="left")
        room = 0.08 * np.ptp(front[x]) or 0.01
        close.set_xlim(front[x].min() - room, front[x].max() + room)
        close.set_title("the front", loc="left")
        for name, at in (marked or {}).items():
            left = frame.loc[at, x] < (frame[x].min() + frame[x].max()) / 2  # labels stay off the axis and the lines
            where = {"xytext": (6, -62) if left else (-30, -62), "textcoords": "offset points"}
            where["ha"] = "left" if left else "center"
            arrow = {"arrowstyle": "-", "color": PAPER, "shrinkB": 8}
            axes.annotate(name, (frame.loc[at, x], frame.loc[at, y]), arrowprops=arrow, **where)
        if unedited is not None:
            beside = {"xytext": (6, 0), "textcoords": "offset points", "rotation": 90, "color": PAPER}
            axes.annotate("unedited", (unedited, 0.4), **beside)
        axes.margins(x=0.2)
        close.legend(loc="upper left", bbox_to_anchor=(1.04, 1), title=line, alignment="left")
        sns.despine(figure)
    return figure
