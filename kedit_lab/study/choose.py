"""Which method when: the grid of every method on every kind of batch (LAB-3) as shares of the best, and as advice."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from kedit_lab.edit.recipe import Recipe, Tuning
from kedit_lab.edit.recipes import find
from kedit_lab.study.compare import UNEDITED

ASKED = ("efficacy", "paraphrase", "specificity", "portability")
KEPT = ("fluency", "ability")
COSTS = {"seconds": "speed", "megabytes": "memory"}
LEAST = {"efficacy": 0.9, "paraphrase": 0.9, "specificity": 0.9, "fluency": 0.9, "ability": 0.95}
FREE = 0.05  # two methods whose products of answers differ by less are told apart by their seconds


def family(method: str) -> str:
    """What kind of method a recipe is: "merged" values, "aligned" residuals, "located" otherwise; "trained", "other".

    Raises ValueError for an unknown recipe.
    """
    recipe = find(method)
    if isinstance(recipe, Recipe):
        return "merged" if recipe.group != "each" else "aligned" if recipe.align != "none" else "located"
    return "trained" if isinstance(recipe, Tuning) else "other"


def scorecard(rows: pd.DataFrame) -> pd.DataFrame:
    """Every metric of ``compared`` as a share from 0 to 1, one row per (case, method), 1 the best there is.

    Answers are shares already. ``fluency`` and ``ability`` are divided by the unedited model's (more counts as 1);
    ``speed`` and ``memory`` are the smallest seconds and megabytes of the case, divided by the method's. Methods that
    refuse a case have NaN. Raises ValueError where a case has no row of the unedited model.
    """
    parts = {}
    for case, found in rows.set_index("method").groupby("case", sort=False):
        if UNEDITED not in found.index:
            raise ValueError(
                f"case {case!r} has no row {UNEDITED!r}; run compared(lab, {UNEDITED!r}, {case!r}) as well"
            )
        made = found[list(ASKED)].copy()
        for metric in KEPT:
            made[metric] = (found[metric] / found.loc[UNEDITED, metric]).clip(upper=1.0)
        for cost, name in COSTS.items():
            made[name] = found[cost].min() / found[cost]
        parts[case] = made.drop(index=UNEDITED)
    return pd.concat(parts, names=["case", "method"])


def choose(rows: pd.DataFrame, least: Mapping[str, Any] = LEAST) -> pd.DataFrame:
    """Per case, what to use: ``suitable`` (all that reach every ``least`` share of the scorecard, quickest first),
    ``quickest``, ``strongest`` (highest efficacy x paraphrase x specificity x portability among them; of those within
    ``FREE`` of it the quickest), and how many were ``tried``.

    ``least`` maps columns of ``scorecard`` to the smallest share that will do. Raises ValueError for an unknown column.
    """
    card = scorecard(rows)
    unknown = set(least) - set(card)
    if unknown:
        raise ValueError(f"unknown columns {sorted(unknown)}; the scorecard has {', '.join(card)}")
    advice = {}
    for case, found in card.droplevel("case").groupby(card.index.get_level_values("case"), sort=False):
        enough = np.logical_and.reduce([found[metric] >= share for metric, share in least.items()])
        good = found[enough].sort_values("speed", ascending=False, kind="stable")
        worth = good[list(ASKED)].prod(axis=1)
        best = worth[worth >= worth.max() - FREE].index
        names = list(good.index)
        advice[case] = {
            "suitable": ", ".join(names),
            "quickest": names[0] if names else "none",
            "strongest": best[0] if names else "none",
            "tried": int(found["efficacy"].notna().sum()),
        }
    return pd.DataFrame(advice).T.rename_axis("case")
