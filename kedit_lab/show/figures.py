"""Figures of the notebooks: arrays and tables in, a matplotlib Figure out; nothing here sees a model.

Every function returns its Figure closed, so that a notebook shows it once, as the value of its cell.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from kedit_lab.show.style import (
    COLORS,
    LABELS_SHOWN,
    MARKERS,
    PAPER,
    SUBJECTS,
    canvas,
    color_grid,
    fact_grid,
    label_ends,
    looks,
    shown,
    unit_axis,
    visible,
)

LONG = 24  # letters of a name that beside the bars would take a third of the figure


def arm_name(method: str, subjects: str) -> str:
    """How figures call a method on a kind of batch: "memit, one subject"."""
    return f"{method}, {SUBJECTS.get(subjects, subjects)}"


def efficacy_curve(
    frame: pd.DataFrame, metric: str = "efficacy", papers: pd.DataFrame | None = None, title: str = ""
) -> Figure:
    """A metric against batch size, one line per (method, subjects): mean over seeds, band from lowest to highest.

    A method has one colour; with both kinds of subjects the lines of distinct ones are dotted. ``frame`` is what
    ``kl.collision_study`` returns; ``papers`` (columns label, size, value) is drawn in grey.
    """
    with canvas(8, 4.2, title) as (figure, axes):
        ends, look = [], looks(list(dict.fromkeys(frame["method"])))
        both = frame["subjects"].nunique() > 1
        for (method, subjects), arm in frame.groupby(["method", "subjects"], sort=False):
            seeds = arm.groupby("size")[metric].agg(["mean", "min", "max"])
            style = look[method] | {"linestyle": ":" if both and subjects == "distinct" else "-"}
            axes.fill_between(seeds.index, seeds["min"], seeds["max"], color=style["color"], alpha=0.18, linewidth=0)
            axes.plot(seeds.index, seeds["mean"], linewidth=2, **style)
            name = arm_name(method, subjects) if both else method
            ends.append((seeds.index[-1], seeds["mean"].iloc[-1], name, style["color"]))
        for label, points in [] if papers is None else papers.groupby("label", sort=False):
            points = points.sort_values("size")
            axes.plot(points["size"], points["value"], color=PAPER, marker=".", linestyle="--", linewidth=1.2)
            at = (points["size"].iloc[-1], points["value"].iloc[-1])
            if len(points) == 1:  # a lone point stands among the lines: its name goes below it, to the left
                away = {"xytext": (-5, -4), "textcoords": "offset points", "ha": "right", "va": "top"}
                axes.annotate(label, at, color=PAPER, **away)
            else:
                ends.append((*at, label, PAPER))
        sizes = sorted(set(frame["size"]) | (set() if papers is None else set(papers["size"])))
        axes.set_xscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("facts edited at once")
        unit_axis(axes, metric)
        label_ends(axes, ends)
        sns.despine(figure)
    return figure


def heatmap(
    matrix: Any,
    labels: Sequence[Any] | None = None,
    title: str = "",
    vmin: float | int = -1,
    vmax: float | int = 1,
    label: str = "cosine",
) -> Figure:
    """A facts x facts matrix (cosines of keys, β) as colours: diverging around 0, or sequential if ``vmin`` >= 0.

    Up to six facts the numbers stand in their cells; of many labels only some are written.
    """
    values = np.asarray(matrix, dtype=float)
    names = shown([str(i + 1) for i in range(len(values))] if labels is None else labels)
    tilted = {} if labels is None else {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
    colors = "RdBu_r" if vmin < 0 else "cividis"
    with canvas(5.6 if labels is None else 7.5, 4.6, title) as (figure, axes):
        color_grid(axes, values, colors, vmin, vmax, label)
        axes.set_aspect("equal")
        axes.set_xticks(range(len(values)), names, **tilted)
        axes.set_yticks(range(len(values)), names)
        if labels is None:
            axes.set_xlabel("fact")
            axes.set_ylabel("fact")
    return figure


def grid(frame: pd.DataFrame, label: str, title: str = "", vmin: float | int = 0, vmax: float | int = 1) -> Figure:
    """A table as colours, first row on top: names of ticks and axes are the frame's; what is missing is white."""
    names = [shown(list(labels)) for labels in (frame.columns, frame.index)]
    with canvas(6.4, 4.6, title) as (figure, axes):
        color_grid(axes, frame.to_numpy(dtype=float), "cividis", vmin, vmax, label, LABELS_SHOWN)
        axes.set_xticks(range(frame.shape[1]), names[0])
        axes.set_yticks(range(frame.shape[0]), names[1])
        axes.set_xlabel(str(frame.columns.name or "").replace("_", " "))
        axes.set_ylabel(str(frame.index.name or "").replace("_", " "))
    return figure


def bars(
    frame: pd.DataFrame,
    x: str,
    y: str,
    hue: str | None = None,
    papers: pd.DataFrame | None = None,
    title: str = "",
    unedited: float | None = None,
) -> Figure:
    """Grouped bars: mean of ``y`` per ``x`` (and ``hue``), a line from the lowest to the highest row of each.

    ``papers`` has the same ``x`` and ``hue`` columns and a column ``value``, drawn as grey diamonds on the bars.
    ``unedited`` is where the model without an edit stands (a grey line). Long names of many kinds stand below.
    """
    groups = list(dict.fromkeys(frame[x]))
    hues = [None] if hue is None else list(dict.fromkeys(frame[hue]))
    width, look = 0.8 / len(hues), looks(hues)
    with canvas(8, 4, title) as (figure, axes):
        if unedited is not None:
            axes.axhline(unedited, color=PAPER, linewidth=1.2, label="unedited")
        for j, kind in enumerate(hues):
            rows = frame if hue is None else frame[frame[hue] == kind]
            found = rows.groupby(x)[y].agg(["mean", "min", "max"]).reindex(groups)
            places = np.arange(len(groups)) - 0.4 + width * (j + 0.5)
            color, name = look[kind]["color"], None if hue is None else str(kind)
            axes.bar(places, found["mean"], 0.9 * width, color=color, label=name)
            axes.vlines(places, found["min"], found["max"], color="black", linewidth=1.2)
            if papers is not None:
                theirs = (papers if hue is None else papers[papers[hue] == kind]).groupby(x)["value"].mean()
                style = {"color": PAPER, "edgecolor": "white", "marker": "D", "s": 55, "zorder": 3}
                axes.scatter(places, theirs.reindex(groups), label="paper" if j == len(hues) - 1 else None, **style)
        axes.set_xticks(range(len(groups)), [str(group) for group in groups])
        axes.set_xlabel(x.replace("_", " "))
        axes.set_ylabel(y.replace("_", " "))
        if frame[y].between(0, 1).all():
            unit_axis(axes, y.replace("_", " "))
            axes.set_ylim(0, 1.03)
        elif frame[y].min() < 0:
            axes.axhline(0, color="black", linewidth=0.8)
        if max(len(str(kind)) for kind in hues) > LONG:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
        elif hue is not None or papers is not None or unedited is not None:
            named = None if hue is None else hue.replace("_", " ")
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), title=named, alignment="left")
        sns.despine(figure)
    return figure


def scatter(frame: pd.DataFrame, x: str, y: str, hue: str, title: str = "") -> Figure:
    """Points coloured by a column, for pictures of a principal component analysis.

    Up to eight kinds get a colour, a shape and a legend, later ones smaller, so that points on one spot are all seen;
    more kinds get a colour each and are only counted.
    """
    kinds = list(dict.fromkeys(frame[hue]))
    few = len(kinds) <= len(COLORS)
    colors = COLORS if few else sns.husl_palette(len(kinds), l=0.55)
    sizes = np.linspace(260, 110, len(kinds)) if few else np.full(len(kinds), 42)
    edge = {"linewidth": 0.6, "edgecolor": "#333333"} if few else {"linewidth": 0, "alpha": 0.8}
    with canvas(7.5 if few else 6, 4.5, title) as (figure, axes):
        for i, kind in enumerate(kinds):
            rows = frame[frame[hue] == kind]
            marker = MARKERS[i] if few else MARKERS[i % 4]
            axes.scatter(rows[x], rows[y], s=sizes[i], color=[colors[i]], marker=marker, label=str(kind), **edge)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if few:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), title=hue, alignment="left")
        else:
            axes.text(1, 1.02, f"{len(kinds)} {hue}s, one colour each", transform=axes.transAxes, ha="right", size=11)
        sns.despine(figure)
    return figure


def trace_map(frame: pd.DataFrame) -> Figure:
    """Causal tracing as colours: probability of the answer with one block's output restored at one token.

    ``frame`` is what ``kl.trace`` returns. Tokens of the subject, whose embeddings were noised, bear a ``*``.
    """
    grid = frame.pivot(index="layer", columns="position", values="restored").sort_index(ascending=False)
    tokens = frame.drop_duplicates("position").set_index("position").loc[grid.columns]
    names = [
        visible(token) + ("*" if own else "") for token, own in zip(tokens["token"], tokens["is_subject"], strict=True)
    ]
    clean, corrupted = frame["clean"].iloc[0], frame["corrupted"].iloc[0]
    title = f"P(answer): {clean:.2f} clean, {corrupted:.2f} with noise on the subject (*)"
    with canvas(max(6, 0.62 * len(names) + 2), 3.8, title) as (figure, axes):
        color_grid(axes, grid.to_numpy(), "cividis", 0, max(clean, 1e-9), "P(answer), restored")
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(grid)), list(grid.index))
        axes.set_xlabel("token whose state is restored")
        axes.set_ylabel("layer")
    return figure


def layer_lines(frame: pd.DataFrame, columns: Sequence[str], title: str = "") -> Figure:
    """Columns against ``layer``, one line each: the mean over the rows of a layer (shares, for yes-or-no columns)."""
    means = frame.groupby("layer")[list(columns)].mean()
    with canvas(7.5, 3.8, title) as (figure, axes):
        for i, column in enumerate(columns):
            axes.plot(means.index, means[column], color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], lw=2)
        if frame[list(columns)].astype(float).stack().between(0, 1).all():
            unit_axis(axes, "share of pairs" if "pair" in frame else "share")
        axes.set_xticks(list(means.index))
        axes.set_xlabel("layer")
        ends = [(means.index[-1], means[column].iloc[-1], column.replace("_", " ")) for column in columns]
        label_ends(axes, [(*end, COLORS[i % len(COLORS)]) for i, end in enumerate(ends)])
        sns.despine(figure)
    return figure


def loss_curves(losses: pd.DataFrame, title: str = "Loss of the target optimisation") -> Figure:
    """``edit.losses()``: the loss of every group of facts against the step, thin, with a dot where it stopped."""
    groups = list(losses.groupby("group"))
    with canvas(7, 3.8, title) as (figure, axes):
        for i, (_, curve) in enumerate(groups):
            few = len(groups) <= len(COLORS)
            color = COLORS[i] if few else COLORS[0]
            axes.plot(curve["step"], curve["loss"], color=color, lw=1.8 if few else 0.9, alpha=1 if few else 0.45)
            axes.plot(curve["step"].iloc[-1], curve["loss"].iloc[-1], "o", color=color, ms=4)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("step")
        note = f"{len(groups)} {'curve' if len(groups) == 1 else 'curves'} (dot: stopped)"
        axes.text(0.98, 0.95, note, transform=axes.transAxes, ha="right", va="top")
        axes.set_ylabel("loss (log scale)")
        sns.despine(figure)
    return figure


def token_strip(tokens: Sequence[str], highlight: int | Sequence[int] = -1, title: str = "") -> Figure:
    """A prompt as a row of token boxes (· is a space) with the looked-up token, or several, in colour."""
    chosen = {highlight} if isinstance(highlight, int) else set(highlight)
    chosen = {at % len(tokens) for at in chosen}
    names = [visible(token) for token in tokens]
    widths = [0.30 + 0.115 * len(name) for name in names]
    with canvas(max(4.0, sum(widths) + 0.1 * len(names)), 1.1 if title else 0.8, title) as (figure, axes):
        left = 0.0
        for i, (name, width) in enumerate(zip(names, widths, strict=True)):
            fill = COLORS[1] if i in chosen else "#EDEDED"
            box = FancyBboxPatch(
                (left, 0), width, 0.5, "round,pad=0,rounding_size=0.08", facecolor=fill, edgecolor="none"
            )
            axes.add_patch(box)
            color = "white" if i in chosen else "black"
            axes.text(left + width / 2, 0.25, name, color=color, ha="center", va="center", family="monospace", size=12)
            axes.text(left + width / 2, -0.18, str(i), color=PAPER, ha="center", va="center", size=9)
            left += width + 0.08
        axes.set(xlim=(-0.05, left), ylim=(-0.35, 0.55), aspect="equal")
        axes.set_axis_off()
    return figure


def collision(matrix: Any, tried: pd.DataFrame, now: tuple[str, int, int]) -> Figure:
    """Left the cosines of a batch's keys, right efficacy against size for every batch tried so far.

    ``tried`` has the columns arm (a categorical keeps the colours of arms not tried yet), size, seed and efficacy;
    ``now`` = (arm, size, seed) is ringed.
    """
    with canvas(11.5, 4.2, columns=2) as (figure, (left, right)):
        fact_grid(left, np.asarray(matrix, dtype=float), "RdBu_r", -1, 1, "cosine")
        left.set_title("Cosine of the facts' keys")
        arms = {arm: arm.rpartition(" · ")[2] for arm, _ in tried.groupby("arm", observed=False)}  # and their methods
        look = looks(list(dict.fromkeys(arms.values())))
        for arm, rows in tried.groupby("arm", observed=False):
            style = look[arms[arm]] | ({"facecolor": "none"} if SUBJECTS["distinct"] in arm else {})
            right.scatter(rows["size"], rows["efficacy"], s=60, label=arm, alpha=0.8, **style)
        here = tried[(tried["arm"] == now[0]) & (tried["size"] == now[1]) & (tried["seed"] == now[2])]
        right.scatter(here["size"], here["efficacy"], s=230, facecolor="none", edgecolor="black", linewidth=1.6)
        right.set_xscale("log")
        right.set_xlim(0.8, 65)
        right.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        right.xaxis.set_minor_locator(NullLocator())
        right.set(title="Tried so far (ringed: now)", xlabel="facts edited at once")
        unit_axis(right, "efficacy")
        right.legend(loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0.2)
        sns.despine(ax=right)
    return figure
