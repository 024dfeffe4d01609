"""Figures of one number against another: tables in, a matplotlib Figure out."""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kedit_lab.show.style import COLORS, MARKERS, PAPER, canvas, log_axis, looks, unit_axis

BANDS = 3  # that can lie on each other and still be told apart
BESIDE = 0.006  # of the axis: how far lines of several kinds stand apart at one point


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
    """Points coloured and shaped by a column (eight kinds at most), on logarithmic axes if ``log``; those of later
    kinds are smaller, so that points on one spot are all seen.

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
        edge = {"edgecolor": "white", "linewidth": 0.6, "alpha": 0.85}
        for size, (kind, look) in zip(np.linspace(110, 30, len(kinds)), looks(kinds).items(), strict=True):
            rows = frame[frame[hue] == kind]
            axes.scatter(rows[x], rows[y], s=size, label=str(kind), **edge, **look)
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
    """``y`` against ``x``, one line per kind: the mean over rows, a band from the lowest to the highest (of more than
    three kinds, whose bands would hide each other, a thin upright line at every point, beside each other). The axis of
    y begins at zero where it is linear and nothing lies below.

    Kinds whose names begin with "paper" are grey, each with dashes of its own.
    """
    kinds = list(dict.fromkeys(frame[hue]))
    theirs = [kind for kind in kinds if str(kind).startswith("paper")]
    ours = [kind for kind in kinds if kind not in theirs]
    dashes = dict(zip(theirs, cycle(["--", ":", "-."]), strict=False))
    with canvas(8, 4, title) as (figure, axes):
        for kind, look in (looks(ours) | looks(theirs)).items():
            rows = frame[frame[hue] == kind].groupby(x)[y].agg(["mean", "min", "max"])
            look |= {"color": PAPER, "linestyle": dashes[kind]} if kind in theirs else {}
            places = rows.index
            if len(ours) > BANDS and kind in ours:
                places = aside(places, frame[x], ours.index(kind) - (len(ours) - 1) / 2, log)
                axes.vlines(places, rows["min"], rows["max"], color=look["color"], linewidth=1.2)
            else:
                axes.fill_between(places, rows["min"], rows["max"], color=look["color"], alpha=0.18, linewidth=0)
            axes.plot(places, rows["mean"], lw=2, label=str(kind), **look)
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
        elif frame[y].min() >= 0 and not log_y:
            axes.set_ylim(bottom=0)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        sns.despine(figure)
    return figure


def aside(places: pd.Index, all_of_them: pd.Series, by: float, log: bool) -> Float[np.ndarray, " places"]:
    """Numbers on an axis moved a little, so that lines of several kinds stand beside each other."""
    seen = all_of_them[all_of_them > 0] if log else all_of_them
    step = BESIDE * by * np.ptp(np.log(seen) if log else seen)
    return places.to_numpy(dtype=float) * np.exp(step) if log else places.to_numpy(dtype=float) + step


def multiples(frame: pd.DataFrame, x: str, columns: Mapping[str, str], title: str = "") -> Figure:
    """Columns against ``x``, each in a panel with an axis of its own, from zero: ``columns`` gives their names."""
    with canvas(1.5 + 3.4 * len(columns), 3.4, columns=len(columns)) as (figure, axes):
        for i, (panel, (column, name)) in enumerate(zip(np.atleast_1d(axes), columns.items(), strict=True)):
            panel.plot(frame[x], frame[column], color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], lw=2)
            panel.set(title=name, xlabel=x)
            panel.set_ylim(bottom=0)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if title:
            figure.suptitle(title, x=0.01, ha="left")
        sns.despine(figure)
    return figure
