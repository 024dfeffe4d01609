"""The figure that justifies a suggestion: where the subject's state decides, and which step size gets there."""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from kedit_lab.show.style import COLORS, MARKERS, canvas, unit_axis


def suggestion(layers: pd.DataFrame, steps: pd.DataFrame, values: dict) -> Figure:
    """Left the share of pairs that flip and that keep their answer by layer, the suggested layers shaded; right the
    steps that each step size took (bars) and the share of targets that it reached (points), the suggested one darker.

    The arguments are the fields of ``kl.suggest``'s answer.
    """
    with canvas(11.5, 4, columns=2) as (figure, (left, right)):
        for i, column in enumerate(("flipped", "kept")):
            left.plot(layers.index, layers[column], color=COLORS[i], marker=MARKERS[i], linewidth=2, label=column)
        left.axvspan(min(values["layers"]) - 0.4, max(values["layers"]) + 0.4, color=COLORS[2], alpha=0.18, linewidth=0)
        left.set_title("Subject's state exchanged (shaded: suggested)", loc="left")
        left.set_xlabel("layer")
        unit_axis(left, "share of pairs")
        left.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        shades = [COLORS[2] if rate == values["lr"] else "#B0B0B0" for rate in steps.index]
        right.bar(range(len(steps)), steps["steps"], color=shades)
        right.set_xticks(range(len(steps)), [f"{rate:g}" for rate in steps.index])
        right.set_title("Step sizes (green: suggested)", loc="left")
        right.set_xlabel("lr, in units of ‖h‖/√d_model")
        right.set_ylabel("steps until the stop, mean")
        share = right.twinx()
        share.plot(range(len(steps)), steps["reached"], color=COLORS[1], marker="s", linestyle="--", linewidth=1.5)
        unit_axis(share, "targets reached (orange)")
        sns.despine(ax=left)
    return figure
