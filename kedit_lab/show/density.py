"""How dense knowledge is: the number of facts per subject, counted."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kedit_lab.show.style import COLORS, PAPER, canvas


def facts_per_subject(counts: pd.DataFrame, papers: pd.DataFrame | None = None, title: str = "") -> Figure:
    """Histogram of the column ``facts``, one row a subject, the ``kind`` of subjects stacked in colours.

    ``papers`` (columns label, value) gives the mean facts per subject of other data sets: dashed grey lines with names.
    """
    table = pd.crosstab(counts["facts"], counts["kind"])[list(dict.fromkeys(counts["kind"]))]
    with canvas(7.5, 3.6, title) as (figure, axes):
        below = pd.Series(0, index=table.index)
        for kind, color in zip(table, COLORS, strict=False):
            axes.bar(table.index, table[kind], bottom=below, color=color, label=str(kind))
            below += table[kind]
        axes.set_xlim(0, table.index.max() + 1)
        axes.set_ylim(0, 1.12 * below.max())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("facts per subject")
        axes.set_ylabel("subjects")
        rows = [] if papers is None else zip(papers["label"], papers["value"], strict=True)
        for i, (label, value) in enumerate(rows):
            axes.axvline(value, color=PAPER, linestyle="--", linewidth=1.2)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over the lines of the other names
            at = {"transform": axes.get_xaxis_transform(), "va": "top", "bbox": box}
            axes.text(value + 0.2, 0.99 - 0.1 * i, f"{label}: {value:g}", color=PAPER, **at)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        sns.despine(figure)
    return figure
