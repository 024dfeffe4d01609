"""Figures of one number against another: tables in, a matplotlib Figure out."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from kedit_lab.show.style import COLORS, MARKERS, PAPER, canvas, log_axis, unit_axis


def cloud(
    frame: pd.DataFrame,
    x: str,
    y: str,
    hue: str,
    line: pd.DataFrame | None = None,
    log: bool = False,
    diagonal: bool = False,
    title: str = "",
) -> Figure:
    """Points coloured and shaped by a column (eight kinds at most), on logarithmic axes if ``log``.

    ``line`` (columns x, value, low, high: what ``Line.band`` returns) is drawn in grey with its band; ``diagonal``
    draws y = x. Raises ValueError for more kinds than colours.
    """
    kinds = list(dict.fromkeys(frame[hue]))
    if len(kinds) > len(COLORS):
        raise ValueError(f"{hue} has {len(kinds)} kinds; {len(COLORS)} colours can be told apart")
    with canvas(8.5, 4.4, title) as (figure, axes):
        if log:
            log_axis(axes, "x")
            log_axis(axes, "y")
        if line is not None:
            axes.fill_between(line["x"], line["low"], line["high"], color=PAPER, alpha=0.2, linewidth=0)
            axes.plot(line["x"], line["value"], color=PAPER, linewidth=2)
        for i, kind in enumerate(kinds):
            rows = frame[frame[hue] == kind]
            look = {"color": COLORS[i], "marker": MARKERS[i], "edgecolor": "white", "linewidth": 0.6, "alpha": 0.85}
            axes.scatter(rows[x], rows[y], s=60, label=str(kind), **look)
        if diagonal:
            ends = [float(frame[[x, y]].min().min()), float(frame[[x, y]].max().max())]
            axes.plot(ends, ends, color="black", linestyle="--", linewidth=1, label="equal")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if frame[y].between(0, 1).all() and not log:
            unit_axis(axes, y)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), title=hue, alignment="left")
        sns.despine(figure)
    return figure


def curves(
    frame: pd.DataFrame, x: str, y: str, hue: str, log: bool = True, log_y: bool = False, title: str = ""
) -> Figure:
    """``y`` against ``x``, one line per kind: the mean over rows, a band from the lowest to the highest.

    Kinds whose names begin with "paper" are grey and dashed.
    """
    kinds = list(dict.fromkeys(frame[hue]))
    with canvas(8, 4, title) as (figure, axes):
        for i, kind in enumerate(kinds):
            rows = frame[frame[hue] == kind].groupby(x)[y].agg(["mean", "min", "max"])
            theirs = str(kind).startswith("paper")
            look = {"color": PAPER if theirs else COLORS[i % len(COLORS)], "linestyle": "--" if theirs else "-"}
            axes.fill_between(rows.index, rows["min"], rows["max"], color=look["color"], alpha=0.18, linewidth=0)
            axes.plot(rows.index, rows["mean"], marker=MARKERS[i % len(MARKERS)], lw=2, label=str(kind), **look)
        places = sorted(set(frame[x]))
        if log:
            axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:g}" for place in places])
        if log_y:
            log_axis(axes, "y")
        axes.minorticks_off()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if frame[y].between(-0.01, 1.01).all() and not log_y:
            unit_axis(axes, y)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        sns.despine(figure)
    return figure
