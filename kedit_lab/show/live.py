"""Figures of the live panels: arrays and tables in, a matplotlib Figure out; nothing here sees a model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from kedit_lab.show.style import COLORS, MARKERS, PAPER, SUBJECTS, canvas, fact_grid, label_ends, looks, unit_axis

WIDE, HIGH = 11.5, 4.4
LETTERS = 44  # of a prompt or an answer beside a bar
SIDES = {"edited": COLORS[0], "unrelated": COLORS[1]}
WHO = {"itself": COLORS[0], "its subject": COLORS[1], "another subject": COLORS[5]}


def short(text: str, letters: int = LETTERS) -> str:
    """A text that fits beside a bar."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def density(matrix: Any, tried: pd.DataFrame, now: tuple[str, str, int, int, int]) -> Figure:
    """The cosines of a batch's keys, and efficacy and specificity against facts per subject of all that was tried.

    ``tried`` has the columns method, mode, per_subject, size, seed, efficacy and specificity; ``now`` is ringed.
    """
    here = (tried[["method", "mode", "per_subject", "size", "seed"]] == list(now)).all(axis=1)
    look = looks(list(dict.fromkeys(tried["method"])))
    with canvas(13, 4.2, columns=3) as (figure, (left, *others)):
        fact_grid(left, np.asarray(matrix, dtype=float), "RdBu_r", -1, 1, "cosine")
        left.set_title("Cosine of the keys")
        for axes, metric in zip(others, ("efficacy", "specificity"), strict=True):
            for (method, mode), rows in tried.groupby(["method", "mode"], sort=False):
                style = look[method] | ({} if mode == "batch" else {"facecolor": "none", "linewidth": 1.6})
                axes.scatter(rows["per_subject"], rows[metric], s=60, alpha=0.8, label=f"{method}, {mode}", **style)
            ring = {"facecolor": "none", "edgecolor": "black", "linewidth": 1.6}
            axes.scatter(tried.loc[here, "per_subject"], tried.loc[here, metric], s=230, **ring)
            axes.set(title=metric.capitalize(), xlabel="facts per subject", xlim=(0.5, 5.5), xticks=range(1, 6))
            unit_axis(axes, "")
            sns.despine(ax=axes)
        others[-1].legend(loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0.2, title="ringed: now")
    return figure


def distances(matrix: Any, tried: pd.DataFrame, now: tuple[str, str], layer: int) -> Figure:
    """Distances between a batch's keys at a layer, and the average key distance per layer of all that was tried.

    ``tried`` has the columns template, subjects, layer and akd; the line of ``now`` = (template, subjects) is bold.
    """
    apart = np.asarray(matrix, dtype=float)
    with canvas(WIDE, HIGH, columns=2) as (figure, (left, right)):
        fact_grid(left, apart, "cividis", 0, float(apart.max()) or 1, "distance ‖k - k'‖")
        left.set_title(f"Distances between keys, layer {layer}")
        ends = []
        for i, ((template, subjects), rows) in enumerate(tried.groupby(["template", "subjects"], sort=False)):
            style = {"color": COLORS[i], "marker": MARKERS[i], "linewidth": 3 if (template, subjects) == now else 1.2}
            right.plot(rows["layer"], rows["akd"], **style)
            name = f"{template},\n{SUBJECTS.get(subjects, subjects)}"
            ends.append((rows["layer"].iloc[-1], rows["akd"].iloc[-1], name, COLORS[i]))
        right.axvline(layer, color=PAPER, linestyle=":", linewidth=1.2)
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.set(title="Average key distance (AKD)", xlabel="layer (dotted: shown)", ylabel="AKD")
        top = max(1.0, 1.05 * float(tried["akd"].max()))
        right.set_ylim(-0.06 * top, top)
        label_ends(right, ends)
        sns.despine(ax=right)
    return figure


def alignment(key: Float[np.ndarray, " pairs"], residual: Float[np.ndarray, " pairs"],
              related: Bool[np.ndarray, " pairs"], sums: Mapping[str, Any], now: str) -> Figure:  # fmt: skip
    """Residual cosine against key cosine of all pairs of a batch, and ΣA(i) against the step of every method tried.

    ``sums`` holds a sequence of values per method; the line of ``now`` is bold.
    """
    with canvas(WIDE, HIGH, columns=2) as (figure, (left, right)):
        left.plot([-1, 1], [-1, 1], color=PAPER, linestyle="--", linewidth=1.2)
        for mask, name, look in ((~related, "two subjects", (PAPER, "o")), (related, "one subject", ("black", "s"))):
            left.scatter(key[mask], residual[mask], s=46, alpha=0.75, color=look[0], marker=look[1], label=name)
        left.set(title=f"All pairs, {now}", xlabel="cosine of the keys", ylabel="cosine of the residuals")
        left.set(xlim=(-1.08, 1.08), ylim=(-1.08, 1.08))
        left.legend(loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0.2, title="pairs of facts about")
        for method, style in looks(list(sums)).items():
            bold = {"linewidth": 3 if method == now else 1.4, "markevery": [-1]}
            right.plot(range(len(sums[method])), sums[method], label=method, **bold, **style)
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        right.set(title="Misalignment", xlabel="step of the optimisation", ylabel="sum of A(i)")
        right.set_ylim(bottom=0)
        right.legend(loc="upper left", bbox_to_anchor=(1, 1))
        sns.despine(figure)
    return figure


def beta_row(matrix: Any, row: pd.DataFrame, fact: int, form: str) -> Figure:
    """β of a batch with one fact's row framed, and that row as bars (columns fact, β and who of ``row``)."""
    beta = np.asarray(matrix, dtype=float)
    edge = max(1.0, float(np.abs(beta).max()))
    with canvas(WIDE, HIGH, columns=2) as (figure, (left, right)):
        fact_grid(left, beta, "RdBu_r", -edge, edge, "β")
        left.set(title=f"β ({form})", xlabel="fact j", ylabel="fact i")
        left.add_patch(frame_of(fact, len(beta)))
        for who, color in WHO.items():
            rows = row[row["who"] == who]
            right.bar(rows["fact"], rows["β"], color=color, label=who)
        right.axhline(0, color="black", linewidth=0.8)
        right.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        right.set(title=f"What fact {fact + 1} receives", xlabel="from the residual of fact j", ylabel="β")
        right.set_ylim(min(-0.05, 1.1 * float(row["β"].min())), max(1.25, 1.3 * float(row["β"].max())))
        right.legend(loc="upper center", ncols=3, columnspacing=1, handlelength=1)
        sns.despine(ax=right)
    return figure


def frame_of(row: int, columns: int) -> Any:
    """A frame around a row of a matrix."""
    return Rectangle((-0.5, row - 0.5), columns, 1, fill=False, edgecolor="black", linewidth=2.5, clip_on=False)


def routes(nearest: pd.DataFrame, edited: bool) -> Figure:
    """The prompts nearest to the one that was typed, with their weights; those that vote are filled.

    ``nearest`` has the columns prompt, side ("edited" or "unrelated"), weight and votes ("yes" or "no").
    """
    with canvas(WIDE, 0.42 * len(nearest) + 1.6) as (figure, axes):
        for i, row in enumerate(nearest.itertuples()):
            color = SIDES[row.side]
            fill = color if row.votes == "yes" else "white"
            axes.barh(i, row.weight, color=fill, edgecolor=color, linewidth=1.8, height=0.7)
            axes.text(row.weight + 0.08, i, row.side, color=color, va="center")
        axes.set_yticks(range(len(nearest)), [short(text, 56) for text in nearest["prompt"]])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.15 * float(np.exp(2)))
        axes.set_title(f"Nearest prompts (filled: they vote): the {'edited' if edited else 'unedited'} model answers",
                       loc="right")  # fmt: skip
        axes.set_xlabel("weight exp(1 + cosine)")
        axes.tick_params(axis="y", length=0)
        sns.despine(figure, left=True)
    return figure


def answers(before: pd.DataFrame, after: pd.DataFrame, titles: tuple[str, str] = ("before", "after")) -> Figure:
    """The likeliest answers of two models side by side (columns continuation and probability)."""
    with canvas(WIDE, 3.4, columns=2) as (figure, both):
        for axes, frame, title, color in zip(both, (before, after), titles, COLORS, strict=False):
            bars(axes, frame, color)
            axes.set_title(title, loc="left")
        sns.despine(figure, left=True)
    return figure


def bars(axes: Axes, frame: pd.DataFrame, color: str) -> None:
    """Answers as bars of their probability, the likeliest on top."""
    axes.barh(range(len(frame)), frame["probability"], color=color, height=0.7)
    for i, probability in enumerate(frame["probability"]):
        axes.text(probability + 0.02, i, f"{probability:.2f}", va="center")
    axes.set_yticks(range(len(frame)), [short(text, 26) or "∅" for text in frame["continuation"]])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.15), xticks=np.linspace(0, 1, 6), xlabel="probability")
    axes.tick_params(axis="y", length=0)
